"""Which engine runs a network."""

from __future__ import annotations

import importlib.util
import logging
import platform
import sys
from pathlib import Path
from typing import Protocol

import numpy as np

from spineps.errors import OptionError
from spineps.inference.network import Spec, load_weights

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.npz"
ENGINES = ("auto", "openvino", "torch")


class Network(Protocol):
    """A network ready to run."""

    spec: Spec

    def __call__(self, x: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        """Float32 (N, C, X, Y, Z) to logits (N, K, X, Y, Z), or {head: logits (N, k)} for a classifier.

        Spatial sizes must be multiples of ``spec.stride``.
        """


def load_network(folder: Path, engine: str = "auto", device: str | None = None, threads: int | None = None) -> Network:
    """The network stored in ``folder``.

    Args:
        folder: holds ``weights.npz``.
        engine: ``"openvino"`` (CPU), ``"torch"``, or ``"auto"``: torch when it is installed and finds a GPU or a
            torch device is asked for, else OpenVINO.
        device: torch device such as ``"cuda"``, ``"mps"`` or ``"cpu"``; None takes the best.
        threads: CPU threads; None takes ``OMP_NUM_THREADS``, else all cores.

    Raises:
        OptionError: unknown engine, or torch wanted but not installed.
        ModelError: weights missing or damaged.
    """
    if engine not in ENGINES:
        raise OptionError(f"Unknown engine {engine!r}.", f"Choose one of {', '.join(ENGINES)}.")
    spec, params = load_weights(folder / WEIGHTS_FILE)
    if engine == "auto":
        engine = "torch" if _gpu_wanted(device) else "openvino"
    logger.debug("%s runs on %s", folder.name, engine)
    if engine == "torch":
        if importlib.util.find_spec("torch") is None:
            raise OptionError("The torch engine is not installed.", "Run: pip install 'spineps[torch]'")
        from spineps.inference.torch_engine import TorchNetwork

        return TorchNetwork(spec, params, device, threads)
    from spineps.inference.openvino_engine import OpenVinoNetwork

    return OpenVinoNetwork(spec, params, threads)


def _gpu_wanted(device: str | None) -> bool:
    if device == "cpu" or importlib.util.find_spec("torch") is None or not _may_have_gpu():
        return False
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _may_have_gpu() -> bool:
    """False where no driver can be found, so that torch need not be imported (seconds) just to be asked."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if sys.platform.startswith("linux"):
        return any(Path("/dev", name).exists() for name in ("nvidiactl", "nvidia0", "kfd", "dxg"))
    return True
