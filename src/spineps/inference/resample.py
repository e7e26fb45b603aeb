"""To the grid of a model and back: separable linear sampling, one small matrix per axis.

A scan is only ever reoriented, cropped, padded and rescaled on its way to a network, so every way back is separable:
target = A0 . source . A1' . A2' with one sparse-by-nature matrix per axis, which BLAS applies faster than any
general interpolation.  Sheared and rotated pairs of grids fall back to ``scipy.ndimage``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spineps.volume import Grid, Volume

#: Ratio of voxel sizes from which an image is smoothed before it is sampled down.
ANTIALIAS_FROM = 1.05
#: float32 voxels of one slab of the target while classes compete (16 MiB each).
SLAB_VOXELS = 4_000_000


def to_model_grid(image: Volume, zoom: Sequence[float], antialias: bool = True, whole: bool = False) -> Volume:
    """Resample an image to a voxel size: Gaussian (sigma 0.5 sqrt(r^2 - 1) voxels, r = new / old), then linear.

    Args:
        image: any dtype, already in the model's orientation.
        zoom: target voxel size in mm.
        antialias: smooth along axes that lose resolution (r > 1.05).
        whole: on ``image.grid.covering(zoom)``, which leaves no slice out.

    Returns:
        float32, on ``image.grid.rescaled(zoom)`` (or the covering one); values beyond the border repeat the edge.
    """
    from spineps.volume import Volume

    target = image.grid.covering(zoom) if whole else image.grid.rescaled(zoom)
    first = image.grid.to_index(target.to_world(np.zeros(3)))
    out = np.asarray(image.array, np.float32)
    for axis, (new, old) in enumerate(zip(target.zoom, image.zoom, strict=True)):
        n, m, ratio = image.shape[axis], target.shape[axis], new / old
        matrix = _linear_matrix(first[axis] + np.arange(m) * ratio, n)
        if antialias and ratio > ANTIALIAS_FROM:
            matrix = matrix @ blur_matrix(n, 0.5 * np.sqrt(ratio**2 - 1))
        if m != n or abs(ratio - 1) > 1e-6:
            out = _apply(matrix, out, axis)
    return Volume(out, target.affine)


def argmax_on_grid(probabilities: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Most probable class of every voxel of ``target``.

    Args:
        probabilities: (K, X, Y, Z) float32 on ``source``; class 0 is background.
        source: grid of the probabilities.
        target: grid of the answer.

    Returns:
        Target-shaped uint8 class indices; 0 beyond the source.
    """
    # Where background holds half of the probability at every corner of a cell, no class can win inside the cell; and
    # the winner of K classes has at least 1 / K.
    answer = np.zeros(target.shape, np.uint8)
    for box, slabs in _slabs(probabilities, 0.5, 1 / len(probabilities), source, target):
        best_value: np.ndarray | None = None
        best = np.zeros(tuple(s.stop - s.start for s in box), np.uint8)
        for k, value in slabs:
            if best_value is None:
                best_value = value
                continue
            better = value > best_value
            best[better] = k
            np.maximum(best_value, value, out=best_value)
        answer[box] = best
    return answer


def without_mixtures(answer: np.ndarray, label: int, mask: Volume, target: Grid) -> np.ndarray:
    """Where ``answer`` holds ``label`` although no voxel of ``mask`` around does, it takes the mask's own label.

    Between two sure classes the interpolated probability of a third, low in both, may be the highest.

    Args:
        answer: ids on ``target``, as of :func:`argmax_on_grid`; changed in place and returned.
        label: the id to look for.
        mask: ids on the grid of the probabilities.
        target: grid of the answer.
    """
    found = np.nonzero(answer == label)
    if not found[0].size:
        return answer
    index = np.rint(mask.grid.to_index(target.to_world(np.stack(found, axis=-1)))).astype(int)
    index = np.clip(index, 0, np.array(mask.shape) - 1)
    around = np.zeros(len(index), bool)
    padded = np.pad(mask.array == label, 1)
    for shift in np.ndindex(3, 3, 3):
        around |= padded[tuple((index + shift).T)]
    nearest = mask.array[tuple(index.T)]
    answer[found] = np.where(around, label, nearest)
    return answer


