"""The network on OpenVINO: the default engine, fast on a plain CPU, no torch needed."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from spineps.inference.network import NEGATIVE_SLOPE, NORM_EPSILON, Spec, Triple, coarse_enough

logger = logging.getLogger(__name__)

#: Compiled networks kept per input shape; a scan needs one, a batch of odd scans a few.
SHAPES_KEPT = 4
#: Name in a graph of the answer behind which it may be cut.
FIRST_LAYER = "first layer"


class OpenVinoOps:
    """:class:`~spineps.inference.network.Ops` on graph nodes."""

    def conv(self, x: Any, weight: Any, bias: Any | None, stride: Triple, padding: Triple | None = None) -> Any:
        pads = list(padding) if padding else [k // 2 for k in weight.get_output_shape(0)[2:]]
        y = opset.convolution(x, weight, list(stride), pads, pads, [1, 1, 1])
        return y if bias is None else opset.add(y, _per_channel(bias))

    def even_conv(self, x: Any, weight: Any, bias: Any) -> Any:
        return self.channels_first(self._channels_last(x, weight, bias))

    def first_conv(self, x: Any, weight: Any, bias: Any) -> Any:
        y = self._channels_last(x, weight, bias)
        y.set_friendly_name(FIRST_LAYER)
        return y

    def _channels_last(self, x: Any, weight: Any, bias: Any) -> Any:
        kernel: np.ndarray = weight.data
        n = len(kernel)
        if n > 8:
            return opset.transpose(self.conv(x, weight, bias, (1, 1, 1)), _integers([0, 2, 3, 4, 1]))
        # Eight channels fill half of a processor's vector.  Two neighbours along the last axis, computed at once as
        # sixteen channels, are 1.8 times as fast (7x7x7, 11 channels; 1.4 times 3x3x3; AVX-512, measured) and equal to
        # the last bit.
        pair = np.zeros((2 * n, *kernel.shape[1:-1], kernel.shape[-1] + 1), np.float32)
        pair[:n, ..., :-1], pair[n:, ..., 1:] = kernel, kernel
        half = [k // 2 for k in kernel.shape[2:]]
        y = opset.convolution(x, opset.constant(pair), [1, 1, 2], half, half, [1, 1, 1])
        y = opset.add(y, _per_channel(opset.concat([bias, bias], 0)))
        # With the channels last, which is how the processor has them, pairs are parted without moving a number.
        y = opset.transpose(y, _integers([0, 2, 3, 4, 1]))
        return opset.reshape(y, _integers([0, 0, 0, -1, n]), True)

    def channels_first(self, x: Any) -> Any:
        return opset.transpose(x, _integers([0, 4, 1, 2, 3]))

    def conv_transpose(self, x: Any, weight: Any, bias: Any | None, stride: Triple, padding: Triple = (0, 0, 0)) -> Any:
        pads = list(padding)
        y = opset.convolution_backprop_data(x, weight, list(stride), None, pads, pads, [1, 1, 1])
        return y if bias is None else opset.add(y, _per_channel(bias))

    def instance_norm(self, x: Any, weight: Any, bias: Any, epsilon: float = NORM_EPSILON) -> Any:
        axes = _integers([2, 3, 4])
        return self.scale_shift(opset.mvn(x, axes, True, epsilon, "inside_sqrt"), weight, bias)

    def group_norm(self, x: Any, weight: Any, bias: Any, groups: int) -> Any:
        return opset.group_normalization(x, weight, bias, groups, NORM_EPSILON)

    def scale_shift(self, x: Any, scale: Any, shift: Any) -> Any:
        return opset.add(opset.multiply(x, _per_channel(scale)), _per_channel(shift))

    def leaky_relu(self, x: Any, slope: float = NEGATIVE_SLOPE) -> Any:
        return opset.prelu(x, opset.constant(np.array([slope], np.float32))) if slope else opset.relu(x)

    def max_pool(self, x: Any, kernel: Triple, stride: Triple, padding: Triple) -> Any:
        pads = list(padding)
        return opset.max_pool(x, list(stride), [1, 1, 1], pads, pads, list(kernel)).output(0)

    def average_pool(self, x: Any, kernel: Triple) -> Any:
        return opset.avg_pool(x, list(kernel), [0, 0, 0], [0, 0, 0], list(kernel), True)

    def halve(self, x: Any) -> Any:
        return opset.multiply(x, opset.constant(np.float32(0.5)))

    def upsample(self, x: Any, factors: Triple) -> Any:
        return opset.interpolate(
            x,
            opset.constant(np.array(factors, np.float32)),
            "nearest",
            "scales",
            axes=_integers([2, 3, 4]),
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def join(self, x: Any, skip: Any, how: str) -> Any:
        return opset.add(x, skip) if how == "add" else opset.concat([x, skip], 1)

    def mean(self, x: Any) -> Any:
        return opset.reduce_mean(x, _integers([2, 3, 4]), False)

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return opset.add(opset.matmul(x, weight, False, True), bias)


class EightBitOps(OpenVinoOps):
    """Convolutions over 8-bit numbers where those suffice: half of float32's time on a processor without bfloat16."""

    def __init__(self, ranges: Iterable[tuple[float, float]]) -> None:
        """Args: ``ranges`` of :class:`~spineps.inference.network.NetSpec`."""
        self._ranges = iter(ranges)

    def conv(self, x: Any, weight: Any, bias: Any | None, stride: Triple, padding: Triple | None = None) -> Any:
        if coarse_enough(tuple(weight.get_output_shape(0))):
            low, high = next(self._ranges)
            # Zero, which padding brings, must be one of the 256 levels.
            step = (max(high, 0.0) - min(low, 0.0)) / 255
            below = round(-min(low, 0.0) / step)
            x = _rounded(x, np.float32(-below * step), np.float32((255 - below) * step), 256)
            # Seven bits: without VNNI a processor's sums of two products have sixteen.
            most = 2 * np.abs(weight.data).max(axis=(1, 2, 3, 4), keepdims=True)
            weight = _rounded(weight, -most, most, 255)
        return super().conv(x, weight, bias, stride, padding)


