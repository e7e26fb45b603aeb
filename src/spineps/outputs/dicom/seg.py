"""Masks as DICOM segmentation objects (SEG), frame by frame on the pictures that they were made from.

Nothing is ever flipped here: each source pixel's centre is looked up in the mask through both affines.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import spineps
from spineps.anatomy import BY_ID, DISC_OFFSET, ENDPLATE_OFFSET, METAL, SACRUM, VERTEBRAE
from spineps.errors import OptionError, ShapeError, UnreadableInputError
from spineps.outputs.bids import EXTRA_NAMES
from spineps.outputs.dicom.codes import Meaning, instance_meaning, structure_meaning
from spineps.outputs.dicom.frames import frame_grid
from spineps.outputs.dicom.series import Series, need
from spineps.outputs.nifti import read_image
from spineps.outputs.paths import strip_suffix
from spineps.outputs.provenance import read_record
from spineps.outputs.snapshot import instance_color, structure_color
from spineps.outputs.writer import Writer
from spineps.volume import Volume

logger = logging.getLogger(__name__)

#: Part of a mask's volume that must lie in the source's frames, else the user is told.
MOST = 0.95
#: What every patient's file must have, even if empty (type 2); anonymisers delete it.
MAY_BE_MISSING = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
STRUCTURE_LABELS = {*BY_ID, *EXTRA_NAMES}
INSTANCE_LABELS = {METAL, *(o + v for v in (*VERTEBRAE, SACRUM) for o in (0, DISC_OFFSET, ENDPLATE_OFFSET))}


@dataclass(frozen=True)
class Kind:
    """Which of the two masks."""

    name: str
    number: int

    def meaning(self, label: int, present: set[int]) -> Meaning:
        """See :mod:`spineps.outputs.dicom.codes`."""
        return structure_meaning(label) if self is STRUCTURES else instance_meaning(label, present)

    def color(self, label: int) -> str:
        """``#rrggbb``."""
        return structure_color(label) if self is STRUCTURES else instance_color(label)


STRUCTURES, VERTEBRAE_KIND = Kind("structures", 1), Kind("vertebrae", 2)


def kind_of(labels: set[int]) -> Kind:
    """Which mask has such values.

    Raises:
        OptionError: neither.
    """
    if not labels:
        raise OptionError("The mask is empty.", "Give a mask with structures.")
    for kind, known in ((STRUCTURES, STRUCTURE_LABELS), (VERTEBRAE_KIND, INSTANCE_LABELS)):
        if labels <= known:
            return kind
    odd = sorted(labels - STRUCTURE_LABELS - INSTANCE_LABELS) or sorted(labels)
    raise OptionError(
        f"The mask has values that neither a structure nor a vertebra mask has ({', '.join(map(str, odd[:5]))}).",
        "Give a seg-spine or seg-vert mask, or renumber it: spineps convert-labels.",
    )


def write_seg(mask_file: Path, series: Series, out: Path, labelmap: bool = False) -> list[str]:
    """Write one mask as DICOM SEG; equal masks and sources give equal UIDs.

    Args:
        mask_file: structure or vertebra mask.
        series: what it was made from.
        out: file to write.
        labelmap: one frame per slice with numbers (Label Map Segmentation, 2024) instead of one per segment.

    Returns:
        Warnings.

    Raises:
        OptionError: highdicom is not installed, or this is no mask.
        ShapeError: the mask lies nowhere in the series.
    """
    need("pydicom", "highdicom")
    volume = read_image(mask_file)[0]
    mask = volume.with_array(volume.array.astype(np.uint16))
    if not np.array_equal(mask.array, volume.array):
        raise OptionError(f"{mask_file.name} holds grey values, not labels.", "Give a seg-spine or seg-vert mask.")
    present = _values(mask.array)
    kind = kind_of(present)
    headers, order = _source(series)
    labels = on_frames(mask, series)
    warnings = _lost(mask, labels, series)
    kept = sorted(_values(labels))
    lookup = np.zeros(max(present) + 1, np.uint16 if labelmap or len(kept) > 255 else np.uint8)
    lookup[kept] = kept if labelmap else np.arange(1, len(kept) + 1)
    pixels = np.stack([lookup[labels[k]] for k in order])
    dataset = _dataset(pixels, headers, kind, kept, present, series, mask_file, labelmap)
    with Writer() as writer:
        writer.write(out, lambda stream: dataset.save_as(stream))
    return warnings


def on_frames(mask: Volume, series: Series) -> np.ndarray:
    """Labels of ``mask`` under every pixel: (frames, rows, columns), frames in the order of ``series.frames``."""
    step = series.grid.affine[:3, 2] if series.grid is not None else None
    grids = (frame_grid(frame, series.shape, step) for frame in series.frames)
    return np.stack([mask.on(grid).array[:, :, 0].T for grid in grids])


