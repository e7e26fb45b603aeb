"""Anatomical codes of segments, out of the dictionary of DICOM codes that pydicom carries (PS3.16, SNOMED CT).

DICOM has codes for vertebrae C1..L5 (CID 7603), the discs between them (CID 7604), arch and processes (CID 6115), cord,
canal and sacrum; it has none for a vertebral body, an endplate, a thirteenth thoracic or sixth lumbar vertebra or a
disc as such.  Those get the code of the whole that they belong to, and their name is in the segment's label.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from spineps.anatomy import (
    ARCUS,
    BY_ID,
    CANAL,
    CORD,
    COSTAL_LEFT,
    COSTAL_RIGHT,
    DISC_OFFSET,
    ENDPLATE_OFFSET,
    INF_ARTICULAR_LEFT,
    INF_ARTICULAR_RIGHT,
    METAL,
    SACRUM,
    SPINOSUS,
    SUP_ARTICULAR_LEFT,
    SUP_ARTICULAR_RIGHT,
    VERTEBRA_NAMES,
    VERTEBRA_PARTS,
    VERTEBRAE,
    instance_name,
)
from spineps.outputs.bids import EXTRA_NAMES

WHOLE, COLUMN = "Vertebra", "Spine"
#: Structure -> keyword in ``pydicom.sr.codedict.codes.SCT``.
STRUCTURES = {
    SACRUM: "Sacrum",
    ARCUS: "ArchOfVertebra",
    SPINOSUS: "SpinousProcessOfVertebra",
    COSTAL_LEFT: "StructureOfTransverseProcessOfVertebra",
    COSTAL_RIGHT: "StructureOfTransverseProcessOfVertebra",
    SUP_ARTICULAR_LEFT: "SuperiorArticularProcessOfVertebra",
    SUP_ARTICULAR_RIGHT: "SuperiorArticularProcessOfVertebra",
    INF_ARTICULAR_LEFT: "InferiorArticularProcessOfVertebra",
    INF_ARTICULAR_RIGHT: "InferiorArticularProcessOfVertebra",
    CORD: "SpinalCord",
    CANAL: "VertebralCanal",
    METAL: "Implant",
}
#: Vertebrae in their usual order: what a disc's code names.
USUAL = (*range(1, 20), *range(20, 25), SACRUM)


@dataclass(frozen=True)
class Meaning:
    """What a segment is: its label and keywords of ``codes.SCT``.

    Attributes:
        label: for people.
        type: of the structure.
        side: ``Left``, ``Right`` or empty.
        region: the vertebra that it belongs to, where the type does not say so.
    """

    label: str
    type: str
    side: str = ""
    region: str = ""


def structure_meaning(label: int) -> Meaning:
    """
    >>> structure_meaning(43)
    Meaning(label='costal process, left', type='StructureOfTransverseProcessOfVertebra', side='Left', region='')
    """
    name = BY_ID[label].name if label in BY_ID else EXTRA_NAMES.get(label, f"structure {label}")
    side = next((word.capitalize() for word in ("left", "right") if name.endswith(word)), "")
    # A body and an endplate are parts of a vertebra; of a disc DICOM only knows the level.
    part = label in VERTEBRA_PARTS or label in EXTRA_NAMES or "endplate" in name
    return Meaning(name, STRUCTURES.get(label, WHOLE if part else COLUMN), side)


def instance_meaning(label: int, present: Collection[int]) -> Meaning:
    """
    Args:
        label: value of the vertebra mask.
        present: all its values: a disc is only called L5/S1 where no L6 lies below.

    >>> instance_meaning(124, (24, 26, 124)).type, instance_meaning(124, (24, 25, 26, 124)).type
    ('L5S1Disc', 'Spine')
    >>> instance_meaning(220, (20,))
    Meaning(label='endplates of L1', type='Vertebra', side='', region='L1Vertebra')
    """
    name = instance_name(label)
    if label == METAL:
        return Meaning(name, STRUCTURES[METAL])
    vertebra = label % DISC_OFFSET
    own = "Sacrum" if vertebra == SACRUM else f"{VERTEBRA_NAMES[vertebra]}Vertebra" if vertebra in USUAL else ""
    if label >= ENDPLATE_OFFSET:
        return Meaning(name, WHOLE, region=own)
    if label >= DISC_OFFSET:
        order = (*VERTEBRAE, SACRUM)
        below = [v for v in order[order.index(vertebra) + 1 :] if v in present] if vertebra in order else []
        usual = USUAL[USUAL.index(vertebra) + 1] if 1 < vertebra < SACRUM and vertebra in USUAL else None
        if usual is None or (below and below[0] != usual):
            return Meaning(name, COLUMN)
        return Meaning(name, f"{VERTEBRA_NAMES[vertebra]}{VERTEBRA_NAMES[usual]}Disc")
    return Meaning(name, own or WHOLE)
