"""Airways, vessels, lungs and bellies: what lies in front of and beside the column, painted level by level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spineps.synth.canal import SpineSpace
from spineps.synth.tissues import Tissue
from spineps.volume import Box


@dataclass(eq=False)
class Scene:
    """What the painters share."""

    tissue: np.ndarray
    space: SpineSpace
    front: np.ndarray
    wide: np.ndarray
    streak: np.ndarray
    lump: np.ndarray
    fine: np.ndarray
    sheet: np.ndarray
    scale: float
    rng: np.random.Generator

    def tube(
        self, value: Tissue, a: np.ndarray | float, b: np.ndarray | float, ra: float, rb: float, low: float, high: float
    ) -> None:
        """Paint a tube along the spine with half-axes ``ra``, ``rb`` between two level coordinates."""
        box = self.space.slab(low, high)
        if box is None:
            return
        s, k = self.space, self.space.k[box]
        u = (s.a[box] - _part(a, box)) / ra
        v = (s.b[box] - _part(b, box)) / rb
        self.tissue[box][(u * u + v * v < 1) & (k > low) & (k < high)] = value

    def blob(self, value: Tissue, key: float, a: float, b: float, radii: tuple[float, float, float]) -> None:
        """Paint an ellipsoid centred at a level; radii (a, along the spine, b) in mm."""
        line = self.space.line
        i0 = line.start + float(np.interp(key, line.key, np.arange(len(line.key))))
        box = self.space.slab(key - radii[1] / 12 - 1, key + radii[1] / 12 + 1)
        if box is None:
            return
        along = (self.space.canvas.space[1][box] - i0) / radii[1]
        u, v = (self.space.a[box] - a) / radii[0], (self.space.b[box] - b) / radii[2]
        inside = u * u + v * v + along * along < 1 + np.float32(0.15) * self.lump[box]
        self.tissue[box][inside] = value

    def within(self, inset: float) -> np.ndarray:
        """Mask of the body's cross-section, a squarish oval, less ``inset`` mm all round; `_back` draws the back."""
        keys = self.space.line.key
        wide = self.space.at(np.interp(keys, _WIDE_KEYS, _WIDE) * self.scale - inset)
        deep = self.space.at(np.interp(keys, _DEEP_KEYS, _DEEP) * self.scale - inset)
        u, v = np.minimum(self.space.a, 0) / deep, self.space.b / wide
        u, v = u * u, v * v
        return u * u + v * v < 1 + np.float32(0.04) * self.lump

    def reaches_skin(self, inset: float) -> bool:
        """Whether any voxel may lie outside the body's cross-section less ``inset`` mm."""
        low, high = self.span()
        keys = np.linspace(low, high, 30)
        wide = np.interp(keys, _WIDE_KEYS, _WIDE).min() * self.scale - inset
        deep = np.interp(keys, _DEEP_KEYS, _DEEP).min() * self.scale - inset
        # A squarish oval holds every point whose coordinates are below 0.8 of its half-axes.
        return float(np.abs(self.space.b).max()) > 0.8 * wide or float(self.space.a.min()) < -0.8 * deep

    def span(self) -> tuple[float, float]:
        """Range of level coordinates in view."""
        return float(self.space.k.min()), float(self.space.k.max())


#: Half-width of head, neck and trunk, and how far they reach in front of the canal, mm (adult, from memory).
_WIDE_KEYS, _WIDE = (0, 2.5, 6, 7.5, 9, 12, 17, 21, 24, 28, 32), (78, 64, 64, 120, 185, 170, 158, 150, 162, 178, 172)
_DEEP_KEYS, _DEEP = (0, 2.5, 6, 8, 10, 14, 18, 22, 25, 29), (110, 92, 72, 80, 112, 150, 165, 150, 155, 150)


def _part(value: np.ndarray | float, box: Box) -> np.ndarray | float:
    return value[box] if isinstance(value, np.ndarray) else value


