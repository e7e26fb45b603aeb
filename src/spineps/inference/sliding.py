"""Sliding window: a network that sees patches answers for a whole image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from spineps.inference.engine import Network

#: Standard deviation of the tile weights as a fraction of the tile (nnU-Net: 0.125; wider uses more of each answer).
SIGMA = 0.22

#: Step of the first look, share of the largest part below which a part is noise to it, voxels added around the rest.
FIRST_STEP, SMALL_PART, MARGIN = 0.9, 0.05, 12
#: One tile may be this much longer than the patch rather than two overlapping by half.
STRETCH = 1.35

#: (axis of the image, for each class the class that it becomes when that axis is flipped)
Mirror = tuple[int, Sequence[int]]
Progress = Callable[[int, int], None]


def sliding_window(
    network: Network,
    image: np.ndarray,
    patch: Sequence[int],
    step: float,
    classes: int,
    mirror: Mirror | None = None,
    progress: Progress | None = None,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Class probabilities of every voxel.

    Args:
        network: logits from patches.
        image: (C, X, Y, Z) float32.
        patch: usual tile in voxels, up to a third longer where one tile then suffices; smaller images are padded (edge
            values) to a multiple of the network's stride.
        step: distance of tiles as a fraction of the tile, (0, 1].
        classes: number of classes K.
        mirror: also answer the flipped image and average.
        progress: called with (tiles done, tiles in all).
        prepare: scales each tile (C, x, y, z) before the network sees it.

    Returns:
        (K, X, Y, Z) float32 that sums to 1 over K.
    """
    shape = image.shape[1:]
    tile = tuple(_tile_length(n, p, s) for n, p, s in zip(shape, patch, network.spec.stride, strict=True))
    before = [max(t - n, 0) // 2 for n, t in zip(shape, tile, strict=True)]
    after = [max(t - n, 0) - b for n, t, b in zip(shape, tile, before, strict=True)]
    if any(before) or any(after):
        image = np.pad(image, [(0, 0), *zip(before, after, strict=True)], mode="edge")
    padded = image.shape[1:]
    starts = list(product(*(tile_starts(n, t, step) for n, t in zip(padded, tile, strict=True))))
    weights = tile_weights(tile)
    total = np.zeros((classes, *padded), np.float32)
    norm = np.zeros(padded, np.float32)
    for done, start in enumerate(starts):
        box = tuple(slice(s, s + t) for s, t in zip(start, tile, strict=True))
        total[(slice(None), *box)] += weights * _tile_probabilities(
            network, image[(slice(None), *box)], mirror, prepare
        )
        norm[box] += weights
        if progress:
            progress(done + 1, len(starts))
    inner = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
    total = total[(slice(None), *inner)]
    total /= norm[inner]
    return total


def focused_window(
    network: Network,
    image: np.ndarray,
    patch: Sequence[int],
    step: float,
    classes: int,
    mirror: Mirror | None = None,
    progress: Progress | None = None,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """:func:`sliding_window` with its overlap and mirrored pass spent only where a first quick look finds something.

    Images that one tile covers are answered at once.  Else tiles side by side look at everything, and the box around
    what they find, with a margin, is answered again with care.  Specks outside the box (air and noise) are dropped.
    """
    shape = image.shape[1:]
    if all(n <= _tile_length(n, p, s) for n, p, s in zip(shape, patch, network.spec.stride, strict=True)):
        return sliding_window(network, image, patch, step, classes, mirror, progress, prepare)
    seen = sliding_window(network, image, patch, FIRST_STEP, classes, None, progress, prepare)
    box = _busy_box(seen[0] < 0.5)
    if box is None:
        return seen
    part = image[(slice(None), *box)]
    careful = sliding_window(network, part, patch, step, classes, mirror, progress, prepare)
    seen[:] = 0
    seen[0] = 1
    seen[(slice(None), *box)] = careful
    return seen


def _busy_box(found: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Box around the large components of what was found, with a margin."""
    from scipy.ndimage import find_objects, label

    # Every other voxel is enough to see what is large.
    parts, count = label(found[::2, ::2, ::2])
    if count == 0:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    boxes = [box for box, size in zip(find_objects(parts), sizes, strict=True) if size >= SMALL_PART * sizes.max()]
    low = [max(2 * min(b[axis].start for b in boxes) - MARGIN, 0) for axis in range(3)]
    high = [min(2 * max(b[axis].stop for b in boxes) + MARGIN, found.shape[axis]) for axis in range(3)]
    return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])


def tile_starts(length: int, tile: int, step: float) -> list[int]:
    """First voxels of tiles that cover ``length``, evenly spread, no further apart than ``step`` tiles.

    >>> tile_starts(10, 4, 0.5), tile_starts(4, 4, 0.5)
    ([0, 2, 4, 6], [0])
    """
    if length <= tile:
        return [0]
    count = int(np.ceil((length - tile) / max(tile * step, 1))) + 1
    return [int(s) for s in np.unique(np.rint(np.linspace(0, length - tile, count)))]


def tile_weights(tile: Sequence[int], sigma: float = SIGMA) -> np.ndarray:
    """Gaussian weights (x, y, z) float32, 1 in the centre and never 0."""
    axes = [np.exp(-0.5 * ((np.arange(t) - (t - 1) / 2) / (t * sigma)) ** 2) for t in tile]
    return (np.einsum("i,j,k->ijk", *axes) + 1e-4).astype(np.float32)


def softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    """Probabilities from logits; overwrites nothing."""
    p = logits - logits.max(axis=axis, keepdims=True)
    np.exp(p, out=p)
    p /= p.sum(axis=axis, keepdims=True)
    return p


def _tile_length(length: int, patch: int, stride: int) -> int:
    whole = -(-length // stride)
    return (whole if length <= STRETCH * patch else -(-patch // stride)) * stride


def _tile_probabilities(
    network: Network, tile: np.ndarray, mirror: Mirror | None, prepare: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    x = (prepare(tile) if prepare else tile)[None]
    p = softmax(_logits(network, x), axis=0)
    if mirror is not None:
        axis, permutation = mirror
        # Flipping back and swapping sides makes the second answer one about the same voxels and classes.
        p += np.flip(softmax(_logits(network, np.flip(x, axis + 2)), axis=0), axis + 1)[list(permutation)]
        p *= 0.5
    return p


def _logits(network: Network, x: np.ndarray) -> np.ndarray:
    answer = network(x)
    if isinstance(answer, dict):
        raise TypeError("sliding_window needs a network that answers per voxel")
    return answer[0]
