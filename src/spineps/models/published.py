"""Semantic models of the published system: nnU-Net v2 folders, run as SPINEPS 2.1.3 runs them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from spineps.errors import ModelError
from spineps.models.model import SemanticModel

if TYPE_CHECKING:
    from spineps.inference.engine import Network
    from spineps.inference.network import Spec
    from spineps.inference.nnunet_plans import Plans, Prepared
    from spineps.volume import Volume

logger = logging.getLogger(__name__)

#: Class sums of a whole image (bytes) up to which folds run one after the other on a CPU.  A network of usual size at
#: work holds 0.65 GB (measured: 31 million weights, tiles of 32 x 160 x 128), so beyond it is cheaper to hold them all
#: and a band of the sums.
SUMS_LIMIT = 2**30


class PublishedSemanticModel(SemanticModel):
    """An nnU-Net folder: ``plans.json``, ``dataset.json`` and a checkpoint for every fold."""

    @cached_property
    def network(self) -> Network:
        """The network of the first fold, loaded at first use."""
        if self.config.needs_crop:
            logger.warning(
                "%s was trained on scans cropped to the spine by another network.  Nothing is cropped here by itself: "
                "cut scans that show much more than the spine, or use the keyword crop of segment_image.",
                self.config.log_name,
            )
        return self._fold(self.config.folds[0])

    @cached_property
    def plans(self) -> Plans:
        """What the folder says about inputs.  The checkpoint names the configuration that it was trained as."""
        from spineps.inference.nnunet_plans import read_plans

        return read_plans(self.folder, getattr(self.network.spec, "configuration", ""))

    def labels(
        self,
        image: Volume,
        step_size: float | None = None,
        tta: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Class of every voxel, with the sums of the classes in memory for a band of tiles only.

        Args:
            image: in the config's orientation and voxel size; (X, Y, Z), or (C, X, Y, Z) for models with several
                inputs, in the order of ``config.inputs``.
            step_size: tile step as a fraction of the patch; None takes the config's.
            tta: average over all flips that the checkpoint allows; None takes the config's.
            progress: called with (tiles done, tiles in all).

        Returns:
            (X, Y, Z) uint8 (uint16 from 257 classes on); class k is ``config.labels[k]``.

        Raises:
            ModelError: files are missing or damaged, or the number of inputs is wrong.
            OutOfMemoryError: not even one tile fits.
        """
        from spineps.inference.nnunet_window import best_of, on_image, stream_labels, unresampled

        ready = self._prepared(image)
        step, mirror = step_size or self.config.step_size, self._mirror(tta)
        if ready.data.shape[1:] == ready.inner and self._in_one_pass(4 * self.plans.heads * ready.data[0].size):
            labels = stream_labels(self._together, ready.data, self.plans, step, mirror, progress)
        else:
            logits = self._logits(ready, step, mirror, progress)
            labels = best_of(unresampled(logits, ready, self.plans), self.plans)
        return on_image(labels, ready, self.plans)

    def probabilities(
        self,
        image: Volume,
        step_size: float | None = None,
        tta: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Probabilities of ``config.class_ids``, (K, X, Y, Z) float32: all classes of the whole image at once.

        Arguments as for :meth:`labels`, which needs far less memory.  What lies outside of the image (zeros around it)
        is background.
        """
        from spineps.inference.nnunet_window import class_probabilities, on_image, unresampled

        ready = self._prepared(image)
        logits = self._logits(ready, step_size or self.config.step_size, self._mirror(tta), progress)
        if logits.shape[1:] != ready.inner:
            logits = np.stack(list(unresampled(logits, ready, self.plans)))
        found = class_probabilities(logits, self.plans)
        classes = [0, *sorted(k for k in self.config.labels if k > 0)]
        if classes[-1] >= len(found):
            raise ModelError(
                f"inference_config.json names class {classes[-1]}, but {self.name} has {len(found)} classes.",
                "Correct labels in the file.",
            )
        out = np.empty((len(classes), *image.array.shape[-3:]), np.float32)
        for into, k in zip(out, classes, strict=True):
            into[:] = on_image(found[k], ready, self.plans, outside=float(k == 0))
        return out

    def _in_one_pass(self, sums: int) -> bool:
        from spineps.inference.batches import on_gpu

        return len(self.config.folds) == 1 or on_gpu(self.network) or sums > SUMS_LIMIT

    @cached_property
    def _together(self) -> Network:
        """All folds as one."""
        networks = [self.network, *(self._fold(fold) for fold in self.config.folds[1:])]
        return networks[0] if len(networks) == 1 else _Sum(networks)

    def _in_turn(self) -> Iterator[Network]:
        """Every fold's network; with several folds none is kept (loading again takes about a second)."""
        if len(self.config.folds) == 1:
            yield self.network
            return
        for fold in self.config.folds:
            yield (self.__dict__.pop("network", None) if fold == self.config.folds[0] else None) or self._fold(fold)

    def _fold(self, fold: str) -> Network:
        from spineps.inference.engine import load_network

        return load_network(self.folder, self.engine, self.device, self.threads, fold, self.precision)

    def _mirror(self, tta: bool | None) -> tuple[int, ...]:
        wanted = self.config.tta if tta is None else tta
        return tuple(getattr(self.network.spec, "mirror_axes", ())) if wanted else ()

    def _prepared(self, image: Volume) -> Prepared:
        from spineps.inference.nnunet_plans import prepare

        channels = image.array if image.array.ndim == 4 else image.array[None]
        if len(channels) != len(self.config.inputs):
            raise ModelError(
                f"{self.name} wants {len(self.config.inputs)} images and got {len(channels)}.",
                f"Give (C, X, Y, Z) in this order: {', '.join(i.name for i in self.config.inputs)}.",
            )
        return prepare(channels, image.zoom, self.plans)

    def _logits(
        self, ready: Prepared, step: float, mirror: tuple[int, ...], progress: Callable[[int, int], None] | None
    ) -> np.ndarray:
        from spineps.inference.nnunet_window import mean_logits

        networks, count = self._in_turn(), len(self.config.folds)
        return mean_logits(networks, count, ready.data, self.plans, step, mirror, progress)


class _Sum:
    """Several networks as one that answers with the sum of their logits."""

    def __init__(self, networks: list[Network]) -> None:
        self.networks = networks
        self.spec, self.device_name = networks[0].spec, networks[0].device_name
        self.device = getattr(networks[0], "device", None)

    def with_spec(self, spec: Spec) -> _Sum:
        return _Sum([network.with_spec(spec) for network in self.networks])

    def __call__(self, x: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        answers = [network(x) for network in self.networks]
        return np.sum([a for a in answers if not isinstance(a, dict)], axis=0)
