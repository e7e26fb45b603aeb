"""Where every vertebra stands: a spec's sizes and angles turned into one frame per level, and the line of the canal.

Everything is in millimetres in the axes (p, i, r): posterior, inferior, right; RAS is (r, -p, -i).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spineps.anatomy import SACRUM
from spineps.synth.person import Level, SpineSpec

#: (p, i, r) -> RAS.
PIR_TO_RAS = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True, eq=False)
class Frame:
    """A level in space: ``point = centre + axes @ local`` with local (p, i, r) in mm from the middle of the body."""

    level: Level
    centre: np.ndarray
    axes: np.ndarray

    def to_space(self, local: np.ndarray) -> np.ndarray:
        """Local points (..., 3) to space (..., 3)."""
        return self.centre + np.asarray(local, float) @ self.axes.T

    @property
    def half_height(self) -> float:
        return self.level.sizes["height"] / 2

    @property
    def back(self) -> float:
        """Local p of the posterior body wall."""
        return (self.level.sizes["depth_upper"] + self.level.sizes["depth_lower"]) / 4


@dataclass(frozen=True, eq=False)
class CanalLine:
    """The middle of the bony canal, sampled every mm of the i axis.

    Attributes:
        start: i of the first sample.
        p, r: place of the line.
        key: level coordinate.
        slope: dp/di.
        width, depth: bony canal, mm.
        body_width, body_depth: of the column in front of it, mm.
    """

    start: float
    p: np.ndarray
    r: np.ndarray
    key: np.ndarray
    slope: np.ndarray
    width: np.ndarray
    depth: np.ndarray
    body_width: np.ndarray
    body_depth: np.ndarray


def rotation(tilt: float, lean: float, turn: float) -> np.ndarray:
    """Axes of a body (columns p, i, r) from its three angles in degrees.

    >>> np.round(rotation(90, 0, 0) @ [0, 1, 0], 6).tolist()   # the caudal direction leans to posterior
    [1.0, 0.0, 0.0]
    """
    t, n, u = np.deg2rad([tilt, lean, turn])
    ct, st, cn, sn, cu, su = np.cos(t), np.sin(t), np.cos(n), np.sin(n), np.cos(u), np.sin(u)
    about_r = np.array([[ct, st, 0], [-st, ct, 0], [0, 0, 1.0]])
    about_p = np.array([[1.0, 0, 0], [0, cn, -sn], [0, sn, cn]])
    about_i = np.array([[cu, 0, su], [0, 1.0, 0], [-su, 0, cu]])
    return about_p @ about_r @ about_i


def frames(spec: SpineSpec) -> list[Frame]:
    """One frame per level; the field of view's centre is the origin of space."""
    placed: list[Frame] = []
    for level in spec.levels:
        axes = rotation(level.tilt, level.lean, level.turn)
        if not placed:
            placed.append(Frame(level, np.zeros(3), axes))
            continue
        above = placed[-1]
        if above.level.key < 1.5:
            # C1 rides on the dens: its ring lies 18 mm above the middle of C2's body (textbook, adult).
            place = above.centre + axes @ np.array([1.0, 18.5, 0.0]) * spec.scale
        else:
            half = level.sizes["height"] / 2
            gap = _rim_gap(above.level, level)
            between = rotation((above.level.tilt + level.tilt) / 2, (above.level.lean + level.lean) / 2, 0.0)
            place = above.centre + above.axes @ np.array([above.back, above.half_height, 0.0])
            place = place + between @ np.array([level.slip_p, gap, level.slip_r])
            # Posterior walls are aligned, so that the canal is smooth.
            back = (level.sizes["depth_upper"] + level.sizes["depth_lower"]) / 4
            place = place + axes @ np.array([-back, half, 0.0])
        placed.append(Frame(level, place, axes))
    return _in_scanner(spec, placed)


