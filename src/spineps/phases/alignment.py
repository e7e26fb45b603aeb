"""Angles of the whole spine, and sections of the canal perpendicular to its centre line."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from spineps.anatomy import VERTEBRA_IDS, VERTEBRAE, instance_name
from spineps.phases.measures import Measured, Row
from spineps.phases.solids import PLATE_DEPTH, PLATE_WIDTH, Frame, Plane, Shape, Solid, frame_of, spread, unit
from spineps.volume import Grid

#: Angle: upper vertebra with its end face, lower one with its, and the sign that makes the usual curve positive.
ANGLES: dict[str, tuple[str, str, str, str, int]] = {
    "lordosis_L1_S1": ("L1", "upper", "S1", "upper", 1),
    "lordosis_T12_S1": ("T12", "lower", "S1", "upper", 1),
    "kyphosis_T4_T12": ("T4", "upper", "T12", "lower", -1),
    "kyphosis_T1_T12": ("T1", "upper", "T12", "lower", -1),
    "lordosis_C2_C7": ("C2", "lower", "C7", "lower", 1),
}
#: mm along the canal over which its direction is taken, and over which a section is averaged.
REACH, SLAB = 8.0, (-2.0, 0.0, 2.0)


def spine_row(
    shapes: Mapping[int, Shape], sacrum: Plane | None, front: np.ndarray | None, grid: Grid, named: bool
) -> Row:
    """Curvature of the whole spine, as far as it is in the field of view."""
    row = Row("spine", 0)
    if not shapes or front is None:
        return row
    if named:
        for name, (upper, top, lower, bottom, sign) in ANGLES.items():
            first, last = _face(shapes, None, upper, top), _face(shapes, sacrum, lower, bottom)
            if first is not None and last is not None:
                ids = [v for v in shapes if _between(v, upper, lower)]
                frame = _common([shapes[v] for v in ids])
                angle = sign * _difference(_lean(last, frame, frame.front), _lean(first, frame, frame.front))
                row.values[name] = Measured(angle, SQRT2 * _sagittal_sigma(grid, [shapes[v] for v in ids]))
    frame = _common(list(shapes.values()))
    if sacrum is not None:
        axial, ahead = np.array([0.0, 0.0, 1.0]), frame.front - [0, 0, frame.front[2]]
        if np.linalg.norm(ahead) > 0.3:
            tilt = np.degrees(np.arctan2(sacrum.normal @ unit(ahead), sacrum.normal @ axial))
            row.values["sacral_slope"] = Measured(float(tilt), _sagittal_sigma(grid, list(shapes.values())[-1:]))
    _scoliosis(row, shapes, frame, grid)
    return row


SQRT2 = float(np.sqrt(2))


def _scoliosis(row: Row, shapes: Mapping[int, Shape], frame: Frame, grid: Grid) -> None:
    lean = {v: [_lean(p, frame, frame.right) for p in (s.upper, s.lower)] for v, s in shapes.items()}
    pairs = [(abs(d), d, a, b) for a, b in combinations(shapes, 2) for d in [_difference(lean[b][1], lean[a][0])]]
    if not pairs:
        return
    angle, signed, upper, lower = max(pairs, key=lambda pair: pair[0])
    ends = [shapes[upper], shapes[lower]]
    sigma = [np.degrees(SQRT2 * spread(grid, s.frame.up) / (2 * PLATE_WIDTH * s.width)) for s in ends]
    row.values["cobb_angle"] = Measured(angle, float(np.hypot(*sigma)))
    row.texts.update(
        cobb_upper=instance_name(upper), cobb_lower=instance_name(lower), cobb_convex="right" if signed > 0 else "left"
    )


def _face(shapes: Mapping[int, Shape], sacrum: Plane | None, name: str, which: str) -> Plane | None:
    if name == "S1":
        return sacrum
    shape = shapes.get(VERTEBRA_IDS[name])
    return None if shape is None else shape.upper if which == "upper" else shape.lower


def _between(v: int, upper: str, lower: str) -> bool:
    rank = VERTEBRAE.index
    last = len(VERTEBRAE) if lower == "S1" else rank(VERTEBRA_IDS[lower])
    return rank(VERTEBRA_IDS[upper]) <= rank(v) <= last


def _common(shapes: list[Shape]) -> Frame:
    """Mean axes: the plane that the left-right axes share is the spine's own mid-sagittal plane."""
    right = unit(np.sum([s.frame.right for s in shapes], axis=0))
    up = np.sum([s.frame.up for s in shapes], axis=0)
    up = unit(up - right * (up @ right))
    return Frame(np.zeros(3), np.stack([up, np.cross(up, right), right], axis=1))


