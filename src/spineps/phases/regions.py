"""Labelled voxels of both masks, sorted once by label and part: what every measure starts from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from spineps.anatomy import (
    CANAL,
    CORD,
    ENDPLATE,
    ENDPLATE_INFERIOR,
    ENDPLATE_OFFSET,
    ENDPLATE_SUPERIOR,
)
from spineps.phases.solids import unit
from spineps.volume import Volume

PLATES = (ENDPLATE, ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR)
#: mm from the border within which a structure counts as cut: some masks leave the outermost voxels empty.
BORDER = 1.0


class Regions:
    """All labelled voxels; label 0 holds cord and canal, whose ever they are, and endplates without owner.

    Args:
        semantic, instance: both masks, on one grid.
    """

    def __init__(self, semantic: Volume, instance: Volume) -> None:
        self.grid = semantic.grid
        # Files come in Fortran order: voxels are read as they lie, or the whole array would be copied.
        order: Literal["C", "F"] = "F" if instance.array.flags.f_contiguous else "C"
        parts, owners = semantic.array.ravel(order=order), instance.array.ravel(order=order)
        flat = np.flatnonzero((owners != 0) | (parts == CORD) | (parts == CANAL))
        labels, part = owners[flat].astype(np.int64), parts[flat].astype(np.int64)
        labels[(part == CORD) | (part == CANAL)] = 0
        labels[np.isin(part, PLATES) & (labels < ENDPLATE_OFFSET)] = 0
        key = labels * 256 + np.minimum(part, 255)
        by_key = np.argsort(key, kind="stable")
        key, flat = key[by_key], flat[by_key]
        self.index = np.stack(np.unravel_index(flat, self.grid.shape, order=order), axis=1)
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        ends = np.append(starts, len(key))[1:]
        names = [(int(k // 256), int(k % 256)) for k in key[starts]]
        self._groups = {name: slice(int(a), int(b)) for name, a, b in zip(names, starts, ends, strict=True)}
        low, high = (f.reduceat(self.index, starts, axis=0) if len(starts) else () for f in (np.minimum, np.maximum))
        self._boxes = {name: (low[k], high[k]) for k, name in enumerate(names)}
        self.labels = {label for label, _ in names}

    def _chosen(self, label: int, parts: Iterable[int] | None) -> list[tuple[int, int]]:
        return [
            (label, part) for part in (self.parts(label) if parts is None else parts) if (label, part) in self._groups
        ]

    def of(self, label: int, parts: Iterable[int] | None = None) -> np.ndarray:
        """(n, 3) indices of a label's voxels, of all its parts or of some."""
        found = [self.index[self._groups[key]] for key in self._chosen(label, parts)]
        return np.concatenate(found) if found else np.zeros((0, 3), int)

    def parts(self, label: int) -> list[int]:
        """Codes of the semantic mask that occur within a label."""
        return [part for owner, part in self._groups if owner == label]

    def box(self, label: int, parts: Iterable[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest index along each axis; the label must be there."""
        boxes = [self._boxes[key] for key in self._chosen(label, parts)]
        return np.min([b[0] for b in boxes], axis=0), np.max([b[1] for b in boxes], axis=0)

    def sides(self, label: int, parts: Iterable[int] | None = None) -> list[np.ndarray]:
        """Outward normals (RAS) of the faces of the field of view that these voxels touch."""
        if not self._chosen(label, parts):
            return []
        # A face's normal is not its axis where the grid is sheared.
        normals = np.linalg.inv(self.grid.affine[:3, :3])
        low, high = self.box(label, parts)
        found: list[np.ndarray] = []
        for axis, (size, mm) in enumerate(zip(self.grid.shape, self.grid.zoom, strict=True)):
            margin = int(BORDER / mm + 1e-3)
            found += [-unit(normals[axis])] if low[axis] <= margin else []
            found += [unit(normals[axis])] if high[axis] >= size - 1 - margin else []
        return found
