"""The finer classes from which images are made.  A label map's ``tissue`` array holds these values."""

from __future__ import annotations

from enum import IntEnum


class Tissue(IntEnum):
    """What a voxel is made of; the order is part of the cache format of training, so append only."""

    AIR = 0
    SKIN = 1
    SUBCUTANEOUS_FAT = 2
    FAT = 3
    MUSCLE = 4
    PSOAS = 5
    LUNG = 6
    AIRWAY = 7
    ARTERY = 8
    VEIN = 9
    LIVER = 10
    SPLEEN = 11
    KIDNEY = 12
    BOWEL = 13
    FLUID = 14
    ORGAN = 15
    HEART = 16
    OESOPHAGUS = 17
    BRAIN = 18
    RIB = 19
    OTHER_BONE = 20
    CSF = 21
    CORD = 22
    CORD_GREY = 23
    CAUDA = 24
    EPIDURAL_FAT = 25
    LIGAMENT = 26
    FLAVUM = 27
    NUCLEUS = 28
    ANNULUS = 29
    MARROW_BODY = 30
    MARROW_POSTERIOR = 31
    MARROW_SACRUM = 32
    ENDPLATE = 33
    CARTILAGE = 34
    NERVE = 35
    BASIVERTEBRAL = 36
    MODIC = 37
    LESION = 38
    METAL = 39
    GAS = 40
    FASCIA = 41
    EPIDURAL_VEIN = 42
    CORTEX = 43
    HERNIA = 44


TISSUE_COUNT = len(Tissue)

#: Classes that carry a cortical shell where they meet anything else.
BONE_TISSUES: tuple[Tissue, ...] = (
    Tissue.MARROW_BODY,
    Tissue.MARROW_POSTERIOR,
    Tissue.MARROW_SACRUM,
    Tissue.RIB,
    Tissue.OTHER_BONE,
    Tissue.BASIVERTEBRAL,
    Tissue.MODIC,
    Tissue.LESION,
    Tissue.CORTEX,
)
#: Classes whose grey value varies from vertebra to vertebra.
MARROW_TISSUES: tuple[Tissue, ...] = (Tissue.MARROW_BODY, Tissue.MARROW_POSTERIOR, Tissue.MARROW_SACRUM)