def entropy_on_grid(probabilities: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Entropy of the interpolated probabilities over log K: 0 certain .. 1 undecided, float32, 0 beyond the source."""
    answer = np.zeros(target.shape, np.float32)
    scale = -1 / np.log(len(probabilities))
    for box, slabs in _slabs(probabilities, 0.999, 1e-4, source, target):
        total = np.zeros(tuple(s.stop - s.start for s in box), np.float32)
        for _, value in slabs:
            total += value * np.log(np.maximum(value, 1e-7))
        answer[box] = np.clip(total * scale, 0, 1)
    return answer


Slabs = Iterator[tuple[tuple[slice, slice, slice], Iterator[tuple[int, np.ndarray]]]]


def _slabs(probabilities: np.ndarray, background: float, least: float, source: Grid, target: Grid) -> Slabs:
    """Slabs of the target, each with its interpolated classes one by one.

    Only where the background's probability is below ``background``; classes that nowhere reach ``least`` are left out.
    """
    from spineps.volume import bounding_box

    seen = bounding_box(probabilities[0] < background, 1)
    if seen is None:
        return
    index = np.linalg.inv(source.affine) @ target.affine
    axes = _source_axes(index)
    # axes[i] is the source axis that runs along target axis i.
    view = probabilities.transpose(0, *(a + 1 for a in axes))
    matrices, box = [], []
    for i, a in enumerate(axes):
        where = index[a, i] * np.arange(target.shape[i]) + index[a, 3]
        inside = np.flatnonzero(
            (where > max(seen[a].start - 1, -0.5 - 1e-6)) & (where < min(seen[a].stop, source.shape[a] - 0.5 + 1e-6))
        )
        if inside.size == 0:
            return
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
        matrices.append(_linear_matrix(where[box[i]], source.shape[a]))
    plane = int(np.prod([b.stop - b.start for b in box[1:]]))
    rows = max(SLAB_VOXELS // plane, 1)
    for start in range(0, len(matrices[0]), rows):
        first = matrices[0][start : start + rows]
        slab = slice(box[0].start + start, box[0].start + start + len(first))
        yield (slab, box[1], box[2]), _classes(view, [first, matrices[1], matrices[2]], least)


def _classes(view: np.ndarray, matrices: list[np.ndarray], least: float) -> Iterator[tuple[int, np.ndarray]]:
    # Only source rows that some target row uses take part in the products.
    used = [np.flatnonzero(m.any(axis=0)) for m in matrices]
    box = tuple(slice(int(u[0]), int(u[-1]) + 1) for u in used)
    matrices = [np.ascontiguousarray(m[:, b]) for m, b in zip(matrices, box, strict=True)]
    for k in range(len(view)):
        part = np.ascontiguousarray(view[k][box], np.float32)
        if k > 0 and part.max() < least:
            continue
        for axis in (2, 1, 0):
            part = _apply(matrices[axis], part, axis)
        yield k, part


def _source_axes(index: np.ndarray) -> tuple[int, int, int]:
    """Source axis along each target axis; the map may only permute, flip, scale and shift."""
    linear = np.abs(index[:3, :3])
    axes = linear.argmax(axis=0)
    kept = np.zeros_like(linear)
    kept[axes, range(3)] = linear[axes, range(3)]
    if sorted(axes) != [0, 1, 2] or np.abs(linear - kept).max() > 1e-5 * linear.max():
        raise ValueError("The grids are turned against each other; those of one scan never are.")
    return int(axes[0]), int(axes[1]), int(axes[2])


def _linear_matrix(where: np.ndarray, length: int) -> np.ndarray:
    """(len(where), length) float32 that samples at continuous indices, edge values repeated beyond the ends."""
    where = np.clip(where, 0, length - 1)
    low = np.minimum(np.floor(where).astype(int), max(length - 2, 0))
    fraction = where - low
    matrix = np.zeros((len(where), length), np.float32)
    rows = np.arange(len(where))
    matrix[rows, low] = 1 - fraction
    if length > 1:
        matrix[rows, low + 1] = fraction
    return matrix


def blur_matrix(length: int, sigma: float) -> np.ndarray:
    """(length, length) float32 Gaussian blur of ``sigma`` > 0 voxels with repeated edges.

    >>> blur_matrix(5, 1.0).sum(axis=1).round(6).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    reach = int(np.ceil(3 * sigma))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    matrix = np.zeros((length, length), np.float32)
    rows = np.arange(length)
    for offset, weight in zip(offsets, kernel, strict=True):
        np.add.at(matrix, (rows, np.clip(rows + offset, 0, length - 1)), np.float32(weight))
    return matrix


def _apply(matrix: np.ndarray, array: np.ndarray, axis: int) -> np.ndarray:
    """``matrix`` (m, n) applied along ``axis`` (length n) of a 3-D float32 array."""
    if axis == 0:
        return (matrix @ array.reshape(len(array), -1)).reshape(len(matrix), *array.shape[1:])
    if axis == 1:
        return np.matmul(matrix, array)
    return array @ matrix.T
