"""Measurements of existing masks: arrays with an affine in, rows of numbers in millimetres and degrees out.

Voxels are sorted once by structure; everything else works on one structure's voxels, in that structure's own frame, so
the orientation of the arrays and oblique grids do not matter.  What reaches the border of the field of view is flagged,
and measures that the missing part would change are left out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from spineps.anatomy import (
    CANAL,
    CORD,
    CORPUS,
    CORPUS_INNER,
    DISC_OFFSET,
    ENDPLATE,
    ENDPLATE_INFERIOR,
    ENDPLATE_OFFSET,
    ENDPLATE_SUPERIOR,
    SACRUM,
    VERTEBRA_PARTS,
    VERTEBRAE,
    instance_name,
)
from spineps.phases import alignment
from spineps.phases.measures import Measured, Row, genant_grade, volume_column
from spineps.phases.solids import Frame, Plane, Shape, Solid, frame_of, sacral_plate, shape_of, spread, unit
from spineps.volume import Grid, Volume

logger = logging.getLogger(__name__)

BODY = (CORPUS, CORPUS_INNER)
PLATES = (ENDPLATE, ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR)
ORDER = (*VERTEBRAE, SACRUM)
#: C1 has no body, and the height of C2 includes the dens.
WITHOUT_HEIGHTS = (1, 2)
#: mm from the border within which a structure counts as cut: some masks leave the outermost voxels empty.
BORDER = 1.0
SQRT2 = float(np.sqrt(2))


def measure(semantic: Volume, instance: Volume, named: bool = True) -> tuple[Row, ...]:
    """Measure every vertebra and disc, and the whole spine.

    Args:
        semantic: structures (codes of :mod:`spineps.anatomy`); endplates may be missing.
        instance: vertebrae v, discs 100 + v, endplates 200 + v, same grid.
        named: False when vertebrae are only numbered: angles between certain vertebrae are then left out.

    Returns:
        Rows from cranial to caudal, the whole spine last; none when there is no vertebra.

    Raises:
        ValueError: the masks do not lie on one grid.
    """
    if not semantic.grid.same_as(instance.grid):
        raise ValueError("the two masks do not lie on one grid")
    voxels = _Voxels(semantic, instance)
    present = [v for v in ORDER if v in voxels.labels]
    if not present:
        return ()
    spine = _Spine(voxels, present)
    rows = []
    for vertebra in present:
        rows.append(spine.vertebra_row(vertebra))
        if DISC_OFFSET + vertebra in voxels.labels:
            rows.append(spine.disc_row(vertebra))
    rows = _compared(rows)
    return (*rows, alignment.spine_row(spine.shapes, spine.sacrum, spine.front, spine.grid, named))


class _Voxels:
    """All labelled voxels, sorted by label and part."""

    def __init__(self, semantic: Volume, instance: Volume) -> None:
        self.grid = semantic.grid
        lookup = np.zeros(1 << 16, bool)
        lookup[[CORD, CANAL]] = True
        parts = semantic.array.astype(np.uint16, copy=False)
        flat = np.flatnonzero((instance.array != 0) | lookup[parts])
        labels = instance.array.ravel()[flat].astype(np.int64)
        part = parts.ravel()[flat].astype(np.int64)
        canal = lookup[part]
        labels[canal] = 0  # whose ever it is: the canal is one
        plates = np.isin(part, PLATES)
        labels[plates & (labels < ENDPLATE_OFFSET) & (labels > 0)] = 0
        key = labels * 256 + np.minimum(part, 255)
        order = np.argsort(key, kind="stable")
        key, flat = key[order], flat[order]
        self.index = np.stack(np.unravel_index(flat, self.grid.shape), axis=1)
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        ends = np.append(starts, len(key))[1:]
        self.groups: dict[tuple[int, int], slice] = {
            (int(key[a] // 256), int(key[a] % 256)): slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)
        }
        self.labels = {label for label, _ in self.groups}

    def of(self, label: int, parts: tuple[int, ...] | None = None) -> np.ndarray:
        """(n, 3) indices of a label's voxels, of all its parts or of some."""
        found = [self.index[s] for (k, p), s in self.groups.items() if k == label and (parts is None or p in parts)]
        return np.concatenate(found) if found else np.zeros((0, 3), int)

    def parts(self, label: int) -> list[int]:
        return [part for owner, part in self.groups if owner == label]

    def sides(self, index: np.ndarray) -> list[np.ndarray]:
        """Outward normals (RAS) of the faces of the field of view that these voxels touch."""
        found = []
        for axis, (size, mm) in enumerate(zip(self.grid.shape, self.grid.zoom, strict=True)):
            # A face's normal is not its axis where the grid is sheared.
            normal = unit(np.linalg.inv(self.grid.affine[:3, :3])[axis])
            margin = int(BORDER / mm + 1e-3)
            found += [-normal] if len(index) and index[:, axis].min() <= margin else []
            found += [normal] if len(index) and index[:, axis].max() >= size - 1 - margin else []
        return found


