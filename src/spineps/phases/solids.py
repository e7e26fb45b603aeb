"""Voxels of one structure, sampled in a frame of its own: chords, walls and planes of its end faces in millimetres.

The mask is interpolated linearly and integrated, so that a length does not depend on how the voxels lie: the chord of a
box along its own axes is exact, and thick slices or oblique grids add no bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spineps.volume import Grid

#: Part of the depth and of the width, to both sides of the middle, from which planes are fitted: rims flare, cervical
#: bodies have uncinate processes.
PLATE_DEPTH, PLATE_WIDTH = 0.4, 0.3
#: Part of the depth, from the wall, where heights at the front and back are read: at the wall itself rims are rounded.
RIM = (0.06, 0.18)
SQRT2 = float(np.sqrt(2))


@dataclass(frozen=True, eq=False)
class Frame:
    """Origin and right-handed axes in RAS mm; columns of ``axes`` are cranial, anterior, right."""

    centre: np.ndarray
    axes: np.ndarray

    def to_world(self, local: np.ndarray) -> np.ndarray:
        """Local (..., 3) to RAS mm."""
        return self.centre + np.asarray(local, float) @ self.axes.T

    def to_local(self, world: np.ndarray) -> np.ndarray:
        """RAS mm (..., 3) to local."""
        return (np.asarray(world, float) - self.centre) @ self.axes

    @property
    def up(self) -> np.ndarray:
        return self.axes[:, 0]

    @property
    def front(self) -> np.ndarray:
        return self.axes[:, 1]

    @property
    def right(self) -> np.ndarray:
        return self.axes[:, 2]


def frame_of(centre: np.ndarray, up: np.ndarray, front: np.ndarray) -> Frame:
    """A frame whose first axis is ``up`` and whose second is as near to ``front`` as can be.

    >>> frame_of(np.zeros(3), np.array([0, 0, 2.0]), np.array([0, 1.0, 1.0])).right.tolist()
    [1.0, 0.0, 0.0]
    """
    up = unit(up)
    front = unit(front - up * (front @ up))
    return Frame(np.asarray(centre, float), np.stack([up, front, np.cross(front, up)], axis=1))


#: Voxels between the first and the last along the depth of what can be measured.
LEAST_DEPTH = 2


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length one.

    Raises:
        ValueError: it has no direction.
    """
    length = float(np.linalg.norm(vector))
    if not length > 1e-9:
        raise ValueError("a direction of length zero")
    return np.asarray(vector, float) / length


def spread(grid: Grid, direction: np.ndarray) -> float:
    """Standard uncertainty in mm of a surface's place along ``direction``: a point anywhere in its voxel.

    >>> round(spread(Grid((9, 9, 9), np.diag([1, 1, 3.0, 1])), np.array([0, 0, 1.0])), 3)   # 3 / sqrt(12)
    0.866
    """
    return float(np.sqrt(((grid.affine[:3, :3].T @ direction) ** 2).sum() / 12))


class Solid:
    """Weighted voxels in their bounding box.

    Args:
        grid: where they lie.
        index: (n, 3) voxel indices.
        weight: (n,) 1 inside, 0.5 for voxels shared with the neighbour.
    """

    def __init__(self, grid: Grid, index: np.ndarray, weight: np.ndarray | float = 1.0) -> None:
        low = index.min(axis=0) - 1
        self.grid = grid
        self.points = grid.to_world(index)
        self._block = np.zeros(index.max(axis=0) - low + 2, np.float32)
        self._block[tuple((index - low).T)] = weight
        self._inverse = np.linalg.inv(grid.affine)
        self._inverse[:3, 3] -= low

    def sample(self, frame: Frame, low: np.ndarray, high: np.ndarray, step: np.ndarray) -> Field:
        """Weights on a lattice of the frame, linearly interpolated, 0 outside."""
        from scipy.ndimage import affine_transform

        count = np.maximum(np.ceil((high - low) / step), 1).astype(int)
        first = (low + high) / 2 - (count - 1) / 2 * step
        to_index = self._inverse[:3, :3] @ frame.axes
        offset = to_index @ first + self._inverse[:3, :3] @ frame.centre + self._inverse[:3, 3]
        values = affine_transform(
            self._block, to_index * step, offset, output_shape=tuple(count.tolist()), order=1, mode="constant"
        )
        along = [first[k] + step[k] * np.arange(count[k]) for k in range(3)]
        return Field(values, along[0], along[1], along[2], step)

    def field(self, frame: Frame, step: tuple[float, float, float]) -> Field:
        """:meth:`sample` of all of it."""
        local = frame.to_local(self.points)
        reach = np.abs(frame.axes.T @ self.grid.affine[:3, :3]).sum(axis=1)
        return self.sample(frame, local.min(axis=0) - reach, local.max(axis=0) + reach, np.asarray(step))


