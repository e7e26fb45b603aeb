"""The three kinds of model.  Networks are loaded when first used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spineps.errors import ModelError
from spineps.models.config import CONFIG_FILE, InferenceConfig, read_config
from spineps.models.enums import Modality, ModelType, SpinepsPhase
from spineps.models.receipt import sha256
from spineps.models.scaling import spread, standardise

if TYPE_CHECKING:
    from collections.abc import Callable

    from spineps.inference.engine import Network
    from spineps.volume import Volume

WEIGHTS_FILE = "weights.npz"
#: Folder inside a semantic model's for a locator.
LOCATOR = "locator"
#: Voxels that are given to an instance or labelling network at once on a CPU.
CPU_VOXELS = 1_000_000


@dataclass(frozen=True, eq=False)
class Model:
    """A model on disk.

    Attributes:
        name: id under which it was asked for.
        config: its contract.
        folder: where its files lie.
        origin: ``"bundled"`` or ``"installed"``.
        engine: see :func:`spineps.inference.engine.load_network`.
        device: torch device, None for the best.
        threads: CPU threads, None for all.
        precision: of the network's arithmetic, see :func:`spineps.inference.engine.load_network`.
    """

    name: str
    config: InferenceConfig
    folder: Path
    origin: str = "bundled"
    engine: str = "auto"
    device: str | None = None
    threads: int | None = None
    precision: str | None = None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Images that the model accepts."""
        return self.config.modalities

    @property
    def phase(self) -> SpinepsPhase:
        """Phase that the model serves."""
        return self.config.phase

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of config and weights: two models with the same fingerprint give the same answers.

        Files are read each time: size and date do not prove that a file is the same.
        """
        from concurrent.futures import ThreadPoolExecutor

        files = [self.folder / CONFIG_FILE, *weight_files(self.folder, self.config)]
        with ThreadPoolExecutor(min(len(files), 8)) as pool:
            return hashlib.sha256(b"".join(map(bytes.fromhex, pool.map(sha256, files)))).hexdigest()

    @cached_property
    def network(self) -> Network:
        """The network, loaded at first use."""
        from spineps.inference.engine import load_network

        return load_network(self.folder, self.engine, self.device, self.threads, precision=self.precision)

    def load(self) -> Model:
        """Load the network now rather than at first use."""
        _ = self.network
        return self


class SemanticModel(Model):
    """Gives every voxel a structure."""

    def probabilities(
        self,
        image: Volume,
        step_size: float | None = None,
        tta: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Class probabilities.

        Args:
            image: in the config's orientation and voxel size, any grey values (CT in Hounsfield units).
            step_size: tile step as a fraction of the patch; None takes the config's.
            tta: average with the mirrored image; None takes the config's.
            progress: called with (tiles done, tiles in all).

        Returns:
            (K, X, Y, Z) float32; class k is ``config.class_ids[k]``, 0 is background.
        """
        from spineps.anatomy import CLASS_IDS, CLASS_MIRROR
        from spineps.inference.sliding import focused_window

        ids = self.config.class_ids
        use_mirror = (self.config.tta if tta is None else tta) and self.config.mirror_axes and ids == CLASS_IDS
        return focused_window(
            self.network,
            spread(image.array)[None],
            self.config.patch_size,
            step_size or self.config.step_size,
            classes=len(ids),
            mirror=(self.config.mirror_axes[0], CLASS_MIRROR) if use_mirror else None,
            progress=progress,
            prepare=standardise,
            locate=lambda: self._spine_box(image),
            stance=self._stance(image),
        )

    @cached_property
    def locator(self) -> SemanticModel | None:
        """A small network for large voxels that tells where to look, if the model brings one."""
        folder = self.folder / LOCATOR
        if not (folder / CONFIG_FILE).is_file():
            return None
        return replace(self, name=f"{self.name}/{LOCATOR}", folder=folder, config=read_config(folder))

    def _spine_box(self, image: Volume) -> tuple[slice, slice, slice] | None:
        from spineps.inference.resample import to_model_grid
        from spineps.inference.sliding import busy_box

        if self.locator is None:
            return None
        small = to_model_grid(image, self.locator.config.zoom_min)
        return busy_box(self.locator.probabilities(small, tta=False)[0] < 0.5, image.shape, self._stance(small))

    def _stance(self, image: Volume) -> tuple[int, tuple[float, float, float]]:
        return next(axis for axis, code in enumerate(image.axcodes) if code in "SI"), image.zoom

    def labels(
        self,
        image: Volume,
        step_size: float | None = None,
        tta: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Most probable class (X, Y, Z) uint8 of every voxel; arguments as for :meth:`probabilities`."""
        return self.probabilities(image, step_size, tta, progress).argmax(axis=0).astype(np.uint8)


class InstanceModel(Model):
    """Finds in a cutout the vertebra in its centre and the ones above and below it."""

    @cached_property
    def amp(self) -> InstanceModel:
        """The same model in bfloat16: about twice as fast where the processor has it, some borders move by a voxel."""
        return replace(self, precision="bf16")

    @cached_property
    def _parts(self) -> tuple[Network | None, Network]:
        """The first layer, where it need not be computed everywhere, and what is to be run on cutouts."""
        from spineps.inference.published_graphs import parts

        if (specs := parts(self.network.spec)) is None:
            return None, self.network
        return self.network.with_spec(specs[0]), self.network.with_spec(specs[1])

    def segment(self, cutouts: np.ndarray, batch_size: int = 4) -> np.ndarray:
        """Vertebra above (1), in the centre (2) and below (3) of each cutout, 0 elsewhere.

        Args:
            cutouts: (N, X, Y, Z) uint8, semantic labels after ``config.mapping``; if they know their scan
                (:class:`~spineps.inference.first_layer.Cutouts`), work is done once for all of them.
            batch_size: cutouts per network call.

        Returns:
            (N, X, Y, Z) uint8.
        """
        from spineps.inference.batches import in_batches, on_gpu
        from spineps.inference.first_layer import Cutouts, first_layer

        first, network = self._parts
        channels, stride = self.network.spec.in_channels, self.network.spec.stride
        answers = np.zeros(cutouts.shape, np.uint8)
        if not on_gpu(self.network):
            # Large cutouts gain nothing from company on a CPU, and four of 248 x 304 x 64 need 6 GB.
            batch_size = min(batch_size, max(CPU_VOXELS // max(cutouts[:1].size, 1), 1))

        def inputs(part: slice) -> np.ndarray:
            padded = _padded(cutouts[part], stride)
            if first is not None:
                plain = np.asarray(padded)
                # Appended zeros may lie where the scan goes on.
                if isinstance(cutouts, Cutouts) and plain.shape[1:] == cutouts.shape[1:]:
                    pairs = zip(plain, cutouts.starts[part], strict=True)
                    layers = [first_layer(first, labels, channels, cutouts.scan, start) for labels, start in pairs]
                else:
                    layers = [first_layer(first, labels, channels) for labels in plain]
                return np.stack(layers) if len(layers) > 1 else layers[0][None]
            # A network with one channel sees labels / 9; 2.1.3 first clears labels beyond the channels, so all of them.
            return one_hot(padded, channels) if channels > 1 else padded[:, None].astype(np.float32) / 9

        for part, logits in in_batches(network, inputs, len(cutouts), batch_size):
            if isinstance(logits, dict):
                raise ModelError(f"{self.name} is not an instance model.", "Choose an instance model.")
            x, y, z = cutouts.shape[1:]
            answers[part] = logits.argmax(axis=1)[:, :x, :y, :z]
        lut = np.zeros(256, np.uint8)
        lut[list(range(len(self.config.class_ids)))] = self.config.class_ids
        return lut[answers]


class LabelingModel(Model):
    """Tells which vertebra it sees."""

    def classify(self, x: np.ndarray, batch_size: int = 8) -> dict[str, np.ndarray]:
        """Class probabilities of every head.

        Args:
            x: (N, C, X, Y, Z) float32.
            batch_size: vertebrae per network call.

        Returns:
            {head: (N, k) float32 that sums to 1}.
        """
        from spineps.inference.batches import on_gpu
        from spineps.inference.sliding import softmax

        if not on_gpu(self.network):
            batch_size = min(batch_size, max(CPU_VOXELS // max(x[:1].size, 1), 1))
        parts: dict[str, list[np.ndarray]] = {head: [] for head in self.network.spec.heads}
        for start in range(0, len(x), batch_size):
            logits = self.network(_padded(x[start : start + batch_size], self.network.spec.stride))
            if not isinstance(logits, dict):
                raise ModelError(f"{self.name} is not a labelling model.", "Choose a labelling model.")
            for head, values in logits.items():
                parts[head].append(softmax(values, axis=1))
        empty = {head: np.zeros((0, k), np.float32) for head, k in self.network.spec.heads.items()}
        return {head: np.concatenate(rows) if rows else empty[head] for head, rows in parts.items()}


def weight_files(folder: Path, config: InferenceConfig) -> list[Path]:
    """The files beside the config that decide a model's answers.

    Raises:
        ModelError: one is missing, or the folder is of a kind that cannot be run.
    """
    if (folder / WEIGHTS_FILE).is_file():
        locator = folder / LOCATOR
        if not (locator / CONFIG_FILE).is_file():
            return [folder / WEIGHTS_FILE]
        if not (locator / WEIGHTS_FILE).is_file():
            raise ModelError(f"{locator} has no {WEIGHTS_FILE}.", "Install the model again, or delete that folder.")
        return [folder / WEIGHTS_FILE, locator / CONFIG_FILE, locator / WEIGHTS_FILE]
    if not config.published:
        raise ModelError(f"The model in {folder} has no {WEIGHTS_FILE}.", "Install it again.")
    if config.phase is SpinepsPhase.SEMANTIC and config.modeltype is not ModelType.nnunet:
        raise ModelError(f"{folder} is a semantic {config.modeltype.name}, which cannot be run.", "Use an nnU-Net.")
    from spineps.models.checkpoints import sources

    files = sources(folder, config)
    if missing := [file for file in files if not file.is_file()]:
        raise ModelError(f"{missing[0]} does not exist.", "Install the model again.")
    return files


def one_hot(labels: np.ndarray, channels: int) -> np.ndarray:
    """(N, X, Y, Z) labels to (N, channels, X, Y, Z) float32; labels beyond the channels count as 0."""
    hot = np.zeros((len(labels), channels, *labels.shape[1:]), np.float32)
    for channel in range(1, channels):
        hot[:, channel] = labels == channel
    hot[:, 0] = (labels == 0) | (labels >= channels)
    return hot


def _padded(x: np.ndarray, stride: tuple[int, int, int]) -> np.ndarray:
    """Zeros appended to the last three axes until they are multiples of ``stride``."""
    missing = [-n % s for n, s in zip(x.shape[-3:], stride, strict=True)]
    return np.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, m) for m in missing]) if any(missing) else x
