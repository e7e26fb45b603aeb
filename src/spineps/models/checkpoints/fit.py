"""State dictionaries against what a network needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spineps.errors import ModelError

#: What DistributedDataParallel and torch.compile put before names.
WRAPPERS = ("module.", "_orig_mod.")


def unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters without the prefixes of wrappers (``module.``, ``_orig_mod.``), wherever they stand."""
    names = {}
    for name, value in state.items():
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper) if name.startswith(wrapper) else name.replace(f".{wrapper}", ".")
        names[name] = value
    return names


def fitted(
    state: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], where: object, ignored: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Float32 parameters named and shaped as in ``shapes``.

    Args:
        state: name -> array.
        shapes: name -> shape of every parameter that the network uses.
        where: named in messages.
        ignored: parameters that may be left over (beginnings of names).

    Raises:
        ModelError: a parameter is missing, left over, of another shape, no array of numbers, or not finite.
    """
    missing = [name for name in shapes if name not in state]
    over = [name for name in state if name not in shapes and not name.startswith(tuple(ignored))]
    wrong = [
        f"{name} {_shape(state[name])} instead of {tuple(shape)}"
        for name, shape in shapes.items()
        if name in state and _shape(state[name]) != tuple(shape)
    ]
    for what, names in (("lacks", missing), ("has unknown", over), ("has a misfit:", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(
                f"The checkpoint {where} {what} {', '.join(names[:3])}{more}.",
                "It belongs to another network than its folder says: install the model again.",
            )
    # Copied: the file that the arrays are mapped from may be replaced while the network is in use.
    params = {name: np.array(state[name], np.float32, order="C") for name in shapes}
    if broken := [name for name, value in params.items() if not np.isfinite(value).all()]:
        raise ModelError(f"The checkpoint {where} holds no numbers in {broken[0]}.", "Take another checkpoint.")
    return params


def _shape(value: Any) -> tuple[int, ...] | None:
    return value.shape if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" else None
