"""One network, several engines: all must give the same answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spineps.errors import ModelError, OptionError
from spineps.inference.engine import load_network
from spineps.inference.network import (
    NetSpec,
    initial_parameters,
    load_weights,
    parameter_shapes,
    save_weights,
)
from spineps.inference.openvino_engine import OpenVinoNetwork
from spineps.inference.sliding import softmax
from spineps.models.registry import BUNDLED

SMALL = NetSpec(kind="unet", classes=5, widths=(4, 6, 8))
SPECS = {
    "plain": SMALL,
    "concat": replace(SMALL, skip="concat"),
    "anisotropic": NetSpec(
        kind="unet",
        in_channels=2,
        classes=3,
        widths=(4, 6, 8),
        strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        kernels=((3, 3, 1), (3, 3, 3), (3, 3, 3)),
    ),
    "strided stem": NetSpec(kind="unet", classes=3, widths=(4, 6), strides=((2, 2, 1), (2, 2, 2))),
    "classifier": NetSpec(kind="classifier", heads={"level": 24, "region": 3}, widths=(4, 6, 8)),
}


def inputs(spec: NetSpec, n: int = 2) -> np.ndarray:
    shape = [3 * s if s > 1 else 5 for s in spec.stride]
    return np.random.default_rng(1).standard_normal((n, spec.in_channels, *shape)).astype(np.float32)


def wild_parameters(spec: NetSpec) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {k: v + rng.normal(0, 0.1, v.shape).astype(np.float32) for k, v in initial_parameters(spec, 0).items()}


def probabilities(answer: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
    if isinstance(answer, dict):
        return np.concatenate([softmax(v, 1) for v in answer.values()], axis=1)
    return softmax(answer, 1)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_engines_agree(spec: NetSpec) -> None:
    pytest.importorskip("torch")
    from spineps.inference.torch_engine import TorchNetwork

    params, x = wild_parameters(spec), inputs(spec)
    one = OpenVinoNetwork(spec, params, threads=1)(x)
    two = TorchNetwork(spec, params, device="cpu")(x)
    assert np.abs(probabilities(one) - probabilities(two)).max() < 1e-3


def test_engines_agree_on_the_bundled_weights() -> None:
    pytest.importorskip("torch")
    x = np.random.default_rng(3).standard_normal((1, 1, 32, 48, 16)).astype(np.float32)
    folder = BUNDLED / "semantic"
    one = load_network(folder, "openvino", threads=1, precision="f32")(x)
    two = load_network(folder, "torch", device="cpu")(x)
    assert np.abs(probabilities(one) - probabilities(two)).max() < 1e-3


def test_unet_matches_its_written_out_torch_twin() -> None:
    """The graph of the architecture "unet", spelled out with torch modules (so that older weights can be converted)."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    from spineps.inference.torch_engine import TorchNetwork

    params = wild_parameters(SMALL)
    w = {k: torch.from_numpy(v) for k, v in params.items()}
    x = torch.from_numpy(inputs(SMALL))

    def block(y, name, stride=1):
        y = F.conv3d(y, w[f"{name}.conv.weight"], None, stride, 1)
        y = F.instance_norm(y, weight=w[f"{name}.norm.weight"], bias=w[f"{name}.norm.bias"])
        return F.leaky_relu(y, 0.01)

    def up(y, level):
        return F.interpolate(F.conv3d(y, w[f"up{level}.weight"], w[f"up{level}.bias"]), scale_factor=2)

    a = block(x, "enc0.0")
    b = block(block(a, "enc1.0", 2), "enc1.1")
    c = block(block(b, "enc2.0", 2), "enc2.1")
    y = block(block(up(c, 1) + b, "dec1.0"), "dec1.1")
    y = block(up(y, 0) + a, "dec0.0")
    y = F.conv3d(y, w["out.weight"], w["out.bias"])
    mine = TorchNetwork(SMALL, params, device="cpu")(x.numpy())
    np.testing.assert_allclose(mine, y.numpy(), atol=1e-5)


def test_weights_survive_the_file(tmp_path) -> None:
    spec = SPECS["anisotropic"]
    params = wild_parameters(spec)
    save_weights(tmp_path / "weights.npz", spec, params)
    again, loaded = load_weights(tmp_path / "weights.npz")
    assert again == spec and list(loaded) == list(parameter_shapes(spec))
    for name, value in params.items():
        np.testing.assert_array_equal(loaded[name], value.astype(np.float16).astype(np.float32))
    save_weights(tmp_path / "again.npz", spec, params)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "weights.npz").read_bytes()


@pytest.mark.parametrize("harm", ["missing", "truncated", "text", "reshaped"])
def test_damaged_weights_say_so(tmp_path, harm: str) -> None:
    file = tmp_path / "weights.npz"
    params = initial_parameters(SMALL, 0)
    if harm == "reshaped":
        params["out.bias"] = np.zeros(7, np.float32)
    if harm != "missing":
        save_weights(file, SMALL, params)
    if harm == "truncated":
        file.write_bytes(file.read_bytes()[:500])
    if harm == "text":
        file.write_text("no weights")
    with pytest.raises(ModelError, match=r"weights\.npz"):
        load_weights(file)


@pytest.mark.parametrize(
    "wrong", [{"kind": "tree"}, {"classes": 0}, {"kernels": ((2, 2, 2),) * 3}, {"strides": ((1, 1, 1),)}]
)
def test_inconsistent_descriptions_are_refused(wrong: dict) -> None:
    with pytest.raises(ModelError):
        replace(SMALL, **wrong)


def test_unknown_engine() -> None:
    with pytest.raises(OptionError, match="openvino"):
        load_network(BUNDLED / "semantic", "abacus")


def test_openvino_keeps_few_shapes() -> None:
    network = OpenVinoNetwork(SMALL, initial_parameters(SMALL, 0), threads=1)
    for n in range(1, 8):
        assert network(np.zeros((1, 1, 4 * n, 4, 4), np.float32)).shape == (1, 5, 4 * n, 4, 4)
    assert len(network._compiled) == 4
