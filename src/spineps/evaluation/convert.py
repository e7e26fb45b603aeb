"""Whole masks into the numbers of another tool."""

from __future__ import annotations

import numpy as np

from spineps.anatomy import CANAL, CORD
from spineps.errors import GeometryError, OptionError
from spineps.evaluation.coarse import structure_name, vertebrae_with_endplates
from spineps.evaluation.numbering import NUMBERINGS, itksnap_table, name_of, renumbered
from spineps.evaluation.scan import kind_of, on_reference
from spineps.outputs.snapshot import instance_color, structure_color
from spineps.volume import Volume


def converted(
    mask: Volume, source: str, target: str, structures: Volume | None = None
) -> tuple[Volume, dict[int, int]]:
    """A vertebra mask in another tool's numbers; a mask of ours that stays ours is left as it is.

    Endplates, which no other tool has, become part of the nearest vertebra.

    Args:
        mask: labels of ``source``; of ours the ``seg-vert`` mask.
        source, target: keys of :data:`spineps.evaluation.numbering.NUMBERINGS`.
        structures: ``seg-spine`` mask of the same scan; its cord and canal fill what the vertebra mask leaves free.

    Returns:
        uint16 labels on the same grid, and the voxels lost by their number in ``mask``.

    Raises:
        OptionError: unknown tool, or structures of a mask that is not ours.
        GeometryError: the two masks lie on different grids.
    """
    for tool in (source, target):
        if tool not in NUMBERINGS:
            raise OptionError(f"Label system {tool!r} is unknown.", f"Use {', '.join(NUMBERINGS)}.")
    labels = mask.array.astype(np.uint16)
    if source == target == "spineps" and structures is None:
        return mask.with_array(labels), {}
    if source == "spineps" and kind_of(np.where(np.isin(labels, (CORD, CANAL)), 0, labels)) == "semantic":
        raise OptionError(
            "This is a structure mask (seg-spine): it does not tell the vertebrae apart.",
            "Give the seg-vert mask, and this one with --structures.",
        )
    if structures is not None:
        if source != "spineps":
            raise OptionError("Only masks of spineps have a separate structure mask.", "Leave --structures out.")
        parts = _on_grid(structures, mask)
        labels = np.where((labels == 0) & np.isin(parts, (CORD, CANAL)), parts, labels)
    if source == "spineps" and target != "spineps":
        labels = vertebrae_with_endplates(labels, mask.affine, discs=False)
    out, lost = renumbered(labels, source, target)
    return mask.with_array(out), lost


def color_table(labels: np.ndarray, tool: str) -> str:
    """ITK-SNAP's table of the labels of one mask, in the colours of the picture."""
    ours, found = NUMBERINGS[tool].ours, {}
    for label in np.flatnonzero(np.bincount(labels.reshape(-1))).tolist():
        if label and label in ours:
            code = ours[label]
            color = structure_color(code) if code in (CORD, CANAL) else instance_color(code)
            found[label] = (name_of(code), color)
    return itksnap_table(found)


def structure_table(labels: np.ndarray) -> str:
    """ITK-SNAP's table of a structure mask."""
    found = np.flatnonzero(np.bincount(labels.reshape(-1)))[1:].tolist()
    return itksnap_table({label: (structure_name(label), structure_color(label)) for label in found})


def _on_grid(structures: Volume, mask: Volume) -> np.ndarray:
    try:
        return on_reference(structures, mask).array
    except GeometryError as error:
        raise GeometryError("The two masks lie on different grids.", "Give the two masks of one scan.") from error
