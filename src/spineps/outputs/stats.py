"""The table of measurements, and the sidecar that says what each column is."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spineps.anatomy import DISC_OFFSET, SACRUM, VERTEBRA_IDS, instance_name
from spineps.errors import InputNotFoundError, ValueRangeError
from spineps.outputs.nifti import read_labels
from spineps.outputs.paths import strip_suffix
from spineps.outputs.writer import Writer
from spineps.phases.measure import measure
from spineps.phases.measures import COLUMNS, GENANT, TEXTS, Row
from spineps.volume import Volume

logger = logging.getLogger(__name__)

#: Keys of the two files among the outputs.
STATS = ("out_stats", "out_stats_json")
FIRST = {
    "kind": "vertebra, disc, or spine (one row for all of it).",
    "label": "Value in the vertebra mask; 0 for the whole spine.",
    "name": "Name of the structure; #n when vertebrae were only numbered.",
    "cut": "Sides of the field of view (R L A P S I) that it reaches to within 1 mm. What the missing part would alter "
    "is n/a.",
}
UNCERTAINTY = (
    "Standard uncertainty (one sigma) of {}, from the voxel size: a surface lies anywhere in its voxel, so its place "
    "along a direction d is uncertain by sqrt(sum((d . edge)^2) / 12) over the voxel's three edges; lengths have two "
    "surfaces, angles two ends. Errors of the segmentation itself come on top."
)


def write_stats(writer: Writer, semantic: Volume, instance: Volume, named: bool, paths: Mapping[str, Path]) -> None:
    """Measure both masks and write table and sidecar; odd masks cost the table, never the masks."""
    try:
        rows = measure(semantic, instance, named)
    except (ValueError, ArithmeticError, LookupError) as error:
        logger.warning("The masks could not be measured: %s", error)
        return
    text = stats_tsv(rows, named)
    writer.write(paths["out_stats"], lambda stream: stream.write(text.encode()))
    writer.json(paths["out_stats_json"], stats_sidecar())


def stats_tsv(rows: Sequence[Row], named: bool = True) -> str:
    """One line per structure; every measure is followed by its uncertainty, ``n/a`` where there is none."""
    header = [*FIRST, *(name for key in COLUMNS for name in (key, f"{key}_u")), *TEXTS]
    lines = ["\t".join(header)]
    for row in rows:
        cells = [row.kind, str(row.label), _name(row, named), row.cut or "n/a"]
        for key in COLUMNS:
            value = row.values.get(key)
            cells += ["n/a", "n/a"] if value is None else [f"{value.value:.5g}", f"{value.uncertainty:.2g}"]
        cells += [_text(row.texts.get(key, ""), named) for key in TEXTS]
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def stats_sidecar() -> dict[str, Any]:
    """Description, unit and source of every column, in BIDS' words."""
    columns: dict[str, Any] = {key: {"Description": text} for key, text in {**FIRST, **TEXTS}.items()}
    for key, column in COLUMNS.items():
        about: dict[str, Any] = {
            "Description": column.text,
            "Units": column.unit,
            "Source": column.source,
            "Rows": list(column.of),
        }
        if key == "genant_grade":
            about["CutOffs"] = list(GENANT)
        columns[key] = about
        columns[f"{key}_u"] = {"Description": UNCERTAINTY.format(key), "Units": column.unit}
    return columns


def _name(row: Row, named: bool) -> str:
    if row.kind == "spine":
        return "spine"
    if named or row.label == SACRUM:
        return instance_name(row.label)
    number = f"#{row.label % DISC_OFFSET}"
    return f"disc below {number}" if row.kind == "disc" else number


def _text(text: str, named: bool) -> str:
    return (f"#{VERTEBRA_IDS[text]}" if not named and text in VERTEBRA_IDS else text) or "n/a"


def write_stats_of(semantic: Path, vertebrae: Path, out: Path | None = None, named: bool = True) -> tuple[Path, int]:
    """Measure two mask files; returns the table's path and its number of structures.

    Args:
        semantic, vertebrae: ``.nii`` or ``.nii.gz`` on one grid.
        out: the table; default: the vertebrae's name with ``_stats.tsv`` in place of ``_msk`` or ``_dseg``.
        named: see :func:`spineps.phases.measure.measure`.

    Raises:
        InputNotFoundError: a file is missing.
        ValueRangeError: the masks lie on different grids, or hold something else.
    """
    masks = [_read(path) for path in (semantic, vertebrae)]
    try:
        rows = measure(masks[0], masks[1], named)
    except ValueError as error:
        raise ValueRangeError(
            f"{vertebrae.name}: {error}.", "Give both masks of one scan, structures first."
        ) from error
    if out is None:
        stem = strip_suffix(vertebrae.name)
        out = vertebrae.with_name(f"{stem.removesuffix('_msk').removesuffix('_dseg')}_stats.tsv")
    out = out.with_suffix(".tsv")
    text = stats_tsv(rows, named)
    with Writer() as writer:
        writer.write(out, lambda stream: stream.write(text.encode()))
        writer.json(out.with_suffix(".json"), stats_sidecar())
    return out, sum(row.kind != "spine" for row in rows)


def _read(path: Path) -> Volume:
    from nibabel.filebasedimages import ImageFileError

    if not path.is_file():
        raise InputNotFoundError(f"{path} is not there.", "Give two masks, .nii or .nii.gz.")
    try:
        volume = read_labels(path)
    except (OSError, EOFError, ImageFileError, zlib.error) as error:
        raise ValueRangeError(f"{path} cannot be read ({error}).", "Check how the mask was written.") from error
    array = volume.array
    if array.ndim != 3 or not np.array_equal(array, np.clip(np.rint(array.astype(np.float32, copy=False)), 0, 65535)):
        raise ValueRangeError(f"{path.name} is no mask of labels.", "Give two masks of whole numbers in 3-D.")
    return volume.with_array(array.astype(np.uint16))
