"""The network on OpenVINO: the default engine, fast on a plain CPU, no torch needed."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from spineps.inference.network import NEGATIVE_SLOPE, NORM_EPSILON, NetSpec, Triple, forward

#: Compiled networks kept per input shape; a scan needs one, a batch of odd scans a few.
SHAPES_KEPT = 4


class OpenVinoOps:
    """:class:`~spineps.inference.network.Ops` on graph nodes."""

    def conv(self, x: Any, weight: Any, bias: Any | None, stride: Triple) -> Any:
        half = [k // 2 for k in weight.get_output_shape(0)[2:]]
        y = opset.convolution(x, weight, list(stride), half, half, [1, 1, 1])
        return y if bias is None else opset.add(y, _per_channel(bias))

    def instance_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        axes = opset.constant(np.array([2, 3, 4], np.int64))
        y = opset.mvn(x, axes, True, NORM_EPSILON, "inside_sqrt")
        return opset.add(opset.multiply(y, _per_channel(weight)), _per_channel(bias))

    def leaky_relu(self, x: Any) -> Any:
        return opset.prelu(x, opset.constant(np.array([NEGATIVE_SLOPE], np.float32)))

    def upsample(self, x: Any, factors: Triple) -> Any:
        return opset.interpolate(
            x,
            opset.constant(np.array(factors, np.float32)),
            "nearest",
            "scales",
            axes=opset.constant(np.array([2, 3, 4], np.int64)),
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def join(self, x: Any, skip: Any, how: str) -> Any:
        return opset.add(x, skip) if how == "add" else opset.concat([x, skip], 1)

    def mean(self, x: Any) -> Any:
        return opset.reduce_mean(x, opset.constant(np.array([2, 3, 4], np.int64)), False)

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return opset.add(opset.matmul(x, weight, False, True), bias)


class OpenVinoNetwork:
    """A network ready to run; see :class:`~spineps.inference.engine.Network`.

    One graph is compiled per input shape: static shapes are faster and need less memory than a dynamic one.
    """

    def __init__(self, spec: NetSpec, params: Mapping[str, np.ndarray], threads: int | None = None) -> None:
        self.spec = spec
        self._params = dict(params)
        self._core = ov.Core()
        self._config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if count := threads or _threads_from_environment():
            self._config["INFERENCE_NUM_THREADS"] = count
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, x: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        request = self._request(x.shape)
        results = request.infer([np.ascontiguousarray(x, np.float32)], share_inputs=True)
        answers = list(results.values())
        if self.spec.kind == "classifier":
            return dict(zip(self.spec.heads, answers, strict=True))
        return answers[0]

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
        source = opset.parameter(list(shape), np.float32, "image")
        constants = {name: opset.constant(value) for name, value in self._params.items()}
        answer = forward(self.spec, OpenVinoOps(), constants, source)
        return ov.Model(list(answer.values()) if isinstance(answer, dict) else [answer], [source], "spineps")


def _per_channel(node: Any) -> Any:
    return opset.reshape(node, opset.constant(np.array([1, -1, 1, 1, 1], np.int64)), False)


def _threads_from_environment() -> int | None:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None
