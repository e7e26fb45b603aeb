"""What the semantic network is trained towards: generated spines with all labels, real scans with coarse ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spineps.anatomy import CANAL, CLASS_IDS, CORD, CORPUS, DISC, ENDPLATE
from spineps.training.cache import Cache
from spineps.training.config import TrainingConfig
from spineps.training.feed import RealFeed, SyntheticFeed
from spineps.training.loop import Trainer
from spineps.training.loss import coarse_loss, full_loss, group_matrix
from spineps.training.pictures import overlay, write_png

#: Names in the log of the labels in SCORED: coarse ones, then structures by id.
SCORE_NAMES = ("vertebra", "disc", "canal", "plate", "whole", *(str(i) for i in CLASS_IDS[1:]))


class SemanticObjective:
    """Loss of a step; gradients of the two kinds are accumulated one after the other to spare memory."""

    def __init__(
        self, config: TrainingConfig, device: torch.device, synthetic: SyntheticFeed | None, real: RealFeed | None
    ) -> None:
        self._config, self._synthetic, self._real = config, synthetic, real
        weights = config.class_weights or (1.0,) * config.network.classes
        self._class_weights = torch.tensor(weights, device=device)
        self._groups = group_matrix().to(device)
        self._drawn_as = torch.tensor(
            [CLASS_IDS.index(i) for i in (0, CORPUS, DISC, CANAL, ENDPLATE, CORPUS, 0, CORD, CANAL, *CLASS_IDS)],
            device=device,
        )

    def __call__(self, network: Callable[[Tensor], Any], step: int) -> tuple[Tensor, dict[str, float]]:
        total, numbers = torch.zeros(()), {}
        if self._synthetic is not None:
            batch = self._synthetic.batch(step)
            loss = full_loss(network(batch.images), batch.labels, batch.valid, self._class_weights)
            loss.backward()
            total = total + loss.detach().cpu()
            numbers["synthetic"] = float(loss.detach())
        if self._real is not None:
            batch = self._real.batch(step)
            loss, scores = coarse_loss(network(batch.images), batch.labels, batch.valid, self._groups)
            (self._config.real_weight * loss).backward()
            total = total + self._config.real_weight * loss.detach().cpu()
            numbers["real"] = float(loss.detach())
            numbers |= {n: v for n, v in zip(SCORE_NAMES, scores.tolist(), strict=True) if v == v}
        return total, numbers

    @torch.no_grad()
    def draw(self, trainer: Trainer, out: Path) -> None:
        """``out/pictures/<step>.png``: truth and answer for one synthetic and one real patch of the next step."""
        rows = []
        for feed in (self._synthetic, self._real):
            if feed is None:
                continue
            batch = feed.batch(trainer.step)
            truth = batch.labels[0] if feed is self._synthetic else self._drawn_as[batch.labels[0]]
            answer = trainer.network(batch.images[:1])[0].argmax(0)
            row = [overlay(batch.images[0, 0], labels) for labels in (truth, answer)]
            rows.append(np.concatenate(row, axis=1))
        size = np.max([row.shape for row in rows], axis=0)
        rows = [np.pad(row, [(0, s - n) for s, n in zip(size, row.shape, strict=True)]) for row in rows]
        write_png(out / "pictures" / f"{trainer.step:06d}.png", np.concatenate(rows))


def semantic_objective(
    config: TrainingConfig, device: torch.device, synthetic: Sequence[Path], real: Path | None
) -> SemanticObjective:
    """The objective over caches in files; either kind may be left out."""
    keep = device.type != "cpu"
    generated = None
    if synthetic:
        from spineps.training.phantoms import paint

        generated = SyntheticFeed([Cache(path, keep=keep) for path in synthetic], config, device, paint)
    return SemanticObjective(config, device, generated, RealFeed(Cache(real), config, device) if real else None)
