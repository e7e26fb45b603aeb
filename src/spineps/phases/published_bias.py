"""The bias correction that published models were trained behind: N4 as ANTs runs it.

N4 (Tustison et al., IEEE TMI 2010) with the settings of SPINEPS 2.1.3 (SPEC: ANTs, mask = filled box of voxels >= 60,
shrink factor 4, four levels of 50 iterations, spline distance 100 mm).  Because the mask is a box, the points of the
B-spline fit form a grid and the fit falls apart into three small matrix products: tenths of a second instead of the
20 s that ITK needs for a lumbar scan.  Numbers follow ITK 5.4 up to rounding: what looks odd below decides there too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from spineps.volume import Box, Volume, bounding_box

logger = logging.getLogger(__name__)

#: Settings of SPINEPS 2.1.3; voxels below ``AIR`` (of at most 1500) lie outside the mask unless its box holds them.
AIR, SHRINK, DISTANCE_MM = 60, 4, 100.0
LEVELS, ITERATIONS, TOLERANCE = 4, 50, 1e-7
#: Defaults of ITK's filter: histogram bins, width of the blur that is undone, noise of the Wiener filter.
BINS, FWHM, NOISE = 200, 0.15, 0.01
#: The histogram is padded to twice the next power of two.
PADDED = 512
#: ITK moves the last point of a spline into it by this fraction of a point's distance.
INWARDS = 1e-3
#: Control points with less weight than this stay 0 (ITK's idea of "almost zero": a tenth of float32's epsilon).
LEAST_WEIGHT = 0.1 * float(np.finfo(np.float32).eps)


def correct_bias_as_published(volume: Volume) -> Volume | None:
    """Divide out the field that ANTs' N4 finds; integers truncate, as they did.

    Args:
        volume: non-negative MR intensities, at most about 1500.

    Returns:
        The corrected scan, dtype kept; None where the published settings find nothing to work on: no voxel reaches 60
        (2.1.3 ends with an error there), or the scan is only one voxel thick.
    """
    box = bounding_box(volume.array >= AIR)
    if box is None or min(volume.shape) < 2:
        return None
    values = volume.array.astype(np.float32)
    field = log_field(volume.with_array(values), box)
    if field is None:
        return None
    corrected = values.copy()
    corrected[box] /= np.exp(field[box])  # what lies outside the mask stays as it is
    if volume.array.dtype.kind in "iu":
        info = np.iinfo(volume.array.dtype)
        # Beyond its range an integer would wrap around.
        corrected = np.clip(corrected, info.min, np.nextafter(np.float32(info.max), np.float32(0)))
    return volume.with_array(corrected.astype(volume.array.dtype))


def log_field(volume: Volume, box: Box) -> np.ndarray | None:
    """Logarithm of the bias field.

    Args:
        volume: float32 intensities (X, Y, Z).
        box: where the field is estimated.

    Returns:
        (X, Y, Z) float32; None when too few points are left after shrinking.
    """
    values, zoom = volume.array, volume.zoom
    axes = [_Axis(n, z) for n, z in zip(values.shape, zoom, strict=True)]
    for axis, first, inside in zip(axes, _first_voxels(volume.affine, axes), box, strict=True):
        axis.take(first, inside)
    points = values[np.ix_(*(a.voxels for a in axes))]
    if min(a.points for a in axes) < 2 or min(points.shape) < 1:
        logger.warning("N4 has too few points on a scan of %s voxels of %s mm.", values.shape, zoom)
        return None
    # ITK's order (first axis fastest) matters where the first of equals counts.
    axes.reverse()
    # Kept in float32 as there, worked out in float64, so that other processors round to the same.
    seen = np.log(points, where=points > 0, out=points.astype(np.float64), dtype=np.float64)
    seen = seen.T.astype(np.float32, order="C")
    field = np.zeros(seen.shape, np.float32)
    lattice = np.zeros([a.spans + 3 for a in axes], np.float32)
    for level in range(LEVELS):
        if level:
            lattice = _refined(lattice)
        bases = [a.basis(level) for a in axes]
        # Lee, Wolberg and Shin 1997: every point proposes w^3 / sum w^2 of its value, averaged with weights w^2.
        weight = _product([(b**2).sum(axis=0)[:, None] for b in bases], np.ones((1, 1, 1)))
        spread = [(b**3 / (b**2).sum(axis=1, keepdims=True)).T for b in bases]
        for _ in range(ITERATIONS):
            left = seen - field
            proposed = _product(spread, left - sharpened(left))
            lattice += np.divide(proposed, weight, out=np.zeros(weight.shape), where=weight > LEAST_WEIGHT)
            new = _product(bases, lattice).astype(np.float32)
            change = np.exp(field - new)
            field = new
            if change.std(ddof=1) <= TOLERANCE * change.mean():
                break
    return _product([a.basis(LEVELS - 1, whole=True).astype(np.float32) for a in axes], lattice).T


def sharpened(values: np.ndarray) -> np.ndarray:
    """Most likely true log intensity of every voxel, if a Gaussian has blurred the histogram.

    Args:
        values: float32 log intensities, any shape.
    """
    x = values.ravel()
    peak = np.maximum.accumulate(x)
    # In ITK a value that is the highest so far is not asked whether it is the lowest.
    rest = x[1:][x[1:] <= peak[:-1]]
    if not rest.size or peak[-1] <= rest.min():
        return values
    low = rest.min()
    step = (peak[-1] - low) / np.float32(BINS - 1)
    place = (x - low) / step
    bin_ = np.floor(place).astype(np.int64)
    part = place - bin_
    inside = (bin_ >= 0) & (bin_ < BINS - 1)
    low_bin, part = bin_[inside], part[inside]
    histogram = np.zeros(PADDED)
    start = (PADDED - BINS) // 2
    histogram[start : start + BINS] = np.bincount(low_bin, 1 - part, BINS) + np.bincount(low_bin + 1, part, BINS)
    # The highest value counts only if rounding has not put it beyond its bin.
    histogram[start + BINS - 1] += np.count_nonzero(place == BINS - 1)

    distance = np.minimum(np.arange(PADDED), PADDED - np.arange(PADDED))
    width = FWHM / float(step)
    blur = 2 * np.sqrt(np.log(2) / np.pi) / width * np.exp(-4 * np.log(2) * (distance / width) ** 2)
    blur = np.fft.fft(blur).real  # it is symmetric
    true = np.maximum(np.fft.ifft(np.fft.fft(histogram) * blur / (blur**2 + NOISE)).real, 0)
    centre = float(low) + (np.arange(PADDED) - start) * float(step)
    top, bottom = (np.fft.ifft(np.fft.fft(h) * blur).real for h in (centre * true, true))
    expected = np.divide(top, bottom, out=np.zeros(PADDED), where=bottom != 0)
    expected = expected[start : start + BINS].astype(np.float32)
    out = np.full(x.shape, expected[-1])
    out[inside] = expected[low_bin] + (expected[low_bin + 1] - expected[low_bin]) * part
    return out.reshape(values.shape)


class _Axis:
    """One axis: padding to whole spans, then every fourth voxel.

    Attributes:
        spans: of the coarsest spline.
        before: voxels of padding in front.
        padded: length with padding.
        points: length after shrinking.
        voxels: those of the scan's voxels that are points inside the box.
    """

    def __init__(self, n: int, zoom: float) -> None:
        # Single precision, as there: a length may lie next to a whole number of spans.
        size, distance = np.float32(zoom), np.float32(DISTANCE_MM)
        length = np.float32(n - 1) * size
        self.spans = int(np.ceil(length / distance))
        padding = int((np.float32(self.spans) * distance - length) / size + np.float32(0.5))
        self._n, self.before, self.padded = n, padding // 2, n + padding
        self.points = max(self.padded // SHRINK, 1)

    def take(self, first: int, box: slice) -> None:
        """``first``: the voxel that is the first point, counted from the scan's first (negative: in the padding)."""
        index = first + SHRINK * np.arange(self.points)
        self._used = np.flatnonzero((index >= box.start) & (index < box.stop))
        self.voxels = index[self._used]

    def basis(self, level: int, whole: bool = False) -> np.ndarray:
        """Cubic B-splines (columns) at the points in the box, or at all of the scan's voxels."""
        spans = self.spans << level
        n = self.padded if whole else self.points
        where = np.arange(n) * (spans / (n - 1))
        where[-1] = spans - spans / (n - 1) * INWARDS
        where = where[self.before : self.before + self._n] if whole else where[self._used]
        span = np.minimum(where.astype(int), spans - 1)
        u = where - span
        out, rows = np.zeros((len(where), spans + 3)), np.arange(len(where))
        pieces = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
        for k, piece in enumerate(pieces):
            out[rows, span + k] = piece / 6
        return out


