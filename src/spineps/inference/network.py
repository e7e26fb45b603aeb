"""What a network is: a description, parameter shapes and ONE forward pass written against a handful of operations.

Every engine brings its own operations (:class:`Ops`), so that one file of weights serves OpenVINO, Torch inference and
Torch training, and no engine can drift from the others.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from spineps.errors import ModelError

#: Added to the variance by every normalisation, and slope of every LeakyReLU below zero (the nnU-Net defaults).
NORM_EPSILON, NEGATIVE_SLOPE = 1e-5, 0.01

#: Key under which a weights file keeps the description of its network.
SPEC_KEY = "__spec__"

Triple = tuple[int, int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class NetSpec:
    """Description of a network, as stored in its weights file.

    Attributes:
        kind: ``"unet"`` (a class per voxel) or ``"classifier"`` (a few answers per image).
        in_channels: channels of the input.
        classes: output channels of a U-Net.
        heads: answers of a classifier, name -> number of classes.
        widths: channels of each level, finest first.
        strides: step from the level above into each level; the first entry is the stem's.  () means 1, then 2 for all.
        kernels: convolution kernel of each level.  () means 3 in every direction.
        encoder_blocks: convolution blocks of each level.  () means one at the first level and two at the others.
        decoder_blocks: the same for the way up (all levels but the last).  () means the same as ``encoder_blocks``.
        skip: how a U-Net joins the two ways, ``"add"`` (fast) or ``"concat"``.
        ranges: lowest and highest value that goes into each convolution that 8 bits suffice for, in order of use (see
            :func:`coarse_enough`); () means that nobody has measured them, and 8 bits are not offered.
    """

    kind: str = "unet"
    in_channels: int = 1
    classes: int = 0
    heads: Mapping[str, int] = field(default_factory=dict)
    widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    strides: tuple[Triple, ...] = ()
    kernels: tuple[Triple, ...] = ()
    encoder_blocks: tuple[int, ...] = ()
    decoder_blocks: tuple[int, ...] = ()
    skip: str = "add"
    ranges: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        levels = len(self.widths)
        blocks = self.encoder_blocks or (1, *(2 for _ in range(levels - 1)))
        filled: dict[str, Any] = {
            "widths": tuple(self.widths),
            "strides": as_triples(self.strides) or ((1, 1, 1), *((2, 2, 2) for _ in range(levels - 1))),
            "kernels": as_triples(self.kernels) or tuple((3, 3, 3) for _ in range(levels)),
            "encoder_blocks": tuple(blocks),
            "decoder_blocks": tuple(self.decoder_blocks) or tuple(blocks[: levels - 1]),
            "heads": dict(self.heads),
            "ranges": tuple((float(low), float(high)) for low, high in self.ranges),
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        levels = len(self.widths)
        per_level = {"strides": levels, "kernels": levels, "encoder_blocks": levels, "decoder_blocks": levels - 1}
        wrong = [name for name, n in per_level.items() if len(getattr(self, name)) != n]
        if self.kind not in ("unet", "classifier"):
            wrong.append("kind")
        if self.skip not in ("add", "concat"):
            wrong.append("skip")
        if any(k % 2 == 0 for kernel in self.kernels for k in kernel):
            wrong.append("kernels (must be odd)")
        if (self.kind == "unet" and self.classes < 1) or (self.kind == "classifier" and not self.heads):
            wrong.append("classes" if self.kind == "unet" else "heads")
        if wrong:
            raise ModelError(
                f"Network description is not consistent: {', '.join(wrong)}.", "Correct the model's files."
            )

    @property
    def stride(self) -> Triple:
        """Total stride; spatial sizes of the input must be multiples of it."""
        x, y, z = np.prod(np.array(self.strides), axis=0)
        return int(x), int(y), int(z)

    def forward(self, ops: Ops[T], params: Mapping[str, T], x: T) -> T | dict[str, T]:
        """:func:`forward` of this network."""
        return forward(self, ops, params, x)

    def to_json(self) -> str:
        """One line of JSON from which :meth:`from_json` makes an equal description."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> NetSpec:
        """The description in ``text``; unknown keys raise :class:`~spineps.errors.ModelError`."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ModelError(f"Network description cannot be read: {error}.", "Update spineps.") from error


class Ops(Protocol[T]):
    """What an engine must be able to do.  Arrays are (N, C, X, Y, Z) unless said otherwise."""

    def conv(self, x: T, weight: T, bias: T | None, stride: Triple, padding: Triple | None = None) -> T:
        """Convolution with zero padding (None: half the kernel); ``weight`` is (out, in, kx, ky, kz)."""

    def even_conv(self, x: T, weight: T, bias: T) -> T:
        """:meth:`conv` of stride 1 for inputs of even length along the last axis."""

    def first_conv(self, x: T, weight: T, bias: T) -> T:
        """:meth:`even_conv` behind which a network may be cut: the answer is (N, X, Y, Z, C)."""

    def channels_first(self, x: T) -> T:
        """(N, X, Y, Z, C) to (N, C, X, Y, Z)."""

    def conv_transpose(self, x: T, weight: T, bias: T | None, stride: Triple, padding: Triple = (0, 0, 0)) -> T:
        """Transposed convolution whose result loses ``padding`` per side; ``weight`` is (in, out, kx, ky, kz)."""

    def instance_norm(self, x: T, weight: T, bias: T, epsilon: float = NORM_EPSILON) -> T:
        """Zero mean and unit variance per sample and channel, then scale and shift."""

    def group_norm(self, x: T, weight: T, bias: T, groups: int) -> T:
        """Zero mean and unit variance per sample and group of channels, then scale and shift per channel."""

    def scale_shift(self, x: T, scale: T, shift: T) -> T:
        """x * scale + shift per channel: what is left of a trained batch norm."""

    def leaky_relu(self, x: T, slope: float = NEGATIVE_SLOPE) -> T:
        """x where positive, else x * slope."""

    def max_pool(self, x: T, kernel: Triple, stride: Triple, padding: Triple) -> T:
        """Largest value under the kernel; incomplete windows at the far end are dropped."""

    def average_pool(self, x: T, kernel: Triple) -> T:
        """Mean of blocks of ``kernel`` voxels; incomplete blocks at the far end are dropped."""

    def halve(self, x: T) -> T:
        """x / 2."""

    def upsample(self, x: T, factors: Triple) -> T:
        """Every voxel repeated ``factors`` times (nearest neighbour)."""

    def join(self, x: T, skip: T, how: str) -> T:
        """Sum (``"add"``) or channel concatenation (``"concat"``)."""

    def mean(self, x: T) -> T:
        """Mean over space, (N, C)."""

    def linear(self, x: T, weight: T, bias: T) -> T:
        """(N, C) to (N, K) with ``weight`` (K, C)."""


class Spec(Protocol):
    """What an engine and a model must know of a network: its description and its forward pass."""

    @property
    def in_channels(self) -> int:
        """Channels of the input."""

    @property
    def classes(self) -> int:
        """Output channels; 0 for a classifier."""

    @property
    def heads(self) -> Mapping[str, int]:
        """Answers of a classifier, name -> number of classes; empty for all others."""

    @property
    def stride(self) -> Triple:
        """Spatial sizes of the input must be multiples of it."""

    def forward(self, ops: Ops[T], params: Mapping[str, T], x: T) -> T | dict[str, T]:
        """The network's answer to (N, C, X, Y, Z)."""

    def to_json(self) -> str:
        """The description as one line of JSON."""


