"""Everything that is not spine: muscles, fat, skin, air, organs, vessels, ribs, pelvis and skull.

Places are in the coordinates of :class:`spineps.synth.canal.SpineSpace`: ``a`` mm behind the canal's middle, ``b`` mm
to the right, ``k`` level.  Left is b < 0.  It is anatomy of the right size and place, not a portrait: the networks only
have to learn that none of it is spine.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from spineps import anatomy
from spineps.synth import organs
from spineps.synth.canal import SpineSpace
from spineps.synth.canvas import Canvas, Part, smooth_noise
from spineps.synth.chain import Frame
from spineps.synth.head import draw_head
from spineps.synth.organs import Scene
from spineps.synth.person import SpineSpec
from spineps.synth.tissues import Tissue


def paint(
    spec: SpineSpec,
    canvas: Canvas,
    space: SpineSpace,
    placed: list[Frame],
    bone: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Tissue classes of the whole grid, uint8, spine left out.

    Args:
        spec: the person.
        canvas, space: the grid and its spine coordinates.
        placed: frames of all levels.
        bone: distance in mm to the nearest bone of the spine.
        rng: source of all fields.
    """
    zoom = canvas.grid.zoom
    line = space.line

    def field(p: float, i: float, r: float) -> np.ndarray:
        order = _axis_order(canvas)
        sizes = (p, i, r)
        cells = tuple(sizes[order[n]] / zoom[n] for n in range(3))
        return smooth_noise(canvas.grid.shape, (cells[0], cells[1], cells[2]), rng)

    scene = Scene(
        tissue=np.full(canvas.grid.shape, Tissue.MUSCLE, np.uint8),
        space=space,
        front=space.at(-line.depth / 2 - line.body_depth),
        wide=space.at(line.body_width / 2),
        streak=field(4.5, 26, 4.5),
        lump=field(26, 26, 22),
        fine=field(3.0, 6, 3.0),
        sheet=field(12, 45, 12),
        scale=spec.scale,
        rng=rng,
    )
    low, high = scene.span()
    _muscle_fat(scene, spec, bone)
    if low < 8.5:
        organs.neck(scene)
    if low < 19.5 and high > 7.5:
        organs.chest(scene)
    if high > 17.5:
        organs.abdomen(scene)
    if high > 24:
        organs.pelvis(scene)
    _prevertebral(scene)
    _paravertebral(scene, bone)
    _back(scene, spec, bone)
    if scene.reaches_skin(14.0 + spec.fat):
        _contour(scene, spec)
    _draw_parts(canvas, placed, scene, spec)
    _canal_content(scene, spec, bone)
    _roots(canvas, placed, scene, spec)
    return scene.tissue


def _axis_order(canvas: Canvas) -> list[int]:
    """Which of p, i, r each array axis mostly runs along."""
    codes = canvas.grid.axcodes
    return [next(n for n, pair in enumerate(("PA", "IS", "RL")) if code in pair) for code in codes]


def _muscle_fat(scene: Scene, spec: SpineSpec, bone: np.ndarray) -> None:
    """Sheets of fat between muscles; streaks along the fibres next to the laminae, most towards the sacrum."""
    from scipy.special import ndtri

    limit = np.float32(ndtri(1 - min(max(0.3 * spec.muscle_fat, 0.003), 0.5)))
    wasted = np.float32(3.0 * spec.muscle_fat) * np.exp(-np.maximum(bone, 0) / np.float32(7.0 * spec.scale))
    wasted *= scene.space.at(np.interp(scene.space.line.key, [2, 8, 18, 24], [0.8, 0.5, 0.7, 1.5]))
    scene.tissue[scene.streak + 0.35 * scene.fine + wasted > limit] = Tissue.FAT
    scene.tissue[np.abs(scene.sheet + 0.1 * scene.streak) < 0.02 + 0.4 * spec.muscle_fat] = Tissue.FAT
    scene.tissue[np.abs(scene.lump + 0.15 * scene.streak) < scene.rng.uniform(0.01, 0.06)] = Tissue.FAT


def _prevertebral(scene: Scene) -> None:
    """A thin sheet of fat in front of the column, and the anterior ligament."""
    rng, a = scene.rng, scene.space.a
    sheet = np.float32(rng.uniform(0, 5) * scene.scale) * (1 + 0.4 * scene.streak)
    near = (a < scene.front + 1) & (a > scene.front - sheet) & (np.abs(scene.space.b) < scene.wide * 0.9)
    scene.tissue[near & (scene.tissue != Tissue.LUNG)] = Tissue.FAT