def _first_voxels(affine: np.ndarray, axes: Sequence[_Axis]) -> list[int]:
    """Voxel of the scan from which ITK's shrinking starts along each axis.

    It shrinks about the image's centre, which often lies just between two voxels: then the rounding of millimetres
    decides, so the same library is asked.  It counts from an index that padding has made negative, and never goes back
    from that index once it is shrunk.
    """
    import SimpleITK as sitk

    zoom = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    lps = np.diag([-1.0, -1.0, 1.0])
    image = sitk.Image([1, 1, 1], sitk.sitkUInt8)
    image.SetDirection((lps @ affine[:3, :3] / zoom).ravel().tolist())
    image.SetOrigin((lps @ affine[:3, 3]).tolist())
    image.SetSpacing(zoom.tolist())
    shrunk = sitk.Image(image)
    shrunk.SetSpacing((zoom * SHRINK).tolist())
    start = [-(a.before // SHRINK) for a in axes]
    centre = [-a.before + (a.padded - 1) / 2 for a in axes]
    centre_shrunk = [s + (a.points - 1) / 2 for s, a in zip(start, axes, strict=True)]
    move = np.subtract(
        image.TransformContinuousIndexToPhysicalPoint(centre),
        shrunk.TransformContinuousIndexToPhysicalPoint(centre_shrunk),
    )
    shrunk.SetOrigin((np.array(image.GetOrigin()) + move).tolist())
    first = image.TransformPhysicalPointToIndex(shrunk.TransformIndexToPhysicalPoint(start))
    return [max(f, SHRINK * s) for f, s in zip(first, start, strict=True)]


def _product(matrices: Sequence[np.ndarray], array: np.ndarray) -> np.ndarray:
    """Each matrix applied along its axis."""
    for axis, matrix in enumerate(matrices):
        array = np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
    return array


def _refined(lattice: np.ndarray) -> np.ndarray:
    """The same spline on half the spacing."""
    for axis in range(3):
        old = np.moveaxis(lattice, axis, 0)
        new = np.empty((2 * len(old) - 3, *old.shape[1:]), old.dtype)
        new[0::2] = (old[:-1] + old[1:]) / 2
        new[1::2] = (old[:-2] + 6 * old[1:-1] + old[2:]) / 8
        lattice = np.moveaxis(new, 0, axis)
    return lattice
