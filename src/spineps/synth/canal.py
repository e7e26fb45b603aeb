"""Coordinates along the spinal canal, and the dural sac with what floats in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spineps.synth import morphometry
from spineps.synth.canvas import Canvas, smooth_noise, smoothstep
from spineps.synth.chain import CanalLine
from spineps.synth.person import SpineSpec
from spineps.volume import Box, bounding_box

_STEP = 0.25


class SpineSpace:
    """Every voxel seen from the canal.

    Attributes:
        a: mm to posterior of the canal's middle, perpendicular to the canal, float32 grid.
        b: mm to the right of it.
        k: level coordinate (1 = C1 .. 24 = L5 .. 29 = S5).
        canvas, line: what it was made from.
    """

    def __init__(self, canvas: Canvas, line: CanalLine) -> None:
        self.canvas, self.line = canvas, line
        p, i, r = canvas.space
        self._index = self._rows(i)
        along = self.at(line.slope)
        lean = along / (1 + along * along)
        # The foot of the perpendicular lies further down where the canal slopes; bounded, lest far tissue folds.
        moved = np.clip(p - self.at(line.p), -45, 45) * lean
        self._index = self._rows(i + np.float32(0.85) * moved)
        self.a = (p - self.at(line.p)) / np.sqrt(1 + along * along)
        self.b = r - self.at(line.r)
        self.k = self.at(line.key)
        others = ((1, 2), (0, 2), (0, 1))
        self._reach = [(self.k.min(axis=rest), self.k.max(axis=rest)) for rest in others]

    def slab(self, low: float, high: float) -> Box | None:
        """Smallest box that holds every voxel between two level coordinates, None when there is none."""
        ranges = []
        for minima, maxima in self._reach:
            hits = np.flatnonzero((maxima > low) & (minima < high))
            if hits.size == 0:
                return None
            ranges.append(slice(int(hits[0]), int(hits[-1]) + 1))
        return ranges[0], ranges[1], ranges[2]

    def _rows(self, i: np.ndarray) -> np.ndarray:
        last = (len(self.line.p) - 1) / _STEP
        rows = (i - np.float32(self.line.start)) * np.float32(1 / _STEP)
        return np.clip(rows, 0, last).astype(np.int32)

    def at(self, values: np.ndarray, box: Box | None = None) -> np.ndarray:
        """A quantity sampled on the canal's line (one value per mm), at every voxel (of a box)."""
        n = len(self.line.p)
        fine = np.interp(np.arange(int((n - 1) / _STEP) + 1) * _STEP, np.arange(n), values).astype(np.float32)
        index = self._index if box is None else self._index[box]
        return fine[index]

    def table(self, keys: Sequence[float], values: Sequence[float]) -> np.ndarray:
        """A table over level coordinates, sampled on the line."""
        return np.interp(self.line.key, keys, values)


@dataclass(frozen=True, eq=False)
class Sac:
    """The dural sac in its box: masks; ``cauda`` is the bundle of roots, ``strands`` its roots and the stray ones.

    ``core`` is 0 in the sac's middle.
    """

    box: Box
    inside: np.ndarray
    cord: np.ndarray
    grey: np.ndarray
    cauda: np.ndarray
    strands: np.ndarray
    core: np.ndarray


