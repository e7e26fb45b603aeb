"""Sections of cord and canal, perpendicular to the canal's centre line."""

from __future__ import annotations

import numpy as np

from spineps.phases.measures import Measured
from spineps.phases.solids import SQRT2, Field, Frame, Solid, frame_of, spread, unit
from spineps.volume import Grid

#: mm along the canal over which its direction is taken, and over which a section is averaged.
REACH, SLAB = 8.0, (-2.0, 0.0, 2.0)
#: Voxels that are enough to find the direction; more cost time and move it by less than 0.1 mm.
ENOUGH = 20000
#: mm of the canal from left to right that must be in a narrow field of view for its depth to be told.
VISIBLE = 6.0


class Canal:
    """Cord and canal of a scan.

    Args:
        grid: where the indices count.
        canal: (n, 3) voxels of the canal, cord included.
        cord: (n, 3) voxels of the cord.
    """

    def __init__(self, grid: Grid, canal: np.ndarray, cord: np.ndarray) -> None:
        self.grid = grid
        self.solids = {name: Solid(grid, index) for name, index in (("canal", canal), ("cord", cord)) if len(index)}
        self.points = grid.to_world(canal[:: max(len(canal) // ENOUGH, 1)])

    def near(self, centre: np.ndarray, up: np.ndarray) -> np.ndarray:
        """(n, 3) points of the canal at a height, RAS mm."""
        away = self.points - centre
        return self.points[(np.abs(away @ up) < 6) & ((away**2).sum(axis=1) < 60**2)]

    def section(self, frame: Frame, depth: float) -> dict[str, Measured]:
        """Areas and diameters at mid-height of a body or disc with this frame and depth (mm)."""
        cut = self._cut(frame, depth)
        values: dict[str, Measured] = {}
        if cut is None:
            return values
        one, two = (SQRT2 * spread(self.grid, axis) for axis in (cut.front, cut.right))
        for name, solid in self.solids.items():
            found = _section(solid, cut)
            if found is None:
                continue
            area, ap, transverse = found
            values[f"{name}_ap"] = Measured(ap, one)
            if area is None or transverse is None:
                continue
            # Both diameters may be wrong at once; pi / 4 as for an ellipse.
            values[f"{name}_area"] = Measured(area, np.pi / 4 * float(np.hypot(one * transverse, two * ap)))
            values[f"{name}_transverse"] = Measured(transverse, two)
            if name == "cord":
                relative = float(np.hypot(one / ap, two / transverse))
                values["cord_compression_ratio"] = Measured(ap / transverse, ap / transverse * relative)
        return values

    def _cut(self, frame: Frame, depth: float) -> Frame | None:
        """The cutting plane: its centre, its normal along the canal."""
        local = frame.to_local(self.points)
        near = (local[:, 1] < 0) & (local[:, 1] > -depth / 2 - 40) & (np.abs(local[:, 2]) < 25)
        points, height = self.points[near], local[near][:, 0]
        up, centre = frame.up, None
        for _ in range(2):
            middle, above, below = (points[np.abs(height - shift) < 3] for shift in (0, REACH, -REACH))
            if min(len(middle), len(above), len(below)) < 5:
                return None  # where the canal ends there is no section
            centre = middle.mean(axis=0) if centre is None else centre
            up = unit(above.mean(axis=0) - below.mean(axis=0))
            height = (points - centre) @ up
        assert centre is not None
        return frame_of(centre, up, frame.front)


def _section(solid: Solid, cut: Frame) -> tuple[float | None, float, float | None] | None:
    """Area and both diameters through the centre; the field of view's sides may leave the depth alone, or nothing."""
    step = np.array([SLAB[1] - SLAB[0], 0.5, 0.5])
    half = np.array([len(SLAB) / 2 * step[0], 25.0, 25.0])
    field = solid.sample(cut, -half, half, step)
    plane = field.values.mean(axis=0)
    area = float(plane.sum() * step[1] * step[2])
    if area < 5:
        return None
    a, r = plane.sum(axis=1) @ field.a / plane.sum(), plane.sum(axis=0) @ field.r / plane.sum()
    ap = float(plane[:, np.abs(field.r - r) <= 1.0].sum(axis=0).mean() * step[1])
    transverse = float(plane[np.abs(field.a - a) <= 1.0].sum(axis=1).mean() * step[2])
    sides = _reached(solid.grid, cut, field, plane)
    if not (ap > 1 and transverse > 1) or any(abs(side @ cut.right) < 0.7 for side in sides):
        return None
    if sides:
        return (None, ap, None) if transverse >= VISIBLE else None
    return area, ap, transverse


def _reached(grid: Grid, cut: Frame, field: Field, plane: np.ndarray) -> list[np.ndarray]:
    """Normals of the faces of the field of view that a section reaches."""
    rows, columns = np.nonzero(plane > 0.3)
    local = np.stack([np.zeros(len(rows)), field.a[rows], field.r[columns]], axis=1)
    inverse = np.linalg.inv(grid.affine)
    index = cut.to_world(local) @ inverse[:3, :3].T + inverse[:3, 3]
    found: list[np.ndarray] = []
    for axis, size in enumerate(grid.shape if len(rows) else ()):
        low, high = index[:, axis].min() < 0.5, index[:, axis].max() > size - 1.5
        found += [unit(inverse[axis, :3])] if low or high else []
    return found
