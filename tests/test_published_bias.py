"""N4 for published models: recorded outputs of SPINEPS 2.1.3 (ANTs, one thread), and what must hold for any image."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from spineps.options import PreprocessOptions
from spineps.phases.preprocess import correct_bias, preprocess
from spineps.phases.published_bias import correct_bias_as_published, log_field
from spineps.volume import Box, Volume

GOLDEN = Path(__file__).parent / "golden" / "published_bias.npz"
NO_PAD = PreprocessOptions(pad=0)


def scan(shape: tuple[int, int, int] = (60, 50, 20), zoom: float = 3.0) -> Volume:
    """Bumps under a slope, bright enough for the published mask everywhere."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    bumps = 300 + 150 * np.sin(7 * x) * np.cos(6 * y) + 50 * np.sin(4 * z)
    return Volume((bumps * np.exp(0.4 * x)).astype(np.float32), np.diag([zoom, zoom, zoom, 1]))


# Two hundred iterations make much of a last digit: between one thread and two, ANTs itself differs on these images by
# means of 0, 0.00003 and 0.26 grey values.
@pytest.mark.parametrize(
    ("kind", "factor", "mean", "most"), [("uint16", 1, 0.01, 1), ("float32", 0.7, 0.01, 0.1), ("int16", 9, 1, 25)]
)
def test_grey_values_are_those_of_ants(kind: str, factor: float, mean: float, most: float) -> None:
    """Whole numbers and not, straight and turned grids, padding and shrinking that meet halves: all but rounding."""
    golden = np.load(GOLDEN)
    given = Volume((golden["in"] * factor).astype(kind), golden[f"{kind}/affine"])
    expected = golden[f"{kind}/out"].astype(float)
    out = preprocess(given, NO_PAD, published=True).array
    assert out.dtype == golden[f"{kind}/out"].dtype
    away = np.abs(out[::3, ::3, ::3] - expected)
    assert away.mean() < mean and away.max() <= most
    other = preprocess(given, NO_PAD).array[::3, ::3, ::3]
    assert np.abs(other - expected).mean() > 20 * mean  # the numbers can tell


def test_nothing_changes_outside_the_box_of_bright_voxels() -> None:
    volume = scan()
    volume.array[:6] = 59
    out = correct_bias_as_published(volume)
    assert out is not None
    assert (out.array[:6] == 59).all() and (out.array[6:] != volume.array[6:]).mean() > 0.99


def test_whole_numbers_truncate() -> None:
    volume = scan()
    whole = volume.with_array(volume.array.astype(np.int16))
    exact = correct_bias_as_published(whole.with_array(whole.array.astype(np.float32)))
    found = correct_bias_as_published(whole)
    assert exact is not None and found is not None
    assert np.array_equal(found.array, exact.array.astype(np.int16))


def test_the_field_is_that_of_a_spline_over_the_whole_scan() -> None:
    """A known smooth field comes out, up to a factor."""
    flat, x = scan(), np.linspace(-1, 1, 60)[:, None, None]
    everywhere: Box = (slice(0, 60), slice(0, 50), slice(0, 20))
    sloped = flat.with_array(flat.array * np.exp(0.3 * x).astype(np.float32))
    fields = [log_field(v, everywhere) for v in (flat, sloped)]
    assert fields[0] is not None and fields[1] is not None
    found = (fields[1] - fields[0]).mean(axis=(1, 2))
    assert np.corrcoef(found, x.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("array", [np.full((9, 9, 9), 59, np.int16), np.full((1, 30, 30), 200, np.int16)])
def test_where_the_published_settings_find_nothing_the_other_n4_is_used(array: np.ndarray) -> None:
    """2.1.3 ends with an error when no voxel reaches 60."""
    array = array.copy()
    array[..., :3] //= 2
    volume = Volume(array, np.eye(4))
    assert correct_bias_as_published(volume) is None
    crop = PreprocessOptions(pad=0, crop=False, normalize=False)
    assert np.array_equal(preprocess(volume, crop, published=True).array, correct_bias(volume).array)


@pytest.mark.parametrize("zoom", [40.0, 99.9, 300.0])
def test_few_voxels_do_not_crash(zoom: float) -> None:
    out = preprocess(scan((5, 6, 4), zoom), NO_PAD, published=True).array
    assert np.isfinite(out).all()


def test_a_sheared_grid_is_no_obstacle() -> None:
    """2.1.3 ends with an error when axes are more than half a degree from a right angle."""
    straight, affine = scan(), np.diag([3.0, 3, 3, 1])
    affine[0, 2], affine[1, 0] = 0.8, 0.3
    out = correct_bias_as_published(Volume(straight.array, affine))
    assert out is not None and np.isfinite(out.array).all() and out.array.min() > 0


def test_a_lumbar_scan_takes_a_second() -> None:
    volume = scan((227, 373, 24), 0.75)
    start = time.process_time()
    correct_bias_as_published(volume)
    assert time.process_time() - start < 5  # 0.6 s of one core; ITK needs 20