class OpenVinoNetwork:
    """A network ready to run; see :class:`~spineps.inference.engine.Network`.

    One graph is compiled per input shape: static shapes are faster and need less memory than a dynamic one.
    """

    def __init__(
        self,
        spec: Spec,
        source: Mapping[str, np.ndarray] | Path,
        threads: int | None = None,
        precision: str = "f32",
    ) -> None:
        """Args: ``source`` is parameters by name or a file of :func:`save_graph`.

        ``precision`` is bf16, int8, f32, or auto: the first of these that processor and network can.
        """
        self.spec = spec
        self._source = source
        self._core = ov.Core()
        able = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not able:
            logger.warning("This processor has no bfloat16: float32 is used.")
        # The ranges of a network are those of its whole, and of the processors that OpenVINO runs on all can int8.
        self._ranges = getattr(spec, "ranges", ())
        if precision in ("auto", "bf16"):
            precision = "bf16" if able else "int8" if precision == "auto" and self._ranges else "f32"
        elif precision == "int8" and not self._ranges:
            precision = "f32"
        self._ranges = self._ranges if precision == "int8" else ()
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if count := threads or _threads_from_environment():
            self._config["INFERENCE_NUM_THREADS"] = count
        used = f"{count} thread{'s' if count > 1 else ''}" if count else "all cores"
        version = ".".join(ov.__version__.split(".")[:2])
        self.device_name = f"CPU (OpenVINO {version}, {used}, {precision})"
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, x: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        request = self._request(x.shape)
        results = request.infer([np.ascontiguousarray(x, np.float32)], share_inputs=True)
        answers = list(results.values())
        if self.spec.heads:
            return dict(zip(self.spec.heads, answers, strict=True))
        return answers[0]

    def with_spec(self, spec: Spec) -> OpenVinoNetwork:
        """Another description of the same weights."""
        other = copy(self)
        other.spec, other._compiled = spec, OrderedDict()
        return other

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape in self._compiled:
            self._compiled.move_to_end(shape)
            return self._compiled[shape]
        while len(self._compiled) >= SHAPES_KEPT:
            self._compiled.popitem(last=False)
        compiled = self._core.compile_model(self._graph(shape), "CPU", self._config)
        self._compiled[shape] = compiled.create_infer_request()
        return self._compiled[shape]

    def _graph(self, shape: tuple[int, ...]) -> Any:
        if isinstance(self._source, Path):
            # The weights stay in the file and are mapped, not read.
            graph = _part(self._core.read_model(self._source), getattr(self.spec, "part", ""))
            graph.reshape(list(shape))
            return graph
        return _graph(self.spec, self._source, shape, self._ranges)


def save_graph(spec: Spec, params: Mapping[str, np.ndarray], file: Path) -> None:
    """The network as OpenVINO's pair of files (``file`` is the .xml), float32, for any number and size of images."""
    ov.save_model(_graph(spec, params, (-1, spec.in_channels, -1, -1, -1)), file, compress_to_fp16=False)


def _graph(
    spec: Spec, params: Mapping[str, np.ndarray], shape: tuple[int, ...], ranges: Sequence[tuple[float, float]] = ()
) -> Any:
    source = opset.parameter(list(shape), np.float32, "image")
    constants = {name: opset.constant(value) for name, value in params.items()}
    answer = spec.forward(EightBitOps(ranges) if ranges else OpenVinoOps(), constants, source)
    return ov.Model(list(answer.values()) if isinstance(answer, dict) else [answer], [source], "spineps")


def _part(graph: Any, part: str) -> Any:
    """The graph up to the answer of its first layer, or from there on; see :func:`~.published_graphs.parts`."""
    if not part:
        return graph
    (layer,) = (op for op in graph.get_ops() if op.get_friendly_name() == FIRST_LAYER)
    if part == "first":
        return ov.Model([layer], graph.get_parameters(), "spineps")
    source = opset.parameter(layer.get_output_partial_shape(0), np.float32, "image")
    for entry in layer.output(0).get_target_inputs():
        entry.replace_source_output(source.output(0))
    return ov.Model(graph.get_results(), [source], "spineps")


def _rounded(x: Any, low: Any, high: Any, levels: int) -> Any:
    ends = opset.constant(low), opset.constant(high)
    return opset.fake_quantize(x, *ends, *ends, levels)


def _per_channel(node: Any) -> Any:
    return opset.reshape(node, _integers([1, -1, 1, 1, 1]), False)


def _integers(values: int | list[int]) -> Any:
    return opset.constant(np.array(values, np.int64))


def _threads_from_environment() -> int | None:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None
