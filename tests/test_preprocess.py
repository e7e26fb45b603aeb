"""Pre-processing: the scanner's scale must not matter, geometry must not move."""

from __future__ import annotations

import doctest
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spineps.phases.preprocess
from spineps.errors import EmptyError, ErrCode, ValueRangeError
from spineps.options import PreprocessOptions
from spineps.phases.preprocess import as_stored, correct_bias, preprocess, tamed
from spineps.volume import Volume

GOLDEN = Path(__file__).parent / "golden" / "preprocess.npz"
NO_N4 = PreprocessOptions(n4=False)
AFFINE = np.array([[0, 0, 3.0, -30], [-1.0, 0, 0, 60], [0, -1.0, 0, 250], [0, 0, 0, 1]])


def scan(dtype: type = np.int16, scale: float = 400) -> np.ndarray:
    """A head of bright blobs on a dark ground."""
    rng = np.random.default_rng(0)
    x, y, _z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 48, 12)], indexing="ij")
    tissue = 0.5 + 0.3 * ((np.sin(9 * x) * np.cos(8 * y)) > 0.2)
    body = (x**2 + y**2 < 0.8) * tissue + 0.02 * rng.random(x.shape)
    return (body * scale).astype(dtype)


def test_doctests() -> None:
    assert doctest.testmod(spineps.phases.preprocess).failed == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pre_mri_no_n4", NO_N4),
        ("pre_float_range_minus200_3670", NO_N4),
        ("pre_ct_nonorm_no_n4", PreprocessOptions(n4=False, normalize=False)),
    ],
)
def test_values_are_those_of_the_published_system(name: str, options: PreprocessOptions) -> None:
    golden = np.load(GOLDEN)
    out = preprocess(Volume(golden[f"{name}/in"], golden[f"{name}/in_affine"]), options)
    expected = golden[f"{name}/out"]
    assert out.array.dtype == expected.dtype
    assert np.array_equal(out.array[4:-4, 4:-4, 4:-4], expected)
    assert np.allclose(out.affine, golden[f"{name}/out_affine"])
    border = np.ones(out.shape, bool)
    border[4:-4, 4:-4, 4:-4] = False
    assert np.all(out.array[border] == golden[f"{name}/border"])


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_every_dtype_is_kept(dtype: type, crop: bool) -> None:
    array = scan(dtype, 250)
    given_array = array.copy()
    out = preprocess(Volume(array, AFFINE), PreprocessOptions(crop=crop, pad=3))
    assert out.array.dtype == dtype
    assert out.shape == (46, 54, 18)
    assert np.array_equal(array, given_array)  # the input is not touched
    assert np.array_equal(out.on(Volume(array, AFFINE).grid).array, out.array[3:-3, 3:-3, 3:-3])


def test_full_range_integers_do_not_overflow() -> None:
    array = np.array([-32768, 0, 32767], np.int16).reshape(3, 1, 1)
    out = preprocess(Volume(array, AFFINE), PreprocessOptions(n4=False, pad=0))
    assert out.array.ravel().tolist() == [0, 750, 1500]


def test_float_images_between_0_and_1_work() -> None:
    """The published system dies here: no voxel reaches its absolute threshold of 60."""
    out = preprocess(Volume(scan(np.float32, 1.0), AFFINE), PreprocessOptions())
    assert np.isfinite(out.array).all() and 0 < out.array.max() < 2


@given(st.floats(1e-3, 1.0), st.floats(-100, 100))
@settings(max_examples=5, deadline=None)
def test_scale_and_offset_of_floats_do_not_matter(scale: float, offset: float) -> None:
    base = scan(np.float64, 1000)
    one = preprocess(Volume(base, AFFINE), PreprocessOptions()).array
    two = preprocess(Volume(base * scale + offset, AFFINE), PreprocessOptions()).array
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.9999


def test_a_known_bias_is_reduced() -> None:
    base = scan(np.float32, 400)
    x = np.linspace(-1, 1, 40)[:, None, None]
    biased = base * np.exp(0.5 * x)
    inside = (base > 100) & (base < 260)

    def unevenness(image: np.ndarray) -> float:
        return float(image[inside].std() / image[inside].mean())

    corrected = correct_bias(Volume(biased, np.diag([5.0, 5, 5, 1]))).array
    assert unevenness(corrected) < 0.7 * unevenness(biased)
    assert correct_bias(Volume(biased, np.diag([5.0, 5, 5, 1]))).array.tobytes() == corrected.tobytes()


