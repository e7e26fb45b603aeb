"""What each tissue looks like in each kind of scan: mean grey value and its spread from scan to scan.

MR values are fractions of a bright scan's maximum, set by hand from textbook contrast and by looking at scans; CT
values are Hounsfield units divided by 1000.  The spread is wide on purpose.
"""

from __future__ import annotations

from spineps.synth.tissues import Tissue

T = Tissue
Greys = tuple[float, float]
Prior = dict[Tissue, Greys]

_COLUMNS = ("T2", "T1", "STIR", "CT")
_TABLE: dict[Tissue, tuple[Greys, Greys, Greys, Greys]] = {
    T.AIR:                ((0.01, 0.008),  (0.01, 0.008),  (0.01, 0.008),  (-0.99, 0.02)),
    T.SKIN:               ((0.35, 0.12),   (0.4, 0.12),    (0.25, 0.1),    (0.03, 0.03)),
    T.SUBCUTANEOUS_FAT:   ((0.72, 0.16),   (0.88, 0.1),    (0.08, 0.05),   (-0.105, 0.012)),
    T.FAT:                ((0.66, 0.15),   (0.82, 0.1),    (0.08, 0.05),   (-0.095, 0.015)),
    T.MUSCLE:             ((0.15, 0.05),   (0.32, 0.07),   (0.27, 0.08),   (0.055, 0.012)),
    T.PSOAS:              ((0.15, 0.05),   (0.32, 0.07),   (0.27, 0.08),   (0.055, 0.012)),
    T.LUNG:               ((0.04, 0.03),   (0.04, 0.03),   (0.04, 0.03),   (-0.82, 0.06)),
    T.AIRWAY:             ((0.015, 0.015), (0.015, 0.015), (0.015, 0.015), (-0.98, 0.03)),
    T.ARTERY:             ((0.06, 0.06),   (0.08, 0.08),   (0.15, 0.15),   (0.1, 0.09)),
    T.VEIN:               ((0.15, 0.15),   (0.16, 0.12),   (0.5, 0.25),    (0.09, 0.06)),
    T.LIVER:              ((0.22, 0.08),   (0.42, 0.08),   (0.35, 0.1),    (0.08, 0.03)),
    T.SPLEEN:             ((0.34, 0.1),    (0.32, 0.08),   (0.55, 0.12),   (0.08, 0.03)),
    T.KIDNEY:             ((0.42, 0.12),   (0.35, 0.08),   (0.6, 0.12),    (0.09, 0.06)),
    T.BOWEL:              ((0.34, 0.15),   (0.34, 0.12),   (0.5, 0.18),    (0.04, 0.03)),
    T.FLUID:              ((0.9, 0.12),    (0.2, 0.08),    (0.95, 0.1),    (0.01, 0.01)),
    T.ORGAN:              ((0.3, 0.14),    (0.34, 0.1),    (0.45, 0.15),   (0.05, 0.03)),
    T.HEART:              ((0.2, 0.12),    (0.25, 0.12),   (0.35, 0.15),   (0.09, 0.05)),
    T.OESOPHAGUS:         ((0.26, 0.1),    (0.32, 0.08),   (0.4, 0.12),    (0.04, 0.02)),
    T.BRAIN:              ((0.45, 0.1),    (0.42, 0.08),   (0.5, 0.1),     (0.035, 0.008)),
    T.RIB:                ((0.33, 0.12),   (0.5, 0.14),    (0.2, 0.1),     (0.28, 0.1)),
    T.OTHER_BONE:         ((0.36, 0.12),   (0.58, 0.14),   (0.17, 0.08),   (0.24, 0.1)),
    T.CSF:                ((0.93, 0.1),    (0.17, 0.06),   (0.93, 0.1),    (0.018, 0.012)),
    T.CORD:               ((0.42, 0.1),    (0.4, 0.07),    (0.48, 0.1),    (0.038, 0.01)),
    T.CORD_GREY:          ((0.48, 0.1),    (0.38, 0.07),   (0.52, 0.1),    (0.04, 0.01)),
    T.CAUDA:              ((0.45, 0.13),   (0.34, 0.06),   (0.5, 0.12),    (0.03, 0.01)),
    T.EPIDURAL_FAT:       ((0.66, 0.15),   (0.82, 0.1),    (0.09, 0.06),   (-0.07, 0.03)),
    T.LIGAMENT:           ((0.1, 0.06),    (0.1, 0.06),    (0.1, 0.06),    (0.07, 0.03)),
    T.FLAVUM:             ((0.16, 0.07),   (0.16, 0.07),   (0.16, 0.07),   (0.07, 0.03)),
    T.NUCLEUS:            ((0.5, 0.22),    (0.34, 0.07),   (0.55, 0.2),    (0.08, 0.02)),
    T.ANNULUS:            ((0.13, 0.07),   (0.27, 0.07),   (0.14, 0.07),   (0.095, 0.025)),
    T.MARROW_BODY:        ((0.34, 0.11),   (0.5, 0.13),    (0.2, 0.08),    (0.17, 0.075)),
    T.MARROW_POSTERIOR:   ((0.37, 0.12),   (0.54, 0.14),   (0.18, 0.08),   (0.28, 0.1)),
    T.MARROW_SACRUM:      ((0.37, 0.12),   (0.55, 0.14),   (0.17, 0.08),   (0.17, 0.08)),
    T.ENDPLATE:           ((0.1, 0.06),    (0.1, 0.06),    (0.1, 0.06),    (0.45, 0.13)),
    T.CARTILAGE:          ((0.42, 0.25),   (0.3, 0.1),     (0.5, 0.2),     (0.1, 0.06)),
    T.NERVE:              ((0.36, 0.1),    (0.36, 0.07),   (0.52, 0.12),   (0.04, 0.015)),
    T.BASIVERTEBRAL:      ((0.55, 0.2),    (0.4, 0.15),    (0.6, 0.2),     (0.11, 0.05)),
    T.MODIC:              ((0.5, 0.25),    (0.5, 0.25),    (0.5, 0.25),    (0.3, 0.15)),
    T.LESION:             ((0.55, 0.3),    (0.55, 0.25),   (0.55, 0.3),    (0.25, 0.25)),
    T.METAL:              ((0.01, 0.01),   (0.01, 0.01),   (0.01, 0.01),   (3.0, 0.8)),
    T.GAS:                ((0.02, 0.02),   (0.02, 0.02),   (0.02, 0.02),   (-0.8, 0.15)),
    T.FASCIA:             ((0.12, 0.08),   (0.12, 0.08),   (0.12, 0.08),   (0.03, 0.03)),
    T.EPIDURAL_VEIN:      ((0.45, 0.25),   (0.3, 0.12),    (0.55, 0.2),    (0.05, 0.03)),
    T.CORTEX:             ((0.05, 0.04),   (0.05, 0.04),   (0.05, 0.04),   (0.85, 0.22)),
    T.HERNIA:             ((0.3, 0.15),    (0.3, 0.08),    (0.3, 0.15),    (0.08, 0.02)),
}  # fmt: skip
PRIORS: dict[str, Prior] = {name: {t: row[n] for t, row in _TABLE.items()} for n, name in enumerate(_COLUMNS)}

