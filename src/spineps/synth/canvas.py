"""Voxels and the primitive shapes drawn into them.

A shape is an approximate signed distance in mm, negative inside.  Every shape is evaluated only inside its own box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spineps.synth.chain import PIR_TO_RAS, Frame
from spineps.volume import Box, Grid

FAR = 99.0


@dataclass(frozen=True)
class Part:
    """A swept ellipsoid in the frame of a vertebra, with the semantic class it carries.

    Attributes:
        semantic: class id of :mod:`spineps.anatomy`.
        a, b: ends of the axis, local (p, i, r) in mm.
        radii_a, radii_b: half-axes along (p, i, r) at the two ends, mm.
        shear: dp/di by which the shape leans (laminae and facets slope).
        bias: mm by which it yields to its neighbours when classes are drawn.
    """

    semantic: int
    a: tuple[float, float, float]
    b: tuple[float, float, float]
    radii_a: tuple[float, float, float]
    radii_b: tuple[float, float, float]
    shear: float = 0.0
    bias: float = 0.0


class Canvas:
    """A grid's voxel centres in (p, i, r) millimetres, bent by a smooth warp.

    Args:
        grid: where to draw.
        warp: optional displacement (3, X, Y, Z) in mm.
    """

    def __init__(self, grid: Grid, warp: np.ndarray | None = None) -> None:
        self.grid = grid
        affine = np.eye(4)
        affine[:3, :3] = PIR_TO_RAS.T @ grid.affine[:3, :3]
        affine[:3, 3] = PIR_TO_RAS.T @ grid.affine[:3, 3]
        self._inverse = np.linalg.inv(affine)
        self._reach = np.abs(self._inverse[:3, :3])
        axes = [np.arange(n, dtype=np.float32) for n in grid.shape]
        space = np.empty((3, *grid.shape), np.float32)
        for row in range(3):
            terms = [np.float32(affine[row, k]) * axes[k] for k in range(3)]
            space[row] = terms[0][:, None, None] + terms[1][None, :, None] + terms[2][None, None, :]
            space[row] += np.float32(affine[row, 3])
        if warp is not None:
            space += warp
        self.space = space
        self._slack = 0.0 if warp is None else float(np.abs(warp).max())

    def box(self, low: np.ndarray, high: np.ndarray, margin: float = 0.0) -> Box | None:
        """Voxels whose unwarped centres lie within [low, high] mm, widened by ``margin`` and the warp."""
        middle, half = (low + high) / 2, (high - low) / 2 + margin + self._slack
        centre = self._inverse[:3, :3] @ middle + self._inverse[:3, 3]
        reach = self._reach @ half
        slices = []
        for axis, size in enumerate(self.grid.shape):
            start = max(int(np.ceil(centre[axis] - reach[axis])), 0)
            stop = min(int(np.floor(centre[axis] + reach[axis])) + 1, size)
            if stop <= start:
                return None
            slices.append(slice(start, stop))
        return slices[0], slices[1], slices[2]

    def local(self, box: Box, frame: Frame) -> np.ndarray:
        """Local coordinates (3, x, y, z) of the voxels of a box in a frame."""
        block = self.space[(slice(None), *box)]
        shift = (frame.axes.T @ frame.centre).astype(np.float32)
        flat = frame.axes.T.astype(np.float32) @ block.reshape(3, -1)
        flat -= shift[:, None]
        return flat.reshape(block.shape)

    def frame_box(self, frame: Frame, low: np.ndarray, high: np.ndarray, margin: float = 0.0) -> Box | None:
        """Box of voxels around the local cuboid [low, high]."""
        centre = frame.to_space((low + high) / 2)
        half = np.abs(frame.axes) @ ((high - low) / 2)
        return self.box(centre - half, centre + half, margin)

    def draw(self, frame: Frame, part: Part, margin: float = 3.0) -> tuple[Box, np.ndarray] | None:
        """Signed distance of a part within its box; None outside the field of view."""
        ends = np.array([part.a, part.b])
        radii = np.array([part.radii_a, part.radii_b])
        lean = np.array([abs(part.shear) * radii[:, 1].max(), 0, 0])
        low = (ends - radii).min(axis=0) - lean
        high = (ends + radii).max(axis=0) + lean
        box = self.frame_box(frame, low, high, margin)
        if box is None:
            return None
        return box, spindle(self.local(box, frame), part)

    def fill(self, frame: Frame, part: Part, array: np.ndarray, value: int) -> None:
        """Set ``array`` inside a part."""
        drawn = self.draw(frame, part, 0.0)
        if drawn is not None:
            box, distance = drawn
            array[box][distance < 0] = value


def spindle(local: np.ndarray, part: Part) -> np.ndarray:
    """Approximate signed distance to a swept ellipsoid, float32 (x, y, z)."""
    a, b = np.asarray(part.a, np.float32), np.asarray(part.b, np.float32)
    ra, rb = np.asarray(part.radii_a, np.float32), np.asarray(part.radii_b, np.float32)
    mean = (ra + rb) / 2
    axis = (b - a) / mean
    length2 = max(float(axis @ axis), 1e-6)
    weight = (axis / mean / np.float32(length2)).astype(np.float32)
    along = (local[0] - a[0]) * weight[0] + (local[1] - a[1]) * weight[1] + (local[2] - a[2]) * weight[2]
    np.clip(along, 0, 1, out=along)
    total = np.zeros_like(along)
    height = local[1] - a[1] - along * (b[1] - a[1])
    for k in range(3):
        offset = height if k == 1 else local[k] - a[k] - along * (b[k] - a[k])
        if k == 0 and part.shear:
            offset = offset - np.float32(part.shear) * height
        offset = offset / (ra[k] + along * (rb[k] - ra[k]))
        total += offset * offset
    radius = ra.min() + along * (rb.min() - ra.min())
    return (np.sqrt(total) - 1) * radius


def smooth_union(first: np.ndarray, second: np.ndarray, k: float) -> np.ndarray:
    """Polynomial smooth minimum of two distances, blending over ``k`` mm (Quilez)."""
    h = np.clip(0.5 + 0.5 * (first - second) / np.float32(k), 0, 1)
    return second * h + first * (1 - h) - np.float32(k) * h * (1 - h)


def smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between.

    >>> smoothstep(np.array([-1.0, 0.5, 2.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def smooth_noise(shape: tuple[int, ...], cells: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Smooth random field of unit variance, float32.

    Args:
        shape: (X, Y, Z), or (C, X, Y, Z) for several fields.
        cells: correlation length in voxels along X, Y, Z.
        rng: source.
    """
    size = shape[-3:]
    coarse = tuple(int(np.ceil(n / c)) + 3 for n, c in zip(size, cells, strict=True))
    field = rng.standard_normal((*shape[:-3], *coarse)).astype(np.float32)
    for axis, (n, c) in enumerate(zip(size, cells, strict=True)):
        field = _stretched(field, field.ndim - 3 + axis, n, c)
    # A third of the voxels along each axis is plenty to estimate the spread.
    return field / np.float32(field[..., ::3, ::3, ::3].std() + 1e-6)


def _stretched(field: np.ndarray, axis: int, size: int, cell: float) -> np.ndarray:
    """Quadratic B-spline upsampling along one axis."""
    at = np.arange(size) / cell + 1.0
    base = np.rint(at).astype(int)
    t = (at - base).astype(np.float32)
    matrix = np.zeros((size, field.shape[axis]), np.float32)
    rows = np.arange(size)
    for step, weight in ((-1, 0.5 * (0.5 - t) ** 2), (0, 0.75 - t**2), (1, 0.5 * (0.5 + t) ** 2)):
        matrix[rows, np.clip(base + step, 0, field.shape[axis] - 1)] += weight
    return np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
