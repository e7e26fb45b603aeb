"""nnU-Net's pre-processing and window: what a published folder asks for, with little memory and without overflow."""

from __future__ import annotations

import gc
import gzip
import json
import shutil
import tracemalloc
import weakref
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spineps.errors import ModelError, OutOfMemoryError
from spineps.inference import nnunet_window
from spineps.inference.nnunet_plans import Plans, Resampling, normalise, parse_plans, prepare, read_plans, resampled
from spineps.inference.nnunet_window import (
    best_of,
    class_probabilities,
    mean_logits,
    on_image,
    stream_labels,
    tile_weights,
    unresampled,
    weight_sums,
)
from spineps.inference.sliding import tile_starts
from spineps.models.config import read_config
from spineps.models.registry import get_actual_model
from spineps.options import SemanticOptions
from spineps.phases.semantic import clean_semantic, predict_semantic
from spineps.volume import Volume

GOLDEN = Path(__file__).parent / "golden"
IMAGE = np.load(GOLDEN / "nnunet_masks.npz")
PLANS = Plans(
    patch=(4, 6, 8),
    spacing=(1.0, 1.0, 1.0),
    transpose=(0, 1, 2),
    schemes=("NoNormalization",),
    masked=(False,),
    intensities={},
    image=Resampling(),
    logits=Resampling(order=1),
    heads=3,
)


class Blurred:
    """Answers depend on the neighbourhood and on the place in the tile: overlaps, weights and flips all show."""

    spec = SimpleNamespace(stride=(1, 1, 1), in_channels=1)
    device_name = "stub"

    def __init__(self, seed: int = 0) -> None:
        self.shift = 0.1 * seed

    def __call__(self, x: np.ndarray) -> np.ndarray:
        assert x.dtype == np.float32 and x.ndim == 5
        x = x[:, :1]
        near = (x + np.roll(x, 1, 2) + np.roll(x, 2, 3) + np.roll(x, 1, 4)) / 4
        ramp = np.linspace(0, 1, x.shape[3], dtype=np.float32)[:, None]
        return np.concatenate([near - 0.4 + self.shift, ramp * x, 0.5 - near], axis=1)


