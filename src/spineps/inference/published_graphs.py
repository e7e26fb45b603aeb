"""The networks of published checkpoints, written against :class:`~spineps.inference.network.Ops`.

Parameters keep the names of their checkpoints, so that a missing one can be named; readers are in
:mod:`spineps.models.checkpoints`.  Layouts: SPINEPS 2.1.3, dynamic-network-architectures 0.4, MONAI 1.5, read off their
state dictionaries and checked against recorded answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from spineps.errors import ModelError
from spineps.inference.network import NEGATIVE_SLOPE, NORM_EPSILON, NetSpec, Ops, Spec, Triple, as_triples

T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]

ONE: Triple = (1, 1, 1)
TWO: Triple = (2, 2, 2)
#: Groups of channels that the published U-Net normalises together.
GROUPS = 8


class _Json:
    """The JSON form that :func:`spec_from_json` reads."""

    def to_json(self) -> str:
        """One line of JSON from which :func:`spec_from_json` makes an equal description."""
        return json.dumps(asdict(self))  # type: ignore[call-overload]


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


@dataclass(frozen=True)
class ResUNetSpec(_Json):
    """The U-Net of published instance models: residual blocks with group norms, skips averaged.

    Attributes:
        in_channels: channels of the input: labels one-hot, or one channel.
        classes: output channels.
        dim: channels after the first convolution and before the last.
        widths: channels of each level, finest first.
        part: ``"first"`` layer or ``"rest"`` (see :func:`parts`); "" is the whole.
    """

    in_channels: int
    classes: int
    dim: int
    widths: tuple[int, ...]
    part: str = ""
    kind: str = field(default="resunet", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(int(w) for w in self.widths))

    @property
    def heads(self) -> Mapping[str, int]:
        """None: it answers per voxel."""
        return {}

    @property
    def stride(self) -> Triple:
        """Total stride."""
        step = 2 ** (len(self.widths) - 1)
        return step, step, step

    def _ways(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(in, out) of the levels on the way down, and on the way up."""
        down = list(zip((self.dim, *self.widths[:-1]), self.widths, strict=True))
        return down, [(n_out, n_in) for n_in, n_out in reversed(down)]

    def parameter_shapes(self) -> Shapes:
        """Name and shape of every parameter."""
        shapes: Shapes = {}

        def conv(name: str, n_in: int, n_out: int, size: int) -> None:
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (n_out, n_in, size, size, size), (n_out,)

        def block(name: str, n_in: int, n_out: int) -> None:
            for k, n in ((1, n_in), (2, n_out)):
                conv(f"{name}.block{k}.proj", n, n_out, 3)
                shapes[f"{name}.block{k}.norm.weight"] = shapes[f"{name}.block{k}.norm.bias"] = (n_out,)
            if n_in != n_out:
                conv(f"{name}.res_conv", n_in, n_out, 1)

        conv("init_conv", self.in_channels, self.dim, 7)
        deepest = self.widths[-1]
        for way, levels in zip(("downs", "ups"), self._ways(), strict=True):
            for k, (n_in, n_out) in enumerate(levels):
                block(f"{way}.{k}.0", n_in, n_out)
                block(f"{way}.{k}.1", n_out, n_out)
                if k < len(levels) - 1:
                    conv(f"{way}.{k}.2", n_out, n_out, 4)
        block("mid_block1", deepest, deepest)
        block("mid_block2", deepest, deepest)
        block("final_res_block", 2 * self.dim, self.dim)
        conv("final_conv", self.dim, self.classes, 1)
        return shapes

    def forward(self, ops: Ops[T], params: Mapping[str, T], x: T) -> T:
        """Logits (N, classes, X, Y, Z).

        The first layer alone answers (N, X, Y, Z, dim), and that is what the rest is given.
        """
        if self.part != "rest":
            x = ops.first_conv(x, params["init_conv.weight"], params["init_conv.bias"])
        if self.part == "first":
            return x

        def conv(name: str, x: T, stride: Triple = ONE, padding: Triple | None = None) -> T:
            return ops.conv(x, params[f"{name}.weight"], params[f"{name}.bias"], stride, padding)

        def block(name: str, x: T, level: int) -> T:
            # Sizes are multiples of the total stride, so even above the deepest level.
            same = ops.even_conv if level < last else partial(ops.conv, stride=ONE)
            y = x
            for half in (f"{name}.block1", f"{name}.block2"):
                norm = params[f"{half}.norm.weight"], params[f"{half}.norm.bias"]
                y = same(y, params[f"{half}.proj.weight"], params[f"{half}.proj.bias"])
                y = ops.leaky_relu(ops.group_norm(y, *norm, GROUPS))
            return ops.join(y, conv(f"{name}.res_conv", x) if f"{name}.res_conv.weight" in params else x, "add")

        first = x = ops.channels_first(x)
        skips: list[T] = []
        last = len(self.widths) - 1
        for k in range(last + 1):
            x = block(f"downs.{k}.1", block(f"downs.{k}.0", x, k), k)
            skips.append(x)
            if k < last:
                x = conv(f"downs.{k}.2", x, TWO, ONE)
        x = block("mid_block2", block("mid_block1", x, last), last)
        for k in range(last + 1):
            x = ops.halve(ops.join(x, skips.pop(), "add"))
            x = block(f"ups.{k}.1", block(f"ups.{k}.0", x, last - k), last - k)
            if k < last:
                x = ops.conv_transpose(x, params[f"ups.{k}.2.weight"], params[f"ups.{k}.2.bias"], TWO, ONE)
        return conv("final_conv", block("final_res_block", ops.join(x, first, "concat"), 0))


