"""What the instance network is trained towards: label maps in, the vertebra above, in the centre and below out.

Its input is the semantic mask alone, so generated spines lack nothing but the semantic network's mistakes: those are
imitated (rough edges, lost and false pieces, thick slices, slabs that cut the processes off).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spineps.anatomy import (
    CLASS_IDS,
    CLASS_MIRROR,
    CORPUS,
    DISC,
    ENDPLATE,
    ENDPLATE_INFERIOR,
    ENDPLATE_SUPERIOR,
    SACRUM,
    VERTEBRAE,
)
from spineps.inference.network import Triple
from spineps.training.cache import Cache
from spineps.training.chance import Chance
from spineps.training.config import TrainingConfig
from spineps.training.feed import Batch, class_lookup, stack
from spineps.training.loop import Trainer
from spineps.training.loss import full_loss
from spineps.training.pictures import overlay, write_png
from spineps.training.warp import inside, sample, sampling_points, smooth_field

#: Network labels of semantic ids (key ``mapping`` of the model's config).  1..9 are parts of a vertebra, as published;
#: endplates, discs and the sacrum are shown as well, because they say where one vertebra ends.
MAPPING: dict[int, int] = {
    **{41 + i: 1 + i for i in range(8)},
    **dict.fromkeys((49, 50, 51), 9),
    **dict.fromkeys((ENDPLATE, ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR), 10),
    DISC: 11,
    SACRUM: 12,
}
CHANNELS = 13
#: Labels 1 .. PARTS belong to a vertebra; the last of them is its body.
PARTS = BODY = 9
#: A body smaller than this (mm3) is not asked about.
SMALLEST_BODY = 800.0


class InstanceFeed:
    """Cutouts around vertebral bodies of generated spines."""

    def __init__(self, caches: Sequence[Cache], config: TrainingConfig, device: torch.device) -> None:
        self._people = [(cache, name) for cache in caches for name in cache.names]
        self._config, self._device = config, device
        self._bodies = lru_cache(maxsize=None)(self._find_bodies)
        self._classes = class_lookup(device)
        self._mirror = torch.tensor(CLASS_MIRROR, device=device)
        shown = [MAPPING.get(i, 0) for i in CLASS_IDS]
        self._shown = torch.tensor(shown, device=device)

    def batch(self, step: int) -> Batch:
        """The cutouts of a step."""
        size = self._config.patches[0]
        cutouts = stack(
            self._cutout(Chance.of(self._device, self._config.seed, step, 3, k), size)
            for k in range(self._config.synthetic_per_step)
        )
        return Batch(cutouts.images[:, 0], cutouts.labels, cutouts.valid)

    def _cutout(self, chance: Chance, size: Triple) -> tuple[Tensor, Tensor, Tensor]:
        bodies: dict[int, tuple[float, float, float]] = {}
        while not bodies:
            cache, name = self._people[int(chance.numbers.integers(len(self._people)))]
            bodies = self._bodies(cache, name)
        maps = torch.from_numpy(cache[name][1:]).to(self._device)
        chain = [v for v in VERTEBRAE if v in bodies or bool((maps[1] == v).any())]
        asked = sorted(bodies)[int(chance.numbers.integers(len(bodies)))]
        centre = [c + chance.uniform(-3, 3) for c in bodies[asked]]
        flip = chance.happens(0.5)
        points = sampling_points(chance, self._config.warp, size, centre, flip, self._device)
        known = inside(points, maps.shape[1:])
        warped = sample(maps, points, nearest=True).long()
        classes = self._classes[warped[0]]
        if flip:
            classes = self._mirror[classes]
        shown = self._shown[classes] * known
        answer = torch.zeros(256, dtype=torch.long, device=self._device)
        place = chain.index(asked)
        for which, neighbour in ((1, place - 1), (2, place), (3, place + 1)):
            if 0 <= neighbour < len(chain):
                answer[chain[neighbour]] = which
        truth = answer[warped[1]] * (shown <= PARTS) * (shown > 0)
        seen = imitate_mistakes(shown * slab(chance, size, self._device), chance, CHANNELS)
        part = (seen > 0) & (seen <= PARTS)
        # Where bone was made up there is no truth; where it was lost the answer is background.
        valid = ~(part & (truth == 0) & (shown == 0))
        channels = F.one_hot(seen, CHANNELS).movedim(-1, 0).float()
        return channels, truth * part, valid

    def _find_bodies(self, cache: Cache, name: str) -> dict[int, tuple[float, float, float]]:
        _, semantic, instance = cache[name]
        where = np.nonzero(semantic == CORPUS)
        ids = instance[where].astype(int)
        count = np.bincount(ids, minlength=256)
        sums = [np.bincount(ids, weights=axis, minlength=256) for axis in where]
        least = SMALLEST_BODY / float(np.prod(self._config.zoom))
        return {
            int(v): (sums[0][v] / count[v], sums[1][v] / count[v], sums[2][v] / count[v])
            for v in np.flatnonzero(count > least)
            if v in VERTEBRAE
        }


def imitate_mistakes(labels: Tensor, chance: Chance, channels: int) -> Tensor:
    """Labels (x, y, z) int64 below ``channels`` as an imperfect semantic network would have drawn them."""
    shape = labels.shape
    if chance.happens(0.4):
        thick = int(chance.numbers.integers(2, 4))
        middle = (torch.arange(shape[2], device=labels.device) // thick * thick + thick // 2).clamp(max=shape[2] - 1)
        labels = labels[:, :, middle]
    if chance.happens(0.7):
        labels = _frayed(labels, chance, chance.uniform(0.3, 0.9))
    if chance.happens(0.5):
        hole = smooth_field(chance, shape, cells=int(chance.numbers.integers(8, 16)))[0] > chance.uniform(1.2, 2.5)
        labels = torch.where(hole, torch.zeros_like(labels), labels)
    if chance.happens(0.3):
        patch = smooth_field(chance, shape, cells=10)[0] > chance.uniform(1.6, 2.6)
        other = int(chance.numbers.integers(1, PARTS))
        labels = torch.where(patch & (labels != BODY), torch.full_like(labels, other), labels)
    if chance.happens(0.25):
        lost = int(chance.numbers.integers(1, channels))
        labels = torch.where((labels == lost) & (labels != BODY), torch.zeros_like(labels), labels)
    return labels


def _frayed(labels: Tensor, chance: Chance, reach: float) -> Tensor:
    """Every voxel takes the label found a random step of about ``reach`` voxels away: rough edges, thin parts torn."""
    shape = labels.shape
    steps = chance.normal(1, 3, *((n + 1) // 2 for n in shape)) * reach
    steps = F.interpolate(steps, size=list(shape), mode="nearest")[0].round().long()
    axes = torch.meshgrid(*(torch.arange(n, device=labels.device) for n in shape), indexing="ij")
    x, y, z = ((axis + step).clamp(0, n - 1) for axis, step, n in zip(axes, steps, shape, strict=True))
    return labels[x, y, z]


def slab(chance: Chance, size: Triple, device: torch.device) -> Tensor:
    """1 inside the field of view: often a narrow stack of sagittal slices, sometimes cut above or below."""
    keep = torch.ones(size, dtype=torch.long, device=device)
    if chance.happens(0.5):
        half, shift = chance.uniform(3, size[2] / 2), chance.uniform(-3, 3)
        z = torch.arange(size[2], device=device) - (size[2] - 1) / 2
        keep = keep * ((z - shift).abs() <= half)
    for reverse in (False, True):
        if chance.happens(0.15):
            y = torch.arange(size[1], device=device) - (size[1] - 1) / 2
            limit = chance.uniform(4, size[1] / 2)
            keep = keep * ((-y if reverse else y) <= limit)[:, None]
    return keep


class InstanceObjective:
    """Loss of a step."""

    def __init__(self, config: TrainingConfig, device: torch.device, feed: InstanceFeed) -> None:
        self._feed = feed
        self._class_weights = torch.tensor(config.class_weights or (1.0,) * 4, device=device)

    def __call__(self, network: Callable[[Tensor], Any], step: int) -> tuple[Tensor, dict[str, float]]:
        batch = self._feed.batch(step)
        logits = network(batch.images)
        loss = full_loss(logits, batch.labels, batch.valid, self._class_weights)
        loss.backward()
        with torch.no_grad():
            bone = batch.valid & (batch.images[:, 1 : PARTS + 1].sum(1) > 0)
            right = float((logits.argmax(1) == batch.labels)[bone].float().mean()) if bool(bone.any()) else 1.0
        return loss.detach().cpu(), {"right": right}

    @torch.no_grad()
    def draw(self, trainer: Trainer, out: Path) -> None:
        """``out/pictures/<step>.png``: truth and answer of the next step's first cutout."""
        batch = self._feed.batch(trainer.step)
        answer = trainer.network(batch.images[:1])[0].argmax(0)
        shown = batch.images[0].argmax(0).float()
        row = [overlay(shown, labels) for labels in (batch.labels[0], answer)]
        write_png(out / "pictures" / f"{trainer.step:06d}.png", np.concatenate(row, axis=1))


def instance_objective(config: TrainingConfig, device: torch.device, synthetic: Sequence[Path]) -> InstanceObjective:
    """The objective over caches of label maps."""
    return InstanceObjective(config, device, InstanceFeed([Cache(p, keep=True) for p in synthetic], config, device))
