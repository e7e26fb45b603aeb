"""The processes of each kind of vertebra as lists of simple solids; the body itself is in :mod:`spineps.synth.body`."""

from __future__ import annotations

import numpy as np

from spineps import anatomy
from spineps.synth.canvas import Part
from spineps.synth.chain import Frame

ARCUS, SPINOSUS, SACRUM = anatomy.ARCUS, anatomy.SPINOSUS, anatomy.SACRUM
Triple = tuple[float, float, float]


def parts(frame: Frame) -> list[Part]:
    """All solids of a level except its body, in its own frame."""
    rng = np.random.default_rng(frame.level.seed)
    key = frame.level.key
    if frame.level.id == SACRUM:
        return _sacrum(frame)
    if key < 1.5:
        return _atlas(frame, rng)
    built: list[Part] = []
    for side in (-1, 1):
        built += _arch(frame, side, rng)
        built += _facets(frame, side, rng)
        built += _transverse(frame, side, rng)
    built += _spinous(frame, rng)
    if key < 2.5:
        built += _axis_extras(frame)
    return built


def screws(frame: Frame) -> list[Part]:
    """A pair of pedicle screws with their heads; the class is unused, metal is a tissue."""
    s, back = frame.level.sizes, frame.back
    built = []
    for side in (-1, 1):
        head = (back + s["canal_depth"] + 4.0, s["pedicle_i"], side * (_pedicle_r(frame) + 2.0))
        tip = (-0.35 * back, s["pedicle_i"] + 1.0, side * 0.3 * _pedicle_r(frame))
        built.append(Part(0, head, tip, (3.0, 3.0, 3.0), (2.2, 2.2, 2.2)))
        rod = (head[0] + 3.0, frame.half_height + 6.0, head[2])
        built.append(Part(0, (rod[0], -rod[1], rod[2]), rod, (3.5, 3.0, 3.5), (3.5, 3.0, 3.5)))
    return built


def _sided(left_code: int, side: int) -> int:
    """Codes of paired structures come as (left, right) = (n, n + 1); r grows to the right."""
    return left_code + (1 if side > 0 else 0)


def _vary(rng: np.random.Generator, value: float, share: float = 0.04) -> float:
    return value * (1 + share * float(np.clip(rng.standard_normal(), -2, 2)))


def _pedicle_r(frame: Frame) -> float:
    return (frame.level.sizes["canal_width"] + frame.level.sizes["pedicle_width"]) / 2


def _arch(frame: Frame, side: int, rng: np.random.Generator) -> list[Part]:
    s, back, cervical = frame.level.sizes, frame.back, frame.level.key < 7.5
    width, height = s["pedicle_width"] / 2, _vary(rng, s["pedicle_height"] / 2)
    depth, thick = s["canal_depth"], s["lamina_t"] / 2
    r_pedicle = _pedicle_r(frame)
    r_root = min(r_pedicle, 0.4 * s["width_lower"])
    r_pars = s["facet_up_r"] - 1.0 if cervical else min(r_pedicle, s["facet_low_r"] + s["facet_size"])
    end = (back + 0.5 * depth, s["pedicle_i"] + 1.0, side * (r_pars if cervical else r_pedicle))
    tall = s["lamina_h"] / 2
    outer = (back + 0.86 * depth + thick, s["lamina_i"], side * s["facet_low_r"] * (0.85 if not cervical else 0.8))
    middle = (back + depth + thick + 0.8, s["lamina_i"] + 1.0, 0.0)
    return [
        Part(ARCUS, (back - 3.0, s["pedicle_i"], side * r_root), end, (3.0, height, width), (3.0, height, width)),
        Part(
            ARCUS,
            (end[0] + 1.0, end[1] + 0.8, side * r_pars),
            outer,
            (thick + 0.9, 0.72 * tall, thick + 1.2),
            (thick, 0.9 * tall, thick),
            shear=0.2,
        ),
        Part(ARCUS, outer, middle, (thick, 0.9 * tall, thick), (thick, tall, thick + 0.6), shear=0.28),
    ]


