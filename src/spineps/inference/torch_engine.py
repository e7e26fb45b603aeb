"""The network on Torch: inference on GPU, MPS or CPU, and the operations that training uses."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spineps.inference.network import NEGATIVE_SLOPE, NORM_EPSILON, Spec, Triple


class TorchOps:
    """:class:`~spineps.inference.network.Ops` on tensors; differentiable."""

    def conv(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple | None = None
    ) -> Tensor:
        kx, ky, kz = weight.shape[2:]
        return F.conv3d(x, weight, bias, stride=stride, padding=padding or (kx // 2, ky // 2, kz // 2))

    def even_conv(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.conv(x, weight, bias, (1, 1, 1))

    def first_conv(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.conv(x, weight, bias, (1, 1, 1)).movedim(1, -1)

    def channels_first(self, x: Tensor) -> Tensor:
        # Else the convolutions that follow take another way through torch and round otherwise (seen with a batch of 4).
        return x.movedim(-1, 1).contiguous(memory_format=memory_format(x.device))

    def conv_transpose(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple = (0, 0, 0)
    ) -> Tensor:
        return F.conv_transpose3d(x, weight, bias, stride=stride, padding=padding)

    def instance_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float = NORM_EPSILON) -> Tensor:
        # One group per channel is the same thing and, with bfloat16 on a CPU, half again as fast.
        return F.group_norm(x, x.shape[1], weight, bias, epsilon)

    def group_norm(self, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        return F.group_norm(x, groups, weight, bias, NORM_EPSILON)

    def scale_shift(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return x * scale[:, None, None, None] + shift[:, None, None, None]

    def leaky_relu(self, x: Tensor, slope: float = NEGATIVE_SLOPE) -> Tensor:
        return F.leaky_relu(x, slope) if slope else F.relu(x)

    def max_pool(self, x: Tensor, kernel: Triple, stride: Triple, padding: Triple) -> Tensor:
        return F.max_pool3d(x, kernel, stride, padding)

    def average_pool(self, x: Tensor, kernel: Triple) -> Tensor:
        return F.avg_pool3d(x, kernel)

    def halve(self, x: Tensor) -> Tensor:
        return x * 0.5

    def upsample(self, x: Tensor, factors: Triple) -> Tensor:
        return F.interpolate(x, scale_factor=tuple(float(f) for f in factors), mode="nearest")

    def join(self, x: Tensor, skip: Tensor, how: str) -> Tensor:
        return x + skip if how == "add" else torch.cat([x, skip], dim=1)

    def mean(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3, 4))

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last suits GPUs; on a CPU plain order is faster (measured, torch 2.13)."""
    return torch.channels_last_3d if device.type == "cuda" else torch.contiguous_format


def best_device() -> str:
    """``"cuda"``, ``"mps"`` or ``"cpu"``, the first that works here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class TorchNetwork:
    """A network ready to run; see :class:`~spineps.inference.engine.Network`."""

    def __init__(
        self,
        spec: Spec,
        params: Mapping[str, np.ndarray],
        device: str | None = None,
        threads: int | None = None,
        precision: str | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.spec = spec
        self.device = torch.device(device or best_device())
        precision = "f32" if precision == "int8" else precision
        self._half = precision == "bf16"
        machine = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type.upper()
        version = ".".join(torch.__version__.split(".")[:2])
        self.device_name = f"{machine} (torch {version}, {precision or 'f32'})"
        self._params = {name: torch.tensor(p, device=self.device) for name, p in params.items()}

    def with_spec(self, spec: Spec) -> TorchNetwork:
        """Another description of the same parameters."""
        other = copy(self)
        other.spec = spec
        return other

    @torch.inference_mode()
    def __call__(self, x: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        tensor = torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(self.device)
        tensor = tensor.contiguous(memory_format=memory_format(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            answer = self.spec.forward(TorchOps(), self._params, tensor)
        if isinstance(answer, dict):
            return {name: value.float().cpu().numpy() for name, value in answer.items()}
        return answer.float().contiguous().cpu().numpy()
