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
from spineps.training.feed import AnatomyFeed, RealFeed, SyntheticFeed
from spineps.training.loop import Trainer
from spineps.training.loss import coarse_loss, full_loss, group_matrix
from spineps.training.pictures import overlay, write_png

#: Names in the log of the labels in SCORED: coarse ones, then structures by id.
SCORE_NAMES = ("vertebra", "disc", "canal", "plate", "whole", *(str(i) for i in CLASS_IDS[1:]))


class SemanticObjective:
    """Loss of a step; gradients of the two kinds are accumulated one after the other to spare memory."""

    def __init__(
        self,
        config: TrainingConfig,
        device: torch.device,
        synthetic: SyntheticFeed | None,
        real: RealFeed | None,
        anatomy: AnatomyFeed | None = None,
    ) -> None:
        self._config, self._synthetic, self._real, self._anatomy = config, synthetic, real, anatomy
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
        painted = self._anatomy is not None and self._anatomy.takes(step)
        coarse = self._anatomy if painted else self._real
        if coarse is not None:
            batch = coarse.batch(step)
            loss, scores = coarse_loss(network(batch.images), batch.labels, batch.valid, self._groups)
            (self._config.real_weight * loss).backward()
            total = total + self._config.real_weight * loss.detach().cpu()
            numbers["anatomy" if painted else "real"] = float(loss.detach())
            numbers |= {n: v for n, v in zip(SCORE_NAMES, scores.tolist(), strict=True) if v == v}
        return total, numbers

    @torch.no_grad()
    def draw(self, trainer: Trainer, out: Path) -> None:
        """``out/pictures/<step>.png``: truth and answer for one patch of each kind, of the next step."""
        rows = []
        for feed in (self._synthetic, self._real, self._anatomy):
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
    config: TrainingConfig,
    device: torch.device,
    synthetic: Sequence[Path],
    real: Path | None,
    anatomy: Sequence[Path] = (),
) -> SemanticObjective:
    """The objective over caches in files; any kind may be left out."""
    from spineps.training.phantoms import paint

    keep = device.type != "cpu"
    generated = SyntheticFeed([Cache(p, keep=keep) for p in synthetic], config, device, paint) if synthetic else None
    scans = RealFeed(Cache(real), config, device) if real else None
    shapes = AnatomyFeed([Cache(path) for path in anatomy], config, device, paint) if anatomy else None
    return SemanticObjective(config, device, generated, scans, shapes)