def neck(scene: Scene) -> None:
    """Pharynx, airway, gullet, vessels; above C1 the skull is drawn as solids later."""
    rng, space, s = scene.rng, scene.space, scene.scale
    a, k = space.a, space.k
    t, front = scene.tissue, scene.front
    throat = (a < front - 2 * s) & (k < 8.5)
    t[throat & (scene.lump + 0.3 * scene.streak > rng.uniform(0.0, 1.2))] = Tissue.FAT
    t[throat & (scene.lump < rng.uniform(-2.2, -1.0))] = Tissue.ORGAN
    for side in (-1, 1):
        far = rng.uniform(19, 30) * s
        scene.tube(
            Tissue.FAT, front + rng.uniform(-12, 2) * s, side * far, rng.uniform(6, 11), rng.uniform(6, 12), -1, 8
        )
        scene.tube(Tissue.ARTERY, front - rng.uniform(2, 10) * s, side * far, 3.2 * s, 3.2 * s, 0, 9)
        scene.tube(
            Tissue.VEIN, front - rng.uniform(0, 5) * s, side * (far + 6 * s), 4.5 * s, rng.uniform(4, 7) * s, 0, 9
        )
        wall = scene.wide + np.float32(5.5 * s)
        scene.tube(Tissue.ARTERY, front * 0.62, side * wall, 1.9 * s, 1.9 * s, -0.2, 7.2)
        scene.tube(Tissue.PSOAS, front - 2.6 * s, side * 7 * s, 3.2 * s, 6.0 * s, 0.7, 10)
    scene.tube(Tissue.OESOPHAGUS, front - 8 * s, 0, 3 * s, 8 * s, 5, 9)
    centre, radius = front - rng.uniform(14, 20) * s, rng.uniform(5, 9) * s
    scene.tube(Tissue.ORGAN, centre, 0, radius + 2.5 * s, radius * 1.3 + 2.5 * s, 2.5, 9)
    scene.tube(Tissue.AIRWAY, centre, 0, radius, radius * rng.uniform(0.9, 1.3), 0.5, 9)
    if rng.random() < 0.6:
        t[(a < front - rng.uniform(20, 30) * s) & (k < 3) & (scene.lump > rng.uniform(0.3, 1.3))] = Tissue.AIRWAY


def chest(scene: Scene) -> None:
    rng, space, s = scene.rng, scene.space, scene.scale
    a, b, k = space.a, space.b, space.k
    t, front = scene.tissue, scene.front
    floor = rng.uniform(17.2, 19.4)
    chest = (k > 8.3) & (k < 19.2)
    middle = chest & (a < front + 4 * s) & (np.abs(b) < 48 * s)
    t[middle] = Tissue.FAT
    t[middle & (scene.lump > rng.uniform(0.3, 1.5))] = Tissue.ORGAN
    t[middle & (a < front - rng.uniform(28, 45) * s) & (k > rng.uniform(11, 13))] = Tissue.HEART
    # The lungs flank the column and fill the costovertebral gutter behind it.
    gutter = np.float32(rng.uniform(2, 20) * s)
    inner = scene.wide + np.float32(rng.uniform(3, 9) * s) + 2 * scene.lump
    lung = (k > 8.6 - 0.002 * np.abs(b)) & (k < floor + 0.015 * np.abs(b) * (a < front)) & (np.abs(b) > inner)
    lung &= (a < gutter - 0.0012 * (np.abs(b) - 60 * s) ** 2) & (a > -140 * s) & (np.abs(b) < 125 * s)
    lung |= (
        (k > 9) & (k < floor) & (np.abs(b) > (22 + 9 * scene.lump) * s) & (a < front - 3 * s) & (np.abs(b) < 125 * s)
    )
    t[lung] = Tissue.LUNG
    vessels = lung & (scene.fine + 0.4 * scene.streak > 1.9)
    t[vessels] = Tissue.VEIN
    place = -scene.wide * np.float32(rng.uniform(0.5, 1.1))
    scene.tube(Tissue.ARTERY, front - rng.uniform(4, 10) * s, place, 11 * s, 11 * s, 11.3, 19.5)
    scene.tube(Tissue.VEIN, front - 3 * s, 6 * s, 3 * s, 3.2 * s, 10, 19)
    scene.tube(Tissue.OESOPHAGUS, front - rng.uniform(8, 14) * s, -4 * s, 4.5 * s, 8 * s, 8, 18)
    scene.tube(Tissue.AIRWAY, front - rng.uniform(18, 24) * s, 2 * s, 8 * s, 9 * s, 7, 11.4)
    below = (k > floor) & (k < 19.5) & (a < front + 6 * s) & (np.abs(b) > scene.wide + 4)
    t[below] = np.where(b[below] > 0, np.uint8(Tissue.LIVER), np.uint8(Tissue.SPLEEN))


