"""An instance "network" that knows the truth: it recognises where a cutout comes from and answers from known ids."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from spineps.models.config import DEFAULT_MAPPING
from spineps.phases.components import relabel
from spineps.phases.instance import working_grid
from spineps.volume import Volume

Disturbance = Callable[[np.ndarray, int], np.ndarray]


def instance_config(**changes: Any) -> Any:
    """The fields of an ``InferenceConfig`` that the instance phase reads."""
    zoom = changes.pop("zoom", (1.5, 1.5, 3.0))
    values = {
        "published": False,
        "orientation": "PIR",
        "zoom_min": zoom,
        "cutout_size": (120, 80, 48),
        "corpus_size_cleaning": 100,
        "vert_size_threshold": 250,
        "mapping": DEFAULT_MAPPING,
        "target_zoom": lambda _: zoom,
    }
    return SimpleNamespace(**{**values, **changes})


class Oracle:
    """Answers from a known instance mask (ids ascending from the top), disturbed on request.

    Args:
        semantic, truth: masks on any grid.
        config: see :func:`instance_config`.
        disturb: gets (answer, number of the cutout) and returns what the network "says".
    """

    def __init__(self, semantic: Volume, truth: Volume, config: Any = None, disturb: Disturbance | None = None) -> None:
        self.config = config or instance_config()
        self.disturb = disturb or (lambda answer, _: answer)
        self.calls = 0
        turned = semantic.reoriented(self.config.orientation)
        grid = working_grid(turned.grid, self.config)
        seen = turned.on(grid, fill=None).array
        self.mapped = relabel(seen, dict(self.config.mapping), keep_others=False)
        self.truth = truth.reoriented(self.config.orientation).on(grid, fill=None).array
        # Cutouts reach at most half their size beyond the volume.
        pad = [(n // 2 + 1, n // 2 + 1) for n in self.config.cutout_size]
        self.mapped, self.padded_truth = np.pad(self.mapped, pad), np.pad(self.truth, pad)

    def segment(self, cutouts: np.ndarray, batch_size: int = 4) -> np.ndarray:
        assert cutouts.dtype == np.uint8
        assert 0 < len(cutouts) <= batch_size
        return np.stack([self._answer(c) for c in cutouts])

    def _answer(self, cutout: np.ndarray) -> np.ndarray:
        start = _locate(self.mapped, cutout, self.config.orientation)
        ids = self.padded_truth[tuple(slice(s, s + n) for s, n in zip(start, cutout.shape, strict=True))]
        body = np.argwhere((cutout == 9) & (ids > 0))
        middle = np.array(cutout.shape) // 2
        nearest = body[((body - middle) ** 2).sum(axis=1).argmin()]
        own = int(ids[tuple(nearest)])
        known = [int(i) for i in np.unique(self.truth) if i]
        rank = known.index(own)
        answer = np.zeros(cutout.shape, np.uint8)
        for label, place in ((1, rank - 1), (2, rank), (3, rank + 1)):
            if 0 <= place < len(known):
                answer[ids == known[place]] = label
        self.calls += 1
        return self.disturb(answer, self.calls - 1)


def _locate(mapped: np.ndarray, cutout: np.ndarray, orientation: str) -> list[int]:
    """Start of a cutout, axis by axis: its profile along an axis is found in the volume's (it spans the others)."""
    axes = sorted(range(3), key=lambda a: orientation[a] not in "IS")
    window = [slice(None)] * 3
    for axis in axes:
        others = tuple(a for a in range(3) if a != axis)
        profile, wanted = (a.sum(axis=others, dtype=np.int64) for a in (mapped[tuple(window)], cutout))
        n = len(wanted)
        misfit = [int(np.abs(profile[s : s + n] - wanted).sum()) for s in range(len(profile) - n + 1)]
        assert min(misfit) == 0, "a cutout that shows nothing of the mask"
        place = int(np.argmin(misfit))
        window[axis] = slice(place, place + n)
    return [w.start for w in window]