def _lean(plane: Plane, frame: Frame, towards: np.ndarray) -> float:
    """Degrees by which an end face's normal leans towards an axis."""
    return float(np.degrees(np.arctan2(plane.normal @ towards, plane.normal @ frame.up)))


def _difference(a: float, b: float) -> float:
    return float((a - b + 180) % 360 - 180)


def _sagittal_sigma(grid: Grid, shapes: list[Shape]) -> float:
    """Degrees: both ends of an end face's line are uncertain by the spread of a voxel."""
    sigma = [SQRT2 * spread(grid, s.frame.up) / (2 * PLATE_DEPTH * s.depth) for s in shapes]
    return float(np.degrees(max(sigma)))


def canal_section(
    canal: Solid, cord: Solid | None, index: np.ndarray, frame: Frame, depth: float
) -> dict[str, Measured]:
    """Canal and cord at the height of a body or disc, cut perpendicular to the canal's centre line.

    Args:
        canal, cord: their voxels.
        index: (n, 3) voxel indices of the canal, in the order of ``canal.points``.
        frame: of the body or disc.
        depth: of it, mm.
    """
    local = frame.to_local(canal.points)
    near = (local[:, 1] < 0) & (local[:, 1] > -depth / 2 - 40) & (np.abs(local[:, 2]) < 25)
    points = canal.points[near]
    up, centre = frame.up, None
    height = local[near][:, 0]
    for _ in range(2):
        middle, above, below = (points[np.abs(height - shift) < 3] for shift in (0, REACH, -REACH))
        if len(middle) < 5:
            return {}
        centre = middle.mean(axis=0) if centre is None else centre
        if len(above) < 5 or len(below) < 5:
            return {}  # where the canal ends there is no section
        up = unit(above.mean(axis=0) - below.mean(axis=0))
        height = (points - centre) @ up
    assert centre is not None
    slab = index[near][np.abs(height) < max(3.0, SLAB[-1])]
    if len(slab) and ((slab == 0) | (slab == np.array(canal.grid.shape) - 1)).any():
        return {}
    cut = frame_of(centre, up, frame.front)
    values = {}
    for name, solid in (("canal", canal), ("cord", cord)):
        found = _section(solid, cut) if solid is not None else None
        if found is None:
            continue
        area, ap, transverse = found
        grid = canal.grid
        one, two = (SQRT2 * spread(grid, axis) for axis in (cut.front, cut.right))
        # Both diameters may be wrong at once; pi / 4 as for an ellipse.
        sigma = np.pi / 4 * float(np.hypot(one * transverse, two * ap))
        values[f"{name}_area"] = Measured(area, sigma)
        values[f"{name}_ap"], values[f"{name}_transverse"] = Measured(ap, one), Measured(transverse, two)
        if name == "cord":
            relative = float(np.hypot(one / ap, two / transverse))
            values["cord_compression_ratio"] = Measured(ap / transverse, ap / transverse * relative)
    return values


def _section(solid: Solid, cut: Frame) -> tuple[float, float, float] | None:
    """Area and both diameters through the centre of a section; None when there is next to nothing."""
    step = np.array([SLAB[1] - SLAB[0], 0.5, 0.5])
    half = np.array([len(SLAB) / 2 * step[0], 25.0, 25.0])
    field = solid.sample(cut, -half, half, step)
    plane = field.values.mean(axis=0)
    area = float(plane.sum() * step[1] * step[2])
    if area < 5:
        return None
    a, r = plane.sum(axis=1) @ field.a / plane.sum(), plane.sum(axis=0) @ field.r / plane.sum()
    ap = plane[:, np.abs(field.r - r) <= 1.0].sum(axis=0).mean() * step[1]
    transverse = plane[np.abs(field.a - a) <= 1.0].sum(axis=1).mean() * step[2]
    if not (ap > 1 and transverse > 1):
        return None
    return area, float(ap), float(transverse)