def _paravertebral(scene: Scene, bone: np.ndarray) -> None:
    """Fat and segmental vessels in the waist of the bodies: psoas and lung touch bone only near the discs."""
    rng, space = scene.rng, scene.space
    waist = np.abs(np.cos(np.pi * space.k))  # 1 at mid-body, 0 at the disc
    sheet = np.float32(rng.uniform(0.3, 4.0) * scene.scale) * (0.15 + 0.85 * waist) * (1 + 0.4 * scene.streak)
    beside = (space.a < -space.at(space.line.depth / 2)) & (np.abs(space.b) > 0.6 * scene.wide)
    near = beside & (bone > 0) & (bone < sheet)
    scene.tissue[near & (scene.tissue != Tissue.LUNG)] = Tissue.FAT
    vessel = near & (waist > np.float32(np.cos(np.pi * rng.uniform(0.05, 0.12)))) & (bone > 0.3)
    scene.tissue[vessel] = Tissue.VEIN if rng.random() < 0.6 else Tissue.ARTERY


def _contour(scene: Scene, spec: SpineSpec) -> None:
    """Chest wall, fat, skin and air at the front and the sides."""
    t, k = scene.tissue, scene.space.k
    fat = 0.7 * spec.fat
    soft = (t != Tissue.AIR) & (t != Tissue.SUBCUTANEOUS_FAT) & (t != Tissue.SKIN)
    t[soft & ~scene.within(14.0 + fat) & (k > 8)] = Tissue.MUSCLE
    t[soft & ~scene.within(2.0 + fat) & (k > 0.5)] = Tissue.SUBCUTANEOUS_FAT
    t[~scene.within(2.0)] = Tissue.SKIN
    t[~scene.within(0.0)] = Tissue.AIR


_FASCIA_KEYS = (0, 2, 5, 8, 11, 14, 17, 20, 22, 24, 26, 28, 30, 32)
_FASCIA = (46, 48, 46, 46, 44, 42, 44, 48, 50, 47, 36, 24, 18, 16)


def _back(scene: Scene, spec: SpineSpec, bone: np.ndarray) -> None:
    """Fat around the processes, ligaments in the mid-line, fascia, subcutaneous fat, skin, air."""
    from scipy.ndimage import gaussian_filter1d

    rng, space, s = scene.rng, scene.space, scene.scale
    a, b = space.a, space.b
    t, line = scene.tissue, space.line
    halo = np.float32(rng.uniform(0, 3.5)) * (0.6 + 0.5 * scene.streak)
    behind = a > -space.at(line.depth / 2)
    t[behind & (bone < halo) & (np.abs(b) < 32 * s)] = Tissue.FAT
    surface = gaussian_filter1d(space.table(_FASCIA_KEYS, _FASCIA) * s + rng.uniform(-2, 6), 12)
    deep = space.at(surface) + 1.5 * scene.lump
    midline = (np.abs(b) < np.float32(rng.uniform(1.2, 3.0) * s)) & (a > space.at(line.depth / 2)) & (a < deep)
    t[midline] = Tissue.LIGAMENT if rng.random() < 0.6 else Tissue.FAT
    if rng.random() < 0.8:
        t[midline & (scene.fine > rng.uniform(-0.8, 0.8))] = Tissue.FAT
    columns = 5 * np.exp(-(((np.abs(b) - 28 * s) / (16 * s)) ** 2)) - 0.0035 * np.maximum(np.abs(b) - 45 * s, 0) ** 2
    top = deep + columns
    t[a > top - 1.6] = Tissue.FASCIA
    t[a > top] = Tissue.SUBCUTANEOUS_FAT
    thick = space.at(gaussian_filter1d(np.interp(line.key, [1, 6, 10, 18, 23, 27], [0.5, 0.8, 0.7, 0.8, 1.2, 1.5]), 15))
    skin = top + np.maximum(spec.fat * thick, 1.5)
    if rng.random() < 0.5:
        t[(a > top) & (a < skin) & (np.abs(scene.streak) < 0.06)] = Tissue.FASCIA
    t[a > skin] = Tissue.SKIN
    t[a > skin + 2.2] = Tissue.AIR


def _canal_content(scene: Scene, spec: SpineSpec, bone: np.ndarray) -> None:
    """Epidural fat and veins in the bony canal, yellow ligament along its back."""
    rng, space = scene.rng, scene.space
    line = space.line
    u = space.a / space.at(line.depth / 2 + 0.8)
    v = space.b / space.at(line.width / 2 + 0.8)
    core = np.sqrt(u * u + v * v)
    within = (core < 1.12) & (space.k > 0.4) & (space.k < 29.3)
    t = scene.tissue
    t[within] = Tissue.EPIDURAL_FAT
    t[within & (scene.fine > 2.4 * (spec.epidural_fat - 0.25))] = Tissue.EPIDURAL_VEIN
    if rng.random() < 0.85:
        rim = (core > rng.uniform(0.86, 0.98)) & (core < 1.2) & (u > 0.15) & (np.abs(v) < 0.95) & (bone > 0)
        t[rim & (space.k > 1.5) & (space.k < 25.3)] = Tissue.FLAVUM


