"""A volume is an array with an affine; a grid is its geometry alone.  Everything here is pure.

Axis codes follow the published system: ``"PIR"`` means that array axis 0 grows towards Posterior, 1 towards Inferior,
2 towards Right.  Affines map voxel indices (0-based, voxel centres) to millimetres in RAS+ (NIfTI convention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Relative tolerance below which two affines (or zooms) count as equal; the published system uses 1e-3 mm on zooms.
ZOOM_TOLERANCE = 1e-3

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie.

    Attributes:
        shape: voxels along each axis.
        affine: (4, 4) float64, index -> RAS millimetres; may be sheared.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "affine", np.asarray(self.affine, float))

    @property
    def zoom(self) -> tuple[float, float, float]:
        """Voxel size in mm along each array axis."""
        z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(z[0]), float(z[1]), float(z[2])

    @property
    def axcodes(self) -> str:
        """Orientation such as ``"PIR"`` (nearest axes for oblique grids)."""
        from nibabel.orientations import aff2axcodes

        return "".join(aff2axcodes(self.affine))

    @property
    def voxel_volume(self) -> float:
        """mm3 of one voxel, shear included."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def same_as(self, other: Grid, tolerance: float = ZOOM_TOLERANCE) -> bool:
        """True when shapes agree and no voxel centre differs by more than ``tolerance`` voxels."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(_index_map(self, other) - np.eye(4)).max() <= tolerance)

    def reoriented(self, axcodes: str) -> Grid:
        """The same voxels with axes permuted and flipped to ``axcodes``."""
        from nibabel.orientations import inv_ornt_aff

        ornt = _ornt_to(self.affine, axcodes)
        shape = [0, 0, 0]
        for axis, (target, _) in enumerate(ornt):
            shape[int(target)] = self.shape[axis]
        return Grid((shape[0], shape[1], shape[2]), self.affine @ inv_ornt_aff(ornt, self.shape))

    def cropped(self, box: Box) -> Grid:
        """The sub-grid under ``box`` (slices with explicit start and stop, step 1)."""
        start = np.array([s.start for s in box], float)
        shape = tuple(s.stop - s.start for s in box)
        return Grid((shape[0], shape[1], shape[2]), _moved(self.affine, start))

    def padded(self, width: int) -> Grid:
        """Grown by ``width`` voxels at all six sides."""
        s = self.shape
        return Grid((s[0] + 2 * width, s[1] + 2 * width, s[2] + 2 * width), _moved(self.affine, [-width] * 3))

    def rescaled(self, zoom: Sequence[float]) -> Grid:
        """New voxel size; voxel (0, 0, 0) keeps its centre and the shape becomes rint(shape * zoom / new)."""
        old = np.array(self.zoom)
        new = np.asarray(zoom, float)
        if np.all(np.abs(old - new) < ZOOM_TOLERANCE):
            return self
        shape = np.maximum(np.rint(np.array(self.shape) * old / new), 1).astype(int)
        affine = self.affine.copy()
        affine[:3, :3] = affine[:3, :3] * (new / old)
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def covering(self, zoom: Sequence[float]) -> Grid:
        """New voxel size around the same middle, with enough voxels to hold all of the field of view.

        :meth:`rescaled`, which the published system uses, may end before the last slice.
        """
        old, new = np.array(self.zoom), np.asarray(zoom, float)
        if np.all(np.abs(old - new) < ZOOM_TOLERANCE):
            return self
        shape = np.maximum(np.ceil(np.array(self.shape) * old / new - ZOOM_TOLERANCE), 1).astype(int)
        first = ((np.array(self.shape) - 1) - (shape - 1) * new / old) / 2
        affine = _moved(self.affine, first)
        affine[:3, :3] = affine[:3, :3] * (new / old)
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def to_world(self, index: np.ndarray) -> np.ndarray:
        """Voxel indices (..., 3) to RAS mm (..., 3)."""
        return np.asarray(index, float) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, world: np.ndarray) -> np.ndarray:
        """RAS mm (..., 3) to continuous voxel indices (..., 3)."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(world, float) @ inverse[:3, :3].T + inverse[:3, 3]


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D array on a grid.

    Attributes:
        array: shape (X, Y, Z), any real dtype.
        affine: (4, 4), index -> RAS mm.
    """

    array: np.ndarray
    affine: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "affine", np.asarray(self.affine, float))

    @property
    def grid(self) -> Grid:
        s = self.array.shape
        return Grid((s[0], s[1], s[2]), self.affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.grid.shape

    @property
    def zoom(self) -> tuple[float, float, float]:
        return self.grid.zoom

    @property
    def axcodes(self) -> str:
        return self.grid.axcodes

    def with_array(self, array: np.ndarray) -> Volume:
        """Another array of the same shape on the same grid."""
        if array.shape != self.array.shape:
            raise ValueError(f"array of shape {array.shape} does not fit a grid of shape {self.array.shape}")
        return Volume(array, self.affine)

    def reoriented(self, axcodes: str) -> Volume:
        """Permute and flip axes to ``axcodes``; no voxel value changes."""
        ornt = _ornt_to(self.affine, axcodes)
        flips = tuple(slice(None, None, int(sign)) for _, sign in ornt)
        array = self.array[flips].transpose(np.argsort(ornt[:, 0]).astype(int))
        return Volume(np.ascontiguousarray(array), self.grid.reoriented(axcodes).affine)

    def cropped(self, box: Box) -> Volume:
        """The part under ``box``."""
        return Volume(self.array[box], self.grid.cropped(box).affine)

    def padded(self, width: int, value: float = 0) -> Volume:
        """``width`` voxels of ``value`` added at all six sides."""
        return Volume(np.pad(self.array, width, constant_values=value), self.grid.padded(width).affine)

    def rescaled(self, zoom: Sequence[float], order: int = 0) -> Volume:
        """Resample to a voxel size (mm), edge values beyond the border, dtype kept (integers rounded and clamped)."""
        target = self.grid.rescaled(zoom)
        if target is self.grid or target.same_as(self.grid, 1e-9):
            return self
        return self.on(target, order=order, fill=None)

    def on(self, target: Grid, order: int = 0, fill: float | None = 0) -> Volume:
        """This volume seen on another grid: the one way back from any crop, pad, flip or rescale.

        Whole-voxel moves (permutation, flip, shift) are exact copies.  Anything else interpolates with a spline of
        ``order`` (0 nearest, 1 linear, 3 cubic).

        Args:
            target: the grid wanted.
            order: spline order.
            fill: value outside this volume; ``None`` repeats the edge.
        """
        index = _index_map(target, self.grid)
        whole = np.rint(index)
        lattice = np.abs(np.rint(index[:3, :3])).sum(axis=0)
        if np.abs(index - whole).max() < 1e-4 and np.all(lattice == 1) and fill is not None:
            return Volume(_copy_shifted(self.array, target.shape, whole.astype(int), fill), target.affine)
        return Volume(_interpolated(self.array, target.shape, index, order, fill), target.affine)


def bounding_box(mask: np.ndarray, margin: int | Sequence[int] = 0) -> Box | None:
    """Smallest box around the true voxels, grown by ``margin`` voxels and clamped; None when nothing is true.

    >>> m = np.zeros((5, 5, 5), bool); m[2, 1:3, 4] = True
    >>> bounding_box(m, 1)
    (slice(1, 4, None), slice(0, 4, None), slice(3, 5, None))
    """
    # One pass over the volume, everything else on one plane and on single slices (maximum is faster than any).
    unsigned = mask.dtype.kind == "u" and len(mask) > 0
    plane = np.asarray(np.maximum.reduce(mask, axis=0) if unsigned else mask.any(axis=0))
    rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
    if rows.size == 0:
        return None
    slices = mask[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    first = next(k for k in range(len(mask)) if slices[k].any())
    last = next(k for k in range(len(mask) - 1, -1, -1) if slices[k].any())
    ends = ((first, last), (int(rows[0]), int(rows[-1])), (int(columns[0]), int(columns[-1])))
    margins = np.broadcast_to(np.asarray(margin, int), 3).tolist()
    box = [slice(max(a - m, 0), min(b + 1 + m, n)) for (a, b), m, n in zip(ends, margins, mask.shape, strict=True)]
    return box[0], box[1], box[2]


def mm_to_voxels(mm: float, zoom: Sequence[float]) -> int:
    """Length in voxels of the finest axis, at least 1 (rounding as in the published system).

    >>> mm_to_voxels(3, (0.75, 0.75, 1.65))
    4
    """
    return max(round(mm / min(zoom)), 1)


def mm3_to_voxels(mm3: float, zoom: Sequence[float]) -> int:
    """Volume in voxels, at least 1.

    >>> mm3_to_voxels(27.84375, (0.75, 0.75, 1.65))
    30
    """
    return max(round(mm3 / float(np.prod(zoom))), 1)


def mm2_to_voxels(mm2: float, zoom: Sequence[float]) -> int:
    """Area in voxel faces of mean size, at least 1."""
    return max(round(mm2 / float(np.prod(zoom)) ** (2 / 3)), 1)


def _ornt_to(affine: np.ndarray, axcodes: str) -> np.ndarray:
    # Imported late: training runs on machines that have no nibabel.
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    return ornt_transform(io_orientation(affine), axcodes2ornt(tuple(axcodes)))


def _moved(affine: np.ndarray, offset: Sequence[float] | np.ndarray) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] = affine[:3, 3] + affine[:3, :3] @ np.asarray(offset, float)
    return moved


def _index_map(source: Grid, target: Grid) -> np.ndarray:
    """(4, 4) from indices of ``source`` to indices of ``target``."""
    return np.linalg.inv(target.affine) @ source.affine


def _copy_shifted(array: np.ndarray, shape: tuple[int, int, int], index: np.ndarray, fill: float) -> np.ndarray:
    out = np.full(shape, fill, dtype=array.dtype)
    axes = [int(np.flatnonzero(index[:3, axis])[0]) for axis in range(3)]
    view = array.transpose(axes)
    take, put = [], []
    for axis, source in enumerate(axes):
        step, shift = int(index[source, axis]), int(index[source, 3])
        view_length = view.shape[axis]
        if step < 0:
            view = np.flip(view, axis)
            shift = view_length - 1 - shift
        lo, hi = max(0, -shift), min(shape[axis], view_length - shift)
        if hi <= lo:
            return out
        put.append(slice(lo, hi))
        take.append(slice(lo + shift, hi + shift))
    out[tuple(put)] = view[tuple(take)]
    return out


def _interpolated(
    array: np.ndarray, shape: tuple[int, int, int], index: np.ndarray, order: int, fill: float | None
) -> np.ndarray:
    from scipy.ndimage import affine_transform

    matrix, offset = index[:3, :3], index[:3, 3]
    diagonal = np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-9)
    if diagonal and order == 0 and array.size:
        return _nearest(array, shape, np.diag(matrix), offset, fill)
    working = array.astype(np.float32) if order > 1 and array.dtype != np.float64 else array
    if array.dtype == bool:
        working = array.astype(np.uint8)
    integer = np.issubdtype(array.dtype, np.integer)
    out = affine_transform(
        working,
        np.diag(matrix) if diagonal else matrix,
        offset,
        output_shape=shape,
        order=order,
        mode="nearest",
        output=np.float32 if integer and order > 0 else None,
    )
    if integer and order > 0:
        info = np.iinfo(array.dtype)
        out = np.clip(np.rint(out), info.min, info.max)
    if fill is not None:
        # A voxel is as wide as its spacing: the source reaches half a voxel beyond its outermost centres.
        out[_outside(array.shape, shape, index)] = fill
    return out.astype(array.dtype, copy=False)


def _nearest(
    array: np.ndarray, shape: tuple[int, int, int], scale: np.ndarray, offset: np.ndarray, fill: float | None
) -> np.ndarray:
    """Nearest neighbour, axis by axis: what scipy's zoom gives, to the last tie, in a fraction of its time."""
    out = array
    beyond = []
    for axis in range(3):
        where = (np.arange(shape[axis]) + offset[axis] / scale[axis]) * scale[axis]
        out = out.take(np.floor(np.clip(where, 0, array.shape[axis] - 1) + 0.5).astype(int), axis)
        exact = np.arange(shape[axis]) * scale[axis] + offset[axis]
        beyond.append((exact < -0.5 - 1e-6) | (exact > array.shape[axis] - 0.5 + 1e-6))
    if fill is not None:
        out[beyond[0]] = fill
        out[:, beyond[1]] = fill
        out[:, :, beyond[2]] = fill
    return out


def _outside(source_shape: Sequence[int], shape: tuple[int, int, int], index: np.ndarray) -> np.ndarray:
    """True where a target voxel's centre lies more than half a voxel beyond the source."""
    outside = np.zeros(shape, bool)
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    for row, length in enumerate(source_shape):
        where = index[row, 3] + sum(index[row, axis] * axes[axis] for axis in range(3) if index[row, axis] != 0)
        outside |= (where < -0.5 - 1e-6) | (where > length - 0.5 + 1e-6)
    return outside
