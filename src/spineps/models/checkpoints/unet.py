"""The 3-D U-Net of published instance models: one Lightning checkpoint whose weights tell the network's sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spineps.errors import ModelError
from spineps.inference.published_graphs import ResUNetSpec
from spineps.models.checkpoints.fit import fitted
from spineps.models.checkpoints.lightning import read_lightning

PREFIX = "network."


def read_unet(folder: Path) -> tuple[ResUNetSpec, dict[str, np.ndarray]]:
    """Description and float32 parameters of the U-Net in ``folder``.

    Raises:
        ModelError: none or several checkpoints, or another network.
    """
    path = checkpoint_of(folder)
    state, _ = read_lightning(path)
    # Losses and metrics of training may keep numbers of their own beside the network's.
    state = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    try:
        levels = len({name.split(".")[1] for name in state if name.startswith("downs.")})
        first = state["init_conv.weight"].shape
        spec = ResUNetSpec(
            in_channels=first[1],
            classes=len(state["final_conv.weight"]),
            dim=first[0],
            widths=tuple(len(state[f"downs.{k}.0.block1.proj.weight"]) for k in range(levels)),
        )
    except (KeyError, AttributeError, IndexError, TypeError) as error:
        raise ModelError(f"{path} holds no U-Net ({error} is missing).", "Install the model again.") from error
    return spec, fitted(state, spec.parameter_shapes(), path)


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint file; :class:`~spineps.errors.ModelError` unless there is exactly one."""
    files = sorted(folder.rglob("*weights*.ckpt"))
    if len(files) != 1:
        names = ", ".join(str(f.relative_to(folder)) for f in files[:3]) or "none"
        message = f"{folder} must hold exactly one *weights*.ckpt (found: {names})."
        raise ModelError(message, "Install the model again.")
    return files[0]