def _source(series: Series) -> tuple[list[Any], list[int]]:
    """Headers in the order that highdicom wants, and for each of its frames the number in ``series.frames``."""
    from pydicom import dcmread

    headers = [dcmread(path, stop_before_pixels=True) for path in series.files]
    for header in headers:
        for name in MAY_BE_MISSING:
            if name not in header:
                setattr(header, name, "")
        if not header.get("FrameOfReferenceUID"):
            raise UnreadableInputError(
                f"Series {series.key} names no frame of reference, so nothing can be placed in it.",
                "Use the series as it came from the scanner; an anonymiser must keep Frame of Reference UID.",
            )
    if "PerFrameFunctionalGroupsSequence" not in headers[0]:
        return headers, list(range(len(series.frames)))
    if len(headers) > 1 or len(headers[0].PerFrameFunctionalGroupsSequence) != len(series.frames):
        raise UnreadableInputError(
            f"Series {series.key} is spread over several multi-frame files, or one of several volumes in a file.",
            "Export one volume per series.",
        )
    place = {frame.index: number for number, frame in enumerate(series.frames)}
    return headers, [place[index] for index in range(len(place))]


def _values(labels: np.ndarray) -> set[int]:
    """All labels but 0; slice by slice, which is far faster than sorting a whole volume."""
    seen = np.zeros(2**16, bool)
    for part in labels:
        seen[part] = True
    return set(np.flatnonzero(seen).tolist()) - {0}


def _lost(mask: Volume, labels: np.ndarray, series: Series) -> list[str]:
    if series.grid is None:
        return []
    volume = np.count_nonzero(mask.array) * mask.grid.voxel_volume
    part = np.count_nonzero(labels) * series.grid.voxel_volume / volume
    if part == 0:
        cure = "Give the series that the mask was made from (--series)."
        raise ShapeError(f"The mask lies nowhere in series {series.key}.", cure)
    return [f"Only {part:.0%} of the mask's volume lies in series {series.key}."] if part < MOST else []


def _dataset(
    pixels: np.ndarray,
    headers: list[Any],
    kind: Kind,
    kept: list[int],
    present: set[int],
    series: Series,
    mask_file: Path,
    labelmap: bool,
) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

    models = models_of(mask_file)
    content = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()

    def uid(*what: object) -> str:
        return str(generate_uid(entropy_srcs=[series.uid, kind.name, *map(str, what)]))

    algorithm = AlgorithmIdentificationSequence(
        "spineps", codes.DCM.ArtificialIntelligence, spineps.__version__, "spineps", models or None
    )
    segments = [
        _segment(v if labelmap else number, v, kind, present, algorithm, uid) for number, v in enumerate(kept, 1)
    ]
    made = Segmentation(
        headers,
        pixels,
        "LABELMAP" if labelmap else "BINARY",
        segments,
        series_instance_uid=uid("series", content, labelmap),
        series_number=min(series.number, 10**7) * 100 + kind.number,
        sop_instance_uid=uid("instance", content, labelmap, spineps.__version__, *models.values()),
        instance_number=1,
        # One bit per pixel has no usual compression; a label map is eight times as large, and mostly empty.
        transfer_syntax_uid=RLELossless if labelmap else ExplicitVRLittleEndian,
        manufacturer="spineps",
        manufacturer_model_name="spineps",
        software_versions=spineps.__version__,
        device_serial_number="none",
        content_label=kind.name.upper(),
        content_description=f"spineps: {kind.name} of series {series.number}",
        series_description=f"spineps {kind.name}",
    )
    measures = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    if series.grid is not None and "SpacingBetweenSlices" not in measures:
        # highdicom leaves it out where the gantry was tilted; readers would take the slice thickness for it.
        measures.SpacingBetweenSlices = f"{series.spacing[2]:.6g}"
    return made


def _segment(number: int, label: int, kind: Kind, present: set[int], algorithm: Any, uid: Any) -> Any:
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    meaning, color = kind.meaning(label, present), kind.color(label)
    thing = codes.SCT.PhysicalObject if label == METAL else codes.SCT.AnatomicalStructure
    segment = SegmentDescription(
        number,
        meaning.label,
        thing,
        getattr(codes.SCT, meaning.type),
        "AUTOMATIC",
        algorithm,
        tracking_uid=uid("segment", label),
        tracking_id=f"spineps {kind.name} {label}",
        anatomic_regions=[getattr(codes.SCT, meaning.region)] if meaning.region else None,
        display_color=CIELabColor.from_rgb(*(int(color[k : k + 2], 16) for k in (1, 3, 5))),
    )
    if meaning.side:
        side = [CodedConcept.from_code(getattr(codes.SCT, meaning.side))]
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = side
    return segment


def models_of(mask_file: Path) -> dict[str, str]:
    """Name and fingerprint of each model behind a mask, from the record beside it; empty where there is none."""
    for path in sorted(mask_file.parent.glob("*_prov.json")):
        record = read_record(path)
        if mask_file.name in record.get("stages", {}).get("final", {}).get("files", {}):
            return {part: f"{m['name']} {m['fingerprint']}" for part, m in record.get("models", {}).items()}
    return {}


def seg_path(mask_file: Path) -> Path:
    """
    >>> seg_path(Path("a/sub-1_mod-ct_seg-vert_msk.nii.gz")).name
    'sub-1_mod-ct_seg-vert_msk.dcm'
    """
    return mask_file.with_name(f"{strip_suffix(mask_file.name)}.dcm")


def seg_paths(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Where the segmentation objects of a run go: beside its masks."""
    return {f"{key}_dicom": seg_path(paths[key]) for key in ("out_spine", "out_vert")}


def write_segs(paths: Mapping[str, Path], series: Series) -> list[str]:
    """Both masks of a run as DICOM; returns warnings."""
    return [
        warning
        for key, out in seg_paths(paths).items()
        for warning in write_seg(paths[key.removesuffix("_dicom")], series, out)
    ]
