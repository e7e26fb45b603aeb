"""Batches for training the semantic network: generated spines and real scans, warped and re-lit on the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from spineps.anatomy import CLASS_IDS, CLASS_MIRROR
from spineps.models.scaling import spread
from spineps.training.cache import GREY_STEP, Cache, refuse_held_out
from spineps.training.chance import Chance
from spineps.training.config import TrainingConfig
from spineps.training.intensity import random_look
from spineps.training.warp import inside, sample, sampling_points


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches of one kind.

    Attributes:
        images: (N, 1, x, y, z) float32.
        labels: (N, x, y, z) int64: class indices, or coarse labels.
        valid: (N, x, y, z) bool, where labels may be believed.
    """

    images: Tensor
    labels: Tensor
    valid: Tensor


class Painter(Protocol):
    """Turns a warped label map into an image."""

    def __call__(self, tissue: Tensor, semantic: Tensor, instance: Tensor, chance: Chance) -> Tensor:
        """Three (x, y, z) uint8 maps to a (x, y, z) float32 image, any grey values."""


class SyntheticFeed:
    """Patches of generated spines with all labels."""

    def __init__(self, cache: Cache, config: TrainingConfig, device: torch.device, painter: Painter) -> None:
        self._cache, self._config, self._device, self._painter = cache, config, device, painter
        self._classes = class_lookup(device)
        self._mirror = torch.tensor(CLASS_MIRROR, device=device)

    def batch(self, step: int) -> Batch:
        """The patches of a step."""
        return stack(
            self._patch(Chance.of(self._device, self._config.seed, step, 0, k))
            for k in range(self._config.synthetic_per_step)
        )

    def _patch(self, chance: Chance) -> tuple[Tensor, Tensor, Tensor]:
        config = self._config
        maps = torch.from_numpy(self._cache[self._cache.names[chance.numbers.integers(len(self._cache))]])
        maps = maps.to(self._device)
        centre = [_centre(chance, n, p) for n, p in zip(maps.shape[1:], config.patch, strict=True)]
        flip = chance.happens(0.5)
        points = sampling_points(chance, config.warp, config.patch, centre, flip, self._device)
        warped = sample(maps, points, nearest=True).to(torch.uint8)
        labels = self._classes[warped[1].long()]
        if flip:
            labels = self._mirror[labels]
        image = self._painter(warped[0], warped[1], warped[2], chance)
        return random_look(chance, spread(image), config.zoom), labels, torch.ones_like(labels, dtype=torch.bool)


class RealFeed:
    """Patches of real scans with coarse labels."""

    def __init__(self, cache: Cache, config: TrainingConfig, device: torch.device) -> None:
        refuse_held_out(cache, config.held_out)
        self._config, self._device = config, device
        self._scans = [torch.from_numpy(cache[name]).to(device) for name in cache.names]
        self._labelled = [torch.nonzero(scan[1]).float() for scan in self._scans]

    def batch(self, step: int) -> Batch:
        """The patches of a step."""
        return stack(
            self._patch(Chance.of(self._device, self._config.seed, step, 1, k))
            for k in range(self._config.real_per_step)
        )

    def _patch(self, chance: Chance) -> tuple[Tensor, Tensor, Tensor]:
        config = self._config
        k = int(chance.numbers.integers(len(self._scans)))
        scan, spine = self._scans[k], self._labelled[k]
        centre = [_centre(chance, n, p) for n, p in zip(scan.shape[1:], config.real_patch, strict=True)]
        if chance.happens(0.8):
            # Around some labelled voxel, but not always in the middle of the patch; slabs keep their own middle.
            near = spine[int(chance.numbers.integers(len(spine)))].tolist()
            centre[:2] = [c + chance.uniform(-16, 16) for c in near[:2]]
        points = sampling_points(chance, config.warp, config.real_patch, centre, chance.happens(0.5), self._device)
        image = sample(scan[:1], points, nearest=False)[0] / GREY_STEP
        labels = sample(scan[1:], points, nearest=True)[0].long()
        return random_look(chance, image, config.zoom), labels, inside(points, scan.shape[1:])


def class_lookup(device: torch.device) -> Tensor:
    """(256,) from semantic ids to class indices; unknown ids are background."""
    table = np.zeros(256, np.int64)
    table[list(CLASS_IDS)] = range(len(CLASS_IDS))
    return torch.from_numpy(table).to(device)


def stack(patches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Batch:
    """One batch from (image, labels, valid) triples."""
    images, labels, valid = zip(*patches, strict=True)
    return Batch(torch.stack(images)[:, None], torch.stack(labels), torch.stack(valid))


def _centre(chance: Chance, length: int, patch: int) -> float:
    """A random middle of a patch that stays inside where it can."""
    slack = max(length - patch, 0) / 2
    return (length - 1) / 2 + chance.uniform(-slack, slack)