def _facets(frame: Frame, side: int, rng: np.random.Generator) -> list[Part]:
    s, back, key = frame.level.sizes, frame.back, frame.level.key
    size = _vary(rng, s["facet_size"])
    up = (back + s["facet_up_p"], s["facet_up_i"], side * s["facet_up_r"])
    low = (back + s["facet_low_p"], s["facet_low_i"], side * s["facet_low_r"])
    lumbar = float(np.clip((key - 18.5) / 1.5, 0, 1))
    if key < 7.5:
        # Cervical facets cap an oblique pillar of bone lateral to the canal.
        slope, flat = 0.55, 0.85
        up_base = (up[0] + 2.5, 0.0, up[2])
        low_base = (low[0] - 3.0, s["lamina_i"], low[2])
        radii_up, radii_low = (size, flat * size, size), (size, flat * size, size)
        bias = 0.0
    else:
        # Thoracic facets are thin coronal plates, lumbar ones stout and sagittal.
        slope = 0.15
        thin = 0.6 + 0.4 * lumbar
        up_base = (up[0] + 1.5 + 1.0 * lumbar, s["pedicle_i"] - 1.0 - 3.0 * lumbar, side * (s["facet_up_r"] + 0.3))
        low_base = (low[0] - 0.5, s["lamina_i"] + 1.0, side * (s["facet_low_r"] + 0.4))
        radii_up = (thin * size + 0.8 * lumbar, size, 0.95 * size)
        radii_low = (thin * size, size, 0.92 * size)
        bias = -0.4
    top = (up[0], up[1] + 0.8 * radii_up[1], up[2])
    bottom = (low[0], low[1] - 0.8 * radii_low[1], low[2])
    return [
        Part(_sided(45, side), up_base, top, radii_up, _times(radii_up, 0.82), shear=slope, bias=bias),
        Part(_sided(47, side), low_base, bottom, radii_low, _times(radii_low, 0.85), shear=slope, bias=bias),
    ]


def _transverse(frame: Frame, side: int, rng: np.random.Generator) -> list[Part]:
    s, back, key = frame.level.sizes, frame.back, frame.level.key
    code, half = _sided(anatomy.COSTAL_LEFT, side), s["transverse_h"] / 2
    reach = _vary(rng, s["transverse_r"], 0.05)
    tip = (back + s["transverse_p"], s["transverse_i"], side * (reach - 2.5))
    if key < 7.5:
        # Two roots with the vertebral artery between them.
        front = (0.5, s["pedicle_i"] + 1.0, side * 0.42 * s["width_upper"])
        behind = (back + 4.0, s["pedicle_i"] + 1.5, side * (s["facet_up_r"] - 1.0))
        return [
            Part(code, front, tip, (2.1, half * 0.9, 2.4), (2.7, half, 2.9), bias=0.3),
            Part(code, behind, tip, (2.5, half * 0.9, 2.6), (2.8, half, 2.9), bias=0.5),
        ]
    thoracic = float(np.clip((19.3 - key) / 2, 0, 1))
    r_pedicle = _pedicle_r(frame)
    low_root = 4.0 * float(np.clip(key - 23, 0, 1))
    start = (
        back + 0.5 * s["canal_depth"] - 0.5 - low_root,
        s["pedicle_i"] + 1.5,
        side * (r_pedicle + 0.2 * s["pedicle_width"]),
    )
    return [
        Part(
            code,
            start,
            tip,
            (4.4, half * 1.05, half),
            (3.2 + 1.1 * thoracic, half * (0.8 + 0.25 * thoracic), 3.0),
            bias=-0.3,
        )
    ]


def _spinous(frame: Frame, rng: np.random.Generator) -> list[Part]:
    s, back, key = frame.level.sizes, frame.back, frame.level.key
    half, thick = s["spinous_h"] / 2, s["spinous_t"] / 2
    root = np.array([back + s["canal_depth"] + s["lamina_t"] + 1.5, s["lamina_i"] + 1.0, 0.0])
    tip = np.array([back + s["spinous_p"] - 2.5, s["spinous_i"], 1.2 * float(np.clip(rng.standard_normal(), -2, 2))])
    middle = root + 0.55 * (tip - root)
    at_root = min(half, 0.36 * s["lamina_h"])
    built = [
        Part(SPINOSUS, _t(root), _t(middle), (2.5, at_root, thick), (3.0, 0.95 * half, 0.8 * thick), bias=0.2),
        Part(
            SPINOSUS, _t(middle), _t(tip), (3.0, 0.95 * half, 0.8 * thick), (2.8, 0.92 * half, _vary(rng, thick, 0.1))
        ),
    ]
    if 1.5 < key < 6.5 and rng.random() < 0.75:
        for side in (-1, 1):
            fork = tip + np.array([1.5, 1.0, side * (0.6 * s["spinous_t"] + 1.5)])
            built.append(
                Part(SPINOSUS, _t(tip - np.array([2.0, 0.5, 0.0])), _t(fork), (2.2, 2.6, 2.0), (2.0, 2.2, 1.9))
            )
    return built


def _axis_extras(frame: Frame) -> list[Part]:
    """Dens and the broad shoulders that carry C1."""
    k = frame.level.sizes["height"] / 21.0
    wide = frame.level.sizes["width_upper"] / 17.0
    top = -frame.half_height
    built = [
        Part(
            anatomy.CORPUS,
            (-0.5 * k, top + 2, 0),
            (0.5 * k, top - 13.0 * k, 0),
            (5.2 * k, 4.0, 5.0 * k),
            (5.0 * k, 3.0, 4.6 * k),
            bias=-0.5,
        )
    ]
    for side in (-1, 1):
        shoulder = (1.5 * k, top + 4.5 * k, side * 14.5 * wide)
        built.append(
            Part(
                _sided(45, side), (1.0, top + 6 * k, side * 8 * wide), shoulder, (6, 4.5, 4), (7.0, 4.2, 6.0), bias=0.6
            )
        )
    return built