def dural_sac(spec: SpineSpec, space: SpineSpace, rng: np.random.Generator) -> Sac:
    """Dural sac, cord and cauda equina.

    The sac hugs the posterior wall of the bodies (``SAC_GAP``); the cord ends in a cone at ``spec.canal.conus``; above
    the foramen magnum there is none.
    """
    line, canal = space.line, spec.canal
    n = len(line.key)
    end = np.clip((canal.sac_end - line.key) / 1.2, 0, 1) ** 0.5
    width = line.width * space.table(morphometry.SAC_KEYS, morphometry.SAC_WIDTH) * canal.sac_width
    # No sac is wider than 25 mm, however wide the bony canal.
    width = np.minimum(width, 25.0 * spec.scale)
    gap = space.table(morphometry.SAC_KEYS, morphometry.SAC_GAP) * canal.gap
    depth = line.depth * space.table(morphometry.SAC_KEYS, morphometry.SAC_DEPTH) * canal.sac_depth
    depth = np.minimum(depth, line.depth - gap + 1.0)
    ripple = 1 + canal.ripple * _wander(rng, n, 7.0)
    half_depth = np.maximum(depth / 2 * ripple * end, 0.3)
    half_width = np.maximum(width / 2 * (1 + 0.5 * canal.ripple * _wander(rng, n, 9.0)) * end, 0.3)
    middle = -line.depth / 2 + gap + half_depth
    near = (np.abs(space.a) < 18) & (np.abs(space.b) < 18) & (space.k > 0.2) & (space.k < canal.sac_end)
    box = bounding_box(near) or (slice(0, 0), slice(0, 0), slice(0, 0))
    a, b, k = space.a[box], space.b[box], space.k[box]
    deep, wide = space.at(half_depth, box), space.at(half_width, box)
    x = (a - space.at(middle, box)) / deep
    # The lumbar sac is a rounded triangle, broad in front; above it is an oval.
    wedge = space.at(np.interp(line.key, [17, 21, 25], [0.0, 0.22, 0.28]) * rng.uniform(0.3, 1.3), box)
    y = b / (wide * (1 + wedge * (0.35 - np.clip(x, -1, 1))))
    # Slightly squared: 2.3 rather than an ellipse's 2.
    core = (np.abs(x) ** 2.3 + np.abs(y) ** 2.3) ** np.float32(1 / 2.3)
    inside = (core < 1) & near[box]
    taper = np.clip((canal.conus - line.key) / 1.1, 0, 1) ** 0.6
    cord_depth = space.table(morphometry.CORD_KEYS, morphometry.CORD_DEPTH) * spec.scale * canal.cord_depth / 2
    cord_width = space.table(morphometry.CORD_KEYS, morphometry.CORD_WIDTH) * spec.scale * canal.cord_width / 2
    cord_depth = np.maximum(np.minimum(cord_depth, 0.86 * half_depth) * taper, 0.05)
    cord_width = np.maximum(np.minimum(cord_width, 0.86 * half_width) * taper, 0.05)
    room = half_depth - cord_depth
    # Supine: the thoracic cord lies in front, the conus behind.
    place = room * (0.7 * canal.cord_place + np.interp(line.key, [1, 6, 12, 16, 19, 21], [0, -0.15, -0.3, 0, 0.3, 0.4]))
    u = (a - space.at(middle + place, box)) / space.at(cord_depth, box)
    v = b / space.at(cord_width, box)
    radius = u * u + v * v
    cord = inside & (radius < 1) & (k < canal.conus)
    grey = cord & ((np.abs(u) < 0.22 + 0.3 * np.abs(v)) & (np.abs(v) < 0.45))
    # The bundle begins around the cone, loses roots at each level, and sinks to the back.
    bunched = smoothstep((line.key - np.float32(canal.conus) + 1.2) / 1.2)
    share = bunched * np.interp(line.key, [canal.conus, max(canal.sac_end, canal.conus + 1)], [1.0, 0.3])
    deep_share, wide_share = (low + high * canal.cauda for low, high in ((0.22, 0.5), (0.42, 0.6)))
    # The last roots are a millimetre thick: thinner, they would come apart into specks.
    least = np.minimum(0.05 + 0.9 * bunched, 0.9 * half_depth)
    bundle_depth = np.maximum(half_depth * np.minimum(deep_share * share, 0.9), least)
    bundle_width = np.maximum(half_width * np.minimum(wide_share * share, 0.9), least)
    sunk = rng.uniform(0.2, 0.95) * (half_depth - bundle_depth)
    u = (a - space.at(middle + sunk, box)) / space.at(bundle_depth, box)
    v = b / space.at(bundle_width, box)
    cauda = inside & ~cord & (u * u + v * v < 1) & (k > canal.conus - 1.2)
    loose = inside & ~cord & (k > canal.conus)
    strands = _strands(space, rng, box, a, b)
    strands = (cauda & (strands > rng.uniform(-1.6, -0.2))) | (loose & (strands > rng.uniform(1.2, 2.2)))
    return Sac(box, inside, cord, grey, cauda, strands, core)


def _wander(rng: np.random.Generator, n: int, mm: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    line = gaussian_filter1d(rng.standard_normal(n), mm)
    return line / (line.std() + 1e-9)


def _strands(space: SpineSpace, rng: np.random.Generator, box: Box, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Roots run along the canal, so they are a pattern in (a, b) that drifts slowly: mean 0, deviation 1."""
    texture = smooth_noise((72, 72, 1), (2.0, 2.0, 1.0), rng)[:, :, 0]
    n = len(space.line.key)
    drift_a, drift_b = (space.at(2.5 * _wander(rng, n, 25.0), box) for _ in range(2))
    row = np.clip((a + drift_a) * 1.3 + 36, 0, 71).astype(np.int32)
    column = np.clip((b + drift_b) * 1.3 + 36, 0, 71).astype(np.int32)
    return texture[row, column]
