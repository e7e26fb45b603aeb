"""Bodies, discs and the sacrum of one scan as measured shapes, each in its own frame."""

from __future__ import annotations

import logging

import numpy as np

from spineps.anatomy import (
    CANAL,
    CORD,
    CORPUS,
    CORPUS_INNER,
    DISC_OFFSET,
    ENDPLATE_OFFSET,
    SACRUM,
    VERTEBRA_PARTS,
    VERTEBRAE,
    instance_name,
)
from spineps.phases.canal import Canal
from spineps.phases.regions import PLATES, Regions
from spineps.phases.sacrum import SacralPlate, sacral_plate
from spineps.phases.solids import Frame, Shape, Solid, frame_of, shape_of, unit

logger = logging.getLogger(__name__)

BODY = (CORPUS, CORPUS_INNER)
ORDER = (*VERTEBRAE, SACRUM)
C1, C2 = VERTEBRAE[:2]
#: Above this share of its depth, seen from below, C2's body begins to be the dens.
C2_BODY = 0.8
#: mm between two end faces within which their bodies are neighbours; the tallest discs have 20.
NEIGHBOURS = 25.0
#: mm from a body within which an endplate can be its own.
OWN_PLATE = 4.0


class Column:
    """All that can be measured has a shape.

    Args:
        regions: voxels of both masks.
        named: False when vertebrae are only numbered, so that 1 is not C1.

    Attributes:
        present: vertebrae in the mask, cranial to caudal, the sacrum last.
        centres: middle of the voxels of each body (sacrum, C1: of all of it) and disc, RAS mm.
        shapes, discs: of bodies by vertebra, of discs by the vertebra above.
        solids, sides: of bodies and discs by label; sides: normals of the borders that they reach.
        sacrum: upper end of S1.
        front: mean anterior direction.
        canal: None where none is labelled.
    """

    def __init__(self, regions: Regions, named: bool) -> None:
        self.regions, self.grid, self.named = regions, regions.grid, named
        self.present = [v for v in ORDER if v in regions.labels]
        self.vertebrae = [v for v in self.present if v != SACRUM]
        canal = regions.of(0, (CANAL, CORD))
        self.canal = Canal(self.grid, canal, regions.of(0, (CORD,))) if len(canal) else None
        self.centres: dict[int, np.ndarray] = {}  # body, disc, body, ...
        for v in self.present:
            whole = v == SACRUM or self._is(v, C1)
            for label, parts in ((v, None if whole else BODY), (DISC_OFFSET + v, None)):
                index = regions.of(label, parts)
                if len(index):
                    self.centres[label] = self.grid.to_world(index.mean(axis=0))
        ends = [point for label, point in self.centres.items() if label != SACRUM]
        apart = ends[0] - ends[-1] if len(ends) > 1 else np.zeros(3)
        self.up = unit(apart) if np.linalg.norm(apart) > 1 else np.array([0.0, 0.0, 1.0])
        self._fronts = self._all_fronts()
        self.plates = self._plates()
        self.shapes: dict[int, Shape] = {}
        self.sides: dict[int, list[np.ndarray]] = {}
        self.solids: dict[int, Solid] = {}
        for v in self.vertebrae:
            self._body(v)
        self.front = np.mean([s.frame.front for s in self.shapes.values()], axis=0) if self.shapes else None
        self.discs: dict[int, Shape] = {}
        self.sacrum: SacralPlate | None = None
        for v in self.present:
            if DISC_OFFSET + v in self.centres:
                self._disc(v)

    def _is(self, v: int, name: int) -> bool:
        return self.named and v == name

    def has_heights(self, v: int) -> bool:
        """C1 has no body, and the height of C2 includes the dens."""
        return v in self.shapes and not self._is(v, C2)

    def below(self, v: int) -> int | None:
        """The next one that is there; it need not be the neighbour."""
        place = self.present.index(v) + 1
        return self.present[place] if place < len(self.present) else None

    def neighbour(self, v: int) -> int | None:
        """The one below, when its end face is near and both faces are known: masks may lack a vertebra between."""
        other, above = self.below(v), self.shapes.get(v)
        if above is None or other is None:
            return None
        face = self.sacrum.plane if other == SACRUM and self.sacrum else None
        face = self.shapes[other].upper if other in self.shapes else face
        if face is None or float(np.linalg.norm(above.lower.point - face.point)) > NEIGHBOURS:
            return None
        return other

    def _plates(self) -> dict[int, list[np.ndarray]]:
        """Endplate voxels beside each body and disc: of the plates 200 + v each voxel belongs to the nearer body."""
        found: dict[int, list[np.ndarray]] = {}
        for v in self.present:
            index = self.regions.of(ENDPLATE_OFFSET + v, PLATES)
            if not len(index):
                continue
            if v == SACRUM:
                found.setdefault(SACRUM, []).append(index)
                found.setdefault(DISC_OFFSET + (self.vertebrae[-1] if self.vertebrae else 0), []).append(index)
                continue
            below = self.below(v)
            own = self._distance(index, v)
            above = np.isfinite(own) & (own <= self._distance(index, below))
            found.setdefault(v, []).append(index[above])
            if below is not None:
                found.setdefault(below, []).append(index[~above])
            found.setdefault(DISC_OFFSET + v, []).append(index)
        return found

    def _distance(self, index: np.ndarray, v: int | None) -> np.ndarray:
        """mm from voxels to the nearest of a body, infinite beyond :data:`OWN_PLATE`."""
        from scipy.spatial import cKDTree

        points = self.grid.to_world(index)
        body = self.grid.to_world(self.regions.of(v, None if v == SACRUM else BODY)) if v else points[:0]
        near = ((body > points.min(axis=0) - OWN_PLATE) & (body < points.max(axis=0) + OWN_PLATE)).all(axis=1)
        if not near.any():
            return np.full(len(points), np.inf)
        tree = cKDTree(body[near], balanced_tree=False, compact_nodes=False)  # built three times as fast
        return np.asarray(tree.query(points, distance_upper_bound=OWN_PLATE)[0])

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

    def _all_fronts(self) -> dict[int, np.ndarray]:
        """Anterior directions: away from the canal at each height, where there is none as the others, or the arch."""
        found: dict[int, np.ndarray] = {}
        for v in self.vertebrae:
            if self.canal is not None and v in self.centres:
                behind = self.canal.near(self.centres[v], self._tangent(v))
                if len(behind) >= 5:
                    found[v] = _across(self.centres[v] - behind.mean(axis=0), self._tangent(v))
        known = {v: front for v, front in found.items() if np.linalg.norm(front) > 1e-3}
        for v in self.vertebrae:
            if v in known or v not in self.centres:
                continue
            if known:
                nearest = min(known, key=lambda other: abs(self.present.index(other) - self.present.index(v)))
                away = known[nearest]
            else:
                arch = self.grid.to_world(self.regions.of(v, [p for p in VERTEBRA_PARTS if p not in BODY]))
                away = self.centres[v] - arch.mean(axis=0) if len(arch) else np.array([0.0, 1.0, 0.0])
            found[v] = _across(away, self._tangent(v))
        return {v: f if np.linalg.norm(f) > 1e-3 else np.array([0.0, 1.0, 0.0]) for v, f in found.items()}

    def _solid(self, label: int, index: np.ndarray) -> Solid:
        plates = self.plates.get(label, [])
        weight = np.concatenate([np.ones(len(index)), np.full(sum(len(p) for p in plates), 0.5)])
        return Solid(self.grid, np.concatenate([index, *plates]), weight)

    def _cut_through(self, sides: list[np.ndarray], frame: Frame) -> bool:
        """A border in front, behind, above or below: nothing but a lateral one leaves the middle as it is."""
        # What is left of a body at the upper border may be a corner whose own frame is no good: ask the column too.
        return any(abs(normal @ frame.right) < 0.7 or abs(normal @ self.up) > 0.6 for normal in sides)

    def _body(self, v: int) -> None:
        index = self.regions.of(v, BODY)
        self.sides[v] = self.regions.sides(v, BODY)
        if len(index) < 50 or self._is(v, C1):
            return
        try:
            frame = frame_of(self.centres[v], self._tangent(v), self._fronts[v])
            if self._cut_through(self.sides[v], frame):
                return
            if self._is(v, C2):
                local = frame.to_local(self.grid.to_world(index))
                index = index[local[:, 0] < local[:, 0].min() + C2_BODY * np.ptp(local[:, 1])]
                frame = frame_of(self.grid.to_world(index.mean(axis=0)), frame.up, frame.front)
            self.solids[v] = self._solid(v, index)
            self.shapes[v] = shape_of(self.solids[v], frame, settle=not self._is(v, C2), rims=True)
        except ValueError as error:
            logger.info("%s is not measured: %s.", instance_name(v), error)

    def _disc(self, v: int) -> None:
        label, below = DISC_OFFSET + v, self.below(v)
        index = self.regions.of(label)
        self.sides[label] = self.regions.sides(label)
        above_shape, below_shape = self.shapes.get(v), self.shapes.get(below or 0)
        shapes = [s for s in (above_shape, below_shape) if s is not None]
        if len(index) < 50 or not shapes:
            return
        centre = self.centres[label]
        normals = [above_shape.lower.normal] if above_shape else []
        normals += [below_shape.upper.normal] if below_shape else []
        front = np.sum([s.frame.front for s in shapes], axis=0)
        try:
            frame = frame_of(centre, np.sum(normals, axis=0), front)
            if self._cut_through(self.sides[label], frame):
                return
            solid = self.solids[label] = self._solid(label, index)
            if below == SACRUM and above_shape is not None:
                sacrum = self._solid(SACRUM, self.regions.of(SACRUM))
                self.sacrum = sacral_plate(sacrum, frame, above_shape.depth, above_shape.width)
                frame = frame_of(centre, above_shape.lower.normal + self.sacrum.plane.normal, front)
            self.discs[v] = shape_of(solid, frame, settle=False, rims=False)
        except ValueError as error:
            logger.info("%s is not measured: %s.", instance_name(label), error)


def _across(vector: np.ndarray, up: np.ndarray) -> np.ndarray:
    return np.asarray(vector - up * (vector @ up))
