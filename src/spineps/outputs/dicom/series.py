"""Which series a DICOM folder holds, which of them can show a spine, and the choice of one."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spineps.errors import GeometryError, InputNotFoundError, OptionError, UnreadableInputError
from spineps.outputs.dicom.frames import Frame, frames_of, lattice
from spineps.volume import Grid

logger = logging.getLogger(__name__)

INSTALL = "Run: pip install 'spineps[dicom]'"
#: Fewer slices are a localiser or a single picture.
FEWEST_SLICES = 5
#: Values of Image Type that are no slices through a spine.
NO_SLICES = {"LOCALIZER": "localiser", "MIP": "projection", "PROJECTION IMAGE": "projection", "SCREEN SAVE": "picture"}
#: Never DICOM, and many in a data set.
OTHER_FILES = (".nii", ".gz", ".json", ".tsv", ".csv", ".png", ".jpg", ".txt", ".md", ".html", ".py", ".zip", ".bval")
TAGS = (
    *("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *("Modality", "ImageType", "EchoTime", "PatientName", "Rows", "Columns", "NumberOfFrames", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
#: Kinds of MR image by words of the description, in this order; the format tells models what they see.
CONTRASTS = (("vibe", "vibe"), ("flair", "FLAIR"), ("t2", "T2w"), ("t1", "T1w"), ("dixon", "dixon"), ("pd", "PDw"))


@dataclass(frozen=True, eq=False)
class Series:
    """One volume of a folder: a series, or one echo or kind of image of it.

    Attributes:
        key: what ``--series`` takes it by: its number, or ``number.k`` for the k-th volume of that number.
        frames: in spatial order when ``grid`` is there.
        grid: columns, rows, slices; None when the frames fill no even grid.
        why_not: why it can not be segmented; empty when it can.
        cure: what to do about that.
        person: patient's name, kept only to keep it out of file names.
    """

    uid: str
    study: str
    number: int
    key: str
    description: str
    modality: str
    shape: tuple[int, int]
    frames: Sequence[Frame]
    grid: Grid | None = None
    why_not: str = ""
    cure: str = ""
    person: str = field(default="", repr=False)

    @property
    def files(self) -> list[Path]:
        """Its files, each once."""
        return list(dict.fromkeys(frame.path for frame in self.frames))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, between slices at right angles to them; needs ``grid``."""
        assert self.grid is not None
        width, height, _ = self.grid.zoom
        return width, height, float(abs(self.grid.affine[:3, 2] @ self.frames[0].normal))

    @property
    def format(self) -> str:
        """Last part of the scan's name: ``ct``, or a contrast where the description tells it, or ``MR``."""
        if self.modality == "CT":
            return "ct"
        text = self.description.lower()
        found = (form for word, form in CONTRASTS if re.search(rf"(?:^|[^a-z0-9])[a-z]{{0,3}}{word}", text))
        return next(found, "MR")


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Is this a DICOM file, or a folder with one?"""
    path = Path(path)
    return any(_has_magic(file) for file in _files(path)) if path.is_dir() else _has_magic(path)


def need(*modules: str) -> None:
    """
    Raises:
        OptionError: one of the modules of the extra is missing.
    """
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise OptionError(f"DICOM needs {' and '.join(missing)}, not installed here.", INSTALL)


def list_series(path: Path) -> list[Series]:
    """All series of a folder (with its sub-folders) or of the folder of a file, by number.

    Raises:
        InputNotFoundError: no DICOM file.
        OptionError: pydicom is not installed.
    """
    need("pydicom")
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    folder = path if path.is_dir() else path.parent
    heads: dict[str, list[tuple[Path, Any]]] = defaultdict(list)
    seen: set[str] = set()
    bad: list[Path] = []
    for file in sorted(_files(folder)):
        if not _has_magic(file):
            continue
        try:
            head = dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS))
            instance, uid = str(head.get("SOPInstanceUID", file)), str(head.get("SeriesInstanceUID", ""))
        except (InvalidDicomError, OSError, EOFError, ValueError, AttributeError, KeyError) as error:
            logger.warning("%s is left out, it cannot be read: %s", file, error)
            bad.append(file)
            continue
        if uid and instance not in seen:  # a DICOMDIR has no series; copies of a file are one instance
            heads[uid].append((file, head))
        elif uid:
            logger.info("%s is left out: the same instance is there already.", file)
        seen.add(instance)
    if not heads:
        what = f"{len(bad)} unreadable" if bad else "no"
        raise InputNotFoundError(f"{folder} holds {what} DICOM image(s).", "Give the folder of a series.")
    found = [one for uid, members in heads.items() for one in _volumes(uid, members)]
    found.sort(key=lambda s: (s.number, s.study, s.uid))
    numbers = [s.number for s in found]
    return [
        replace(s, key=f"{s.number}.{k - numbers.index(s.number) + 1}") if numbers.count(s.number) > 1 else s
        for k, s in enumerate(found)
    ]


def choose(found: Sequence[Series], wanted: str | None = None, place: str | Path = "this folder") -> Series:
    """The series wanted (number, UID or part of the description), or the only one that can be segmented.

    Raises:
        OptionError: none or several fit; the message holds the table.
    """
    if wanted is None:
        fits = [s for s in found if not s.why_not]
    else:
        text = wanted.strip().lower()
        fits = [s for s in found if text in (s.key, s.uid)] or [s for s in found if text == str(s.number)]
        fits = fits or [s for s in found if text and text in s.description.lower()]
        if len(fits) > 1:  # "t2" may also name a localiser
            fits = [s for s in fits if not s.why_not] or fits
    scans = [s for s in found if s.modality in ("CT", "MR")]
    if len(fits) == 1:
        return fits[0]
    if wanted is None and not fits and len(scans) == 1 and scans[0].grid is None:
        return scans[0]  # nothing to pick from: :func:`usable` tells what is wrong with it
    if wanted is not None:
        what = f"{len(fits)} series of {place} fit --series {wanted!r}" if fits else f"No series is called {wanted!r}"
    else:
        what = f"{place} holds {len(fits)} series that can be a spine" if fits else f"No series of {place} can be used"
    several = "Pick one with --series: its number, its UID, or a part of its description that no other has."
    raise OptionError(f"{what}:\n{table(found)}\n", several)


def usable(series: Series) -> Series:
    """
    Raises:
        UnreadableInputError, GeometryError: this series cannot be segmented; says why.
    """
    if series.grid is None:
        kind = GeometryError if series.frames else UnreadableInputError
        raise kind(f"Series {series.key} cannot be used: {series.why_not}.", series.cure)
    return series


def table(found: Sequence[Series]) -> str:
    """What there is, for people."""
    rows = [("series", "modality", "orientation", "slices", "voxel (mm)", "spine scan?", "description")]
    for s in found:
        zoom = " x ".join(f"{z:.3g}" for z in s.spacing) if s.grid else ""
        plane = s.grid.axcodes if s.grid else ""
        rows.append((s.key, s.modality, plane, str(len(s.frames)), zoom, s.why_not or "yes", s.description))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def series_of(path: Path, wanted: str | None = None) -> Series:
    """The series of a folder or file; a file that is one slice stands for its series."""
    found = list_series(path)
    if path.is_file() and wanted is None:
        mine = [s for s in found if path in s.files]
        found = mine or found
        wanted = mine[0].key if len(mine) == 1 else None
    return choose(found, wanted, path)


def _volumes(uid: str, members: Sequence[tuple[Path, Any]]) -> Iterator[Series]:
    """A series, cut where it holds several echoes or kinds of image."""
    head = members[0][1]
    number = int(head.get("SeriesNumber") or 0)
    frames = [frame for path, each in members for frame in frames_of(each, path)]
    modality = str(head.get("Modality", ""))
    parts = sorted({frame.part for frame in frames}) or [()]
    sizes = {path: (int(each.get("Columns") or 0), int(each.get("Rows") or 0)) for path, each in members}
    for part in parts:
        mine: Sequence[Frame] = [frame for frame in frames if frame.part == part]
        label = ", ".join(part) if len(parts) > 1 else ""
        paths = {frame.path for frame in mine} or set(sizes)
        shape = sizes[min(paths)]
        grid, why, cure = None, "", "Choose another series."
        if not mine:
            why = f"no slices in a patient ({modality or 'no modality'})"
        elif any(sizes[path] != shape for path in paths):
            why = "pictures of several sizes"
        elif any(f.part != part for f in frames if f.path in {g.path for g in mine}):
            why, cure = (
                "several volumes in one file",
                "Split it with a converter and give the NIfTI file of one volume.",
            )
        elif len(mine) < 2:
            why = "one slice"
        else:
            try:
                grid, mine = lattice(mine, shape)
            except GeometryError as error:
                why, cure = error.message, error.cure
        if modality not in ("CT", "MR"):
            why = f"{modality or 'no modality'}, not CT or MR"
        elif grid is not None:
            why = next((word for kind, word in NO_SLICES.items() if kind in part), "")
            why = why or ("" if len(mine) >= FEWEST_SLICES else "few slices")
        yield Series(
            uid,
            str(head.get("StudyInstanceUID", "")),
            number,
            str(number),
            " ".join(filter(None, [str(head.get("SeriesDescription") or "").strip(), f"({label})" if label else ""])),
            modality,
            shape,
            tuple(mine),
            grid,
            why,
            cure,
            str(head.get("PatientName") or ""),
        )


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(place, name) for name in names if not name.lower().endswith(OTHER_FILES))


def _has_magic(file: Path) -> bool:
    try:
        if not file.is_file():  # a pipe would be waited for
            return False
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
