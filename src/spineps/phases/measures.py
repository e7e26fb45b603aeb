"""What is measured: every column of the table, with its unit, definition and source, and one row's form."""

from __future__ import annotations

from dataclasses import dataclass, field

from spineps.anatomy import BY_ID, CORPUS_INNER, DENS, VERTEBRA_PARTS

#: Loss of height in per cent from which Genant's grades 1, 2 and 3 begin (J Bone Miner Res 1993; 8:1137-48).
GENANT = (20.0, 25.0, 40.0)


@dataclass(frozen=True)
class Measured:
    """A value with its standard uncertainty (one sigma) in the same unit."""

    value: float
    uncertainty: float


@dataclass(frozen=True)
class Row:
    """All measures of one structure; those that cannot be told are missing.

    Attributes:
        kind: ``vertebra``, ``disc`` or ``spine``.
        label: value in the instance mask, 0 for the whole spine.
        cut: sides of the field of view (of ``RLAPSI``) that it reaches.
        values: by the names of :data:`COLUMNS`.
        texts: by the names of :data:`TEXTS`.
    """

    kind: str
    label: int
    cut: str = ""
    values: dict[str, Measured] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """Unit, definition and source of a measure; ``of`` names the kinds of rows that have it."""

    unit: str
    of: tuple[str, ...]
    text: str
    source: str = "spineps"


_V, _D, _VD, _S = ("vertebra",), ("disc",), ("vertebra", "disc"), ("spine",)
_MORPHOMETRY = "Six-point morphometry, after Eastell et al., J Bone Miner Res 1991; 6:207-15"
_GENANT = "Genant et al., J Bone Miner Res 1993; 8:1137-48"
_COBB = "Cobb, Instr Course Lect 1948; 5:261-75"
_FROBIN = "Along the bisector as in Frobin et al., Clin Biomech 1997; 12(S1):1-63, but from corner to corner"
_SAGITTAL = "Angle between the two end faces, projected on the mid-sagittal plane of the vertebrae between them"
_PARTS = {
    part: BY_ID[part].key if part in BY_ID else {CORPUS_INNER: "corpus-inner", DENS: "dens"}[part]
    for part in VERTEBRA_PARTS
}


def volume_column(part: int) -> str:
    """Name of the column with the volume of a part.

    >>> volume_column(43)
    'volume_costal_left'
    """
    return f"volume_{_PARTS[part].replace('-', '_')}"


