"""Coded choices of the published system (names and values as in 2.1.3, because users' scripts compare them)."""

from __future__ import annotations

from enum import Enum, auto


class NamedEnum(Enum):
    """Equal to itself, to a string holding its name, and to another enum of the same name and value."""

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return self.name == other
        if isinstance(other, Enum):
            return self.name == other.name and self.value == other.value
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    __repr__ = __str__


class Modality(NamedEnum):
    """What kind of image; ``SEG`` is a mask."""

    T2w = auto()
    T1w = auto()
    Vibe = auto()
    CT = auto()
    SEG = auto()
    MPR = auto()
    PD = auto()
    FLAIR = auto()

    @property
    def format_keys(self) -> tuple[str, ...]:
        """Suffixes of BIDS file names that mean this modality."""
        return _FORMAT_KEYS[self.name]


class Acquisition(NamedEnum):
    """Plane of the slices."""

    sag = auto()
    cor = auto()
    ax = auto()
    iso = auto()

    @property
    def format_keys(self) -> tuple[str, ...]:
        """Values of the ``acq`` entity of BIDS file names that mean this plane."""
        return _PLANE_KEYS[self.name]


class ModelType(NamedEnum):
    """Family of the network: ``nnunet`` and ``unet`` answer per voxel, ``classifier`` per vertebra."""

    nnunet = auto()
    unet = auto()
    classifier = auto()


class InputType(NamedEnum):
    """What a model wants to be given."""

    img = auto()
    seg = auto()
    ip = auto()
    oop = auto()
    water = auto()
    fat = auto()


class SpinepsPhase(NamedEnum):
    """The phase that a model serves."""

    SEMANTIC = auto()
    INSTANCE = auto()
    LABELING = auto()


_FORMAT_KEYS: dict[str, tuple[str, ...]] = {
    "CT": ("CT", "ct"),
    "SEG": ("msk", "seg"),
    "T1w": ("T1w", "t1", "T1", "T1c"),
    "T2w": ("T2w", "dixon", "mr", "t2", "T2", "T2c"),
    "Vibe": ("t1dixon", "vibe", "mevibe", "GRE"),
    "MPR": ("mpr", "MPR", "Mpr"),
    # 2.1.3 raises NotImplementedError for these two; BIDS names the suffixes.
    "PD": ("PDw", "PD", "pd"),
    "FLAIR": ("FLAIR", "flair"),
}
_PLANE_KEYS: dict[str, tuple[str, ...]] = {
    "sag": ("sag", "sagittal"),
    "cor": ("cor", "coronal"),
    "ax": ("ax", "axial", "axl"),
    "iso": ("iso", "ISO"),
}

#: Every contrast of magnetic resonance.
MR_MODALITIES: tuple[Modality, ...] = tuple(m for m in Modality if m not in (Modality.CT, Modality.SEG))