@dataclass(frozen=True, eq=False)
class Field:
    """A solid on a lattice: ``values[k, l, m]`` at ``u[k]`` cranial, ``a[l]`` anterior, ``r[m]`` right, mm."""

    values: np.ndarray
    u: np.ndarray
    a: np.ndarray
    r: np.ndarray
    step: np.ndarray

    def chords(self) -> np.ndarray:
        """mm of solid in each column along the first axis, (a, r)."""
        return self.values.sum(axis=0) * self.step[0]


@dataclass(frozen=True, eq=False)
class Plane:
    """An end face, RAS mm; ``normal`` points cranially.  ``offset`` and slopes give local u = o + sa * a + sr * r."""

    point: np.ndarray
    normal: np.ndarray
    coefficients: np.ndarray


@dataclass(frozen=True, eq=False)
class Shape:
    """A body or a disc, measured.

    Attributes:
        frame: its own axes.
        heights: chords at the front, in the middle and at the back, mm.
        depth, width: at mid-height, mm.
        upper, lower: its end faces.
        corners: posterior upper and lower corner in the mid-sagittal plane, RAS mm.
    """

    frame: Frame
    heights: tuple[float, float, float]
    depth: float
    width: float
    upper: Plane
    lower: Plane
    corners: tuple[np.ndarray, np.ndarray]


COARSE, FINE = (1.0, 2.0, 2.0), (0.5, 1.0, 1.0)


def shape_of(solid: Solid, frame: Frame, settle: bool, rims: bool) -> Shape:
    """Measure a solid that is nearly a cylinder.

    Args:
        solid: the body with half of its endplates, or the disc.
        frame: its middle, and first guess of its axes.
        settle: turn the first axis to the mean of both end faces.
        rims: heights at the front and back are means from 6 to 18 % of the depth, carried on to the wall along the end
            faces' slopes (bodies); otherwise means from 10 to 30 % of the depth behind the wall (discs).

    Raises:
        ValueError: too small or too odd to be measured.
    """
    depth = float(np.ptp(frame.to_local(solid.points)[:, 1]))
    # The lattice gets finer with the depth: of a sheet it would have more points than fit into memory.
    if depth < LEAST_DEPTH * min(solid.grid.zoom):
        raise ValueError("too flat to be measured")
    scale = min(1.0, depth / 12)
    for _ in range(2 * settle):
        outline = _Outline(solid.field(frame, _times(COARSE, scale)))
        upper, lower = outline.plane(1, frame), outline.plane(-1, frame)
        frame = frame_of(frame.centre, upper.normal + lower.normal, frame.front)
    outline = _Outline(solid.field(frame, _times(FINE, scale)))
    upper, lower = outline.plane(1, frame), outline.plane(-1, frame)
    walls = outline.posterior_wall()
    corners = (corner_of(frame, upper, walls, outline.middle_r), corner_of(frame, lower, walls, outline.middle_r))
    heights = outline.heights(rims, (upper.coefficients[1], lower.coefficients[1]))
    return Shape(frame, heights, outline.front - outline.back, outline.width, upper, lower, corners)