COLUMNS: dict[str, Column] = {
    "x": Column("mm", _VD, "Centre of the vertebral body (C1 and sacrum: of all of it) or disc, to the right (RAS)."),
    "y": Column("mm", _VD, "The same, to anterior."),
    "z": Column("mm", _VD, "The same, to superior."),
    "volume": Column("mm^3", _VD, "Volume of all its voxels, without endplates."),
    **{
        volume_column(part): Column("mm^3", _V, f"Volume of its {name.replace('-', ' ')}.")
        for part, name in _PARTS.items()
    },
    "height_anterior": Column(
        "mm",
        _VD,
        "Along the structure's own axis (normal to the mean of its two end faces), mean of the middle third of the "
        "width. Body: mean from 6 to 18 % of the depth behind the wall, carried on to the wall along the end faces' "
        "slopes (rims are rounded). Disc: mean from 10 to 30 % of the depth. Bodies and discs each reach to the middle "
        "of a labelled endplate.",
        _MORPHOMETRY,
    ),
    "height_middle": Column("mm", _VD, "As height_anterior, mean of the middle fifth of the depth.", _MORPHOMETRY),
    "height_posterior": Column("mm", _VD, "As height_anterior, at the back.", _MORPHOMETRY),
    "depth": Column("mm", _VD, "From front to back at mid-height, in the middle third of the width."),
    "width": Column("mm", _VD, "From left to right at mid-height, in the middle third of the depth."),
    "wedge_ratio": Column("1", _V, "height_anterior / height_posterior.", _MORPHOMETRY),
    "biconcavity_ratio": Column("1", _V, "height_middle / height_posterior.", _MORPHOMETRY),
    "crush_ratio": Column(
        "1", _V, "height_posterior / mean height_posterior of the vertebrae above and below.", _MORPHOMETRY
    ),
    "height_loss": Column(
        "%", _V, "100 * (1 - smallest of wedge_ratio, biconcavity_ratio and crush_ratio), at least 0."
    ),
    "genant_grade": Column(
        "1",
        _V,
        "From height_loss alone: 0 below 20 %, 1 from 20 %, 2 from 25 %, 3 above 40 %. A reader also judges endplates "
        "and cortex: this number is no diagnosis. Its uncertainty: how far the grade moves with height_loss moved by "
        "one sigma.",
        _GENANT,
    ),
    "disc_height_index": Column(
        "1", _D, "Mean of the three heights / depth.", "Ratio of height to depth, after Farfan; definitions vary"
    ),
    "bulge": Column(
        "mm",
        _D,
        "How far the disc reaches behind the line from the lower posterior corner of the body above to the upper one "
        "of the body below, in the middle half of the width; the rearmost 20 mm^3 are left out. Negative: in front.",
    ),
    "listhesis": Column(
        "mm",
        _D,
        "Lower posterior corner of the vertebra above, seen from the upper posterior corner of the one below, along "
        "the bisector of the two end faces. Anterior is positive. Corners: where posterior wall and end face meet.",
        _FROBIN,
    ),
    "canal_area": Column(
        "mm^2",
        _VD,
        "Labelled canal with cord, cut perpendicular to its centre line at mid-height of the body or disc.",
    ),
    "canal_ap": Column("mm", _VD, "Diameter of that section from front to back, through its centre."),
    "canal_transverse": Column("mm", _VD, "Diameter of that section from left to right, through its centre."),
    "cord_area": Column("mm^2", _VD, "As canal_area, cord alone."),
    "cord_ap": Column("mm", _VD, "As canal_ap, cord alone."),
    "cord_transverse": Column("mm", _VD, "As canal_transverse, cord alone."),
    "cord_compression_ratio": Column("1", _VD, "cord_ap / cord_transverse.", "Ogino et al., Spine 1983; 8:1-15"),
    "lordosis_L1_S1": Column("deg", _S, f"{_SAGITTAL}: upper of L1, upper of S1. Lordosis is positive.", _COBB),
    "lordosis_T12_S1": Column("deg", _S, f"{_SAGITTAL}: lower of T12, upper of S1. Lordosis is positive.", _COBB),
    "kyphosis_T4_T12": Column("deg", _S, f"{_SAGITTAL}: upper of T4, lower of T12. Kyphosis is positive.", _COBB),
    "kyphosis_T1_T12": Column("deg", _S, f"{_SAGITTAL}: upper of T1, lower of T12. Kyphosis is positive.", _COBB),
    "lordosis_C2_C7": Column("deg", _S, f"{_SAGITTAL}: lower of C2, lower of C7. Lordosis is positive.", _COBB),
    "cobb_angle": Column(
        "deg",
        _S,
        "Largest angle between the upper end face of a vertebra and the lower one of another below it, projected on "
        "the coronal plane of the spine itself.",
        _COBB,
    ),
    "sacral_slope": Column(
        "deg",
        _S,
        "Upper end face of S1 against the scanner's axial plane, in the mid-sagittal plane. Depends on how the person "
        "lay.",
        "Legaye et al., Eur Spine J 1998; 7:99-103",
    ),
}
TEXTS: dict[str, str] = {
    "cobb_upper": "Upper end vertebra of cobb_angle.",
    "cobb_lower": "Lower end vertebra of cobb_angle.",
    "cobb_convex": "Side of its convexity, left or right.",
}


def genant_grade(loss: float) -> int:
    """Grade of a loss of height in per cent.

    >>> [genant_grade(loss) for loss in (19.9, 20, 25, 40, 40.1)]
    [0, 1, 2, 2, 3]
    """
    mild, moderate, severe = GENANT
    return int(loss >= mild) + int(loss >= moderate) + int(loss > severe)
