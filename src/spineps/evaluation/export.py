"""Results of a run in the files and numbers of other programs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from spineps.dataset.report import results_folder
from spineps.errors import InputNotFoundError, OptionError, UnreadableInputError
from spineps.evaluation.convert import color_table, converted, structure_table
from spineps.evaluation.numbering import NUMBERINGS, lost_names
from spineps.evaluation.pairs import kind_by_name, mask_stem, other_mask
from spineps.evaluation.run import read_mask
from spineps.evaluation.scan import kind_of
from spineps.outputs.group.table import find_records
from spineps.outputs.paths import DERIVATIVE_NAME, output_paths, results_beside, scan_from
from spineps.outputs.slicer import markups, segmentation_bytes
from spineps.outputs.writer import Writer

SLICER, ITKSNAP = "slicer", "itksnap"
TARGETS = (SLICER, ITKSNAP, *(name for name in NUMBERINGS if name != "spineps"))


@dataclass(frozen=True)
class Found:
    """Files of one scan that are there; ``below`` is their folder, seen from the folder that was asked for."""

    structures: Path | None
    vertebrae: Path | None
    points: Path | None = None
    below: Path = Path()


def find_results(path: Path, derivative_name: str = DERIVATIVE_NAME) -> list[Found]:
    """The results that a path stands for.

    Args:
        path: a data set or folder of results, a record (``_prov.json``), a mask (the other one and the points are found
            beside it) or a scan that was segmented.
        derivative_name: folder of results below a data set or beside a scan.

    Raises:
        InputNotFoundError: there are none.
    """
    if path.is_dir():
        root = results_folder(path, derivative_name)
        return [_there(results_beside(record), record.parent.relative_to(root)) for record in find_records(root)]
    if not path.is_file():
        raise InputNotFoundError(f"{path} does not exist.", "Check the path.")
    if path.name.endswith("_prov.json"):
        return [_there(results_beside(path))]
    for layout in ("published", "bids"):
        files = output_paths(scan_from(path), derivative_name, layout=layout)
        if files["out_spine"].is_file() or files["out_vert"].is_file():
            return [_there(files)]
    kind, other = kind_by_name(path) or kind_of(read_mask(path).array), other_mask(path)
    structures, vertebrae = (path, other) if kind == "semantic" else (other, path)
    record = mask_stem(path).replace("_seg-vert_", "_seg-spine_").replace("_seg-vertebrae_", "_seg-structures_")
    points = results_beside(path.with_name(f"{record.rpartition('_')[0]}_prov.json"))["out_ctd"]
    return [Found(structures, vertebrae, points if points.is_file() else None)]


def export(found: Found, target: str, folder: Path | None = None) -> tuple[list[Path], list[str]]:
    """Write one scan's results for another program.

    Args:
        found: the files.
        target: one of :data:`TARGETS`.
        folder: where to; by default beside the masks.

    Returns:
        The files written, and what the program has no number for.

    Raises:
        OptionError: unknown target, or a numbering without vertebra mask.
    """
    if target not in TARGETS:
        raise OptionError(f"{target!r} is no known program.", f"Use {', '.join(TARGETS)}.")
    masks = {path: read_mask(path) for path in (found.structures, found.vertebrae) if path is not None}
    files: dict[Path, bytes] = {}
    with Writer() as writer:
        if target in NUMBERINGS:
            if found.vertebrae is None:
                raise OptionError("There is no vertebra mask (seg-vert) to renumber.", "Give a result with one.")
            structures = masks.get(found.structures) if found.structures else None
            result, lost = converted(masks[found.vertebrae], "spineps", target, structures)
            writer.mask(_place(found.vertebrae, folder, _renamed(mask_stem(found.vertebrae), target)), result)
            return list(writer.written), lost_names(sorted(lost), "spineps")
        for path, mask in masks.items():
            semantic = path == found.structures
            if target == SLICER:
                files[_place(path, folder, f"{mask_stem(path)}.seg.nrrd")] = segmentation_bytes(mask, semantic)
            else:
                table = structure_table(mask.array) if semantic else color_table(mask.array, "spineps")
                files[_place(path, folder, f"{mask_stem(path)}.label.txt")] = table.encode()
        for path, content in files.items():
            writer.write(path, partial(_put, content))
        if target == SLICER and found.points is not None:
            name = f"{found.points.name.removesuffix('.json')}.mrk.json"
            writer.json(_place(found.points, folder, name), markups(_document(found.points)))
    return list(writer.written), []


def _there(files: Mapping[str, Path], below: Path = Path()) -> Found:
    three = [files[key] if files[key].is_file() else None for key in ("out_spine", "out_vert", "out_ctd")]
    return Found(three[0], three[1], three[2], below)


def _put(content: bytes, stream: IO[bytes]) -> None:
    stream.write(content)


def _place(source: Path, folder: Path | None, name: str) -> Path:
    return (folder or source.parent) / name


def _renamed(stem: str, tool: str) -> str:
    """
    >>> _renamed("sub-1_seg-vert_run-2_msk", "verse"), _renamed("case", "verse")
    ('sub-1_seg-verse_run-2_msk.nii.gz', 'case_verse.nii.gz')
    """
    name = re.sub("_seg-vert(ebrae)?_", f"_seg-{tool}_", stem)
    return f"{name if name != stem else f'{stem}_{tool}'}.nii.gz"


def _document(path: Path) -> list[dict[str, Any]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if {"rotation", "zoom", "origin"} <= set(document[0]) and isinstance(document[1], dict):
            return [document[0], document[1]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UnreadableInputError(f"{path} cannot be read ({error}).", "Segment the scan again.") from error
    raise UnreadableInputError(f"{path} holds no points with a grid.", "Segment the scan again.")
