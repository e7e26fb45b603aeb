"""Pre-processing: from the scanner's numbers to what the networks expect.  Geometry changes only by the padding."""

from __future__ import annotations

import logging

import numpy as np

from spineps.errors import EmptyError, ValueRangeError
from spineps.options import PreprocessOptions
from spineps.phases.published_bias import correct_bias_as_published
from spineps.volume import Box, Volume, bounding_box

logger = logging.getLogger(__name__)

#: Brightest value after normalisation (published system 2.1.3); darker images are never scaled up.
MAXIMUM = 1500.0
#: N4 on block means, 6 mm or larger so that there are about 2000, one level, one B-spline element per 100 mm (the
#: published spline distance).  Measured on three SPIDER scans times a known field: this follows the field best
#: (correlation 0.55 to 0.89); finer blocks, more levels or more iterations fit anatomy instead (down to 0.1) and take
#: up to 7 s instead of 0.5 s.  It stays a gentle correction: 10 to 15 % of the field's spread.
N4_SPACING, N4_SAMPLES, N4_SPLINE_DISTANCE = 6.0, 2000, 100.0
N4_ITERATIONS, N4_TOLERANCE = (30,), 1e-3
#: Voxels darker than this fraction of the 99th percentile are air to N4 (scale free; the published 60 of 1500 is not).
N4_AIR = 0.1
#: Grey values further from the middle 99 % than this many times their spread are a few broken voxels.
OUTLIER = 20.0
#: A spread of grey values within which float32 arithmetic loses nothing.
USUAL_SPREAD = (1e-3, 1e6)
#: A frame is cut off where no more than this share of the voxels remains.
WORTH_CUTTING = 0.9


def preprocess(volume: Volume, options: PreprocessOptions, published: bool = False) -> Volume:
    """Normalise, correct the bias field and pad one scan.

    Args:
        volume: the scan; any real dtype, any scale.
        options: what to do.  CT keeps its Hounsfield units with ``normalize=False, n4=False``.
        published: correct the bias field as 2.1.3 does, for models that were trained behind that.

    Returns:
        The scan on its grid grown by ``options.pad`` voxels at each side, filled with the background value.  The dtype
        is that of the input (half precision and booleans become float32 and uint8).

    Raises:
        EmptyError: all voxels have the same value.
        ValueRangeError: no voxel is finite, or the values are not real numbers.
    """
    array = _finite(volume.array)
    if array.size == 0 or array.min() == array.max():
        raise EmptyError("The image is constant: there is nothing to segment.", "Check that the right file was given.")
    if options.normalize:
        array = normalize(array)
    background = array.min()
    # A constant image is refused above, so some voxel is brighter than the background.
    box = bounding_box(array > background) if options.crop else None
    box = box or (slice(0, array.shape[0]), slice(0, array.shape[1]), slice(0, array.shape[2]))
    if options.n4:
        array = array.copy() if array is volume.array else array
        part = Volume(array[box], volume.grid.cropped(box).affine)
        as_published = correct_bias_as_published(part) if published else None
        part = correct_bias(part) if as_published is None else as_published
        array[box] = normalize(part.array) if options.normalize else part.array
    return Volume(array, volume.affine).padded(options.pad, background)


