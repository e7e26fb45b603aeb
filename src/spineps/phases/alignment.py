"""Angles of the whole spine between end faces."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from spineps.anatomy import VERTEBRA_IDS, VERTEBRAE, instance_name
from spineps.phases.measures import Measured, Row
from spineps.phases.solids import PLATE_DEPTH, PLATE_WIDTH, SQRT2, Frame, Plane, Shape, spread, unit
from spineps.volume import Grid

#: Angle: upper vertebra with its end face, lower one with its, and the sign that makes the usual curve positive.
ANGLES: dict[str, tuple[str, str, str, str, int]] = {
    "lordosis_L1_S1": ("L1", "upper", "S1", "upper", 1),
    "lordosis_T12_S1": ("T12", "lower", "S1", "upper", 1),
    "kyphosis_T4_T12": ("T4", "upper", "T12", "lower", -1),
    "kyphosis_T1_T12": ("T1", "upper", "T12", "lower", -1),
    "lordosis_C2_C7": ("C2", "lower", "C7", "lower", 1),
}
#: C2's upper end is the dens: no face to take an angle from.
WITHOUT_UPPER = VERTEBRA_IDS["C2"]


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
    _scoliosis(row, shapes, frame, grid, named)
    return row


def _scoliosis(row: Row, shapes: Mapping[int, Shape], frame: Frame, grid: Grid, named: bool) -> None:
    lean = {v: [_lean(p, frame, frame.right) for p in (s.upper, s.lower)] for v, s in shapes.items()}
    ends = [(a, b) for a, b in combinations(shapes, 2) if not (named and a == WITHOUT_UPPER)]
    pairs = [(abs(d), d, a, b) for a, b in ends for d in [_difference(lean[b][1], lean[a][0])]]
    if not pairs:
        return
    angle, signed, upper, lower = max(pairs, key=lambda pair: pair[0])
    sigma = [
        np.degrees(SQRT2 * spread(grid, s.frame.up) / (2 * PLATE_WIDTH * s.width))
        for s in (shapes[upper], shapes[lower])
    ]
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