def abdomen(scene: Scene) -> None:
    rng, space, s = scene.rng, scene.space, scene.scale
    a, b, k = space.a, space.b, space.k
    t, front = scene.tissue, scene.front
    belly = (k > 18.8) & (a < front + 5 * s - 0.15 * np.abs(b))
    t[belly] = Tissue.FAT
    cavity = belly & (a < front - rng.uniform(6, 28) * s)
    values = np.array(
        [Tissue.BOWEL, Tissue.FAT, Tissue.ORGAN, Tissue.FLUID, Tissue.FAT, Tissue.GAS, Tissue.BOWEL], np.uint8
    )
    rng.shuffle(values)
    cuts = np.sort(rng.normal(0, 0.9, len(values) - 1)).astype(np.float32)
    pattern = values[np.digitize(scene.lump + 0.3 * scene.streak, cuts)]
    t[cavity] = pattern[cavity]
    flank = (k > 18.5) & (k < 23.5) & (np.abs(b) > 45 * s) & (a < 10 * s)
    t[flank] = Tissue.FAT
    if rng.random() < 0.85:
        t[(k > 17.5) & (k < rng.uniform(20, 22.5)) & (b > rng.uniform(38, 60) * s) & (a < -5 * s)] = Tissue.LIVER
    if rng.random() < 0.85:
        t[(k > 17.5) & (k < rng.uniform(19.3, 20.5)) & (b < -rng.uniform(50, 70) * s) & (a < 0)] = Tissue.SPLEEN
    for side in (-1, 1):
        place = (
            20.0 + 0.5 * (side > 0) + rng.uniform(-0.7, 0.7),
            rng.uniform(-30, -10) * s,
            side * rng.uniform(48, 62) * s,
        )
        scene.blob(Tissue.FAT, *place, (27 * s, 60 * s, 32 * s))
        scene.blob(Tissue.KIDNEY, *place, (21 * s, 52 * s, 26 * s))
        scene.blob(Tissue.FAT, *place, (8 * s, 25 * s, 10 * s))
        size = space.at(space.table([18.5, 20, 22, 24, 26, 28], [2, 6, 13, 18, 19, 17]) * s * rng.uniform(0.75, 1.25))
        middle_a = -space.at(space.line.depth / 2 + space.line.body_depth * rng.uniform(0.35, 0.6)) - 3 * np.maximum(
            k - 23, 0
        )
        u = (a - middle_a) / (size * np.float32(rng.uniform(1.0, 1.35)))
        v = (b - side * (scene.wide + size * np.float32(rng.uniform(0.75, 1.0)))) / size
        r2 = u * u + v * v
        t[(r2 < 1.3) & (k > 18.8)] = Tissue.FAT
        t[(r2 < 1) & (k > 18.8)] = Tissue.PSOAS
        scene.tube(Tissue.PSOAS, 8 * s, side * rng.uniform(44, 52) * s, 9 * s, 13 * s, 19, 24)
    split = rng.uniform(22.6, 23.6)
    scene.tube(Tissue.ARTERY, front - rng.uniform(9, 14) * s, -rng.uniform(2, 12) * s, 8.5 * s, 8.5 * s, 17.5, split)
    scene.tube(Tissue.VEIN, front - rng.uniform(8, 12) * s, rng.uniform(12, 20) * s, 7 * s, 10.5 * s, 18, split + 0.3)
    spread = np.clip(k - split, 0, 3)
    for side in (-1, 1):
        scene.tube(Tissue.ARTERY, front - 8 * s, side * (3 + 13 * spread) * s, 5 * s, 5 * s, split, 27)
        scene.tube(Tissue.VEIN, front - 3 * s, (side * 14 * spread + 6) * s, 5.5 * s, 6.5 * s, split, 27)


def pelvis(scene: Scene) -> None:
    rng, space, s = scene.rng, scene.space, scene.scale
    a, b, k = space.a, space.b, space.k
    t, front = scene.tissue, scene.front
    bowl = (k > 25.2) & (a < front - 2 * s) & (np.abs(b) < 60 * s)
    t[bowl] = Tissue.FAT
    t[bowl & (scene.lump > rng.uniform(0, 1))] = Tissue.BOWEL
    scene.tube(Tissue.BOWEL, front - rng.uniform(14, 24) * s, rng.uniform(-8, 8) * s, 9 * s, 13 * s, 26, 33)
    if rng.random() < 0.5:
        scene.tube(Tissue.GAS, front - 20 * s, 0, 4 * s, 6 * s, 26, 33)
    scene.blob(Tissue.FLUID, 29.0, -75 * s, 0, (22 * s, 25 * s, 34 * s))
    scene.blob(Tissue.ORGAN, 28.0, -50 * s, rng.uniform(-10, 10), (20 * s, 25 * s, 26 * s))
    t[(k > 26) & (a > front) & (np.abs(b) > 45 * s) & (scene.streak < 1.2)] = Tissue.MUSCLE
