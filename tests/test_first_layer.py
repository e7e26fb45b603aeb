"""The first layer of published instance networks: the short way says what the long way says."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spineps.inference.engine import Network
from spineps.inference.first_layer import Cutouts, Scan, first_layer
from spineps.inference.openvino_engine import OpenVinoNetwork, save_graph
from spineps.inference.published_graphs import ResUNetSpec, parts
from spineps.models.model import InstanceModel, one_hot
from spineps.phases.instance import _cutout

ENGINES = [pytest.param("torch", marks=pytest.mark.torch), "openvino"]
SIZE = (16, 24, 8)


@cache
def networks(engine: str, channels: int = 11, dim: int = 8) -> tuple[Network, Network, Network]:
    """A whole network, its first layer and the rest, drawn by chance."""
    spec = ResUNetSpec(channels, 4, dim, (8, 16))
    rng = np.random.default_rng(0)
    params = {
        name: (rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape) if len(shape) > 1 else rng.normal(1, 0.2, shape))
        for name, shape in spec.parameter_shapes().items()
    }
    params = {name: value.astype(np.float32) for name, value in params.items()}
    if engine == "torch":
        pytest.importorskip("torch")
        from spineps.inference.torch_engine import TorchNetwork

        whole: Network = TorchNetwork(spec, params, "cpu", 1)
    else:
        whole = OpenVinoNetwork(spec, params, 1)
    both = parts(spec)
    assert both is not None
    return whole, whole.with_spec(both[0]), whole.with_spec(both[1])


@st.composite
def scans(draw: st.DrawFn) -> np.ndarray:
    """Labels in a box anywhere in a scan, up to its faces: nothing, a voxel, or everything."""
    shape = draw(st.tuples(st.integers(5, 24), st.integers(5, 70), st.integers(3, 12)))
    scan = np.zeros(shape, np.uint8)
    sides = []
    for n in shape:
        a, b = sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))
        sides.append(draw(st.sampled_from([slice(a, b), slice(0, n), slice(a, a + 1)])))
    part = scan[tuple(sides)]
    part[...] = np.random.default_rng(draw(st.integers(0, 9))).integers(0, draw(st.integers(1, 13)), part.shape)
    return scan


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=25, deadline=None)
@given(scan=scans(), start=st.tuples(st.integers(-9, 12), st.integers(-9, 50), st.integers(-5, 6)))
def test_the_short_way_is_exact(engine: str, scan: np.ndarray, start: tuple[int, int, int]) -> None:
    _, first, _ = networks(engine)
    x, y, z = (min(s, n - 1) for s, n in zip(start, scan.shape, strict=True))
    start = (x, y, z)
    cutout = _cutout(scan, start, SIZE)
    wanted = first(one_hot(cutout[None], 11))
    assert isinstance(wanted, np.ndarray)
    seen = Scan(scan)
    for found in (
        first_layer(first, cutout, 11),
        first_layer(first, cutout, 11, seen, start),
        first_layer(first, cutout, 11, seen, start),
    ):
        np.testing.assert_allclose(found, wanted[0], rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("channels", "dim"), [(11, 8), (10, 16)])
def test_both_parts_make_the_whole(engine: str, channels: int, dim: int) -> None:
    whole, first, rest = networks(engine, channels, dim)
    x = one_hot(np.random.default_rng(1).integers(0, channels, (2, *SIZE)), channels)
    layer, wanted = first(x), whole(x)
    assert isinstance(layer, np.ndarray) and isinstance(wanted, np.ndarray)
    assert layer.shape == (2, *SIZE, dim)
    np.testing.assert_allclose(rest(layer), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_stored_graph_is_cut_where_it_should_be(tmp_path: Any) -> None:
    whole, first, rest = networks("openvino")
    save_graph(whole.spec, whole._source, tmp_path / "n.xml")  # type: ignore[attr-defined]
    stored = OpenVinoNetwork(whole.spec, tmp_path / "n.xml", 1)
    x = one_hot(np.random.default_rng(1).integers(0, 11, (1, *SIZE)), 11)
    layer = first(x)
    assert isinstance(layer, np.ndarray)
    np.testing.assert_array_equal(stored.with_spec(first.spec)(x), layer)
    np.testing.assert_array_equal(stored.with_spec(rest.spec)(layer), rest(layer))


@pytest.mark.parametrize("size", [SIZE, (15, 23, 7)])
def test_cutouts_that_know_their_scan_get_the_same_answers(size: tuple[int, int, int]) -> None:
    whole, _, _ = networks("openvino")

    class Tiny(InstanceModel):
        network = whole

    model = Tiny("tiny", SimpleNamespace(class_ids=(0, 1, 2, 3)), None)  # type: ignore[arg-type]
    scan = np.random.default_rng(2).integers(0, 10, (20, 60, 10)).astype(np.uint8)
    starts = [[-3, -2, 0], [2, 20, 1], [4, 40, -1]]
    plain = np.stack([_cutout(scan, s, size) for s in starts])
    padded = np.pad(plain, [(0, 0), *((0, n - m) for n, m in zip(SIZE, size, strict=True))])
    logits = whole(one_hot(padded, 11))
    assert isinstance(logits, np.ndarray)
    wanted = logits.argmax(axis=1)[:, : size[0], : size[1], : size[2]]
    assert len(np.unique(wanted)) > 2
    np.testing.assert_array_equal(model.segment(Cutouts.of(plain.copy(), Scan(scan), starts), 2), wanted)
    np.testing.assert_array_equal(model.segment(plain, 2), wanted)
