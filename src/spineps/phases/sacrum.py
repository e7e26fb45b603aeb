"""The upper end of S1, which has no label of its own: its face, its posterior corner, and how far that is rounded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spineps.phases.solids import FINE, PLATE_DEPTH, PLATE_WIDTH, Frame, Plane, Solid, frame_of, robust_plane, unit

#: mm below the face to which the top is looked at, and the length of posterior wall that is used.
TOP, WALL = 8.0, 12.0


@dataclass(frozen=True, eq=False)
class SacralPlate:
    """Upper end of S1.

    Attributes:
        plane: the face that fits best.
        corner: where it meets the posterior wall, at the height of the rim, RAS mm.
        doubt: one sigma in mm of the corner's place along the face, on top of what the voxels cost: with a rounded
            top (dome) nothing shows where along the rounding the corner was.
    """

    plane: Plane
    corner: np.ndarray
    doubt: float


def sacral_plate(solid: Solid, frame: Frame, depth: float, width: float) -> SacralPlate:
    """Look at the sacrum from the last disc.

    Args:
        solid: the sacrum with half of its endplate.
        frame: of the last disc.
        depth, width: of the last body, mm.

    Raises:
        ValueError: there is too little of it.
    """
    usual, drop, floor, limit = depth, 1.0, -14.0, max(width / 6, 1)
    for _ in range(4):  # in turn: tilt and middle of the face, its depth, and how deep its rounded rim reaches
        reach = np.array([12, depth, PLATE_WIDTH * width])
        field = solid.sample(frame, -reach - [WALL + 4, 0, 0], reach, np.asarray(FINE))
        top = field.u > floor
        surface = field.u[top][0] - field.step[0] / 2 + field.values[top].sum(axis=0) * field.step[0]
        plate = (np.abs(field.a[:, None]) <= PLATE_DEPTH * depth) & (surface > floor + 2)
        rows, columns = np.nonzero(plate)
        if len(rows) < 30:
            raise ValueError("too little of the sacrum")
        a, r = field.a[rows], field.r[columns]
        fit = robust_plane(np.stack([np.ones_like(a), a, r], axis=1), surface[plate])
        profile = field.values[:, :, np.abs(field.r) <= limit].mean(axis=2)
        edges = np.array([_edges(row, field.a) for row in profile])
        bone = profile[:, len(field.a) // 2] >= 0.5
        below = fit[0] - drop - 4 - field.u
        used, rim = bone & (below > 0) & (below < WALL), bone & (below > -4) & (below < 4)
        if used.sum() < 6 or not rim.any():
            raise ValueError("too little of the sacrum")
        wall = robust_plane(np.stack([np.ones(used.sum()), field.u[used]], axis=1), edges[used, 0])
        back = float(np.clip(wall @ [1, fit[0] - drop], -0.7 * depth, 0))
        front = edges[rim, 1].max()
        near = np.abs(field.a - back - 0.08 * depth) <= max(0.05 * depth, field.step[1])
        drop = float(
            np.clip(fit[:2] @ [1, back + 0.08 * depth] - surface[near][:, np.abs(field.r) <= limit].mean(), 0, 12)
        )
        middle, depth = (back + front) / 2, float(np.clip(front - back, 0.7 * usual, 1.4 * usual))
        plane = Plane(
            frame.to_world(np.array([fit[:2] @ [1, middle], middle, 0])),
            unit(frame.axes @ np.array([1, -fit[1], -fit[2]])),
            fit,
        )
        corner = frame.to_world(np.array([fit[0] - drop, back, 0]))
        gap = float(np.interp(fit[0] - 2, field.u, edges[:, 0])) - back
        frame, floor = frame_of(plane.point, plane.normal, frame.front), -TOP
    return SacralPlate(plane, corner, max(gap, 0.0) / 2)


def _edges(profile: np.ndarray, at: np.ndarray) -> tuple[float, float]:
    """Where a profile first falls below half, going back and going forward from the middle."""
    middle = int(np.argmin(np.abs(at)))
    found = []
    for line, place in ((profile[middle::-1], at[middle::-1]), (profile[middle:], at[middle:])):
        k = max(int(np.argmax(line < 0.5)), 1) if (line < 0.5).any() else len(line) - 1
        part = (line[k - 1] - 0.5) / max(line[k - 1] - line[k], 1e-6)
        found.append(float(place[k - 1] + np.clip(part, 0, 1) * (place[k] - place[k - 1])))
    return found[0], found[1]
