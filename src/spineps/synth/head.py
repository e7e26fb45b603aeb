"""What lies above C1: brain in its case, brain stem, cerebellum, clivus, and fat and ligaments around the dens.

Places are millimetres (p, i, r) in the frame of C1.  Real scans of necks show the brain up to the pons or further: a
pons in its fluid was called body, and cerebellum arch, while generated heads were one even ball.
"""

from __future__ import annotations

import numpy as np

from spineps.synth.canvas import Canvas, Part
from spineps.synth.chain import Frame
from spineps.synth.organs import Scene
from spineps.synth.tissues import Tissue

Point = tuple[float, float, float]


def draw_head(canvas: Canvas, atlas: Frame, scene: Scene) -> None:
    """Draw into ``scene.tissue`` what is in view of the head above the first vertebra."""
    s = scene.scale
    _skull(canvas, atlas, scene, s)
    _beside_dens(canvas, atlas, scene, s)


def _skull(canvas: Canvas, atlas: Frame, scene: Scene, s: float) -> None:
    """Case, brain, cerebellum, cisterns with the brain stem in them, clivus, sphenoid sinus and condyles."""
    tissue, rng = scene.tissue, np.random.default_rng(atlas.level.seed + 6)

    def fill(value: Tissue, a: Point, b: Point, wide: Point, wide_b: Point | None = None) -> None:
        canvas.fill(atlas, _part(s, a, b, wide, wide_b or wide), tissue, value)

    case = _part(1.0, (32 * s, -64 * s, 0), (32 * s, -64 * s, 0), *2 * ((72 * s + 7, 50 * s + 7, 68 * s + 7),))
    drawn = canvas.draw(atlas, case, 0.0)
    if drawn is not None:
        box, distance = drawn
        block = tissue[box]
        block[(distance < 0) & (block != Tissue.AIR)] = Tissue.OTHER_BONE
        block[distance < -6.5] = Tissue.CSF
        brain = distance < -rng.uniform(7.5, 11)
        block[brain] = _folded(scene.fine[box], -distance - 10, rng)[brain]
    fill(Tissue.CSF, (15, -26, 0), (15, -8, 0), (16, 6, 14.5), (15, 6, 14))
    _cerebellum(canvas, atlas, scene, s, rng)
    stem = Tissue.CORD if rng.random() < 0.6 else Tissue.BRAIN
    cistern, bulge, lean = rng.uniform(1.5, 5), rng.uniform(10.5, 13.5), rng.uniform(-2, 2)
    bottom, pons_low, pons_high, top = (15, -8, 0), (5, -41, 0), (lean, -51, 0), (-8 + lean, -74, 0)
    wet = bulge + cistern
    fill(Tissue.CSF, (14, -18, 0), pons_low, (9 + cistern, 6, 12), (wet, 6, 17 + cistern))
    fill(Tissue.CSF, pons_low, pons_high, (wet, 7, 17 + cistern))
    fill(Tissue.CSF, pons_high, top, (9 + cistern, 6, 14))
    ventricle = rng.uniform(2, 5)
    fill(Tissue.CSF, (15, -40, 0), (15 + lean, -52, 0), (ventricle, 5, rng.uniform(5, 9)))
    if rng.random() < 0.6:
        fill(Tissue.AIRWAY, (-44, -52, 0), (-50, -56, 0), (9, 9, 12))
    thick = rng.uniform(3.5, 6)
    fill(Tissue.OTHER_BONE, (-3, -17, 0), (-28, -46, 0), (thick, 8, 12), (thick + 1, 10, 16))
    for side in (-1, 1):
        fill(Tissue.OTHER_BONE, (1, -13.5, side * 17), (4, -14, side * 20), (9, 4, 6), (9, 5, 6))
    fill(stem, bottom, (13, -24, 0), (5.5, 4, 6.5), (6.5, 5, 8))
    fill(stem, (13, -24, 0), pons_low, (6.5, 5, 8), (8, 5, 11))
    fill(stem, pons_low, pons_high, (bulge, 8, 15))
    fill(stem, pons_high, top, (8, 6, 11), (8, 6, 15))