def naive(networks, image, plans, step, mirror) -> np.ndarray:
    """Mean logits from whole sums in float64, after the description of nnU-Net alone."""
    shape = image.shape[1:]
    low = [max(p - n, 0) // 2 for n, p in zip(shape, plans.patch, strict=True)]
    high = [max(p - n, 0) - b for n, p, b in zip(shape, plans.patch, low, strict=True)]
    x = np.pad(image, [(0, 0), *zip(low, high, strict=True)])
    total, norm = np.zeros((3, *x.shape[1:])), np.zeros(x.shape[1:])
    flips = [tuple(a for a, on in zip(mirror, ons, strict=True) if on) for ons in product([0, 1], repeat=len(mirror))]
    for start in product(*(tile_starts(n, p, step) for n, p in zip(x.shape[1:], plans.patch, strict=True))):
        box = tuple(slice(s, s + p) for s, p in zip(start, plans.patch, strict=True))
        for network, flip in product(networks, flips):
            axes = [a + 2 for a in flip]
            answer = np.flip(network(np.flip(x[(slice(None), *box)][None], axes)), axes)[0]
            total[(slice(None), *box)] += answer * tile_weights(plans.patch)
            norm[box] += tile_weights(plans.patch)
    inner = tuple(slice(b, b + n) for b, n in zip(low, shape, strict=True))
    return (total / norm)[(slice(None), *inner)]


windows = st.tuples(
    st.tuples(st.integers(1, 14), st.integers(1, 22), st.integers(1, 30)),
    st.tuples(st.integers(1, 6), st.integers(2, 8), st.integers(2, 12)),
    st.sampled_from([0.25, 0.5, 0.7, 1.0]),
    st.sampled_from([(), (0,), (0, 2), (0, 1, 2)]),
    st.integers(0, 99),
)


@settings(max_examples=40, deadline=None)
@given(windows)
def test_streaming_labels_are_those_of_the_whole_sums(case) -> None:
    shape, patch, step, mirror, seed = case
    image = np.random.default_rng(seed).random((1, *shape)).astype(np.float32)
    plans = replace(PLANS, patch=patch)
    whole = naive([Blurred()], image, plans, step, mirror)
    calls: list[tuple[int, int]] = []
    labels = stream_labels(Blurred(), image, plans, step, mirror, lambda *c: calls.append(c))
    top = np.sort(whole, axis=0)
    clear = top[-1] - top[-2] > 1e-5
    np.testing.assert_array_equal(labels[clear], whole.argmax(axis=0)[clear])
    assert labels.shape == shape and clear.mean() > 0.9
    assert calls[-1][0] == calls[-1][1] == len(calls)


def test_logits_are_averaged_over_tiles_flips_and_folds() -> None:
    image = np.random.default_rng(0).random((1, 9, 13, 21)).astype(np.float32)
    folds = [Blurred(k) for k in range(3)]
    calls: list[tuple[int, int]] = []
    found = mean_logits(iter(folds), 3, image, PLANS, 0.5, (1, 2), lambda *c: calls.append(c))
    np.testing.assert_allclose(found, naive(folds, image, PLANS, 0.5, (1, 2)), atol=1e-5)
    assert calls[-1][0] == calls[-1][1] == len(calls)


def test_only_one_fold_is_in_memory() -> None:
    last: list[weakref.ref] = []

    def folds():
        for k in range(3):
            gc.collect()
            assert not last or last[-1]() is None
            network = Blurred(k)
            last.append(weakref.ref(network))
            yield network
            del network

    mean_logits(folds(), 3, np.zeros((1, 4, 6, 8), np.float32), PLANS, 0.5, (), None)
    assert len(last) == 3


def test_sums_exist_for_a_band_only() -> None:
    class Many(Blurred):
        def __call__(self, x: np.ndarray) -> np.ndarray:
            return np.repeat(super().__call__(x), 10, axis=1)

    image = np.random.default_rng(0).random((1, 8, 800, 16)).astype(np.float16)
    plans = replace(PLANS, patch=(8, 16, 16), heads=30)
    whole = 30 * image.size * 4
    tracemalloc.start()
    stream_labels(Many(), image, plans, 0.5, (), None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * whole


def test_weights_are_rounded_as_published() -> None:
    weights = tile_weights((32, 48, 48))
    # Recorded answers show this floor (and not exp(-24)) wherever a tile ends.
    assert weights.max() == 1 and weights.min() == weights[0, 0, 0] == weights[0, 24, 0]
    assert weights.min() == pytest.approx(1.35e-4, rel=0.02)
    assert weight_sums((5, 60, 40), (32, 48, 48), 0.5).shape == (5, 60, 40)


@pytest.mark.parametrize("factor", [1.0, 10.0, 1000.0])
def test_large_logits_do_not_overflow(factor: float) -> None:
    class Loud(Blurred):
        def __call__(self, x: np.ndarray) -> np.ndarray:
            return 40 * np.float32(factor) * super().__call__(x)

    image = np.random.default_rng(0).random((1, 6, 12, 30)).astype(np.float32)
    found = mean_logits([Loud()], 1, image, PLANS, 0.5, (0, 1, 2), None)
    assert np.isfinite(found).all() and np.abs(found).max() > 10 * factor
    quiet = mean_logits([Blurred()], 1, image, PLANS, 0.5, (0, 1, 2), None)
    assert (found.argmax(axis=0) == quiet.argmax(axis=0)).mean() > 0.999
    p = class_probabilities(found, PLANS)
    assert np.isfinite(p).all() and np.allclose(p.sum(axis=0), 1, atol=1e-5)


class Small(Blurred):
    """Has memory for a few tiles at once."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error, self.sizes = most, error, []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise self.error
        return super().__call__(x)


def errors() -> list[Exception]:
    import importlib.util

    found: list[Exception] = [MemoryError("no memory")]
    if importlib.util.find_spec("torch"):
        import torch

        found.append(torch.OutOfMemoryError("CUDA out of memory"))
    return found


@pytest.mark.parametrize("error", errors(), ids=lambda e: type(e).__name__)
def test_batch_is_halved_once_per_size(monkeypatch, caplog, error: Exception) -> None:
    monkeypatch.setattr(nnunet_window, "_first_batch", lambda network, patch: 8)
    image = np.random.default_rng(0).random((1, 4, 12, 50)).astype(np.float32)
    network = Small(2, error)
    labels = stream_labels(network, image, PLANS, 0.5, (0,), None)
    assert network.sizes[:3] == [8, 4, 2] and max(network.sizes[3:]) == 2
    np.testing.assert_array_equal(labels, stream_labels(Blurred(), image, PLANS, 0.5, (0,), None))
    assert "going on with 4" in caplog.text and "going on with 2" in caplog.text
    with pytest.raises(OutOfMemoryError, match="one input of 4 x 6 x 8 voxels"):
        stream_labels(Small(0, error), image, PLANS, 0.5, (), None)


@pytest.mark.torch
@pytest.mark.parametrize(("gigabytes", "batch"), [(0.1, 1), (10, 5), (80, 8)])
def test_free_memory_of_a_gpu_decides_the_batch(monkeypatch, gigabytes: float, batch: int) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gigabytes * 1e9), 80 * 10**9))
    network = Blurred()
    assert nnunet_window._first_batch(network, (64, 128, 128)) == 1
    network.device = torch.device("cuda")
    assert nnunet_window._first_batch(network, (64, 128, 128)) == batch


def test_other_errors_are_raised_as_they_are(monkeypatch) -> None:
    monkeypatch.setattr(nnunet_window, "_first_batch", lambda network, patch: 8)
    network = Small(0, RuntimeError("cuDNN error"))
    with pytest.raises(RuntimeError, match="cuDNN error") as caught:
        stream_labels(network, np.zeros((1, 8, 8, 8), np.float32), PLANS, 0.5, (), None)
    assert caught.value is network.error and len(network.sizes) == 1
    with pytest.raises(ModelError, match="4 classes"):
        stream_labels(Blurred(), np.zeros((1, 8, 8, 8), np.float32), replace(PLANS, heads=4), 0.5, (), None)


@pytest.mark.parametrize("name", ["old_plain", "new_resenc"])
def test_recorded_masks(tmp_path, monkeypatch, name: str) -> None:
    monkeypatch.setenv("SPINEPS_CACHE", str(tmp_path))
    model = get_actual_model(GOLDEN / "nnunet" / name, use_cpu=True, threads=1)
    scan = Volume(IMAGE["image"], IMAGE["affine"])
    found = predict_semantic(scan, model, SemanticOptions(), need_probabilities=False)
    assert (found.mask.array == IMAGE[f"{name}_seg_arr"]).mean() >= 0.999
    cleaned = clean_semantic(found.mask, SemanticOptions(), published=True)
    assert (cleaned.array == IMAGE[f"{name}_semantic_arr"]).mean() >= 0.999


def test_recorded_masks_of_two_folds(tmp_path, monkeypatch) -> None:
    """Its first fold is that of the other recording."""
    monkeypatch.setenv("SPINEPS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "new_plain"
    shutil.copytree(GOLDEN / "nnunet" / "new_plain", folder)
    shutil.copytree(GOLDEN / "nnunet" / "old_plain" / "fold_0", folder / "fold_0")
    (folder / "fold_1").mkdir()
    packed = (folder / "fold_1.pth.gz").read_bytes()
    (folder / "fold_1" / "checkpoint_final.pth").write_bytes(gzip.decompress(packed))
    model = get_actual_model(folder, use_cpu=True, threads=1)
    scan = Volume(IMAGE["image"], IMAGE["affine"])
    found = predict_semantic(scan, model, SemanticOptions(), need_probabilities=False).mask.array
    assert (found[::2, ::2, ::2] == IMAGE["new_plain_every_second"]).mean() >= 0.999


def test_recorded_network_input() -> None:
    plans, config = read_plans(GOLDEN / "nnunet" / "old_plain"), read_config(GOLDEN / "nnunet" / "old_plain")
    scan = Volume(IMAGE["image"], IMAGE["affine"]).reoriented(config.orientation).rescaled((0.75, 0.75, 1.65), order=3)
    ready = prepare(scan.array[None], scan.zoom, plans)
    assert ready.data.shape == tuple(IMAGE["data_shape"])
    np.testing.assert_array_equal(ready.data[:, ::3, ::3, ::3], IMAGE["data_every_third"])
    assert on_image(ready.data[0], ready, plans).shape == scan.shape


def test_normalisation_schemes() -> None:
    x = np.random.default_rng(0).normal(100, 30, (5, 6, 7)).astype(np.float32)
    x[0] = 0
    mask = x != 0

    def after(scheme: str, mask=None, **statistics: float) -> np.ndarray:
        y = x.copy()
        normalise(y, scheme, mask, statistics)
        return y

    np.testing.assert_allclose(after("ZScoreNormalization"), (x - x.mean()) / x.std(), atol=1e-4)
    masked = after("ZScoreNormalization", mask)
    assert (masked[0] == 0).all() and abs(masked[mask].mean()) < 1e-4 and abs(masked[mask].std() - 1) < 1e-4
    ct = after("CTNormalization", percentile_00_5=60.0, percentile_99_5=120.0, mean=90.0, std=20.0)
    np.testing.assert_allclose(ct, (np.clip(x, 60, 120) - 90) / 20, atol=1e-5)
    assert after("RescaleTo01Normalization").min() == 0 and after("RescaleTo01Normalization").max() == 1
    np.testing.assert_allclose(after("RGBTo01Normalization"), x / 255)
    np.testing.assert_array_equal(after("NoNormalization"), x)


def test_constant_and_huge_images_stay_finite() -> None:
    plans = replace(PLANS, schemes=("ZScoreNormalization",))
    for value in (0.0, 7.0):
        assert not prepare(np.full((1, 4, 4, 4), value), (1, 1, 1), plans).data.any()
    huge = np.zeros((1, 4, 4, 4), np.float32)
    huge[0, 0, 0, 0] = 1e6
    assert np.isfinite(prepare(huge, (1, 1, 1), plans).data).all()


@pytest.mark.parametrize("order", [0, 1, 3])
def test_resampling_is_that_of_skimage(order: int) -> None:
    resize = pytest.importorskip("skimage.transform").resize
    x = np.random.default_rng(0).random((7, 10, 12)).astype(np.float32)
    settings = {"mode": "edge", "anti_aliasing": False}
    found = resampled(x, (9, 8, 15), (1, 1, 1), (0.8, 1.2, 0.8), Resampling(order=order))
    np.testing.assert_allclose(found, resize(x, (9, 8, 15), order, **settings), atol=1e-4)
    thick = resampled(x, (9, 8, 15), (5, 1, 1), (4, 1.2, 0.8), Resampling(order=order, order_z=0))
    slices = np.stack([resize(s, (8, 15), order, **settings) for s in x])
    rows = np.floor((np.arange(9) + 0.5) * 7 / 9).astype(int)
    np.testing.assert_allclose(thick, slices[rows], atol=1e-4)


def test_axes_and_voxel_size_come_back() -> None:
    x = np.zeros((1, 12, 10, 8), np.float32)
    x[0, 2:9, 3:8, 1:7] = np.random.default_rng(0).random((7, 5, 6)) + 0.1
    plans = replace(PLANS, transpose=(1, 2, 0))
    ready = prepare(x, (1, 2, 3), replace(plans, spacing=(2.0, 1.0, 3.0)))
    assert ready.data.shape == (1, 5, 7, 6) and ready.zoom == (2.0, 1.0, 3.0)
    np.testing.assert_array_equal(on_image(ready.data[0], ready, plans), x[0].astype(np.float16))
    fine = prepare(x, (1, 2, 3), replace(plans, spacing=(1.0, 1.0, 1.5)))
    assert fine.data.shape == (1, 10, 7, 12)
    assert [c.shape for c in unresampled(fine.data.astype(np.float32), fine, plans)] == [(5, 7, 6)]
    with pytest.raises(ModelError, match="wants 1 images"):
        prepare(np.repeat(x, 2, 0), (1, 2, 3), plans)
    with pytest.raises(ModelError, match=r"resample_torch.*not supported"):
        prepare(x, (1, 2, 3), replace(plans, image=Resampling("resample_torch")))


def test_regions_are_painted_in_order() -> None:
    plans = replace(PLANS, heads=2, regions=(2, 1))
    logits = np.array([[5.0, 5, -5, -5], [5, -5, 5, -5]], np.float32).reshape(2, 4, 1, 1)
    assert best_of(logits, plans).ravel().tolist() == [1, 2, 1, 0]
    p = class_probabilities(logits, plans)
    assert p.argmax(axis=0).ravel().tolist() == [1, 2, 1, 0]
    np.testing.assert_allclose(p.sum(axis=0), 1, atol=1e-6)


def plans_and_dataset() -> tuple[dict, dict]:
    folder = GOLDEN / "nnunet" / "old_plain"
    return json.loads((folder / "plans.json").read_text()), json.loads((folder / "dataset.json").read_text())


def test_plans_of_other_folders() -> None:
    plans, dataset = plans_and_dataset()
    plans["configurations"]["3d_small"] = {"inherits_from": "3d_fullres", "patch_size": [8, 8, 8]}
    assert parse_plans(plans, dataset, "3d_small").patch == (8, 8, 8)
    assert parse_plans(plans, dataset, "3d_fullres").heads == 15
    ignoring = {**dataset, "labels": {"background": 0, "a": 1, "ignore": 2}}
    assert parse_plans(plans, ignoring, "3d_fullres").heads == 2
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    found = parse_plans(plans, regions, "3d_fullres")
    assert found.heads == 2 and found.regions == (1, 2)
    with pytest.raises(ValueError, match="regions_class_order"):
        parse_plans(plans, {"labels": regions["labels"]}, "3d_fullres")
    with pytest.raises(ValueError, match="no configuration '2d'"):
        parse_plans(plans, dataset, "2d")
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["Magic"]
    with pytest.raises(ValueError, match="Magic"):
        parse_plans(plans, dataset, "3d_fullres")


def test_broken_folders_are_named(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"plans\.json does not exist"):
        read_plans(tmp_path)
    (tmp_path / "plans.pkl").touch()
    with pytest.raises(ModelError, match="version 1"):
        read_plans(tmp_path)
    (tmp_path / "plans.json").write_text("{}")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ModelError, match="configurations"):
        read_plans(tmp_path)