@dataclass(frozen=True)
class DenseNetSpec(_Json):
    """The DenseNet classifier of published labelling models.

    Attributes:
        in_channels: channels of the input.
        init_features: channels after the first convolution.
        growth: channels that a dense layer adds.
        bottleneck: channels inside a dense layer.
        blocks: dense layers of each block.
        heads: answers, name -> number of classes.
        layers: per head, the numbers of its linear layers in the checkpoint; (-1,) is a head that is one layer.
        hidden: per head, channels between its linear layers.
        final_size: voxels of one vertebra's image.
        ds_name: data set that it was trained on ("v4corpus" in it: vertebrae are turned upright first).
        backbone: name in the checkpoint.
    """

    in_channels: int
    init_features: int
    growth: int
    bottleneck: int
    blocks: tuple[int, ...]
    heads: Mapping[str, int]
    layers: Mapping[str, tuple[int, ...]]
    hidden: Mapping[str, tuple[int, ...]]
    final_size: tuple[int, ...] = (152, 168, 32)
    ds_name: str = ""
    backbone: str = "DENSENET169"
    kind: str = field(default="densenet", init=False)
    classes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name in ("blocks", "final_size"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
        for name in ("layers", "hidden"):
            object.__setattr__(self, name, {k: tuple(int(v) for v in row) for k, row in getattr(self, name).items()})
        object.__setattr__(self, "heads", dict(self.heads))

    @property
    def stride(self) -> Triple:
        """Any size will do; appended voxels would change the answer."""
        return ONE

    def parameter_shapes(self) -> Shapes:
        """Name and shape of every parameter; norms are scales and shifts, or lie in the convolution before them."""
        shapes: Shapes = {}

        def conv(name: str, n_in: int, n_out: int, size: int, bias: bool = False) -> None:
            shapes[f"{name}.weight"] = (n_out, n_in, size, size, size)
            if bias:
                shapes[f"{name}.bias"] = (n_out,)

        def norm(name: str, n: int) -> None:
            shapes[f"{name}.scale"] = shapes[f"{name}.shift"] = (n,)

        n = self.init_features
        conv("conv0", self.in_channels, n, 7, bias=True)
        for b, count in enumerate(self.blocks, 1):
            for k in range(1, count + 1):
                layer = f"denseblock{b}.denselayer{k}.layers"
                norm(f"{layer}.norm1", n)
                conv(f"{layer}.conv1", n, self.bottleneck, 1, bias=True)
                conv(f"{layer}.conv2", self.bottleneck, self.growth, 3)
                n += self.growth
            if b < len(self.blocks):
                norm(f"transition{b}.norm", n)
                conv(f"transition{b}.conv", n, n // 2, 1)
                n //= 2
        norm("norm5", n)
        for head in self.heads:
            sizes = (n, *self.hidden[head], self.heads[head])
            for name, n_in, n_out in zip(self._linear(head), sizes, sizes[1:], strict=False):
                shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (n_out, n_in), (n_out,)
        return shapes

    def forward(self, ops: Ops[T], params: Mapping[str, T], x: T) -> dict[str, T]:
        """{head: logits (N, k)}."""

        def relu(norm: str, x: T) -> T:
            return ops.leaky_relu(ops.scale_shift(x, params[f"{norm}.scale"], params[f"{norm}.shift"]), 0.0)

        x = ops.conv(x, params["conv0.weight"], params["conv0.bias"], TWO)
        x = ops.max_pool(ops.leaky_relu(x, 0.0), (3, 3, 3), TWO, ONE)
        for b, count in enumerate(self.blocks, 1):
            for k in range(1, count + 1):
                layer = f"denseblock{b}.denselayer{k}.layers"
                y = relu(f"{layer}.norm1", x)
                y = ops.conv(y, params[f"{layer}.conv1.weight"], params[f"{layer}.conv1.bias"], ONE)
                y = ops.conv(ops.leaky_relu(y, 0.0), params[f"{layer}.conv2.weight"], None, ONE)
                x = ops.join(x, y, "concat")
            if b < len(self.blocks):
                y = ops.conv(relu(f"transition{b}.norm", x), params[f"transition{b}.conv.weight"], None, ONE)
                x = ops.average_pool(y, TWO)
        pooled = ops.mean(relu("norm5", x))
        answers = {}
        for head in self.heads:
            y = pooled
            for k, name in enumerate(self._linear(head)):
                y = ops.linear(ops.leaky_relu(y, 0.0) if k else y, params[f"{name}.weight"], params[f"{name}.bias"])
            answers[head] = y
        return answers

    def _linear(self, head: str) -> list[str]:
        return [f"classification_heads.{head}" + (f".{k}" if k >= 0 else "") for k in self.layers[head]]


def parts(spec: Spec) -> tuple[Spec, Spec] | None:
    """The first layer and the rest of a network that sees labels one-hot; None for all others."""
    if not isinstance(spec, ResUNetSpec) or spec.in_channels == 1:
        return None
    return replace(spec, part="first"), replace(spec, part="rest")


_KINDS: dict[str, type[Any]] = {"nnunet": NnUNetSpec, "resunet": ResUNetSpec, "densenet": DenseNetSpec}


def spec_from_json(text: str) -> Spec:
    """The description that a ``to_json`` wrote; :class:`~spineps.errors.ModelError` when it is none."""
    try:
        values = json.loads(text)
        if values["kind"] not in _KINDS:
            return NetSpec.from_json(text)
        kind = _KINDS[values.pop("kind")]
        return kind(**{f.name: values.pop(f.name) for f in fields(kind) if f.init})
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"Network description cannot be read: {error}.", "Update spineps.") from error
