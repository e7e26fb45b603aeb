"""Pairs of files to results."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spineps.errors import OptionError, SpinepsError, UnreadableInputError
from spineps.evaluation.pairs import Pair, other_kind_error
from spineps.evaluation.scan import (
    LABELS,
    ScanResult,
    as_labels,
    evaluate_instances,
    evaluate_structures,
    kind_of,
    on_reference,
)
from spineps.outputs.nifti import read_labels
from spineps.outputs.slicer import read_segmentation
from spineps.volume import Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How masks are compared; see :func:`spineps.evaluation.scan.evaluate_structures` and its neighbours."""

    reference_labels: str = "spineps"
    strict: bool = False
    threshold: float = 0.5
    resample: bool = False

    def __post_init__(self) -> None:
        if self.reference_labels not in LABELS:
            raise OptionError(f"Reference labels {self.reference_labels!r} are unknown.", f"Use {', '.join(LABELS)}.")
        if not 0 <= self.threshold <= 1:
            raise OptionError(f"The threshold {self.threshold} is no IoU.", "Use 0 to 1.")


def read_mask(path: Path) -> Volume:
    """Labels with their affine, of a NIfTI file or of a ``.seg.nrrd`` or ``.nrrd`` from 3D Slicer.

    Raises:
        InputNotFoundError: no such file.
        UnreadableInputError: not NIfTI or NRRD, truncated or not permitted.
        ValueRangeError: no labels.
    """
    from nibabel.filebasedimages import ImageFileError

    if path.name.lower().endswith(".nrrd"):
        volume, unknown = read_segmentation(path)
        if unknown:
            logger.warning("%s: segments without a meaning here are left out: %s", path.name, ", ".join(unknown))
        return as_labels(volume, str(path))
    try:
        volume = read_labels(path)
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError) as error:
        raise UnreadableInputError(f"{path} cannot be read ({error}).", "Copy or write the mask again.") from error
    return as_labels(volume, str(path))


def evaluate_pair(pair: Pair, settings: Settings) -> ScanResult:
    """Read and compare one pair of masks.

    Raises:
        SpinepsError: a mask cannot be read, or the two do not lie on the same grid or are not of the same kind.
    """
    reference = read_mask(pair.reference)
    given = read_mask(pair.prediction)
    kind = pair.kind or kind_of(given.array)
    ours = settings.reference_labels == "spineps" and reference.array.any()
    if pair.kind is None and ours and kind_of(reference.array) != kind:
        raise other_kind_error(pair.prediction, pair.reference)
    prediction = on_reference(given, reference, settings.resample)
    labels = settings.reference_labels
    if kind == "semantic":
        return ScanResult(pair.scan, evaluate_structures(prediction, reference, labels, settings.strict))
    found, notes = evaluate_instances(prediction, reference, labels, settings.threshold)
    return ScanResult(pair.scan, {}, found, tuple(notes))


def evaluate_pairs(
    pairs: Sequence[Pair], settings: Settings
) -> tuple[list[ScanResult], list[tuple[Pair, SpinepsError]]]:
    """All pairs, those of one scan together, and the pairs that could not be compared with their errors."""
    results: dict[str, ScanResult] = {}
    failed = []
    for pair in pairs:
        try:
            found = evaluate_pair(pair, settings)
        except SpinepsError as error:
            failed.append((pair, error))
            continue
        before = results.get(pair.scan, ScanResult(pair.scan))
        results[pair.scan] = replace(
            before,
            structures=before.structures | found.structures,
            instances=before.instances | found.instances,
            notes=before.notes + found.notes,
        )
    return list(results.values()), failed