def _part(s: float, a: Point, b: Point, radii_a: Point, radii_b: Point) -> Part:
    def scaled(point: Point) -> Point:
        return s * point[0], s * point[1], s * point[2]

    return Part(0, scaled(a), scaled(b), scaled(radii_a), scaled(radii_b))


def _folded(noise: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White matter with a folded rind of grey, the folds filled with fluid.

    Args:
        noise: unit variance; folds lie where it is 0.
        depth: mm below the surface.
        rng: decides how deep and how wide the folds are.
    """
    fold, rind = np.abs(noise), np.float32(rng.uniform(14, 26))
    out = np.full(noise.shape, Tissue.CORD, np.uint8)
    near = depth < rind * (1 + np.float32(0.3) * noise)
    out[near & (fold < rng.uniform(0.4, 0.9))] = Tissue.BRAIN
    out[depth < rng.uniform(2, 4)] = Tissue.BRAIN
    out[near & (fold < rng.uniform(0.02, 0.25))] = Tissue.CSF
    return out


def _cerebellum(canvas: Canvas, atlas: Frame, scene: Scene, s: float, rng: np.random.Generator) -> None:
    """Two halves below their tent, thin leaves around white matter, fluid around all."""
    middle = (rng.uniform(34, 40), rng.uniform(-46, -40), 0.0)
    half = (rng.uniform(20, 25), rng.uniform(17, 21), rng.uniform(42, 48))
    drawn = canvas.draw(atlas, _part(s, middle, middle, half, half), 3.0)
    if drawn is None:
        return
    box, distance = drawn
    block = scene.tissue[box]
    inner = (block != Tissue.OTHER_BONE) & (block != Tissue.AIR)
    block[inner & (distance < 2)] = Tissue.CSF
    leaf, wavy = rng.uniform(4.0, 7.0), np.float32(rng.uniform(0.5, 1.5))
    wave = np.sin(np.float32(2 * np.pi / leaf) * distance + wavy * scene.fine[box])
    leaves = np.where(wave > rng.uniform(0.5, 0.95), Tissue.CSF, Tissue.BRAIN).astype(np.uint8)
    leaves[wave < rng.uniform(-1.1, -0.5)] = Tissue.CORD
    leaves[distance < -rng.uniform(9, 14) * s] = Tissue.CORD
    inside = inner & (distance < 0)
    block[inside] = leaves[inside]


def _beside_dens(canvas: Canvas, atlas: Frame, scene: Scene, s: float) -> None:
    """Fat over the dens and around the anterior arch, the ligaments behind, above and before it, the joint with C1.

    Drawn after T1w scans of two heads, where such fat and ligament were called body.
    """
    rng = np.random.default_rng(atlas.level.seed + 5)
    thick = (rng.uniform(0.6, 1.8), 3.0 * s, 7.0 * s)
    band = (rng.uniform(0.5, 1.2), 2.5 * s, 8.0 * s)
    pad = (rng.uniform(3, 6) * s, rng.uniform(2.5, 5) * s, rng.uniform(5, 10) * s)
    drawn = (
        (0.8, Tissue.FAT, Part(0, (-6 * s, -8 * s, 0), (-1 * s, -13 * s, 0), pad, pad)),
        (0.5, Tissue.FAT, Part(0, (-14 * s, -6 * s, 0), (-13 * s, 5 * s, 0), (2.5, 3, 8 * s), (2, 3, 8 * s))),
        (0.85, Tissue.LIGAMENT, Part(0, (7 * s, 5 * s, 0), (5 * s, -21 * s, 0), thick, thick)),
        (0.6, Tissue.LIGAMENT, Part(0, (0.5 * s, -8 * s, 0), (-1 * s, -17 * s, 0), (1, 2, 1.5), (0.8, 2, 1.2))),
        (0.7, Tissue.LIGAMENT, Part(0, (-10 * s, -5 * s, 0), (-6 * s, -17 * s, 0), band, band)),
        (0.5, Tissue.CARTILAGE, Part(0, (-6.2 * s, -3 * s, 0), (-6.2 * s, 3 * s, 0), (0.9, 2, 5), (0.9, 2, 5))),
    )
    for share, value, part in drawn:
        if rng.random() < share:
            canvas.fill(atlas, part, scene.tissue, value)