def test_nan_and_infinity_are_replaced() -> None:
    """One NaN makes the published system call the image empty."""
    array = scan(np.float32)
    array[5, 5, 5], array[6, 6, 6], array[7, 7, 7] = np.nan, np.inf, -np.inf
    out = preprocess(Volume(array, AFFINE), NO_N4).array[4:-4, 4:-4, 4:-4]
    assert np.isfinite(out).all()
    assert (out[5, 5, 5], out[7, 7, 7], out[6, 6, 6]) == (0, 0, out.max())


@pytest.mark.parametrize(
    ("stored", "low", "kind"),
    [
        ("int16", 0, np.int16),
        ("uint16", 0, np.uint16),
        ("uint8", 0, np.uint16),
        ("int8", -9, np.int16),
        ("uint16", -9, np.float32),  # not what the file can have held
        ("float32", 0, np.float32),
        ("float64", 0, np.float32),
        (None, -9, np.int16),
    ],
)
def test_published_models_see_the_type_of_the_file(stored: str | None, low: int, kind: type) -> None:
    """It decides whether a spline may undershoot 0, and whether values are rounded at all."""
    array = np.arange(low, low + 64, dtype=np.float32).reshape(4, 4, 4)
    found = as_stored(Volume(array, AFFINE), stored).array
    assert found.dtype == kind and np.array_equal(found, array)
    assert as_stored(Volume(array + np.float32(0.5), AFFINE), stored).array.dtype == np.float32


@pytest.mark.parametrize("value", [0, 7, -3])
def test_constant_images_are_empty(value: int) -> None:
    with pytest.raises(EmptyError) as error:
        preprocess(Volume(np.full((5, 5, 5), value, np.int16), AFFINE), PreprocessOptions())
    assert error.value.code is ErrCode.EMPTY and error.value.cure


@pytest.mark.parametrize("array", [np.full((4, 4, 4), np.nan), np.ones((4, 4, 4), complex)])
def test_unusable_values_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueRangeError):
        preprocess(Volume(array, AFFINE), PreprocessOptions())


@pytest.mark.parametrize("shape", [(1, 30, 30), (30, 2, 30), (3, 3, 3)])
def test_tiny_images_do_not_crash(shape: tuple[int, int, int]) -> None:
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    assert preprocess(Volume(array, AFFINE), PreprocessOptions()).shape == tuple(n + 8 for n in shape)


def test_a_lumbar_scan_takes_little_time() -> None:
    array = np.random.default_rng(0).integers(0, 800, (448, 448, 15)).astype(np.int16)
    start = time.process_time()
    preprocess(Volume(array, np.diag([0.6, 0.6, 4.0, 1])), PreprocessOptions())
    assert time.process_time() - start < 4  # about 0.7 s of one core


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda x: x.astype(np.int16), True),
        (lambda x: x.astype(np.float32), True),
        (lambda x: np.where(x == x.max(), 1e20, x).astype(np.float32), False),
        (lambda x: np.where(x == x.max(), -np.inf, x), False),
        (lambda x: x * 1e-11, False),
        (lambda x: (x * 1e33).astype(np.float32), False),
        (lambda x: (x * 1e15).astype(np.uint64), False),
        (lambda x: (x / 8 - 60).astype(np.int8), False),
    ],
)
def test_any_scale_and_type_is_tamed(change: Callable[[np.ndarray], np.ndarray], same: bool) -> None:
    x = np.random.default_rng(0).integers(0, 1000, (12, 12, 12)).astype(float)
    volume = Volume(change(x), np.eye(4))
    out = tamed(volume)
    assert (out is volume) == same
    if not same:
        values = out.array.astype(float)
        assert out.array.dtype == np.float32 and np.isfinite(values).all()
        assert 1e-3 < np.ptp(values) < 1e8
        inner = (x > 50) & (x < 950)
        assert np.corrcoef(values[inner], x[inner])[0, 1] > 0.99