class _Outline:
    """What a field's rows and columns tell."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.chord = field.chords()
        solid = self.chord[self.chord > field.step[0]]
        if solid.size < 12:
            raise ValueError("too few voxels to be measured")
        typical = float(np.quantile(solid, 0.7))
        foot = self.chord > 0.3 * typical
        with np.errstate(invalid="ignore", divide="ignore"):
            self.middle_u = np.tensordot(field.u, field.values, 1) * field.step[0] / self.chord
        level = np.abs(field.u - float(np.median(self.middle_u[foot]))) <= max(0.15 * typical, field.step[0])
        core = field.values[level].mean(axis=0)
        across = core[np.abs(field.a - _centre(core.sum(axis=1), field.a)) <= _share(core, 1, field.step[1]) / 6]
        left, right = _edges(across.mean(axis=0), field.r)
        self.width, self.middle_r = right - left, (left + right) / 2
        self.band = np.abs(field.r - self.middle_r) <= max(self.width / 6, field.step[2])
        self.back, self.front = _edges(core[:, self.band].mean(axis=1), field.a)
        middle_a, depth = (self.back + self.front) / 2, self.front - self.back
        plate = np.abs(field.a[:, None] - middle_a) <= PLATE_DEPTH * depth
        plate = plate & (np.abs(field.r - self.middle_r) <= PLATE_WIDTH * self.width)
        self.plate = plate & (self.chord > 0.3 * typical)
        self.typical = typical

    def plane(self, sign: int, frame: Frame) -> Plane:
        """The end face above (1) or below (-1)."""
        rows, columns = np.nonzero(self.plate)
        if len(rows) < 6:
            raise ValueError("an end face is too small")
        a, r = self.field.a[rows], self.field.r[columns]
        surface = self.middle_u[self.plate] + sign * self.chord[self.plate] / 2
        fit = robust_plane(np.stack([np.ones_like(a), a, r], axis=1), surface)
        point = np.array([fit @ [1, (self.back + self.front) / 2, self.middle_r], 0, 0])
        point[1:] = (self.back + self.front) / 2, self.middle_r
        return Plane(frame.to_world(point), frame.axes @ unit(np.array([1, -fit[1], -fit[2]])), fit)

    def heights(self, rims: bool, slopes: tuple[float, float]) -> tuple[float, float, float]:
        """Front, middle, back; ``slopes`` of the upper and lower end face towards the front."""
        profile = self.chord[:, self.band].mean(axis=1)
        place = (self.field.a - self.back) / (self.front - self.back)

        def mean(low: float, high: float) -> float:
            # A narrow solid may have no sample in the strip.
            inside = (place >= low) & (place <= high)
            return float(profile[inside].mean()) if inside.any() else float(np.interp((low + high) / 2, place, profile))

        if not rims:
            return mean(0.7, 0.9), mean(0.4, 0.6), mean(0.1, 0.3)

        # The slope of the end faces, known well from all of them, leads from the strip to the wall.
        step = float(slopes[0] - slopes[1]) * sum(RIM) / 2 * (self.front - self.back)
        return mean(1 - RIM[1], 1 - RIM[0]) + step, mean(0.4, 0.6), mean(*RIM) - step

    def posterior_wall(self) -> np.ndarray:
        """Line a = w[0] + w[1] * u through the posterior wall, from the middle three fifths of the height."""
        field = self.field
        middle = float(np.median(self.middle_u[self.plate]))
        used = np.flatnonzero(np.abs(field.u - middle) <= max(0.3 * self.typical, 2 * field.step[0]))
        rows = field.values[used][:, :, self.band].mean(axis=2)
        edges = np.array([_edges(row, field.a)[0] for row in rows])
        return robust_plane(np.stack([np.ones(len(used)), field.u[used]], axis=1), edges)


def robust_plane(design: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least squares with Huber weights: a node in an endplate or a spur does not tilt it."""
    weights = np.ones(len(values))
    for _ in range(4):
        root = np.sqrt(weights)[:, None]
        fit = np.linalg.lstsq(design * root, values * root[:, 0], rcond=None)[0]
        rest = np.abs(values - design @ fit)
        limit = max(1.5 * float(np.median(rest)), 1e-6)
        weights = np.minimum(1.0, limit / np.maximum(rest, 1e-9))
    return np.asarray(fit)


def corner_of(frame: Frame, plane: Plane, wall: np.ndarray, r: float) -> np.ndarray:
    """Where the line of the wall meets an end face, RAS mm."""
    offset, slope = plane.coefficients[0] + plane.coefficients[2] * r, plane.coefficients[1]
    u = (offset + slope * wall[0]) / (1 - slope * wall[1])
    return frame.to_world(np.array([u, wall[0] + wall[1] * u, r]))


def _edges(profile: np.ndarray, at: np.ndarray) -> tuple[float, float]:
    """Both outermost places where a profile crosses half of its usual height."""
    half = float(np.quantile(profile[profile > 0.05], 0.75)) / 2 if (profile > 0.05).any() else 0.0
    inside = np.flatnonzero(profile > half)
    if half <= 0 or inside.size < 1:
        raise ValueError("no solid in a row")
    padded = np.concatenate([[0.0], profile, [0.0]])
    step = at[1] - at[0] if len(at) > 1 else 1.0
    low, high = int(inside[0]) + 1, int(inside[-1]) + 1
    before = (padded[low] - half) / max(padded[low] - padded[low - 1], 1e-6)
    after = (padded[high] - half) / max(padded[high] - padded[high + 1], 1e-6)
    return float(at[low - 1] - before * step), float(at[high - 1] + after * step)


def _centre(weights: np.ndarray, at: np.ndarray) -> float:
    return float(weights @ at / max(weights.sum(), 1e-9))


def _share(core: np.ndarray, axis: int, step: float) -> float:
    """Usual extent in mm across ``axis`` of a plane of weights: its area over its extent the other way."""
    line = core.sum(axis=axis)
    return float((line > 0.1 * line.max()).sum() * step)


def _times(step: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    return step[0] * factor, step[1] * factor, step[2] * factor