def tamed(volume: Volume) -> Volume:
    """The scan with grey values that any arithmetic can stand; usual scans come back as they are.

    NaN and infinities are replaced, types that hold little or too much become float32, a few voxels far beyond all
    others come nearer, and very small or large scales become usual ones.

    Raises:
        ValueRangeError: no voxel is finite, or the values are not real numbers.

    >>> tamed(Volume(np.array([[[-100, 0, 100]]], np.int8), np.eye(4))).array.dtype
    dtype('float32')
    """
    array = _finite(volume.array)
    if array.dtype in (np.uint8, np.int16, np.uint16) or not array.size:
        return volume if array is volume.array else volume.with_array(array)
    sample = array.reshape(-1)[:: max(array.size // 1_000_000, 1)].astype(np.float64)
    low, high = np.percentile(sample, (0.5, 99.5))
    wide = OUTLIER * (high - low)
    if wide > 0 and (array.min() < low - wide or array.max() > high + wide):
        array = array.clip(low - wide, high + wide)
    if wide > 0 and not USUAL_SPREAD[0] <= high - low <= USUAL_SPREAD[1]:
        array = (array - low) * (1000.0 / (high - low))
    return (
        volume if array is volume.array and array.dtype == np.float32 else volume.with_array(array.astype(np.float32))
    )


def as_stored(volume: Volume, stored: str | None) -> Volume:
    """The scan in its file's own type, as published models saw it.

    Integers are rounded after each step there: the frame around the scan stays exactly 0 and is cut off again before
    the network, and unsigned ones do not undershoot 0.  Single bytes get two, where 2.1.3 wraps around.

    Args:
        volume: the scan.
        stored: type of the grey values in the file; None takes whole numbers for integers.

    >>> as_stored(Volume(np.full((1, 1, 1), 7, np.float32), np.eye(4)), "uint8").array.dtype
    dtype('uint16')
    """
    array = volume.array
    if array.dtype.kind != "f" or not np.isfinite(array).all() or (array != np.rint(array)).any():
        return volume
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    if stored is None:
        stored = "int16" if max(-low, high) < 2**15 else "int32"
    kind = np.dtype(stored)
    if kind.kind not in "iub":
        return volume
    kind = kind if kind.itemsize > 1 else np.dtype(np.int16 if kind.kind == "i" else np.uint16)
    # Beyond 2**24 float32 has rounded, perhaps out of the range.
    return volume.with_array(array.astype(kind)) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max else volume


def inside_frame(array: np.ndarray) -> Box | None:
    """Box of what a frame of one value surrounds (zeros put around a scan); None where it is not worth cutting off.

    The frame would be searched, and where it ends a narrow spine would seem to go on.

    >>> inside_frame(np.pad(np.eye(3)[None] + 1, 2))
    (slice(2, 3, None), slice(2, 5, None), slice(2, 5, None))
    """
    if not array.size:
        return None
    box = bounding_box(array != array[0, 0, 0])
    if box is None:
        return None
    part = array[box]
    rest = bounding_box(part != part[-1, -1, -1])
    if rest is None:
        return None
    a, b, c = (slice(o.start + i.start, o.start + i.stop) for o, i in zip(box, rest, strict=True))
    return (a, b, c) if array[a, b, c].size < WORTH_CUTTING * array.size else None


def normalize(array: np.ndarray) -> np.ndarray:
    """Minimum to 0; then, only if the maximum exceeds 1500, scaled down to 1500 (integers truncate, dtype kept).

    >>> normalize(np.array([-200, 0, 800], np.int16))
    array([   0,  200, 1000], dtype=int16)
    """
    wide = array.astype(np.int64) if array.dtype.kind in "iu" else array
    shifted = wide - wide.min()
    top = shifted.max()
    if top > MAXIMUM:
        shifted = shifted * (MAXIMUM / top)
    return shifted.astype(array.dtype)


def correct_bias(volume: Volume) -> Volume:
    """Divide out the smooth intensity drift of the receive coils (N4, Tustison et al. 2010, through SimpleITK).

    The field is estimated on coarse block means and interpolated, which takes about half a second per scan.
    Runs on one thread, so that the result does not depend on the machine.

    Args:
        volume: non-negative MR intensities on any scale.
    """
    import SimpleITK as sitk

    if min(volume.shape) < 2:
        logger.warning("N4 bias correction is skipped: the image has only one voxel along an axis.")
        return volume
    values = volume.array.astype(np.float32)
    scale = float(np.percentile(values[values > 0], 99)) if (values > 0).any() else 0.0
    if scale <= 0:
        return volume
    # On a scale of 1000, so that ITK's internal constants mean the same for every input.
    image = sitk.GetImageFromArray(values * np.float32(1000 / scale))
    image.SetSpacing([float(z) for z in reversed(volume.zoom)])
    spacing = max(N4_SPACING, (values.size * float(np.prod(volume.zoom)) / N4_SAMPLES) ** (1 / 3))
    factors = [
        max(1, min(round(spacing / z), n // 2)) for z, n in zip(image.GetSpacing(), image.GetSize(), strict=True)
    ]
    small = sitk.BinShrink(image, factors)
    mask = small > 1000 * N4_AIR
    extent = [n * z for n, z in zip(small.GetSize(), small.GetSpacing(), strict=True)]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(N4_ITERATIONS)
    n4.SetConvergenceThreshold(N4_TOLERANCE)
    n4.SetSplineOrder(3)
    n4.SetNumberOfControlPoints([int(np.ceil(mm / N4_SPLINE_DISTANCE)) + 3 for mm in extent])
    try:
        n4.Execute(small, mask)
    except RuntimeError as error:
        logger.warning("N4 bias correction is skipped: %s", str(error).strip().splitlines()[-1])
        return volume
    field = sitk.Exp(n4.GetLogBiasFieldAsImage(small))
    full = sitk.Resample(field, image, sitk.Transform(), sitk.sitkLinear, 1.0, sitk.sitkFloat32, True)
    corrected = values / sitk.GetArrayViewFromImage(full)
    if volume.array.dtype.kind in "iu":
        info = np.iinfo(volume.array.dtype)
        corrected = np.clip(np.rint(corrected), info.min, info.max)
    return volume.with_array(corrected.astype(volume.array.dtype))


def _finite(array: np.ndarray) -> np.ndarray:
    """Real numbers only: NaN and -inf become the smallest finite value, inf the largest."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind in "iu":
        return array
    if array.dtype.kind != "f":
        raise ValueRangeError(
            f"The voxels are of type {array.dtype}, not real numbers.", "Convert the image to a real grey-value image."
        )
    array = array.astype(np.float32) if array.dtype == np.float16 else array
    finite = np.isfinite(array)
    if finite.all():
        return array
    if not finite.any():
        raise ValueRangeError("No voxel has a finite value.", "Check how the image was exported.")
    low, high = array[finite].min(), array[finite].max()
    return np.nan_to_num(array, nan=low, posinf=high, neginf=low)