_FATTY = (T.SUBCUTANEOUS_FAT, T.FAT, T.EPIDURAL_FAT)


def _dixon(water: bool) -> Prior:
    """A water or fat image of a spoiled gradient echo: T1 contrast with one component kept."""
    prior: Prior = {}
    fat_share = {
        T.MARROW_BODY: 0.45, T.MARROW_POSTERIOR: 0.5, T.MARROW_SACRUM: 0.55, T.RIB: 0.45, T.OTHER_BONE: 0.55,
        T.SKIN: 0.2, T.MUSCLE: 0.06, T.PSOAS: 0.05, T.LIVER: 0.06, T.MODIC: 0.5, T.LESION: 0.5,
    }  # fmt: skip
    for tissue, (mean, sd) in PRIORS["T1"].items():
        share = 0.95 if tissue in _FATTY else fat_share.get(tissue, 0.03)
        kept = 1 - share if water else share
        prior[tissue] = (mean * kept * 1.2, sd * max(kept, 0.3))
    return prior


PRIORS |= {"DixonWater": _dixon(True), "DixonFat": _dixon(False)}

#: Classes that mostly share a grey value in one scan: (leader, follower, sd of the difference, share of scans).
#: The sacrum's nearly always follows: its grey must not tell it from the last vertebra.
FOLLOWERS: tuple[tuple[Tissue, Tissue, float, float], ...] = (
    (T.MARROW_BODY, T.MARROW_POSTERIOR, 0.06, 0.75),
    (T.MARROW_BODY, T.MARROW_SACRUM, 0.03, 0.95),
    (T.MARROW_BODY, T.OTHER_BONE, 0.06, 0.75),
    (T.MARROW_BODY, T.RIB, 0.06, 0.75),
    (T.FAT, T.EPIDURAL_FAT, 0.05, 0.75),
    (T.FAT, T.SUBCUTANEOUS_FAT, 0.06, 0.75),
    (T.MUSCLE, T.PSOAS, 0.02, 0.75),
    (T.CORD, T.CORD_GREY, 0.03, 0.75),
    (T.AIR, T.AIRWAY, 0.01, 0.75),
    (T.LIGAMENT, T.FASCIA, 0.03, 0.75),
)
