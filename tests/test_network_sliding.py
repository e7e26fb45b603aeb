"""Sliding window and the way to the model's grid and back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spineps.anatomy import CLASS_MIRROR
from spineps.inference.network import NetSpec
from spineps.inference.resample import argmax_on_grid, entropy_on_grid, to_model_grid, without_mixtures
from spineps.inference.sliding import _wider, busy_box, focused_window, sliding_window, softmax, tile_starts
from spineps.volume import Grid, Volume


class Pointwise:
    """A network whose answer at a voxel depends on that voxel alone: tiles and padding must not show."""

    spec = NetSpec(kind="unet", classes=3, widths=(2, 2, 2))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        assert all(n % s == 0 for n, s in zip(x.shape[2:], self.spec.stride, strict=True))
        return np.concatenate([x, x**2, 1 - x], axis=1)


@pytest.mark.parametrize("shape", [(5, 9, 3), (16, 16, 16), (33, 20, 7)])
def test_tiles_leave_no_trace(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    calls: list[tuple[int, int]] = []
    p = sliding_window(Pointwise(), image, (16, 12, 8), 0.5, 3, progress=lambda *c: calls.append(c))
    expected = softmax(np.concatenate([image, image**2, 1 - image]), axis=0)
    np.testing.assert_allclose(p, expected, atol=1e-5)
    assert calls[-1][0] == calls[-1][1] == len(calls)


class Ball:
    """Finds a bright blob, and counts the voxels that it was asked about."""

    spec = NetSpec(kind="unet", classes=3, widths=(2, 2, 2))
    asked = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.asked += x[0, 0].size
        return np.concatenate([5 - 10 * x, 10 * x - 5, 0 * x - 9], axis=1)


def test_care_is_spent_where_something_is() -> None:
    image = np.zeros((1, 120, 80, 8), np.float32)
    image[:, 50:65, 10:70] = 1
    mirror = (2, (0, 1, 2))
    plain, focused = Ball(), Ball()
    expected = sliding_window(plain, image, (32, 32, 8), 0.5, 3, mirror)
    answer = focused_window(focused, image, (32, 32, 8), 0.5, 3, mirror)
    assert (answer.argmax(axis=0) == expected.argmax(axis=0)).all()
    np.testing.assert_allclose(answer[:, 40:75], expected[:, 40:75], atol=1e-5)
    np.testing.assert_allclose(answer.sum(axis=0), 1, atol=1e-5)
    assert focused.asked < 0.85 * plain.asked
    empty = Ball()
    assert (focused_window(empty, 0 * image, (32, 32, 8), 0.5, 3, mirror)[0] > 0.9).all()
    assert empty.asked < 0.5 * plain.asked


@pytest.mark.parametrize("where", ["around", "a piece", "nothing"])
def test_a_hint_saves_the_first_look_and_costs_nothing_when_it_is_poor(where: str) -> None:
    image = np.zeros((1, 80, 80, 8), np.float32)
    image[:, 30:45, 10:70] = 1
    hints = {"around": np.s_[20:56, 4:78, 0:8], "a piece": np.s_[28:40, 30:50, 0:8], "nothing": None}
    blind, helped = Ball(), Ball()
    expected = focused_window(blind, image, (32, 32, 8), 0.5, 3)
    answer = focused_window(helped, image, (32, 32, 8), 0.5, 3, locate=lambda: hints[where])
    assert (answer.argmax(axis=0) == expected.argmax(axis=0)).all()
    assert where != "around" or helped.asked < 0.75 * blind.asked


@pytest.mark.parametrize("zoom", [1, 3])
def test_the_box_around_what_was_found_has_a_margin_in_voxels_of_the_image(zoom: int) -> None:
    found = np.zeros((180 // zoom, 150 // zoom, 48 // zoom), bool)
    found[60 // zoom : 90 // zoom, 60 // zoom : 150 // zoom, 24 // zoom : 36 // zoom] = True
    found[0, 0, 0] = True  # a speck
    assert busy_box(found, (180, 150, 48)) == (slice(48, 102), slice(48, 150), slice(0, 48))
    assert busy_box(0 * found, (180, 150, 48)) is None


def test_a_rib_is_followed_once_and_a_spine_to_its_end() -> None:
    image = np.zeros((1, 96, 64, 160), np.float32)
    image[:, 40:56, :, 10:26] = 1  # stands along axis 1
    image[:, 44:52, 30:36, 26:150] = 1  # and one rib along axis 2
    ball = Ball()
    answer = focused_window(
        ball, image, (32, 16, 32), 0.5, 3, locate=lambda: np.s_[24:72, 0:16, 4:32], stance=(1, (1.5,) * 3)
    )
    found = answer[0] < 0.5
    assert found[48, 2:62, 18].all() and not found[:, :, 100:].any()


def test_a_shoulder_blade_beside_the_spine_does_not_widen_the_box_and_a_second_part_of_the_spine_does() -> None:
    found = np.zeros((60, 100, 100), bool)
    found[20:36, 6:56, 44:56] = True
    found[20:30, 10:40, 10:20] = True  # beside it
    stance = 1, (4.5, 4.5, 4.5)
    # 18 mm of margin.
    assert busy_box(found, found.shape, stance)[2] == slice(44 - 4, 56 + 4)
    assert busy_box(found, found.shape)[2].start == 0
    found[20:35, 65:95, 50:60] = True  # goes on, behind metal
    assert busy_box(found, found.shape, stance)[1].stop == 100
    found[20:50, 10:50, 10:22] = True  # too large to be left out
    assert busy_box(found, found.shape, stance)[2].start == 0


@given(st.integers(1, 300), st.integers(1, 64), st.floats(0.1, 1))
def test_tiles_cover_everything(length: int, tile: int, step: float) -> None:
    starts = tile_starts(length, tile, step)
    covered = np.zeros(max(length, tile), bool)
    for s in starts:
        covered[s : s + tile] = True
    assert covered.all() and starts[0] == 0 and max(starts) <= max(length - tile, 0)
    assert all(b - a <= max(tile * step, 1) + 1 for a, b in pairwise(starts))


class LeftIsLeft:
    """Answers class 3 (left) in the first half of axis 2 and class 4 (right) in the second, whatever it is shown."""

    spec = NetSpec(kind="unet", classes=15, widths=(2, 2))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        logits = np.zeros((1, 15, *x.shape[2:]), np.float32)
        half = x.shape[4] // 2
        logits[:, 3, :, :, :half] = logits[:, 4, :, :, half:] = 5
        return logits


def test_mirrored_pass_swaps_sides() -> None:
    image = np.zeros((1, 4, 4, 8), np.float32)
    plain = sliding_window(LeftIsLeft(), image, (8, 8, 8), 0.5, 15)
    both = sliding_window(LeftIsLeft(), image, (8, 8, 8), 0.5, 15, mirror=(2, CLASS_MIRROR))
    np.testing.assert_allclose(both, plain, atol=1e-6)


def grid(shape, zoom, axcodes="PIR", origin=(0.0, 0.0, 0.0)) -> Grid:
    directions = {"P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1), "R": (0, 1), "L": (0, -1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(axcodes):
        row, sign = directions[code]
        affine[row, axis] = sign * zoom[axis]
    affine[:3, 3] = origin
    return Grid(shape, affine)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["PIR", "LAS", "RPI", "ASL", "SRP"]),
    st.tuples(*[st.floats(0.4, 3)] * 3),
    st.tuples(*[st.integers(3, 20)] * 3),
    st.integers(0, 1000),
)
def test_streaming_argmax_equals_interpolate_all_then_argmax(axcodes, zoom, shape, seed) -> None:
    rng = np.random.default_rng(seed)
    source = grid((9, 7, 5), (1.5, 1.5, 1.5), origin=(-2.0, 3.0, 1.0))
    p = softmax(3 * rng.standard_normal((4, 9, 7, 5)).astype(np.float32), 0)
    p[0] += 0.5
    p /= p.sum(axis=0)
    target = grid(shape, zoom, axcodes)
    slow = np.stack([Volume(c, source.affine).on(target, order=1, fill=float(k == 0)).array for k, c in enumerate(p)])
    fast = argmax_on_grid(p, source, target)
    top = np.sort(slow, axis=0)
    clear = top[-1] - top[-2] > 1e-4
    np.testing.assert_array_equal(fast[clear], slow.argmax(axis=0)[clear])
    entropy = entropy_on_grid(p, source, target)
    inside = slow[0] < 1
    slow_entropy = -(slow * np.log(np.maximum(slow, 1e-7))).sum(axis=0) / np.log(4)
    np.testing.assert_allclose(entropy[inside], slow_entropy[inside], atol=1e-3)
    assert entropy.min() >= 0 and entropy.max() <= 1


def test_grids_turned_against_each_other_are_refused() -> None:
    source = grid((12, 12, 12), (1, 1, 1))
    p = np.zeros((3, 12, 12, 12), np.float32)
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(ValueError, match="turned"):
        argmax_on_grid(p, source, Grid((12, 12, 12), source.affine @ turn))


def test_a_class_that_is_nowhere_does_not_come_out_between_two_others() -> None:
    source, target = grid((4, 8, 8), (2, 2, 2)), grid((8, 16, 16), (1, 1, 1))
    p = np.zeros((4, *source.shape), np.float32)
    # Left 1 and right 2 with a third between them that is second everywhere; a true 3 stands in a corner.
    p[1, :2], p[2, 2:], p[3] = 0.55, 0.55, 0.45
    p[:, :, 6:] = np.array([0, 0, 0, 1])[:, None, None, None]
    mask = Volume(p.argmax(axis=0).astype(np.uint8), source.affine)
    raw = argmax_on_grid(p, source, target)
    assert (raw[:, :8] == 3).any()
    answer = without_mixtures(raw.copy(), 3, mask, target)
    assert set(np.unique(answer[:, :8])) == {1, 2} and (answer[:, 13:] == 3).all()
    np.testing.assert_array_equal(answer[raw != 3], raw[raw != 3])
    nothing = np.zeros(target.shape, np.uint8)
    assert without_mixtures(nothing, 3, mask, target) is nothing


def test_background_only_gives_background() -> None:
    p = np.zeros((3, 4, 4, 4), np.float32)
    p[0] = 1
    g = grid((4, 4, 4), (1, 1, 1))
    assert not argmax_on_grid(p, g, g).any() and not entropy_on_grid(p, g, g).any()


@pytest.mark.parametrize("slices", range(12, 20))
def test_no_slice_of_a_thin_slab_is_lost(slices: int) -> None:
    """14 slices of 0.9 mm on 1.5 mm: eight voxels from the first slice on end before the last."""
    image = Volume(np.random.default_rng(slices).random((20, 20, slices), np.float32), np.diag([0.9, 0.9, 0.9, 1.0]))
    small = to_model_grid(image, (1.25, 1.25, 1.5), whole=True)
    sure = np.zeros((2, *small.shape), np.float32)
    sure[1] = 1
    assert argmax_on_grid(sure, small.grid, image.grid).all()
    # What varies from slice to slice stays in its place.
    ramp = image.with_array(np.broadcast_to(np.arange(slices, dtype=np.float32), image.shape).copy())
    places = image.grid.to_index(small.grid.to_world(np.argwhere(small.array > -1)))[:, 2].clip(0, slices - 1)
    seen = to_model_grid(ramp, (1.25, 1.25, 1.5), antialias=False, whole=True).array
    assert np.allclose(seen.ravel(), places, atol=1e-4)


def test_model_grid_keeps_linear_ramps_and_smooths_stripes() -> None:
    x = np.broadcast_to(np.arange(60.0)[:, None, None], (60, 8, 6))
    image = Volume(np.ascontiguousarray(x), grid((60, 8, 6), (0.5, 1.5, 3)).affine)
    small = to_model_grid(image, (1.5, 1.5, 1.5))
    assert small.grid.same_as(image.grid.rescaled((1.5, 1.5, 1.5))) and small.array.dtype == np.float32
    np.testing.assert_allclose(small.array[3:-3, 0, 0], 3 * np.arange(20)[3:-3], atol=1e-3)
    stripes = image.with_array(np.ascontiguousarray(x % 2))
    assert to_model_grid(stripes, (1.5, 1.5, 1.5)).array[3:-3].std() < 0.2
    assert to_model_grid(stripes, (1.5, 1.5, 1.5), antialias=False).array[3:-3].std() > 0.4


def test_the_box_grows_sooner_along_the_spine() -> None:
    found = np.zeros((20, 40, 20), bool)
    found[4:16, 4:36, 4:16] = True
    box, shape = (slice(10, 30), slice(30, 70), slice(10, 30)), (40, 100, 40)
    stance = (1, (1.0, 1.0, 1.0))
    assert _wider(found, box, shape, (8, 16, 8), stance) == (slice(10, 30), slice(22, 78), slice(10, 30))
    assert _wider(found, box, shape, (8, 16, 8), None) == box