def forward(spec: NetSpec, ops: Ops[T], params: Mapping[str, T], x: T) -> T | dict[str, T]:
    """The network's answer.

    Args:
        spec: which network.
        ops: the engine's operations.
        params: the engine's parameters, named as in :func:`parameter_shapes`.
        x: (N, C, X, Y, Z), spatial sizes multiples of ``spec.stride``.

    Returns:
        Logits (N, classes, X, Y, Z) for a U-Net, {head: logits (N, k)} for a classifier.
    """
    skips: list[T] = []
    for level, blocks in enumerate(spec.encoder_blocks):
        for block in range(blocks):
            stride = spec.strides[level] if block == 0 else (1, 1, 1)
            x = _block(ops, params, f"enc{level}.{block}", x, stride)
        skips.append(x)
    if spec.kind == "classifier":
        pooled = ops.mean(x)
        return {h: ops.linear(pooled, params[f"head.{h}.weight"], params[f"head.{h}.bias"]) for h in spec.heads}
    for level in range(len(spec.widths) - 2, -1, -1):
        x = ops.conv(x, params[f"up{level}.weight"], params[f"up{level}.bias"], (1, 1, 1))
        x = ops.join(ops.upsample(x, spec.strides[level + 1]), skips[level], spec.skip)
        for block in range(spec.decoder_blocks[level]):
            x = _block(ops, params, f"dec{level}.{block}", x, (1, 1, 1))
    x = ops.conv(x, params["out.weight"], params["out.bias"], (1, 1, 1))
    # The stem may itself be strided (thick inputs): its answer is given at the input's size.
    return x if spec.strides[0] == (1, 1, 1) else ops.upsample(x, spec.strides[0])


