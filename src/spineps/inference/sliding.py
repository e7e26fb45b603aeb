"""Sliding window: a network that sees patches answers for a whole image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from spineps.inference.engine import Network
from spineps.inference.parts import continuing

#: Standard deviation of the tile weights as a fraction of the tile (nnU-Net: 0.125; wider uses more of each answer).
SIGMA = 0.22

#: Step of the first look, share of the largest part below which a part is noise to it, voxels added around the rest
#: (mm where their size is known).
FIRST_STEP, SMALL_PART, MARGIN, MARGIN_MM = 0.9, 0.05, 12, 18.0
#: A part beside the largest one (a shoulder blade, a hip) is no spine unless it has this share of its size.
BESIDE_PART = 0.6
#: Voxels from a side of the box within which something may go on beyond it; and along the spine (in the dark of a coil
#: it ended 3 before the box did, and four vertebrae were lost).
NEAR, NEAR_ALONG = 3, 5
#: One tile may be this much longer than the patch rather than two overlapping by half.
STRETCH = 1.35

#: (axis of the image, for each class the class that it becomes when that axis is flipped)
Mirror = tuple[int, Sequence[int]]
Progress = Callable[[int, int], None]
Box = tuple[slice, slice, slice]
#: Axis along which the body stands, and mm per voxel of each axis.
Stance = tuple[int, Sequence[float]]


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
    locate: Callable[[], Box | None] | None = None,
    stance: Stance | None = None,
) -> np.ndarray:
    """:func:`sliding_window` with its overlap and mirrored pass spent only where a first quick look finds something.

    Images that one tile covers are answered at once.  Else ``locate`` gives the box to look into; without it, or when
    it finds nothing, tiles side by side look at everything.  What then comes close to a side of the box makes the box
    wider (across the body, where ``stance`` tells which way it stands, only once).  Specks outside the box (air and
    noise) are dropped.
    """
    shape = image.shape[1:]
    if all(n <= _tile_length(n, p, s) for n, p, s in zip(shape, patch, network.spec.stride, strict=True)):
        return sliding_window(network, image, patch, step, classes, mirror, progress, prepare)
    box = locate() if locate else None
    if box is None:
        seen = sliding_window(network, image, patch, FIRST_STEP, classes, None, progress, prepare)
        box = busy_box(seen[0] < 0.5, shape, stance)
        if box is None:
            return seen
        del seen
    first = True
    while True:
        part = image[(slice(None), *box)]
        careful = sliding_window(network, part, patch, step, classes, mirror, progress, prepare)
        wider = _wider(careful[0] < 0.5, box, shape, patch, stance)
        if stance and not first:
            # Ribs lead on to the skin: across the body the box grows once.
            along = stance[0]
            a, b, c = (wider[axis] if axis == along else box[axis] for axis in range(3))
            wider = a, b, c
        if wider == box:
            break
        box, first = wider, False
    answer = np.zeros((classes, *shape), np.float32)
    answer[0] = 1
    answer[(slice(None), *box)] = careful
    return answer


def busy_box(found: np.ndarray, shape: Sequence[int], stance: Stance | None = None) -> Box | None:
    """Box around the large components of what was found, with a margin.

    Args:
        found: bool, of the whole image in voxels of any size.
        shape: voxels of the image in which box and margin are counted.
        stance: of ``found``; None takes what lies beside the largest component for spine, too.
    """
    # On a fine grid every other voxel is enough to see what is large.
    scale = [n / m for n, m in zip(shape, found.shape, strict=True)]
    sparse = 2 if max(scale) < 1.5 else 1
    box = _large_parts(found[::sparse, ::sparse, ::sparse], stance and (stance[0], [sparse * mm for mm in stance[1]]))
    if box is None:
        return None
    sides = []
    for axis, (part, k, n) in enumerate(zip(box, scale, shape, strict=True)):
        margin = round(MARGIN_MM * k / stance[1][axis]) if stance else MARGIN
        low, high = int(part.start * k * sparse) - margin, int(np.ceil(part.stop * k * sparse)) + margin
        # The last voxels before the border of the image cost less than looking again.
        sides.append(slice(low if low > 2 * margin else 0, high if n - high > 2 * margin else n))
    return sides[0], sides[1], sides[2]


def _large_parts(found: np.ndarray, stance: Stance | None) -> Box | None:
    """Box around all components that are not small beside the largest, nor smaller ones that lie beside it."""
    from scipy.ndimage import find_objects, label

    parts, count = label(found)
    if count == 0:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    large = np.flatnonzero(sizes >= SMALL_PART * sizes.max())
    if stance and len(large) > 1:
        large = large[np.argsort(-sizes[large], kind="stable")]
        goes_on = continuing([np.argwhere(parts == k + 1) * np.array(stance[1]) for k in large], stance[0])
        large = large[np.array(goes_on) | (sizes[large] >= BESIDE_PART * sizes.max())]
    boxes = find_objects(parts)
    sides = [[boxes[k][axis] for k in large] for axis in range(3)]
    a, b, c = (slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)
    return a, b, c


def _wider(found: np.ndarray, box: Box, shape: Sequence[int], patch: Sequence[int], stance: Stance | None) -> Box:
    """The box, half a patch wider on each side (not of the image) that something large in it comes close to."""
    inside = _large_parts(found, stance)
    if inside is None:
        return box
    sides = []
    for axis, (had, part, n, p) in enumerate(zip(box, inside, shape, patch, strict=True)):
        near = NEAR_ALONG if stance and axis == stance[0] else NEAR
        low = had.start - (p // 2 if part.start < near else 0)
        high = had.stop + (p // 2 if had.stop - had.start - part.stop < near else 0)
        sides.append(slice(max(low, 0), min(high, n)))
    return sides[0], sides[1], sides[2]


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
