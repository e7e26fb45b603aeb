"""What the labelling network is trained towards: which vertebra it sees, from image and shape of generated spines.

The network's input is made by the very function that inference uses (:func:`spineps.phases.cutouts.cutout_inputs`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spineps.anatomy import CANAL, CORD, CORPUS, DISC, ENDPLATE, SACRUM, T13, VERTEBRAE, region
from spineps.models.config import InferenceConfig, read_config
from spineps.phases.cutouts import cutout_inputs
from spineps.phases.scores import HEADS
from spineps.training.cache import Cache
from spineps.training.chance import Chance
from spineps.training.config import TrainingConfig
from spineps.training.export import BUNDLED, CONFIG_FILE
from spineps.training.instance import imitate_mistakes, slab
from spineps.training.loop import Trainer
from spineps.training.phantoms import paint
from spineps.training.warp import inside, sample, sampling_points
from spineps.volume import Volume

#: Semantic ids kept while mistakes are imitated; place in the tuple is the label there (9 is the body, as it expects).
KEPT: tuple[int, ...] = (0, 41, 42, 43, 44, 45, 46, 47, 48, CORPUS, ENDPLATE, DISC, SACRUM, CORD, CANAL)
#: A body smaller than this (mm3) is not asked about, here as little as at inference.
SMALLEST_BODY = 800.0
#: Neighbours tell the network the same: many scans in a step are worth more than many vertebrae of one.
MOST_PER_SCAN = 4
#: Weight of each head in the loss.
HEAD_WEIGHTS = {"VERT": 1.0, "REGION": 0.5, "VERTREL": 0.5, "VT13": 0.3, "FULLYVISIBLE": 0.3}
IGNORED = -100
REGIONS = ("cervical", "thoracic", "lumbar")


@dataclass(frozen=True, eq=False)
class LabelingBatch:
    """Cutouts of some vertebrae.

    Attributes:
        inputs: (N, C, x, y, z) float32.
        answers: {head: (N,) int64}; -100 where the truth is unknown.
    """

    inputs: Tensor
    answers: dict[str, Tensor]


class LabelingFeed:
    """Cutouts of all vertebrae of generated scans."""

    def __init__(
        self, caches: Sequence[Cache], config: TrainingConfig, device: torch.device, model: InferenceConfig
    ) -> None:
        self._people = [(cache, name) for cache in caches for name in cache.names]
        self._config, self._device, self._model = config, device, model
        table = np.zeros(256, np.int64)
        table[list(KEPT)] = range(len(KEPT))
        self._kept = torch.from_numpy(table).to(device)
        self._ids = torch.tensor(KEPT, device=device)
        self._mirrored = torch.arange(256, device=device)
        for left, right in ((43, 44), (45, 46), (47, 48)):
            self._mirrored[left], self._mirrored[right] = right, left

    def batch(self, step: int) -> LabelingBatch:
        """The vertebrae of a step."""
        inputs: list[np.ndarray] = []
        rows: list[dict[str, int]] = []
        attempt = 0
        while len(inputs) < self._config.synthetic_per_step:
            chance = Chance.of(self._device, self._config.seed, step, 4, attempt)
            attempt += 1
            cutouts, answers = self._scan(chance)
            if answers:
                inputs.append(cutouts)
                rows += answers
        heads = self._config.network.heads
        answers_of = {h: torch.tensor([row[h] for row in rows], device=self._device) for h in heads}
        return LabelingBatch(torch.from_numpy(np.concatenate(inputs)).to(self._device), answers_of)

    def _scan(self, chance: Chance) -> tuple[np.ndarray, list[dict[str, int]]]:
        config = self._config
        cache, name = self._people[int(chance.numbers.integers(len(self._people)))]
        maps = torch.from_numpy(cache[name]).to(self._device)
        size = config.patches[0]
        centre = [(n - 1) / 2 + chance.uniform(-6, 6) for n in maps.shape[1:]]
        flip = chance.happens(0.5)
        points = sampling_points(chance, config.warp, size, centre, flip, self._device)
        tissue, semantic, instance = sample(maps, points, nearest=True).long()
        image = paint(tissue.to(torch.uint8), instance.to(torch.uint8), config.zoom, chance)
        seen = slab(chance, size, self._device) * inside(points, maps.shape[1:])
        if flip:
            semantic = self._mirrored[semantic]
        drawn = self._ids[imitate_mistakes(self._kept[semantic] * seen, chance, len(KEPT))]
        # What lies outside the slab was not scanned: cut it off, so that the box ends there as a real image does.
        box = tuple(
            slice(int(where[0]), int(where[-1]) + 1)
            for where in (torch.nonzero(seen.any(a).any(b))[:, 0] for a, b in ((2, 1), (2, 0), (1, 0)))
        )
        affine = np.diag([*config.zoom, 1.0]) @ _PIR
        volumes = [Volume(part[box].cpu().numpy(), affine) for part in (image, drawn, instance)]
        bodies = np.where(volumes[1].array == CORPUS, volumes[2].array, 0)
        count = np.bincount(bodies.ravel(), minlength=256)
        least = SMALLEST_BODY / float(np.prod(config.zoom))
        asked = [v for v in VERTEBRAE if count[v] > least]
        if len(asked) > MOST_PER_SCAN:
            asked = sorted(chance.numbers.choice(asked, MOST_PER_SCAN, replace=False).tolist(), key=VERTEBRAE.index)
        vertebrae = volumes[2].with_array(np.where(volumes[2].array <= T13, volumes[2].array, 0).astype(np.uint16))
        inputs = cutout_inputs(
            Volume(volumes[0].array.astype(np.float32), affine),
            Volume(volumes[1].array.astype(np.uint8), affine),
            vertebrae,
            asked,
            self._model,
        )
        chain = [v for v in VERTEBRAE if bool((maps[2] == v).any())]
        if bool((maps[2] == SACRUM).any()):
            chain.append(SACRUM)
        return inputs, [_answers(v, chain, _whole(bodies == v)) for v in asked]


#: Array axes P, I, R as directions of RAS space.
_PIR = np.array([[0, 0, 1.0, 0], [-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])


def _whole(body: np.ndarray) -> bool:
    """True when a body is not cut off above, below, in front or behind."""
    return not (body[0].any() or body[-1].any() or body[:, 0].any() or body[:, -1].any())


def _answers(vertebra: int, chain: list[int], whole: bool) -> dict[str, int]:
    """Truth of every head for one vertebra; ``chain`` holds what the map shows, cranial to caudal, sacrum included."""
    place = chain.index(vertebra)
    below = chain[place + 1] if place + 1 < len(chain) else None
    # 24 classes C1 .. L5; a supernumerary vertebra looks like the one above it.
    level = {T13: 18, 25: 23}.get(vertebra, vertebra - 1)
    relation = {7: 1, 8: 2, 20: 4}.get(vertebra, 0)
    # Whether a vertebra is the last of its region is known only if the one below is in the map.
    if region(vertebra) == "thoracic" and vertebra >= 18:
        relation = IGNORED if below is None else 3 * (region(below) == "lumbar")
    if region(vertebra) == "lumbar" and vertebra >= 23:
        relation = IGNORED if below is None else 5 * (below == SACRUM)
    return {
        "VERT": level,
        "REGION": REGIONS.index(region(vertebra)),
        "VERTREL": relation,
        "VT13": int(vertebra == T13),
        "FULLYVISIBLE": int(whole),
    }


class LabelingObjective:
    """Loss of a step."""

    def __init__(self, config: TrainingConfig, feed: LabelingFeed) -> None:
        self._feed = feed
        assert all(HEADS[head] == k for head, k in config.network.heads.items())

    def __call__(self, network: Callable[[Tensor], Any], step: int) -> tuple[Tensor, dict[str, float]]:
        batch = self._feed.batch(step)
        logits = network(batch.inputs)
        losses = []
        for head, truth in batch.answers.items():
            if bool((truth >= 0).any()):
                loss = F.cross_entropy(logits[head].float(), truth, ignore_index=IGNORED, label_smoothing=0.05)
                losses.append(HEAD_WEIGHTS[head] * loss)
        total = torch.stack(losses).sum()
        total.backward()
        level = logits["VERT"].argmax(1)
        off = (level - batch.answers["VERT"]).abs().float()
        right = (logits["REGION"].argmax(1) == batch.answers["REGION"]).float()
        return total.detach().cpu(), {
            "exact": float((off == 0).float().mean()),
            "levels off": float(off.mean()),
            "region": float(right.mean()),
        }

    def draw(self, trainer: Trainer, out: Path) -> None:
        """Nothing to draw: the log says how often the name is right."""


def labeling_objective(config: TrainingConfig, device: torch.device, synthetic: Sequence[Path]) -> LabelingObjective:
    """The objective over caches of label maps, with the cutouts of the bundled model's contract."""
    model = read_config(BUNDLED / "labeling" / CONFIG_FILE)
    return LabelingObjective(config, LabelingFeed([Cache(p, keep=True) for p in synthetic], config, device, model))
