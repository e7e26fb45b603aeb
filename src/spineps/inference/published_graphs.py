"""The networks of published checkpoints, written against :class:`~spineps.inference.network.Ops`.

Parameters keep the names of their checkpoints, so that a missing one can be named; readers are in
:mod:`spineps.models.checkpoints`.  Layouts: SPINEPS 2.1.3, dynamic-network-architectures 0.4, MONAI 1.5, read off their
state dictionaries and checked against recorded answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from spineps.errors import ModelError
from spineps.inference.network import NEGATIVE_SLOPE, NORM_EPSILON, NetSpec, Ops, Spec, Triple, as_triples

T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]

ONE: Triple = (1, 1, 1)


class _Json:
    """The JSON form that :func:`spec_from_json` reads."""

    kind: str

    def to_json(self) -> str:
        """One line of JSON from which :func:`spec_from_json` makes an equal description."""
        return json.dumps({**asdict(self), "kind": self.kind}, sort_keys=True)  # type: ignore[call-overload]


@dataclass(frozen=True)
class NnUNetSpec(_Json):
    """An nnU-Net v2, plain or with residual encoder.

    Attributes:
        in_channels: channels of the input.
        classes: output channels: labels with background, or regions.
        widths: channels of each stage, finest first.
        strides: step into each stage.
        kernels: convolution kernel of each stage.
        encoder_blocks: convolutions (residual encoder: blocks of two) of each stage.
        decoder_blocks: convolutions of each stage on the way up, coarsest first.
        residual: residual encoder.
        stem: channels of a residual encoder's first convolution; 0 means the first of ``widths``.
        epsilon: added to the variance by instance norms.
        slope: of the LeakyReLU below zero; 0 is a ReLU.
        configuration: name in ``plans.json``, such as ``"3d_fullres"``.
        mirror_axes: spatial axes of the input that were mirrored in training and may be for averaging.
    """

    in_channels: int
    classes: int
    widths: tuple[int, ...]
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    residual: bool = False
    stem: int = 0
    epsilon: float = NORM_EPSILON
    slope: float = NEGATIVE_SLOPE
    configuration: str = "3d_fullres"
    mirror_axes: tuple[int, ...] = ()
    kind: str = field(default="nnunet", init=False)

    def __post_init__(self) -> None:
        for name in ("widths", "encoder_blocks", "decoder_blocks", "mirror_axes"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
        for name in ("strides", "kernels"):
            object.__setattr__(self, name, as_triples(getattr(self, name)))
        n = len(self.widths)
        lengths = [len(v) for v in (self.strides, self.kernels, self.encoder_blocks)]
        if lengths != [n] * 3 or len(self.decoder_blocks) != n - 1 or any(k % 2 == 0 for t in self.kernels for k in t):
            raise ModelError("The nnU-Net's plans contradict themselves.", "Install the model again.")

    @property
    def heads(self) -> Mapping[str, int]:
        """None: it answers per voxel."""
        return {}

    @property
    def stride(self) -> Triple:
        """Total stride."""
        x, y, z = np.prod(np.array(self.strides), axis=0)
        return int(x), int(y), int(z)

    def parameter_shapes(self) -> Shapes:
        """Name and shape of every parameter.  Biases before an instance norm are left out: it removes them."""
        shapes: Shapes = {}

        def block(name: str, n_in: int, n_out: int, kernel: Triple) -> None:
            shapes[f"{name}.conv.weight"] = (n_out, n_in, *kernel)
            shapes[f"{name}.norm.weight"] = shapes[f"{name}.norm.bias"] = (n_out,)

        n = self.in_channels
        if self.residual:
            n_stem = self.stem or self.widths[0]
            block("encoder.stem.convs.0", n, n_stem, self.kernels[0])
            n = n_stem
        for stage, (width, kernel) in enumerate(zip(self.widths, self.kernels, strict=True)):
            for k in range(self.encoder_blocks[stage]):
                name = self._name(stage, k)
                if self.residual:
                    block(f"{name}.conv1", n, width, kernel)
                    block(f"{name}.conv2", width, width, kernel)
                    if n != width:
                        block(f"{name}.skip.{int(self._step(stage, k) != ONE)}", n, width, ONE)
                else:
                    block(name, n, width, kernel)
                n = width
        for up, below in enumerate(range(len(self.widths) - 1, 0, -1)):
            width = self.widths[below - 1]
            shapes[f"decoder.transpconvs.{up}.weight"] = (self.widths[below], width, *self.strides[below])
            shapes[f"decoder.transpconvs.{up}.bias"] = (width,)
            for k in range(self.decoder_blocks[up]):
                block(f"decoder.stages.{up}.convs.{k}", width if k else 2 * width, width, self.kernels[below - 1])
        last = f"decoder.seg_layers.{len(self.widths) - 2}"
        shapes[f"{last}.weight"], shapes[f"{last}.bias"] = (self.classes, self.widths[0], *ONE), (self.classes,)
        return shapes

    def forward(self, ops: Ops[T], params: Mapping[str, T], x: T) -> T:
        """Logits (N, classes, X, Y, Z)."""

        def block(name: str, x: T, stride: Triple = ONE, rectify: bool = True) -> T:
            x = ops.conv(x, params[f"{name}.conv.weight"], None, stride)
            x = ops.instance_norm(x, params[f"{name}.norm.weight"], params[f"{name}.norm.bias"], self.epsilon)
            return ops.leaky_relu(x, self.slope) if rectify else x

        def residual(name: str, x: T, stride: Triple) -> T:
            y = block(f"{name}.conv2", block(f"{name}.conv1", x, stride), rectify=False)
            if stride != ONE:
                x = ops.average_pool(x, stride)
            skip = f"{name}.skip.{int(stride != ONE)}"
            if f"{skip}.conv.weight" in params:
                x = block(skip, x, rectify=False)
            return ops.leaky_relu(ops.join(y, x, "add"), self.slope)

        skips: list[T] = []
        if self.residual:
            x = block("encoder.stem.convs.0", x)
        for stage, blocks in enumerate(self.encoder_blocks):
            for k in range(blocks):
                x = (residual if self.residual else block)(self._name(stage, k), x, self._step(stage, k))
            skips.append(x)
        for up, below in enumerate(range(len(self.widths) - 1, 0, -1)):
            name = f"decoder.transpconvs.{up}"
            x = ops.conv_transpose(x, params[f"{name}.weight"], params[f"{name}.bias"], self.strides[below])
            x = ops.join(x, skips[below - 1], "concat")
            for k in range(self.decoder_blocks[up]):
                x = block(f"decoder.stages.{up}.convs.{k}", x)
        name = f"decoder.seg_layers.{len(self.widths) - 2}"
        return ops.conv(x, params[f"{name}.weight"], params[f"{name}.bias"], ONE)

    def _name(self, stage: int, k: int) -> str:
        return f"encoder.stages.{stage}.blocks.{k}" if self.residual else f"encoder.stages.{stage}.0.convs.{k}"

    def _step(self, stage: int, k: int) -> Triple:
        return ONE if k else self.strides[stage]


_KINDS: dict[str, type[Any]] = {"nnunet": NnUNetSpec}


def spec_from_json(text: str) -> Spec:
    """The description that a ``to_json`` wrote; :class:`~spineps.errors.ModelError` when it is none."""
    try:
        values = json.loads(text)
        if values["kind"] not in _KINDS:
            return NetSpec.from_json(text)
        return _KINDS[values.pop("kind")](**values)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"Network description cannot be read: {error}.", "Update spineps.") from error