@dataclass(frozen=True, eq=False)
class _Item:
    """A body or disc: its voxels with half of its endplates, and its place."""

    solid: Solid
    centre: np.ndarray
    sides: list[np.ndarray]


class _Spine:
    """Bodies and discs with their frames."""

    def __init__(self, voxels: _Voxels, present: list[int]) -> None:
        self.voxels, self.grid, self.present = voxels, voxels.grid, present
        self.vertebrae = [v for v in present if v != SACRUM]
        canal = voxels.of(0, (CORD, CANAL))
        self.canal_index = canal
        self.canal = Solid(self.grid, canal) if len(canal) else None
        cord = voxels.of(0, (CORD,))
        self.cord = Solid(self.grid, cord) if len(cord) else None
        # Centres from cranial to caudal: body, disc, body, ...
        self.centres: dict[int, np.ndarray] = {}
        for v in present:
            own = self.voxels.of(v, BODY) if v != SACRUM else self.voxels.of(v)
            for label, index in ((v, own), (DISC_OFFSET + v, self.voxels.of(DISC_OFFSET + v))):
                if len(index):
                    self.centres[label] = self.grid.to_world(index.mean(axis=0))
        ends = [point for label, point in self.centres.items() if label != SACRUM]
        apart = ends[0] - ends[-1] if len(ends) > 1 else np.zeros(3)
        self.column = unit(apart) if np.linalg.norm(apart) > 1 else np.array([0.0, 0.0, 1.0])
        self.plates = self._plates()
        self.shapes: dict[int, Shape] = {}
        self.sides: dict[int, list[np.ndarray]] = {}
        self.solids: dict[int, Solid] = {}
        for v in self.vertebrae:
            self._body(v)
        self.front = np.mean([s.frame.front for s in self.shapes.values()], axis=0) if self.shapes else None
        self.discs: dict[int, Shape] = {}
        self.sacrum: Plane | None = None
        self.sacral_corner: np.ndarray | None = None
        for v in present:
            if DISC_OFFSET + v in self.centres:
                self._disc(v)

    # --- shapes

    def _plates(self) -> dict[int, list[np.ndarray]]:
        """Endplate voxels beside each body and disc: plates 200 + v are split by the middle of the disc below v."""
        found: dict[int, list[np.ndarray]] = {}
        for v in self.present:
            index = self.voxels.of(ENDPLATE_OFFSET + v, PLATES)
            if v == SACRUM:
                if len(index):
                    found.setdefault(SACRUM, []).append(index)
                    found.setdefault(DISC_OFFSET + (self.vertebrae[-1] if self.vertebrae else 0), []).append(index)
                continue
            disc, below = self.voxels.of(DISC_OFFSET + v), self._below(v)
            if not len(index):
                continue
            if not len(disc):  # one plate alone, next to the body
                found.setdefault(v, []).append(index)
                continue
            points = self.grid.to_world(disc)
            centre = points.mean(axis=0)
            up = np.linalg.svd((points - centre)[:: max(len(points) // 2000, 1)], full_matrices=False)[2][2]
            up = up * np.sign(up @ self._tangent(DISC_OFFSET + v) or 1.0)
            above = (self.grid.to_world(index) - centre) @ up > 0
            found.setdefault(v, []).append(index[above])
            if below is not None:
                found.setdefault(below, []).append(index[~above])
            found.setdefault(DISC_OFFSET + v, []).append(index)
        return found

    def _below(self, v: int) -> int | None:
        place = self.present.index(v) + 1
        return self.present[place] if place < len(self.present) else None

    def _tangent(self, label: int) -> np.ndarray:
        """Cranial direction at a body or disc, from its neighbours' centres."""
        chain = list(self.centres)
        k = chain.index(label)
        before, after = chain[max(k - 1, 0)], chain[min(k + 1, len(chain) - 1)]
        if after == SACRUM and before != label:
            after = label  # the sacrum's centre lies far behind
        if before != after:
            return unit(self.centres[before] - self.centres[after])
        return np.array([0.0, 0.0, 1.0])

    def _front(self, centre: np.ndarray, up: np.ndarray, v: int) -> np.ndarray:
        """Anterior direction: away from the canal at this height, else from the arch, else the scanner's."""
        behind = np.zeros((0, 3))
        if self.canal is not None:
            behind = self.canal.points[np.abs((self.canal.points - centre) @ up) < 6]
            behind = behind[((behind - centre) ** 2).sum(axis=1) < 60**2]
        if len(behind) < 5:
            parts = tuple(p for p in VERTEBRA_PARTS if p not in BODY)
            behind = self.grid.to_world(self.voxels.of(v, parts))
        away = centre - behind.mean(axis=0) if len(behind) else np.array([0.0, 1.0, 0.0])
        away = away - up * (away @ up)
        return away if np.linalg.norm(away) > 1e-3 else np.array([0.0, 1.0, 0.0])

    def _solid(self, label: int, index: np.ndarray) -> Solid:
        plates = self.plates.get(label, [])
        weight = np.concatenate([np.ones(len(index)), np.full(sum(len(p) for p in plates), 0.5)])
        return Solid(self.grid, np.concatenate([index, *plates]), weight)

    def _body(self, v: int) -> None:
        index = self.voxels.of(v, BODY)
        self.sides[v] = self.voxels.sides(index)
        if len(index) < 50 or v == 1:
            return
        centre, up = self.centres[v], self._tangent(v)
        frame = frame_of(centre, up, self._front(centre, up, v))
        if _cut_through(self.sides[v], frame, self.column):
            return
        self.solids[v] = self._solid(v, index)
        try:
            self.shapes[v] = shape_of(self.solids[v], frame, settle=v != 2, rims=True)
        except ValueError as error:
            logger.info("%s is not measured: %s.", instance_name(v), error)

    def _disc(self, v: int) -> None:
        label, below = DISC_OFFSET + v, self._below(v)
        index = self.voxels.of(label)
        self.sides[label] = self.voxels.sides(index)
        above_shape, below_shape = self.shapes.get(v), self.shapes.get(below or 0)
        shapes = [s for s in (above_shape, below_shape) if s is not None]
        if len(index) < 50 or not shapes:
            return
        centre = self.centres[label]
        normals = [above_shape.lower.normal] if above_shape else []
        normals += [below_shape.upper.normal] if below_shape else []
        front = np.sum([s.frame.front for s in shapes], axis=0)
        frame = frame_of(centre, np.sum(normals, axis=0), front)
        if _cut_through(self.sides[label], frame, self.column):
            return
        solid = self.solids[label] = self._solid(label, index)
        try:
            if below == SACRUM:
                self._sacral(v, solid, frame)
                if self.sacrum is not None and above_shape is not None:
                    frame = frame_of(centre, above_shape.lower.normal + self.sacrum.normal, front)
            self.discs[label] = shape_of(solid, frame, settle=False, rims=False)
        except ValueError as error:
            logger.info("%s is not measured: %s.", instance_name(label), error)

    def _sacral(self, v: int, disc: Solid, frame: Frame) -> None:
        """S1's upper end face, seen from the last disc; twice, as its own tilt is not known at first."""
        above = self.shapes[v]
        sacrum = self._solid(SACRUM, self.voxels.of(SACRUM))
        for _ in range(3):
            self.sacrum, self.sacral_corner = sacral_plate(sacrum, frame, above.depth, above.width)
            frame = frame_of(frame.centre, self.sacrum.normal, frame.front)

    # --- rows

    def vertebra_row(self, v: int) -> Row:
        """One vertebra, or the sacrum."""
        values: dict[str, Measured] = {}
        index = self.voxels.of(v)
        whole = self.voxels.sides(index)
        if v in self.centres:
            values |= self._place(v)
        elif len(index):  # C1
            self.centres[v] = self.grid.to_world(index.mean(axis=0))
            values |= self._place(v)
        if not whole:
            values["volume"] = self._volume(index)
        for part in self.voxels.parts(v):
            own = self.voxels.of(v, (part,))
            if part in VERTEBRA_PARTS and not self.voxels.sides(own):
                values[volume_column(part)] = self._volume(own)
        shape = self.shapes.get(v)
        if shape is not None:
            values |= _sizes(self.grid, shape, bool(self.sides[v]), heights=v not in WITHOUT_HEIGHTS)
            values |= self._canal_at(shape.frame, shape.depth)
        if self.sides.get(v):
            values = {key: value for key, value in values.items() if key not in ("x", "y", "z")}
        return Row("vertebra", v, self._letters(whole), values)

    def disc_row(self, v: int) -> Row:
        """The disc below a vertebra, and how it stands upon the next."""
        label = DISC_OFFSET + v
        values: dict[str, Measured] = {}
        index = self.voxels.of(label)
        sides = self.sides[label]
        if not sides:
            values |= self._place(label)
            values["volume"] = self._volume(index)
        shape = self.discs.get(label)
        if shape is not None:
            values |= _sizes(self.grid, shape, bool(sides), heights=True)
            height, depth = values.get("height_middle"), values.get("depth")
            if height and depth:
                three = [values[f"height_{where}"] for where in ("anterior", "middle", "posterior")]
                mean = Measured(sum(h.value for h in three) / 3, height.uncertainty)
                values["disc_height_index"] = _ratio(mean, depth)
            values |= self._canal_at(shape.frame, shape.depth)
        values |= self._level(v, shape)
        return Row("disc", label, self._letters(sides), values)

    def _level(self, v: int, disc: Shape | None) -> dict[str, Measured]:
        below = self._below(v)
        above, lower = self.shapes.get(v), self.shapes.get(below or 0)
        if above is None or (lower is None and (below != SACRUM or self.sacrum is None)):
            return {}
        if lower is not None:
            corner, normal, front = lower.corners[0], lower.upper.normal, lower.frame.front
        else:
            assert self.sacrum is not None and self.sacral_corner is not None
            corner, normal, front = self.sacral_corner, self.sacrum.normal, above.frame.front
        normal = unit(unit(normal) + above.lower.normal)  # the disc's own plane, or a wedged disc would look slipped
        direction = unit(front - normal * (front @ normal))
        sigma = spread(self.grid, direction)
        values = {"listhesis": Measured(float((above.corners[1] - corner) @ direction), SQRT2 * sigma)}
        if disc is not None:
            solid, right = self.solids[DISC_OFFSET + v], disc.frame.right
            line = above.corners[1] - corner
            normal = unit(np.cross(right, line))
            normal = normal * -np.sign(normal @ disc.frame.front)
            middle = np.abs((solid.points - disc.frame.centre) @ right) < disc.width / 4
            inside = solid.points[: len(self.voxels.of(DISC_OFFSET + v))]
            behind = np.sort((inside[middle[: len(inside)]] - corner) @ normal)
            last = max(round(20.0 / self.grid.voxel_volume), 1)
            if len(behind) > last:
                # From voxel centre to voxel face: sqrt(3) standard deviations of an even spread.
                values["bulge"] = Measured(
                    float(behind[-last]) + np.sqrt(3) * spread(self.grid, normal), np.sqrt(1.5) * sigma
                )
        return values

    def _canal_at(self, frame: Frame, depth: float) -> dict[str, Measured]:
        if self.canal is None:
            return {}
        return alignment.canal_section(self.canal, self.cord, self.canal_index, frame, depth)

    def _place(self, label: int) -> dict[str, Measured]:
        point = self.centres[label]
        if label in self.shapes:
            point = self.shapes[label].frame.centre
        n = self.voxels.of(label)
        size = np.ptp(n, axis=0) + 1 if len(n) else np.ones(3)
        # Both ends of each row of voxels are uncertain, independently of each other from row to row at best.
        cells = self.grid.affine[:3, :3] ** 2 @ (1 / (24 * np.maximum(size, 1)))
        sigma = np.sqrt(cells)
        return {key: Measured(float(point[k]), float(sigma[k])) for k, key in enumerate("xyz")}

    def _volume(self, index: np.ndarray) -> Measured:
        volume = len(index) * self.grid.voxel_volume
        extent = np.ptp(index, axis=0) + 1
        return Measured(volume, float(volume * np.sqrt((1 / (6.0 * extent**2)).sum())))

    def _letters(self, sides: list[np.ndarray]) -> str:
        found = {("LR", "PA", "IS")[k][int(n[k] > 0)] for n in sides for k in [int(np.abs(n).argmax())]}
        return "".join(letter for letter in "RLAPSI" if letter in found)


def _cut_through(sides: list[np.ndarray], frame: Frame, column: np.ndarray) -> bool:
    """A border in front, behind, above or below: nothing but a lateral one leaves the middle as it is."""
    # What is left of a body at the upper border may be a corner whose own frame is no good: ask the whole column too.
    return any(abs(normal @ frame.right) < 0.7 or abs(normal @ column) > 0.6 for normal in sides)


def _sizes(grid: Grid, shape: Shape, lateral_cut: bool, heights: bool) -> dict[str, Measured]:
    up, front, right = (SQRT2 * spread(grid, axis) for axis in (shape.frame.up, shape.frame.front, shape.frame.right))
    values = {"depth": Measured(shape.depth, front)}
    if not lateral_cut:
        values["width"] = Measured(shape.width, right)
    if heights:
        for where, height in zip(("anterior", "middle", "posterior"), shape.heights, strict=True):
            values[f"height_{where}"] = Measured(height, up)
    return values


def _ratio(above: Measured, below: Measured) -> Measured:
    value = above.value / below.value
    relative = (above.uncertainty / above.value) ** 2 + (below.uncertainty / below.value) ** 2
    return Measured(value, abs(value) * float(np.sqrt(relative)))


def _compared(rows: list[Row]) -> list[Row]:
    """Rows with the ratios of heights, some of which need the neighbours."""
    bodies = [row for row in rows if row.kind == "vertebra"]
    posterior = [row.values.get("height_posterior") for row in bodies]
    done: dict[int, Row] = {}
    for k, row in enumerate(bodies):
        values, own = dict(row.values), posterior[k]
        if own is None or own.value <= 0:
            continue
        ratios = [_ratio(values["height_anterior"], own), _ratio(values["height_middle"], own)]
        values["wedge_ratio"], values["biconcavity_ratio"] = ratios
        above, below = (posterior[j] if 0 <= j < len(bodies) else None for j in (k - 1, k + 1))
        if above is not None and below is not None:
            sigma = float(np.hypot(above.uncertainty, below.uncertainty)) / 2
            ratios.append(_ratio(own, Measured((above.value + below.value) / 2, sigma)))
            values["crush_ratio"] = ratios[-1]
        lowest = min(ratios, key=lambda ratio: ratio.value)
        loss = Measured(max(100 * (1 - lowest.value), 0.0), 100 * lowest.uncertainty)
        grades = [genant_grade(loss.value + sign * loss.uncertainty) for sign in (-1, 0, 1)]
        values["height_loss"] = loss
        values["genant_grade"] = Measured(grades[1], max(grades[1] - grades[0], grades[2] - grades[1]))
        done[row.label] = replace(row, values=values)
    return [done.get(row.label, row) if row.kind == "vertebra" else row for row in rows]
