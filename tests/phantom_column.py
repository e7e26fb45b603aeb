"""A column of elliptic bodies, discs and simple arches, of any level and resolution, with known instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spineps.volume import Volume


def body_height(level: float) -> float:
    """mm, level 0 = C3 (14) .. 21 = L5 (28)."""
    return 14 + level * 14 / 21


@dataclass(frozen=True)
class Column:
    """Recipe of a phantom.

    Attributes:
        levels: rank of each vertebra from the top, 0 = C3 .. 21 = L5.
        merged: gaps (k: between vertebra k and k+1) where the disc is bone.
        disc_kept: a sliver of disc stays inside merged bodies.
        stretch: {vertebra: factor on its height}.
        dens: the first vertebra gets a dens of this height in mm.
        sway: amplitude of the curve from front to back, mm.
        top_cut: mm of the first vertebra outside the image.
        width: mm of the slab from left to right; bodies are wider.
        zoom: voxel size in mm (P, I, R).
    """

    levels: Sequence[float] = field(default_factory=lambda: range(15, 22))
    merged: frozenset[int] = frozenset()
    disc_kept: bool = False
    stretch: dict[int, float] = field(default_factory=dict)
    dens: float = 0.0
    dens_radius: float = 5.0
    sway: float = 10.0
    top_cut: float = -12.0
    width: float = 45.0
    zoom: tuple[float, float, float] = (1.0, 1.0, 2.0)


def build(recipe: Column) -> tuple[Volume, Volume]:
    """Semantic mask and instances 1..n from the top, both PIR."""
    heights = [body_height(v) * recipe.stretch.get(k, 1.0) for k, v in enumerate(recipe.levels)]
    gaps = [0.28 * body_height(v) for v in recipe.levels]
    length = sum(heights) + sum(gaps) + recipe.dens - recipe.top_cut + 15
    zp, zi, zr = recipe.zoom
    shape = (int(110 / zp), int(length / zi), int(recipe.width / zr))
    p, i, r = np.meshgrid(*(np.arange(n) * z for n, z in zip(shape, recipe.zoom, strict=True)), indexing="ij")
    p = p - 35 - recipe.sway * np.sin(2 * np.pi * i / 400)
    r = r - recipe.width / 2
    sem, inst = np.zeros(shape, np.uint8), np.zeros(shape, np.uint16)
    # Canal and cord run through the whole image.
    sem[((p - 26) ** 2 + r**2) < 9**2] = 61
    top = recipe.dens - recipe.top_cut
    for k, (height, gap, level) in enumerate(zip(heights, gaps, recipe.levels, strict=True)):
        depth, half = 1.25 * body_height(level), 0.85 * body_height(level)
        # A waist of 8 per cent in the middle of every body, as in life.
        slim = 1 - 0.08 * np.cos(np.clip((i - top - height / 2) / height, -0.5, 0.5) * np.pi)
        ellipse = (p / (depth / 2 * slim)) ** 2 + (r / (half * slim)) ** 2 < 1
        level_of = (i >= top) & (i < top + height)
        arch = (i >= top + 0.3 * height) & (i < top + 0.75 * height) & (np.abs(r) < 0.6 * half)
        behind = p - depth / 2
        parts = [
            (49, ellipse & level_of),
            (41, arch & (behind >= 0) & (behind < 28) & (np.abs(np.abs(r) - 0.45 * half) < 4)),
            (42, arch & (behind >= 22) & (behind < 45) & (np.abs(r) < 5)),
        ]
        if k == 0 and recipe.dens:
            dens = (np.hypot(p, r) < recipe.dens_radius) & (i >= top - recipe.dens) & (i < top)
            parts.append((49, dens))
        for code, where in parts:
            free = where & ((sem == 0) | ((sem == 61) & (code == 49)))
            sem[free], inst[free] = code, k + 1
        top += height
        space = ellipse & (i >= top) & (i < top + gap)
        if k + 1 < len(heights):
            sem[space] = 49 if k in recipe.merged else 100
            if k in recipe.merged:
                inst[space & (i < top + gap / 2)] = k + 1
                inst[space & (i >= top + gap / 2)] = k + 2
                if recipe.disc_kept:
                    sliver = space & (p > 0.3 * depth / 2)
                    sem[sliver], inst[sliver] = 100, 0
        top += gap
    affine = np.array([[0, 0, zr, 0], [-zp, 0, 0, 0], [0, -zi, 0, 0], [0, 0, 0, 1]], float)
    return Volume(sem, affine), Volume(inst, affine)
