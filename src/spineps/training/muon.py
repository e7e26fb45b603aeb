"""An optimiser for convolutions: their gradient's momentum is made orthogonal before it is applied.

Method: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with the coefficients of the
iteration; the size of a step follows Liu et al., "Muon is scalable for LLM training" (2025), so that one learning rate
serves this and AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: Coefficients of the fifth-order iteration that draws singular values to about one.
ITERATION, ROUNDS = (3.4445, -4.7750, 2.0315), 5
#: Root mean square of an AdamW step, in learning rates.
STEP_SIZE = 0.2


class Muon(torch.optim.Optimizer):
    """Muon for the weights of hidden convolutions, AdamW for everything else.

    Args:
        params: (name, parameter) of a network, named as in :func:`spineps.inference.network.parameter_shapes`.
        lr: learning rate of both.
        weight_decay: of both.
        momentum: of the orthogonal part.
        betas: of the AdamW part.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        params = list(params)
        hidden = [p for name, p in params if is_hidden(name, p)]
        others = [p for name, p in params if not is_hidden(name, p)]
        self._adamw = torch.optim.AdamW(others, lr, betas=betas, weight_decay=weight_decay)
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([{"params": hidden}], defaults)
        # One list of groups, so that a schedule reaches both parts.
        self.param_groups += self._adamw.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        self._adamw.step()
        group = self.param_groups[0]
        for p in group["params"]:
            if p.grad is None:
                continue
            mean = self.state[p].setdefault("momentum", torch.zeros_like(p))
            mean.lerp_(p.grad, 1 - group["momentum"])
            rows = p.grad.lerp(mean, group["momentum"]).flatten(1)
            change = orthogonal(rows).view(p.shape) * STEP_SIZE * math.sqrt(max(rows.shape))
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-group["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Both parts' states."""
        hidden = [self.state[p].get("momentum") for p in self.param_groups[0]["params"]]
        return {"momentum": hidden, "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The states of :meth:`state_dict`; groups keep being shared."""
        for p, mean in zip(self.param_groups[0]["params"], state_dict["momentum"], strict=True):
            if mean is not None:
                self.state[p]["momentum"] = mean.to(p)
        self._adamw.load_state_dict(state_dict["adamw"])
        self.param_groups[1:] = self._adamw.param_groups


def is_hidden(name: str, p: Tensor) -> bool:
    """Whether a parameter is a convolution between hidden layers: not the first one, nor what answers."""
    return p.ndim == 5 and not name.startswith(("enc0.0.", "out."))


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values of about one (0.7 to 1.2), by a fixed number of products."""
    a, b, c = ITERATION
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).float()
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.T
