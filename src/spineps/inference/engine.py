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
from spineps.models.config import read_config
from spineps.models.model import WEIGHTS_FILE

logger = logging.getLogger(__name__)

ENGINES = ("auto", "openvino", "torch")
PRECISIONS = (None, "f32", "bf16", "int8")


class Network(Protocol):
    """A network ready to run.

    Attributes:
        spec: its description.
        device_name: what it really runs on, for people, such as ``"CPU (OpenVINO 2026.4, 2 threads, f32)"``.
    """

    spec: Spec
    device_name: str

    def __call__(self, x: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        """Float32 (N, C, X, Y, Z) to logits (N, K, X, Y, Z), or {head: logits (N, k)} for a classifier.

        Spatial sizes must be multiples of ``spec.stride``.
        """

    def with_spec(self, spec: Spec) -> Network:
        """The part that ``spec`` describes, with the same weights; see :func:`~.published_graphs.parts`."""


def load_network(
    folder: Path,
    engine: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    fold: str | int | None = None,
    precision: str | None = None,
) -> Network:
    """The network stored in ``folder``.

    Args:
        folder: holds ``weights.npz``, or a published model's ``inference_config.json`` and checkpoint.
        engine: ``"openvino"`` (CPU), ``"torch"``, or ``"auto"``: torch when it is installed and finds a GPU or a
            torch device is asked for, else OpenVINO.
        device: torch device such as ``"cuda"``, ``"mps"`` or ``"cpu"``; None takes the best.
        threads: CPU threads; None takes ``OMP_NUM_THREADS``, else all cores.
        fold: of an nnU-Net; None takes the config's first.
        precision: of the arithmetic, ``"f32"``, ``"bf16"``, faster where the machine has it, or ``"int8"``, where
            the model has ranges for it (elsewhere float32).  None is, for our own models, bf16 on a processor that has
            it (they were trained in it), else int8; for others f32.

    Raises:
        OptionError: unknown engine or precision, or torch wanted but not installed.
        ModelError: weights missing or damaged.
    """
    if engine not in ENGINES:
        raise OptionError(f"Unknown engine {engine!r}.", f"Choose one of {', '.join(ENGINES)}.")
    if precision not in PRECISIONS:
        raise OptionError(f"Unknown precision {precision!r}.", "Choose f32, bf16 or int8.")
    if engine == "auto":
        engine = "torch" if _gpu_wanted(device) else "openvino"
    # A folder that is of neither kind is told what it lacks by load_weights.
    own = (folder / WEIGHTS_FILE).is_file() or not (config := read_config(folder)).published
    network: Network
    if engine == "torch":
        if importlib.util.find_spec("torch") is None:
            raise OptionError("The torch engine is not installed.", "Run: pip install 'spineps[torch]'")
        from spineps.inference.torch_engine import TorchNetwork
        from spineps.models.checkpoints import read_published

        stored = load_weights(folder / WEIGHTS_FILE) if own else read_published(folder, config, fold)
        network = TorchNetwork(*stored, device, threads, precision)
    else:
        from spineps.inference.graph_cache import published_graph
        from spineps.inference.openvino_engine import OpenVinoNetwork

        source = load_weights(folder / WEIGHTS_FILE) if own else published_graph(folder, config, fold)
        network = OpenVinoNetwork(*source, threads, precision or ("auto" if own else "f32"))
    logger.info("%s runs on %s", folder.name, network.device_name)
    return network


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
