"""What the two Lightning checkpoints (U-Net, DenseNet) have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spineps.errors import ModelError
from spineps.models.checkpoints.fit import unwrapped
from spineps.models.checkpoints.unpickle import read_torch_file


def read_lightning(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters by name, and the hyper-parameters (``opt`` laid open).

    Raises:
        ModelError: not a Lightning checkpoint.
    """
    content = read_torch_file(path)
    state, settings = content.get("state_dict"), content.get("hyper_parameters")
    if not isinstance(state, dict) or not isinstance(settings, dict):
        raise ModelError(f"{path} is not a Lightning checkpoint.", "Install the model again.")
    opt = settings.get("opt")
    opened = opt if isinstance(opt, dict) else getattr(opt, "__dict__", {})
    return unwrapped(state), {**{str(k): v for k, v in settings.items()}, **opened}