def _draw_parts(canvas: Canvas, placed: list[Frame], scene: Scene, spec: SpineSpec) -> None:
    """Ribs, pelvis and head."""
    s = spec.scale
    thorax = [(n, f) for n, f in enumerate(placed) if 7.5 < f.level.key < 19.5]
    for _, frame in thorax:
        for part in _rib(frame, s):
            canvas.fill(frame, part, scene.tissue, Tissue.RIB)
    first_sacral = next(f for f in placed if f.level.id == anatomy.SACRUM)
    for part in _ilium(first_sacral, s):
        canvas.fill(first_sacral, part, scene.tissue, Tissue.OTHER_BONE)
    if scene.span()[0] < 2.5:
        draw_head(canvas, placed[0], scene)


def _rib(frame: Frame, s: float) -> list[Part]:
    level, sizes = frame.level, frame.level.sizes
    n = level.key - 7
    reach = float(np.interp(n, [1, 2, 4, 7, 10, 12], [52, 78, 105, 125, 122, 75])) * s
    drop = float(np.interp(n, [1, 4, 8, 12], [8, 28, 45, 40])) * s
    built = []
    for side in (-1, 1):
        head = np.array([frame.back - 1.5, -frame.half_height + 1.5, side * (sizes["width_upper"] / 2 + 1.5)])
        if n > 10.3:
            head[1] = -0.3 * frame.half_height
        neck = np.array(
            [frame.back + sizes["transverse_p"] - 5.0, sizes["transverse_i"] - 2.0, side * (sizes["transverse_r"] - 1)]
        )
        angle = neck + np.array([8 * s, 0.25 * drop, side * 0.28 * reach])
        flank = np.array([frame.back - 40 * s, neck[1] + 0.75 * drop, side * reach])
        front = np.array([frame.back - 95 * s, neck[1] + 1.3 * drop, side * 0.95 * reach])
        points = [head, neck, angle, flank, front] if n < 11.5 else [head, neck, angle, 0.5 * (angle + flank)]
        radius = (3.2 * s, 5.2 * s, 3.2 * s)
        for start, end in pairwise(points):
            a, b = tuple(map(float, start)), tuple(map(float, end))
            built.append(Part(0, (a[0], a[1], a[2]), (b[0], b[1], b[2]), radius, radius))
    return built


def _ilium(frame: Frame, s: float) -> list[Part]:
    ala = frame.level.sizes["ala"]
    built = []
    for side in (-1, 1):
        joint = (frame.back + 16.0, 12.0 * s, side * (ala + 3))
        crest = (frame.back - 2.0, -38.0 * s, side * (ala + 26 * s))
        spine = (frame.back + 26 * s, 6.0, side * (ala - 10))
        ischium = (frame.back - 25 * s, 75 * s, side * (ala + 12 * s))
        built += [
            Part(0, joint, crest, (22 * s, 20 * s, 5.5), (34 * s, 14, 5)),
            Part(0, joint, spine, (10 * s, 22 * s, 7), (7, 18 * s, 8)),
            Part(0, joint, ischium, (16 * s, 20, 6), (20 * s, 18, 12)),
        ]
    return built


def _roots(canvas: Canvas, placed: list[Frame], scene: Scene, spec: SpineSpec) -> None:
    """One nerve root with its ganglion in each foramen, bedded in fat."""
    soft = np.zeros(256, bool)
    soft[[Tissue.FAT, Tissue.MUSCLE, Tissue.EPIDURAL_FAT, Tissue.EPIDURAL_VEIN, Tissue.PSOAS, Tissue.FLAVUM]] = True
    for frame in placed:
        level, sizes = frame.level, frame.level.sizes
        if level.key < 2 or level.key > 28.5:
            continue
        k = min(sizes["height"] / 25, 1.2)
        depth, half = sizes["canal_depth"], frame.half_height
        for side in (-1, 1):
            start = (frame.back + 0.45 * depth, 0.1 * half, side * 0.36 * sizes["canal_width"])
            end = (frame.back + 0.2 * depth, half + 1.0, side * (0.5 * sizes["canal_width"] + 12 * k + 2))
            bed = Part(0, start, end, (3 * k, 3 * k, 3 * k), (5.5 * k, 7.5 * k, 5 * k))
            root = Part(0, start, end, (1.2, 1.3, 1.3), (2.0 * k + 0.4, 2.4 * k + 0.4, 2.4 * k + 0.4))
            for part, value in ((bed, Tissue.FAT), (root, Tissue.NERVE)):
                drawn = canvas.draw(frame, part, 0.0)
                if drawn is not None:
                    box, distance = drawn
                    block = scene.tissue[box]
                    block[(distance < 0) & soft[block]] = value
                    soft[Tissue.FAT] = True
