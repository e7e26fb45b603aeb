"""Scans whose grid leans: they are segmented on an upright one, and the masks come back."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stubs import ByHeight, Oracle, config, spine

from spineps.options import Options, OutputOptions
from spineps.phases.upright import LEAN, looks_turned, turned_upright, upright_grid
from spineps.pipeline import Models, segment_volume
from spineps.synth.phantom import make_phantom
from spineps.volume import Grid, Volume

STRAIGHT = np.array([[0, 0, 3.0, -30], [-1.0, 0, 0, 60], [0, -1.0, 0, 250], [0, 0, 0, 1]])


def turn(degrees: float, about: int) -> np.ndarray:
    """Rotation about a RAS axis."""
    a, b = (k for k in range(3) if k != about)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(4)
    matrix[[a, b], [a, b]], matrix[a, b], matrix[b, a] = c, -s, s
    return matrix


@settings(deadline=None, max_examples=60)
@given(
    lean=st.floats(-40, 40),
    yaw=st.floats(-10, 10),
    shape=st.tuples(*[st.integers(2, 60)] * 3),
    axes=st.sampled_from(["PIR", "LPS", "RAS", "SAL"]),
)
def test_the_upright_grid_stands_and_covers_the_scan(lean: float, yaw: float, shape, axes: str) -> None:
    scan = Grid(shape, turn(yaw, 2) @ turn(lean, 0) @ STRAIGHT).reoriented(axes)
    grid = upright_grid(scan)
    if abs(lean) < LEAN - 2:
        assert grid is None
    if abs(lean) > LEAN + 2:
        assert grid is not None
    if grid is None:
        return
    direction = grid.affine[:3, :3] / np.array(grid.zoom)
    assert direction[2, 1] < -0.97 and np.abs(direction.T @ direction - np.eye(3)).max() < 0.2
    assert abs(direction[:, 0] @ direction[:, 1]) < 1e-9 and grid.axcodes == "PIR"
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in scan.shape])).reshape(3, -1).T
    index = grid.to_index(scan.to_world(corners))
    assert (index > -0.5).all() and (index < np.array(grid.shape) - 0.5).all()


@pytest.mark.parametrize("about", [1, 2])
def test_slices_that_follow_the_patient_sideways_stay(about: int) -> None:
    assert upright_grid(Grid((40, 60, 20), turn(25, about) @ STRAIGHT)) is None


def test_a_leaning_gantry_is_straightened() -> None:
    sheared = STRAIGHT.copy()
    sheared[2, 0] = -np.tan(np.deg2rad(20))
    grid = upright_grid(Grid((40, 60, 20), sheared))
    assert grid is not None
    direction = grid.affine[:3, :3] / np.array(grid.zoom)
    np.testing.assert_allclose(direction[:, 1], [0, 0, -1], atol=1e-9)
    assert abs(direction[:, 0] @ direction[:, 1]) < 1e-9


def test_outside_of_the_scan_it_is_dark() -> None:
    scan = Volume(np.full((30, 40, 8), 7, np.int16), turn(25, 0) @ STRAIGHT)
    scan.array[0, 0, 0] = -3
    grid = upright_grid(scan.grid)
    assert grid is not None
    turned = turned_upright(scan, grid)
    assert turned.array[0, 0, 0] == -3 and turned.array.dtype == np.float32
    assert turned.array[tuple(n // 2 for n in turned.shape)] == 7


def test_masks_of_a_leaning_scan_come_back_to_its_grid() -> None:
    scan, truth = spine()
    move = turn(25, 0) @ scan.affine
    wide = Grid((150, 230, 16), move.copy())
    # The same people on a grid that leans around their middle.
    move[:3, 3] += scan.grid.to_world((np.array(scan.shape) - 1) / 2) - wide.to_world((np.array(wide.shape) - 1) / 2)
    leaning, mask = (v.on(Grid(wide.shape, move)) for v in (scan, truth))
    models = Models(Oracle(truth, config(cutout_size=(80, 100, 16))), ByHeight(config(cutout_size=(80, 100, 16))))  # type: ignore[arg-type]
    options = Options(output=OutputOptions(save_uncertainty=True))
    result = segment_volume(leaning, models, options)
    for found in (result.semantic, result.instance, result.stage.uncertainty):
        assert found is not None and found.grid.same_as(leaning.grid)
    found, wanted = result.semantic.array == 49, mask.array == 49
    assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.9
    assert len(set(result.instance.array[wanted & (result.instance.array < 100)]) - {0}) == 4
    again = segment_volume(leaning, models, options, semantic=result.stage, instance=result.raw_instance)
    np.testing.assert_array_equal(again.instance.array, result.instance.array)


def test_published_models_see_the_scan_as_it_is() -> None:
    scan, truth = spine()
    leaning = Volume(scan.array, turn(25, 0) @ scan.affine)
    published = replace(config(), recipe="published")
    model = Oracle(Volume(truth.array, leaning.affine), published)
    model_in = Models(model, ByHeight())  # type: ignore[arg-type]
    assert published.published
    result = segment_volume(leaning, model_in, Options(output=OutputOptions(save_uncertainty=True)))
    assert result.stage.native.grid.same_as(leaning.grid)


@pytest.mark.parametrize(
    ("region", "zoom"), [("lumbar", (1.5, 1.5, 4.0)), ("whole", (2.0, 2.0, 4.0)), ("cervical", (1.5, 1.5, 3.0))]
)
def test_a_mask_tells_a_turned_image(region: str, zoom) -> None:
    _, mask, _, _, _ = make_phantom(5, region, "T2", zoom)
    own = mask.reoriented("PIR")
    assert not looks_turned(mask) and not looks_turned(own.with_array(np.zeros_like(own.array)))
    assert looks_turned(own.with_array(own.array[:, ::-1].copy())) == (region != "cervical")
    arches = (own.array >= 41) & (own.array <= 48)
    bare = own.with_array(np.where(arches, 0, own.array))
    assert looks_turned(bare)
    middle = round(float(np.argwhere(own.array == 49)[:, 2].mean()))
    slab = bare.cropped((slice(0, bare.shape[0]), slice(0, bare.shape[1]), slice(middle - 2, middle + 3)))
    assert looks_turned(slab) == (region == "cervical"), "a slab above a sacrum lacks arches"