def _atlas(frame: Frame, rng: np.random.Generator) -> list[Part]:
    """C1: a ring without a body; local origin is the middle of the dens."""
    k = frame.level.sizes["height"] / 21.0
    built = [
        # Between arch and dens lie 1 to 3 mm in an adult.
        Part(ARCUS, (-8.9 * k, 0, -9 * k), (-8.9 * k, 0, 9 * k), (2.6, 5.2 * k, 3), (2.6, 5.2 * k, 3)),
        Part(ARCUS, (-9.8 * k, 0, -1), (-10.2 * k, 0.5, 1), (2.8, 4.2 * k, 3), (2.8, 4.2 * k, 3)),
        Part(ARCUS, (29.5 * k, 1.5, -3), (29.5 * k, 1.5, 3), (3.2, 4.6 * k, 4), (3.2, 4.6 * k, 4)),
    ]
    tip = _vary(rng, 38.0, 0.04) * k
    for side in (-1, 1):
        mass = side * 17.0 * k
        built += [
            Part(
                ARCUS,
                (-8.5 * k, 0, side * 8 * k),
                (-3 * k, 0, side * 15 * k),
                (2.8, 5 * k, 3),
                (3.5, 6 * k, 4),
                bias=0.4,
            ),
            Part(
                _sided(45, side), (0, -3 * k, mass), (0.5, -5 * k, mass * 1.03), (8 * k, 4, 6 * k), (8 * k, 3.5, 6 * k)
            ),
            Part(
                _sided(47, side), (0, 3 * k, mass), (0.5, 5 * k, mass), (7.5 * k, 4, 6.2 * k), (7.5 * k, 3.4, 6.5 * k)
            ),
            Part(
                ARCUS,
                (7 * k, 1, side * 17 * k),
                (20 * k, 1.5, side * 14.5 * k),
                (3, 3.6 * k, 3.2),
                (2.8, 4.2 * k, 2.8),
                bias=0.3,
            ),
            Part(
                ARCUS,
                (20 * k, 1.5, side * 14.5 * k),
                (29.5 * k, 1.5, side * 2),
                (2.8, 4.2 * k, 2.8),
                (2.8, 4.6 * k, 2.8),
            ),
            Part(
                _sided(43, side),
                (2.5 * k, 0.5, side * 22 * k),
                (3.5 * k, 1.5, side * (tip - 2.5)),
                (4.0, 4.4, 3),
                (3.4, 4.0, 3),
                bias=-0.3,
            ),
        ]
    return built


def _sacrum(frame: Frame) -> list[Part]:
    """Alae, posterior wall and median crest of one sacral segment (nothing behind the coccyx)."""
    s, back, key = frame.level.sizes, frame.back, frame.level.key
    if key > 29.5:
        return []
    index = round(key) - 25
    half, depth, wide = frame.half_height, s["canal_depth"], s["canal_width"] / 2
    edge = (s["width_upper"] + s["width_lower"]) / 4
    ala = s["ala"]
    thick = (12.0, 10.5, 8.5, 6.5, 4.8)[index]
    sweep = (9.0, 8.0, 6.0, 4.0, 2.0)[index]
    built: list[Part] = []
    for side in (-1, 1):
        built += [
            Part(
                SACRUM,
                (0.25 * back, -0.05 * half, side * 0.7 * edge),
                (back * 0.5 + sweep, 0.15 * half, side * (ala - 7)),
                (thick, 0.9 * half, 8),
                (thick * 1.05, 1.3 * half, 7),
            ),
            Part(
                SACRUM,
                (back + 1, 0, side * (wide + 5)),
                (back + depth + 2, 0, side * (wide + 3)),
                (4, 0.95 * half, 4.5),
                (3.2, 0.95 * half, 4.0),
            ),
            Part(
                SACRUM,
                (back + depth + 2.2, 0, side * (wide + 2)),
                (back + depth + 3.2, 0, 0),
                (2.6, 0.98 * half, 3),
                (2.8, 0.98 * half, 3),
            ),
        ]
        if index == 0:
            built.append(
                Part(
                    SACRUM,
                    (back + 8, -0.3 * half, side * 21),
                    (back + 9, -half - 5, side * 21.5),
                    (5.5, 6, 6),
                    (4.0, 4.0, 5.0),
                )
            )
    crest = (9.0, 7.5, 5.0, 2.5, 0.0)[index]
    if crest:
        built.append(
            Part(
                SACRUM,
                (back + depth + 3.5, 0.5, 0),
                (back + depth + 3.5 + crest, 2.0, 0),
                (3, 0.6 * half, 3.0),
                (2.6, 0.42 * half, 2.6),
            )
        )
    return built


def _times(radii: Triple, factor: float) -> Triple:
    return radii[0] * factor, radii[1] * factor, radii[2] * factor


def _t(point: np.ndarray) -> Triple:
    return float(point[0]), float(point[1]), float(point[2])
