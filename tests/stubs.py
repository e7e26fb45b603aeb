"""Models that know the answer: the pipeline's plumbing is tested without a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from spineps.anatomy import CLASS_IDS, SACRUM
from spineps.models.config import InferenceConfig
from spineps.models.enums import Acquisition, Modality, ModelType, SpinepsPhase
from spineps.volume import Grid, Volume

AFFINE = np.array([[0, 0, 3.0, -30], [-1.0, 0, 0, 60], [0, -1.0, 0, 250], [0, 0, 0, 1]])
ALL_MR = (Modality.T2w, Modality.T1w, Modality.Vibe)


def spine(count: int = 4, sacrum: bool = True) -> tuple[Volume, Volume]:
    """(scan, structures) of a block spine in PIR at 1 x 1 x 3 mm: bodies, discs, endplates, canal, arches."""
    height = 30 * count + 60
    labels = np.zeros((90, height, 16), np.uint8)
    labels[55:65, 5:-10, 6:10] = 61
    labels[58:62, 5:-10, 7:9] = 60
    for k in range(count):
        top = 12 + 30 * k
        labels[20:52, top : top + 22, 3:13] = 49
        labels[20:52, top - 1, 3:13] = 62
        labels[20:52, top + 22, 3:13] = 62
        if k < count - 1 or sacrum:
            labels[20:52, top + 23 : top + 29, 3:13] = 100
        labels[66:80, top + 6 : top + 14, 6:10] = 42
        labels[52:66, top + 5 : top + 12, 4:6] = 41
        labels[52:66, top + 5 : top + 12, 10:12] = 41
    if sacrum:
        top = 12 + 30 * count
        labels[22:56, top : top + 36, 3:13] = SACRUM
    grey = np.random.default_rng(1).normal(60, 8, labels.shape)
    grey += np.select([labels == 49, labels == 100, labels == 61, labels > 0], [240, 120, 500, 180], 0)
    grey[:, :, [0, -1]] = 0
    return Volume(np.clip(grey, 0, None).astype(np.int16), AFFINE), Volume(labels, AFFINE)


def config(**changes: object) -> InferenceConfig:
    values: dict = {
        "log_name": "stub",
        "modalities": ALL_MR,
        "acquisitions": (Acquisition.sag,),
        "modeltype": ModelType.unet,
        "orientation": "PIR",
        "zoom_min": (1.5, 1.5, 2.5),
        "zoom_max": (1.5, 1.5, 2.5),
        "folds": ("0",),
        "tta": False,
        "step_size": 0.5,
        "labels": MappingProxyType(dict(enumerate(CLASS_IDS))),
        "cutout_size": (64, 80, 16),
        "recipe": "spineps3",
    }
    return InferenceConfig(**{**values, **changes})  # type: ignore[arg-type]


@dataclass
class Oracle:
    """Semantic model that samples a known label map, with so much probability; counts its calls."""

    truth: Volume
    config: InferenceConfig = field(default_factory=config)
    name: str = "oracle"
    origin: str = "bundled"
    fingerprint: str = "oracle-1"
    precision: str | None = None
    calls: int = 0
    seen: tuple[int, ...] = ()
    sure: float = 0.9

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return self.config.modalities

    @property
    def phase(self) -> SpinepsPhase:
        return self.config.phase

    def probabilities(self, image: Volume, step_size=None, tta=None, progress=None) -> np.ndarray:
        self.calls += 1
        self.seen = image.shape
        labels = self.truth.on(Grid(image.shape, image.affine)).array
        out = np.full((len(CLASS_IDS), *image.shape), (1 - self.sure) / (len(CLASS_IDS) - 1), np.float32)
        for k, label in enumerate(CLASS_IDS):
            out[k][labels == label] = self.sure
        if progress is not None:
            progress(1, 1)
        return out


@dataclass
class ByHeight:
    """Instance model: in a cutout everything between the discs around its centre is the centre's vertebra."""

    config: InferenceConfig = field(
        default_factory=lambda: config(modalities=(Modality.SEG,), labels=MappingProxyType({k: k for k in range(4)}))
    )
    name: str = "by-height"
    origin: str = "bundled"
    fingerprint: str = "by-height-1"
    precision: str | None = None
    calls: int = 0

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return self.config.modalities

    @property
    def phase(self) -> SpinepsPhase:
        return self.config.phase

    def segment(self, cutouts: np.ndarray, batch_size: int = 4) -> np.ndarray:
        self.calls += 1
        out = np.zeros(cutouts.shape, np.uint8)
        for answer, cutout in zip(out, cutouts, strict=True):
            bony = (cutout == 9).any(axis=(0, 2))
            middle = cutout.shape[1] // 2
            edges = np.flatnonzero(np.diff(np.concatenate([[0], bony.astype(int), [0]])))
            runs = list(zip(edges[::2], edges[1::2], strict=True))
            centre = next((n for n, (a, b) in enumerate(runs) if a <= middle < b), None)
            if centre is None:
                continue
            for n, (a, b) in enumerate(runs):
                if abs(n - centre) <= 1:
                    part = np.zeros(cutout.shape, bool)
                    part[:, max(a - 1, 0) : b + 1] = cutout[:, max(a - 1, 0) : b + 1] > 0
                    answer[part] = n - centre + 2
        return out
