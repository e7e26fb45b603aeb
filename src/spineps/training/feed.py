"""Batches for training the semantic network: generated spines and real scans, warped and re-lit on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spineps.anatomy import CLASS_IDS, CLASS_MIRROR
from spineps.inference.network import Triple
from spineps.models.scaling import spread, standardise
from spineps.training.cache import FULL, GREY_STEP, PLATE, UNKNOWN, Cache, refuse_held_out
from spineps.training.chance import Chance
from spineps.training.config import TrainingConfig
from spineps.training.intensity import coarser, random_look, recoloured
from spineps.training.warp import inside, sample, sampling_points

#: Coarse labels of real scans.
VERTEBRA, DISC, ELSE = 1, 2, 6
#: Tissues of ribs and of all bone that belongs to no spine (:mod:`spineps.synth.tissues`).
OTHER_BONES = (19, 20)
#: Voxels across the spine from which a real scan is no slab.
DEEP = 40


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

    def __call__(self, tissue: Tensor, instance: Tensor, zoom: tuple[float, float, float], chance: Chance) -> Tensor:
        """(x, y, z) uint8 maps to a (x, y, z) float32 image, any grey values."""


class SyntheticFeed:
    """Patches of generated spines with all labels."""

    def __init__(self, caches: Sequence[Cache], config: TrainingConfig, device: torch.device, painter: Painter) -> None:
        self._config, self._device, self._painter = config, device, painter
        self._people = [(cache, name) for cache in caches for name in cache.names]
        self._classes = class_lookup(device)
        self._mirror = torch.tensor(CLASS_MIRROR, device=device)

    def batch(self, step: int) -> Batch:
        """The patches of a step."""
        size = _size(self._config.patches, self._config.seed, step)
        return stack(
            self._patch(Chance.of(self._device, self._config.seed, step, 0, k), size)
            for k in range(self._config.synthetic_per_step)
        )

    def _patch(self, chance: Chance, size: Triple) -> tuple[Tensor, Tensor, Tensor]:
        config = self._config
        cache, name = self._people[int(chance.numbers.integers(len(self._people)))]
        maps = torch.from_numpy(cache[name]).to(self._device)
        centre = [_centre(chance, n, p) for n, p in zip(maps.shape[1:], size, strict=True)]
        flip = chance.happens(0.5)
        points = sampling_points(chance, config.warp, size, centre, flip, self._device)
        warped = sample(maps, points, nearest=True).to(torch.uint8)
        labels = self._classes[warped[1].long()]
        if flip:
            labels = self._mirror[labels]
        image = spread(coarser(chance, self._painter(warped[0], warped[2], config.zoom, chance), config.zoom))
        # The painter has its own scanner faults; a second layer of them now and then.
        image = random_look(chance, image, config.zoom) if chance.happens(0.25) else standardise(image)
        return image, labels, inside(points, maps.shape[1:])


class RealFeed:
    """Patches of real scans with coarse labels."""

    def __init__(self, cache: Cache, config: TrainingConfig, device: torch.device) -> None:
        refuse_held_out(cache, config.held_out)
        self._config, self._device = config, device
        self._scans = [torch.from_numpy(cache[name]).to(device) for name in cache.names]
        nothing = torch.tensor((0, ELSE, FULL, UNKNOWN), device=device)
        spine = [~torch.isin(scan[1], nothing) for scan in self._scans]
        self._labelled = [torch.nonzero(mask).float() for mask in spine]
        deep = [scan.shape[3] >= DEEP for scan in self._scans] if config.deep_patches else [False] * len(self._scans)
        sides = torch.arange(256, device=device)
        sides[FULL : FULL + len(CLASS_MIRROR)] = FULL + torch.tensor(CLASS_MIRROR, device=device)
        self._mirror = sides
        self._deep = [k for k, is_deep in enumerate(deep) if is_deep]
        self._slabs = [k for k, is_deep in enumerate(deep) if not is_deep]

    def batch(self, step: int) -> Batch:
        """The patches of a step."""
        config = self._config
        deep = np.random.default_rng([config.seed, step, 3]).random() < config.deep_share
        if self._deep and (deep or not self._slabs):
            choice, sizes, count = self._deep, config.deep_patches, 1
        else:
            choice, sizes, count = self._slabs, config.real_patches, config.real_per_step
        size = _size(sizes, config.seed, step)
        return stack(self._patch(Chance.of(self._device, config.seed, step, 1, k), size, choice) for k in range(count))

    def _patch(self, chance: Chance, size: Triple, choice: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        config = self._config
        k = choice[int(chance.numbers.integers(len(choice)))]
        scan, spine = self._scans[k], self._labelled[k]
        centre = [_centre(chance, n, p) for n, p in zip(scan.shape[1:], size, strict=True)]
        if chance.happens(0.8):
            # Around some labelled voxel, but not always in the middle of the patch; slabs keep their own middle.
            near = spine[int(chance.numbers.integers(len(spine)))].tolist()
            wanted = [c + chance.uniform(-16, 16) for c in near[:2]]
            centre[:2] = [_within(c, n, p) for c, n, p in zip(wanted, scan.shape[1:3], size[:2], strict=True)]
        flip = chance.happens(0.5)
        points = sampling_points(chance, config.warp, size, centre, flip, self._device)
        image = sample(scan[:1], points, nearest=False)[0] / GREY_STEP
        labels = sample(scan[1:], points, nearest=True)[0].long()
        valid = inside(points, scan.shape[1:]) & (labels != UNKNOWN)
        if flip:
            labels = self._mirror[labels]
        labels = with_plates(labels.masked_fill(labels == UNKNOWN, 0))
        if k in self._deep and chance.happens(0.5):
            # Real bone in a contrast that nobody scanned: what a CT shows of shapes holds for any image.
            image = recoloured(chance, image)
        image = coarser(chance, image, config.zoom)
        return random_look(chance, image, config.zoom, across=1 if k in self._deep else 2), labels, valid


class AnatomyFeed:
    """Deep patches of real shapes (:mod:`spineps.training.anatomy`), painted; one in ``anatomy_share`` of the steps."""

    def __init__(self, caches: Sequence[Cache], config: TrainingConfig, device: torch.device, painter: Painter) -> None:
        for cache in caches:
            refuse_held_out(cache, config.held_out)
        self._config, self._device, self._painter = config, device, painter
        self._chunks = [torch.from_numpy(cache[name]).to(device) for cache in caches for name in cache.names]
        self._spine = [_places(~np.isin(c[1].cpu().numpy(), (ELSE, FULL, UNKNOWN))) for c in self._chunks]
        self._bone = [_places(np.isin(c[0].cpu().numpy(), OTHER_BONES)) for c in self._chunks]

    def takes(self, step: int) -> bool:
        """Whether this step's real patches come from here."""
        return bool(np.random.default_rng([self._config.seed, step, 4]).random() < self._config.anatomy_share)

    def batch(self, step: int) -> Batch:
        """One patch, with coarse labels."""
        config = self._config
        sizes = config.deep_patches or config.patches
        return stack([self._patch(Chance.of(self._device, config.seed, step, 5), _size(sizes, config.seed, step))])

    def _patch(self, chance: Chance, size: Triple) -> tuple[Tensor, Tensor, Tensor]:
        config = self._config
        # Bone that is no spine, too: that it is background has to be seen.
        wanted = self._bone if chance.happens(0.2) else self._spine
        choice = [k for k, places in enumerate(wanted) if len(places)] or list(range(len(self._chunks)))
        k = choice[int(chance.numbers.integers(len(choice)))]
        chunk, places = self._chunks[k], wanted[k]
        centre = [_centre(chance, n, p) for n, p in zip(chunk.shape[1:], size, strict=True)]
        if len(places):
            near = places[int(chance.numbers.integers(len(places)))]
            moved = [float(c) + chance.uniform(-16, 16) for c in near]
            centre = [_within(c, n, p) for c, n, p in zip(moved, chunk.shape[1:], size, strict=True)]
        flip = chance.happens(0.5)
        points = sampling_points(chance, config.warp, size, centre, flip, self._device)
        valid = inside(points, chunk.shape[1:])
        # Sampling makes floats of all that it is given: a box around the patch is a tenth of a chunk.
        low = [int(p.floor().clamp(0, n - 1)) for p, n in zip(points.amin((0, 1, 2)), chunk.shape[1:], strict=True)]
        high = [int(p.ceil().clamp(0, n - 1)) + 1 for p, n in zip(points.amax((0, 1, 2)), chunk.shape[1:], strict=True)]
        box = chunk[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        offset = torch.tensor(low, dtype=points.dtype, device=points.device)
        tissue, labels, instance = sample(box, points - offset, nearest=True).to(torch.uint8)
        image = spread(coarser(chance, self._painter(tissue, instance, config.zoom, chance), config.zoom))
        image = random_look(chance, image, config.zoom) if chance.happens(0.25) else standardise(image)
        valid &= labels != UNKNOWN
        return image, with_plates(labels.long().masked_fill(labels == UNKNOWN, 0)), valid


def _places(mask: np.ndarray, most: int = 20000) -> np.ndarray:
    """(n, 3) voxels of a mask, thinned evenly."""
    places = np.flatnonzero(mask)
    places = places[:: max(len(places) // most, 1)]
    return np.stack(np.unravel_index(places, mask.shape), -1).astype(np.int16)


def with_plates(labels: Tensor) -> Tensor:
    """Coarse labels with the layer of a vertebra that touches a disc as endplate: masks of bone hold it."""
    disc = (labels == DISC).float()[None, None]
    near = F.max_pool3d(F.pad(disc, (0, 0, 1, 1, 1, 1)), (3, 3, 1), stride=1)[0, 0] > 0
    return labels.masked_fill(near & (labels == VERTEBRA), PLATE)


def class_lookup(device: torch.device) -> Tensor:
    """(256,) from semantic ids to class indices; unknown ids are background."""
    table = np.zeros(256, np.int64)
    table[list(CLASS_IDS)] = range(len(CLASS_IDS))
    return torch.from_numpy(table).to(device)


def stack(patches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Batch:
    """One batch from (image, labels, valid) triples."""
    images, labels, valid = zip(*patches, strict=True)
    return Batch(torch.stack(images)[:, None], torch.stack(labels), torch.stack(valid))


def _within(centre: float, length: int, patch: int) -> float:
    """The nearest middle at which a patch stays inside, where it can."""
    low, high = (patch - 1) / 2, length - 1 - (patch - 1) / 2
    return min(max(centre, low), high) if low < high else (length - 1) / 2


def _size(sizes: tuple[Triple, ...], seed: int, step: int) -> Triple:
    return sizes[int(np.random.default_rng([seed, step, 2]).integers(len(sizes)))]


def _centre(chance: Chance, length: int, patch: int) -> float:
    """A random middle of a patch that stays inside where it can."""
    slack = max(length - patch, 0) / 2
    return (length - 1) / 2 + chance.uniform(-slack, slack)
