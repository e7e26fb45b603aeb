"""The numbers of one synthetic person: `SpineSpec`.

Angles are absolute, in degrees.  ``tilt`` > 0 means that the caudal end of a body leans to posterior (T1, L5, sacrum),
``lean`` > 0 that it leans to the right, ``turn`` > 0 that the front of the body turns to the right.
"""

from __future__ import annotations

from dataclasses import dataclass

from spineps.anatomy import SACRUM


@dataclass(frozen=True)
class Disc:
    """The disc below a vertebra.

    Attributes:
        height: mm between the endplates at the centre.
        degeneration: 0 (young) .. 1 (black, maybe with gas).
        bulge: mm by which the annulus overhangs the rims.
        hernia: mm of a focal protrusion to posterior, 0 for none.
        hernia_side: its direction, -1 left .. 1 right.
        nucleus: radius of the nucleus as a fraction of the disc's.
        fused: True when bone has bridged it: no disc, no endplates, two names.
    """

    height: float
    degeneration: float = 0.0
    bulge: float = 1.0
    hernia: float = 0.0
    hernia_side: float = 0.0
    nucleus: float = 0.66
    fused: bool = False


@dataclass(frozen=True)
class Level:
    """One vertebra, or one segment of the sacrum or coccyx.

    Attributes:
        id: vertebra id of :mod:`spineps.anatomy`; 26 for every sacral and coccygeal segment.
        key: level coordinate of :mod:`spineps.synth.morphometry`.
        sizes: mm, named as there.
        tilt, lean, turn: orientation of the body, degrees.
        slip_p, slip_r: mm by which it is displaced against the level above.
        disc: the disc below; None below C1 and the last segment.
        concavity_upper, concavity_lower: mm by which the endplates are hollow.
        waist: share by which the body narrows at mid-height.
        front, back: superellipse exponents of the outline.
        hollow: mm by which the posterior wall is hollow at mid-line.
        osteophyte: mm by which the rims flare.
        schmorl_upper, schmorl_lower: depth in mm of an endplate node.
        modic_upper, modic_lower: mm of altered marrow beside the endplate.
        lesion: radius in mm of a round marrow lesion (haemangioma, metastasis).
        screws: True with pedicle screws.
        seed: for the small differences between sides and blobs' places.
    """

    id: int
    key: float
    sizes: dict[str, float]
    tilt: float
    lean: float = 0.0
    turn: float = 0.0
    slip_p: float = 0.0
    slip_r: float = 0.0
    disc: Disc | None = None
    concavity_upper: float = 1.2
    concavity_lower: float = 1.4
    waist: float = 0.08
    front: float = 2.1
    back: float = 3.0
    hollow: float = 1.0
    osteophyte: float = 0.0
    schmorl_upper: float = 0.0
    schmorl_lower: float = 0.0
    modic_upper: float = 0.0
    modic_lower: float = 0.0
    lesion: float = 0.0
    screws: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Canal:
    """Dural sac and cord: factors on the tables of morphometry, and where they end (level coordinates)."""

    sac_width: float = 1.0
    sac_depth: float = 1.0
    gap: float = 1.0
    cord_width: float = 1.0
    cord_depth: float = 1.0
    cord_place: float = 0.0
    conus: float = 20.4
    sac_end: float = 26.6
    cauda: float = 0.5
    ripple: float = 0.06


@dataclass(frozen=True)
class View:
    """How the person lies in the scanner: where the middle of the field of view is.

    Attributes:
        key: level coordinate at whose canal-side wall the field is centred.
        offset: (p, i, r) mm by which the field's centre is moved from there.
        pitch, yaw, roll: rotation of the person in degrees, about the r, i and p axis.
    """

    key: float
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pitch: float = 0.0
    yaw: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True)
class SpineSpec:
    """One synthetic person.

    Attributes:
        levels: cranial to caudal, C1 .. coccyx.
        canal: dural sac and cord.
        view: position in the scanner.
        scale: body size, 1 for a tall adult.
        fat: thickness in mm of the subcutaneous fat of the back.
        muscle_fat: share of fat in the back muscles, 0 .. 1.
        epidural_fat: 0 .. 1, how much of the epidural space is fat.
        warp: mm amplitude of a smooth free-form deformation.
        seed: of all noise fields of the label map.
    """

    levels: tuple[Level, ...]
    canal: Canal
    view: View
    scale: float = 1.0
    fat: float = 15.0
    muscle_fat: float = 0.15
    epidural_fat: float = 0.6
    warp: float = 1.0
    seed: int = 0

    @property
    def vertebrae(self) -> tuple[int, ...]:
        """Ids of the vertebrae above the sacrum, cranial to caudal."""
        return tuple(level.id for level in self.levels if level.id != SACRUM)
