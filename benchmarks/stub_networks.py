"""Networks that know the answer, and a runner that does nothing: what is left is the cost of everything else."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from stubs import ByHeight, Oracle, spine

from spineps import Acquisition, ErrCode, Modality
from spineps.dataset.job import Job, Outcome
from spineps.dataset.worker import Setup
from spineps.options import options_from_keywords
from spineps.outputs import snapshot
from spineps.pipeline import Models
from spineps.volume import Volume

PAIR = (Modality.T2w, Acquisition.sag)
snapshot.HEIGHT = 1.5  # small pictures: they would take most of the time
#: A scan with a voxel of this value makes its network hang.
HANG = 1499


class Idle:
    """In place of ``JobRun``: nothing is read, computed or written."""

    def __init__(self, job: Job) -> None:
        self.outcome = Outcome(ErrCode.OK)

    def read(self) -> None:
        pass

    segment = write = read


@lru_cache(maxsize=1)
def _spine() -> tuple[Volume, Volume]:
    return spine(2)


@dataclass
class Known(Oracle):
    """Knows where the structures are; hangs when it is told to."""

    truth: Volume = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.__dict__.pop("truth", None)

    def __getattr__(self, name: str) -> object:
        if name == "truth":
            return _spine()[1]
        raise AttributeError(name)

    def probabilities(self, image: Volume, step_size=None, tta=None, progress=None) -> np.ndarray:  # type: ignore
        if image.array.max() >= HANG - 1:
            time.sleep(3600)
        return super().probabilities(image, step_size, tta, progress)


def write_scan(path: Path, seed: int, hang: bool = False) -> None:
    """A tiny scan, each with noise of its own."""
    image = _spine()[0]
    grey = image.array + np.random.default_rng(seed).integers(0, 8, image.shape, np.int16)
    if hang:
        grey[48:56, 60:68, 6:10] = HANG
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(grey.astype(np.int16), image.affine), path)


def stub_setup(root: Path, **changes: object) -> Setup:
    """A run with stub networks and without N4."""
    how = {"proc_sem_n4_bias_correction": False}
    models = Models(Known(), ByHeight())  # type: ignore[arg-type]
    values = {"dataset": root, "pairs": (PAIR,), "models": (models,), "options": options_from_keywords(**how)}
    return Setup(**{**values, **changes})  # type: ignore[arg-type]