def _rim_gap(above: Level, below: Level) -> float:
    """mm between the posterior walls' ends that leave the disc its height in the middle.

    Two bodies at an angle open in front (lordosis) or behind; lumbar discs of 30 SPIDER scans are 6 to 9 mm high in
    their middle, 5 mm behind.  Neither pair of rims may run into the other.
    """
    if above.disc is None:
        return 0.0
    hollows = min(above.concavity_lower, 2.5) + min(below.concavity_upper, 2.5)
    gap = max(above.disc.height - 0.85 * hollows, 0.4 * above.disc.height)
    back = (above.sizes["depth_lower"] + below.sizes["depth_upper"]) / 4
    opened = back * float(np.sin(np.deg2rad(below.tilt - above.tilt)))
    # A wedge lowers the rear rims by as much as it raises the front ones.
    wedge = (above.sizes.get("wedge", 0.0) + below.sizes.get("wedge", 0.0)) / 4
    least = max(0.3 * gap, 0.8)
    return max(gap - opened, least - wedge, least + wedge - 2 * opened)


def _in_scanner(spec: SpineSpec, placed: list[Frame]) -> list[Frame]:
    keys = np.array([f.level.key for f in placed])
    walls = np.array([f.to_space(np.array([f.back, 0.0, 0.0])) for f in placed])
    anchor = np.array([np.interp(spec.view.key, keys, walls[:, axis]) for axis in range(3)])
    turn = rotation(spec.view.pitch, spec.view.roll, spec.view.yaw)
    offset = np.asarray(spec.view.offset, float)
    return [Frame(f.level, turn @ (f.centre - anchor) - offset, turn @ f.axes) for f in placed]


def canal_line(placed: list[Frame], margin: float = 90.0) -> CanalLine:
    """The canal's middle through all levels, smoothed, continued straight for ``margin`` mm at both ends."""
    from scipy.ndimage import gaussian_filter1d

    points, keys, rows = [], [], []
    for index, frame in enumerate(placed):
        level, sizes = frame.level, frame.level.sizes
        depth = sizes["canal_depth"]
        middle = frame.back + depth / 2
        width, front = (sizes["width_upper"] + sizes["width_lower"]) / 2, frame.back * 2
        steps = (-0.45, 0.0, 0.45)
        if level.key < 1.5:
            middle, width, front, steps = 14.5 * sizes["height"] / 21.0, 17.0, 16.0, (-0.4, 0.0, 0.4)
        last = level.id == SACRUM and index == len(placed) - 1
        for step in steps:
            points.append(frame.to_space(np.array([middle, step * sizes["height"], 0.0])))
            keys.append(level.key + step * (0.5 if last else 0.9))
            rows.append((sizes["canal_width"], depth, width, front))
    place, table = np.array(points), np.array(rows)
    order = np.argsort(place[:, 1], kind="stable")
    place, table, level_key = place[order], table[order], np.maximum.accumulate(np.array(keys)[order])
    grid = np.arange(np.floor(place[0, 1] - margin), place[-1, 1] + margin)

    def sampled(values: np.ndarray, smooth: float = 4.0) -> np.ndarray:
        line = np.interp(grid, place[:, 1], values)
        return gaussian_filter1d(line, smooth, mode="nearest").astype(np.float32)

    p, r, key = sampled(place[:, 0]), sampled(place[:, 2]), sampled(level_key, 1.5)
    for line, limit in ((p, 0.5), (r, 0.3)):
        _continue_straight(line, grid, place[0, 1] + 3, place[-1, 1] - 3, limit)
    before = grid < place[0, 1]
    key[before] = key[0] - (place[0, 1] - grid[before]) / 16.0
    after = grid > place[-1, 1]
    key[after] = key[-1] + (grid[after] - place[-1, 1]) / 12.0
    return CanalLine(
        start=float(grid[0]),
        p=p,
        r=r,
        key=key,
        slope=np.gradient(p).astype(np.float32),
        width=sampled(table[:, 0]),
        depth=sampled(table[:, 1]),
        body_width=sampled(table[:, 2], 12.0),
        body_depth=sampled(table[:, 3], 12.0),
    )


def _continue_straight(line: np.ndarray, grid: np.ndarray, first: float, last: float, limit: float) -> None:
    head, tail = int(np.searchsorted(grid, first)), int(np.searchsorted(grid, last))
    slope = float(np.clip((line[head + 12] - line[head]) / 12, -limit, limit))
    line[:head] = line[head] + slope * (grid[:head] - grid[head])
    slope = float(np.clip((line[tail] - line[tail - 12]) / 12, -limit, limit))
    line[tail:] = line[tail] + slope * (grid[tail:] - grid[tail])
