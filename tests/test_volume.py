"""Geometry laws: whatever is done to a volume, every voxel keeps its place in the patient."""

from __future__ import annotations

import doctest
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

import spineps.volume
from spineps.volume import Grid, Volume, bounding_box, mm2_to_voxels, mm3_to_voxels, mm_to_voxels

GOLDEN = Path(__file__).parent / "golden"
ORIENTATIONS = ["".join(c) for p in permutations(("RL", "AP", "SI")) for c in product(*p)]

lengths = st.tuples(*[st.integers(1, 6)] * 3)
zooms = st.tuples(*[st.floats(0.3, 4.0)] * 3)


@st.composite
def affines(draw: st.DrawFn, shear: float = 0.3) -> np.ndarray:
    """Any voxel size, rotated, sheared a little, anywhere."""
    matrix = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-0.7, 0.7)] * 3))).as_matrix()
    slope = np.eye(3)
    slope[0, 1], slope[0, 2], slope[1, 2] = draw(st.tuples(*[st.floats(-shear, shear)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = matrix @ slope @ np.diag(draw(zooms))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


@st.composite
def volumes(draw: st.DrawFn, shear: float = 0.3) -> Volume:
    """Every voxel has a value of its own, so that it can be recognised anywhere."""
    shape = draw(lengths)
    return Volume(np.arange(1, 1 + np.prod(shape), dtype=np.int32).reshape(shape), draw(affines(shear)))


@st.composite
def boxed(draw: st.DrawFn) -> tuple[Volume, tuple[slice, slice, slice]]:
    volume = draw(volumes())
    spans = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in volume.shape]
    # At least one voxel wide, also at the far end.
    box = [slice(min(a, n - 1), max(b, min(a, n - 1) + 1)) for (a, b), n in zip(spans, volume.shape, strict=True)]
    return volume, (box[0], box[1], box[2])


def places(volume: Volume) -> dict[int, np.ndarray]:
    """value -> RAS mm of the voxel that holds it."""
    index = np.stack(np.nonzero(volume.array), axis=-1)
    return dict(zip(volume.array[tuple(index.T)].tolist(), volume.grid.to_world(index), strict=True))


def same_places(a: Volume, b: Volume) -> bool:
    at, bt = places(a), places(b)
    return at.keys() == bt.keys() and all(np.allclose(at[k], bt[k], atol=1e-6) for k in at)


def test_doctests() -> None:
    assert doctest.testmod(spineps.volume).failed == 0


def test_strongly_oblique_scans_come_back() -> None:
    turn = [[0.811, -0.452, 0.371, 0], [0.585, 0.627, -0.515, 0], [0, 0.635, 0.773, 0], [0, 0, 0, 1]]
    volume = Volume(np.ones((1, 1, 1)), np.array(turn))
    assert volume.axcodes == "RAS" and np.allclose(volume.reoriented("LPS").reoriented("RAS").affine, turn)


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
@given(volume=volumes(shear=0.2))
@settings(max_examples=6, deadline=None)
def test_reorientation_moves_no_voxel_and_comes_back(axcodes: str, volume: Volume) -> None:
    turned = volume.reoriented(axcodes)
    assert same_places(volume, turned)
    assert turned.grid.same_as(volume.grid.reoriented(axcodes))
    back = turned.reoriented(volume.axcodes)
    assert np.array_equal(back.array, volume.array)
    assert np.allclose(back.affine, volume.affine)
    # The general way back gives the same, exactly.
    assert np.array_equal(turned.on(volume.grid).array, volume.array)


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_all_48_orientations_are_reached(axcodes: str) -> None:
    volume = Volume(np.zeros((2, 3, 4)), np.diag([1.0, 1, 1, 1]))
    assert volume.reoriented(axcodes).axcodes == axcodes


@given(boxed(), st.sampled_from(ORIENTATIONS), st.integers(0, 3))
@settings(deadline=None)
def test_crop_flip_and_pad_are_undone_exactly(
    case: tuple[Volume, tuple[slice, slice, slice]], axcodes: str, width: int
) -> None:
    volume, box = case
    part = volume.cropped(box)
    whole = places(volume)
    assert all(np.allclose(whole[value], at, atol=1e-6) for value, at in places(part).items())
    back = part.reoriented(axcodes).padded(width, 7).on(volume.grid)
    inside = np.zeros(volume.shape, bool)
    inside[box] = True
    assert np.array_equal(back.array[inside], volume.array[inside])
    # Beyond the crop there is the padding where it reaches and nothing further out.
    assert set(np.unique(back.array[~inside])) <= {0, 7}
    assert np.array_equal(volume.padded(width).on(volume.grid).array, volume.array)


@given(affines(), lengths, st.tuples(*[st.floats(-50, 50)] * 3))
@settings(deadline=None)
def test_world_and_index_are_inverse(affine: np.ndarray, shape: tuple[int, int, int], point: tuple[float, ...]) -> None:
    grid = Grid(shape, affine)
    assert np.allclose(grid.to_index(grid.to_world(np.array(point))), point, atol=1e-6)
    assert np.isclose(grid.voxel_volume, abs(np.linalg.det(affine[:3, :3])))


@given(volumes(), zooms)
@settings(deadline=None)
def test_rescaling_keeps_the_first_voxel_and_the_extent(volume: Volume, zoom: tuple[float, float, float]) -> None:
    target = volume.grid.rescaled(zoom)
    assert np.allclose(target.to_world(np.zeros(3)), volume.grid.to_world(np.zeros(3)))
    if target.shape != volume.shape or not np.allclose(volume.zoom, zoom, atol=2e-3):
        assert np.allclose(target.zoom, zoom, atol=2e-3)
    extent, new = np.array(volume.shape) * volume.zoom, np.array(target.shape) * target.zoom
    assert np.all(np.abs(extent - new) <= np.maximum(np.array(target.zoom), extent * 0.01) + 1e-6)
    assert set(np.unique(volume.rescaled(zoom).array)) <= set(np.unique(volume.array))


@given(volumes(), zooms)
@settings(deadline=None)
def test_a_covering_grid_has_the_same_middle_and_holds_every_voxel(
    volume: Volume, zoom: tuple[float, float, float]
) -> None:
    target = volume.grid.covering(zoom)
    middles = (g.to_world((np.array(g.shape) - 1) / 2) for g in (volume.grid, target))
    assert np.allclose(*middles, atol=1e-6)
    extent, new = np.array(volume.shape) * volume.zoom, np.array(target.shape) * target.zoom
    slack = 2e-3 * np.array(target.zoom) + 1e-6
    assert np.all(new >= extent - slack) and np.all(new <= extent + target.zoom + slack)
    corners = np.array(list(product(*[(0, n - 1) for n in volume.shape])))
    index = target.to_index(volume.grid.to_world(corners))
    assert index.min() > -0.5 - 2e-3 and np.all(index.max(0) < np.array(target.shape) - 0.5 + 2e-3)


def test_labels_at_the_border_are_not_smeared_outwards() -> None:
    """The published system repeats edge labels over the rest of the image (968 -> 9680 voxels)."""
    whole = Grid((40, 40, 20), np.diag([1.0, 1, 2, 1]))
    box = (slice(8, 18), slice(10, 20), slice(4, 9))
    part = Volume(np.full((10, 10, 5), 226, np.uint16), whole.cropped(box).affine)
    back = part.rescaled((0.7, 0.7, 1.7)).on(whole)
    expected = np.zeros(whole.shape, np.uint16)
    expected[box] = 226
    assert np.array_equal(back.array, expected)


def test_a_voxel_reaches_half_its_width_beyond_its_centre() -> None:
    coarse = Volume(np.ones((3, 1, 1), np.uint8), np.diag([4.0, 1, 1, 1]))
    fine = Grid((40, 1, 1), np.array([[0.5, 0, 0, -5.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    x = fine.to_world(np.stack([np.arange(40), np.zeros(40), np.zeros(40)], -1))[:, 0]
    assert np.array_equal(coarse.on(fine).array[:, 0, 0] == 1, (x >= -2) & (x <= 10))


@pytest.mark.parametrize("order", [0, 1, 3])
def test_constant_images_stay_constant_inside(order: int) -> None:
    volume = Volume(np.full((7, 6, 5), 1000, np.uint16), np.diag([1.0, 1.5, 2, 1]))
    assert np.all(volume.rescaled((0.8, 2.0, 1.1), order).array == 1000)


@pytest.mark.parametrize("name", ["msk_to_075_075_165", "oblique_msk"])
def test_masks_are_resampled_as_published(name: str) -> None:
    golden = np.load(GOLDEN / "rescale.npz")
    volume = Volume(golden[f"{name}/in_arr"], golden[f"{name}/in_affine"])
    out = volume.rescaled(golden[f"{name}/zoom"])
    assert np.array_equal(out.array, golden[f"{name}/out_arr"])
    assert np.allclose(out.affine, golden[f"{name}/out_affine"])
    assert np.array_equal(out.on(volume.grid, fill=None).array, golden[f"{name}/back_arr"])


def test_images_are_resampled_as_published() -> None:
    """Cubic; the corner of a larger image, so that three true borders take part."""
    golden = np.load(GOLDEN / "rescale.npz")
    values, zoom, affine = golden["u16/in"], golden["u16/zoom"], golden["u16/affine"]
    out = Volume(values, affine).rescaled(zoom, 3).array[:24, :24, :11]
    assert out.dtype == np.uint16  # rounded, never negative
    assert np.array_equal(out, golden["u16/out"])
    out = Volume(values.astype(np.float32), affine).rescaled(zoom, 3).array[:24, :24, :11]
    assert out.dtype == np.float32
    assert np.abs(out - golden["f32/out"]).max() < 0.01
    assert out.min() < 0  # a spline undershoots beside edges; floats keep that


def test_integer_overshoot_is_clamped() -> None:
    step = np.zeros((12, 1, 1), np.uint8)
    step[6:] = 255
    out = Volume(step, np.eye(4)).rescaled((0.3, 1, 1), 3).array
    assert out[:15].max() < 128 and out[-10:].min() > 128


@given(st.integers(0, 3), st.integers(0, 2**16 - 1), st.sampled_from([bool, np.uint16, np.int8, np.float32]))
def test_bounding_box_is_the_smallest(margin: int, bits: int, dtype: type) -> None:
    mask = -np.array([bits >> k & 1 for k in range(16)]).reshape(4, 2, 2).astype(np.int8)
    mask = mask.astype(dtype)
    box = bounding_box(mask, margin)
    if box is None:
        assert not mask.any()
        return
    for axis in range(3):
        hits = np.nonzero(mask)[axis]
        assert box[axis] == slice(max(hits.min() - margin, 0), min(hits.max() + margin + 1, mask.shape[axis]))


def test_millimetres_become_voxels_as_published() -> None:
    zoom = (0.75, 0.75, 1.65)
    assert (mm_to_voxels(3, zoom), mm3_to_voxels(30 * 0.928125, zoom)) == (4, 30)
    assert mm2_to_voxels(20 * 0.928125 ** (2 / 3), zoom) == 20
    assert mm3_to_voxels(0.001, zoom) == 1


@given(st.integers(0, 2**32 - 1))
def test_nearest_along_axes_is_what_scipy_gives(seed: int) -> None:
    from scipy.ndimage import affine_transform

    rng = np.random.default_rng(seed)
    array = rng.integers(0, 9, rng.integers(1, 9, 3)).astype(np.uint8)
    zoom = rng.choice([0.5, 0.75, 1.0, 1.5, 1.65, 3.3, rng.uniform(0.3, 4)], 3)
    moved = Grid(tuple(rng.integers(1, 14, 3).tolist()), np.diag([*zoom, 1.0]))
    moved.affine[:3, 3] = rng.choice([0.0, 0.25, -1.5, rng.uniform(-3, 3)], 3)
    expected = affine_transform(array, zoom, moved.affine[:3, 3], moved.shape, order=0, mode="nearest")
    source = Volume(array, np.eye(4))
    np.testing.assert_array_equal(source.on(moved, fill=None).array, expected)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in moved.shape), indexing="ij"), -1) * zoom + moved.affine[:3, 3]
    outside = ((index < -0.5 - 1e-6) | (index > np.array(array.shape) - 0.5 + 1e-6)).any(-1)
    np.testing.assert_array_equal(source.on(moved, fill=7).array, np.where(outside, 7, expected))


def test_whole_numbers_in_an_affine_lose_nothing() -> None:
    whole, real = Grid((40, 40, 40), np.diag([1, 1, 1, 1])), Grid((40, 40, 40), np.diag([1.0, 1, 1, 1]))
    for grid in (whole.covering((1.25, 1.25, 1.5)), whole.rescaled((1.25, 1.25, 1.5))):
        assert grid.zoom == (1.25, 1.25, 1.5)
    assert np.array_equal(whole.covering((1.5,) * 3).affine, real.covering((1.5,) * 3).affine)
    assert Volume(np.zeros((2, 2, 2)), np.eye(4, dtype=int)).affine.dtype == np.float64