def parameter_shapes(spec: NetSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order in which the network uses them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def block(name: str, n_in: int, n_out: int, kernel: Triple) -> None:
        shapes[f"{name}.conv.weight"] = (n_out, n_in, *kernel)
        shapes[f"{name}.norm.weight"] = (n_out,)
        shapes[f"{name}.norm.bias"] = (n_out,)

    n = spec.in_channels
    for level, width in enumerate(spec.widths):
        for k in range(spec.encoder_blocks[level]):
            block(f"enc{level}.{k}", n, width, spec.kernels[level])
            n = width
    if spec.kind == "classifier":
        for head, k in spec.heads.items():
            shapes[f"head.{head}.weight"], shapes[f"head.{head}.bias"] = (k, n), (k,)
        return shapes
    for level in range(len(spec.widths) - 2, -1, -1):
        width = spec.widths[level]
        shapes[f"up{level}.weight"], shapes[f"up{level}.bias"] = (width, n, 1, 1, 1), (width,)
        n = 2 * width if spec.skip == "concat" else width
        for k in range(spec.decoder_blocks[level]):
            block(f"dec{level}.{k}", n, width, spec.kernels[level])
            n = width
    shapes["out.weight"], shapes["out.bias"] = (spec.classes, n, 1, 1, 1), (spec.classes,)
    return shapes


def coarse_enough(kernel: tuple[int, ...]) -> bool:
    """Whether 8 bits do for a convolution with a kernel of this shape: not for the image, nor where channels are mixed.

    With the 1x1x1 convolutions in 8 bits, too, structures agreed with those of float32 to .89 (Dice), without to .97.
    """
    return len(kernel) == 5 and kernel[1] > 1 and kernel[2:] != (1, 1, 1)


def initial_parameters(spec: NetSpec, seed: int) -> dict[str, np.ndarray]:
    """Fresh float32 weights: He-normal for LeakyReLU convolutions, ones and zeros for norms and biases."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in parameter_shapes(spec).items():
        if len(shape) == 1:
            value = np.full(shape, 1.0 if name.endswith("norm.weight") else 0.0, np.float32)
        else:
            gain = np.sqrt(2 / (1 + NEGATIVE_SLOPE**2)) if len(shape) == 5 else 1.0
            value = (rng.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        params[name] = value
    return params


def save_weights(path: Path, spec: NetSpec, params: Mapping[str, np.ndarray]) -> None:
    """Write description and float16 weights as one compressed ``.npz`` (same input, same bytes)."""
    arrays: dict[str, Any] = {SPEC_KEY: np.array(spec.to_json())}
    arrays |= {name: np.asarray(params[name], np.float16) for name in parameter_shapes(spec)}
    np.savez_compressed(path, **arrays)


def load_weights(path: Path) -> tuple[NetSpec, dict[str, np.ndarray]]:
    """Description and float32 weights of a file written by :func:`save_weights`; nothing in it is ever executed.

    Raises:
        ModelError: the file is missing, damaged, or does not fit its own description.
    """
    cure = "Install the model again."
    try:
        with np.load(path, allow_pickle=False) as stored:
            spec = NetSpec.from_json(str(stored[SPEC_KEY]))
            params = {name: stored[name].astype(np.float32) for name in parameter_shapes(spec)}
    except FileNotFoundError as error:
        raise ModelError(f"Weights file {path} does not exist.", cure) from error
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"Weights file {path} is damaged: {error}.", cure) from error
    wrong = [name for name, shape in parameter_shapes(spec).items() if params[name].shape != shape]
    if wrong:
        raise ModelError(f"Weights file {path} does not fit its description: {', '.join(wrong[:3])}.", cure)
    return spec, params


def _block(ops: Ops[T], params: Mapping[str, T], name: str, x: T, stride: Triple) -> T:
    x = ops.conv(x, params[f"{name}.conv.weight"], None, stride)
    return ops.leaky_relu(ops.instance_norm(x, params[f"{name}.norm.weight"], params[f"{name}.norm.bias"]))


def as_triples(values: Any) -> tuple[Triple, ...]:
    """Rows of three numbers as tuples of int."""
    return tuple((int(v[0]), int(v[1]), int(v[2])) for v in values)
