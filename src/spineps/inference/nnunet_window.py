"""nnU-Net's sliding window with little memory: sums of classes exist only for a band one tile deep.

Tiles, weights and mirroring are those of nnU-Net v2 as SPINEPS 2.1.3 uses it, which sums in float16 and overflows; here
sums are float32.  Answers are logits; what is averaged are logits as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, combinations, product

import numpy as np

from spineps.errors import ModelError
from spineps.inference.batches import in_batches
from spineps.inference.engine import Network
from spineps.inference.nnunet_plans import Plans, Prepared, Shape, resampled
from spineps.inference.sliding import tile_starts

#: Standard deviation of the tile weights as a fraction of the tile (nnU-Net).
SIGMA = 1 / 8
#: A U-Net's working memory per voxel of a tile on a GPU (about 160 channels at full size in float32, twice, estimated),
#: the share of free memory to be used, and the batch from which larger ones do not help.
BYTES_PER_VOXEL, MEMORY_SHARE, LARGEST_BATCH = 1300, 0.7, 8

Progress = Callable[[int, int], None]
#: (axis, rows along it, sums (K, ...) of those rows) and (first voxels of a tile, axes along which it is flipped).
Band = tuple[int, slice, np.ndarray]
Job = tuple[tuple[int, ...], tuple[int, ...]]


def bands(
    network: Network,
    image: np.ndarray,
    classes: int,
    patch: Shape,
    step: float,
    mirror: Sequence[int] = (),
    progress: Progress | None = None,
) -> Iterator[Band]:
    """Weighted sums of logits, row by row as soon as no later tile can change them.

    Args:
        network: logits from tiles.
        image: (C, a, b, c) float16 or float32.
        classes: channels K of the answer.
        patch: tile in voxels; smaller images are padded with 0 at both ends.
        step: distance of tiles as a fraction of the tile.
        mirror: axes (0, 1, 2); all combinations of flips are answered and summed.
        progress: called with (network calls done, calls in all), a batch counting as its tiles.

    Yields:
        (axis, rows, sums): ``sums`` (K, a, b, c) float32 covers the image but for ``axis``, where it covers ``rows``;
        it is overwritten afterwards.  All rows come once, in order.  Sums are :func:`weight_sums` times the number of
        flips too large.
    """
    shape = image.shape[1:]
    before = [max(p - n, 0) // 2 for n, p in zip(shape, patch, strict=True)]
    after = [max(p - n, 0) - b for n, p, b in zip(shape, patch, before, strict=True)]
    if any(before) or any(after):
        image = np.pad(image, [(0, 0), *zip(before, after, strict=True)])
    starts = [tile_starts(n, p, step) for n, p in zip(image.shape[1:], patch, strict=True)]
    axis = int(np.argmax([len(s) for s in starts]))
    inner = [slice(b, b + n) for b, n in zip(before, shape, strict=True)]
    flips = list(chain.from_iterable(combinations(mirror, n) for n in range(len(mirror) + 1)))
    tiles = sorted(product(*starts), key=lambda start: start[axis])
    jobs = list(product(tiles, flips))
    weights = tile_weights(patch)

    size = list(image.shape[1:])
    size[axis] = patch[axis]
    band = np.zeros((classes, *size), np.float32)
    first, edge = 0, before[axis]

    def finished(stop: int) -> Band:
        # Rows of the band before ``stop``, less what was padded.
        low, high = max(first, edge), min(stop, edge + shape[axis])
        inner[axis] = slice(low - first, high - first)
        return axis, slice(low - edge, high - edge), band[(slice(None), *inner)]

    for done, ((start, flip), logits) in enumerate(_answers(network, image, classes, patch, jobs)):
        if start[axis] > first:
            yield finished(start[axis])
            _shift(band, axis, start[axis] - first)
            first = start[axis]
        box = [slice(s, s + p) for s, p in zip(start, patch, strict=True)]
        box[axis] = slice(None)
        for total, answer in zip(band, logits, strict=True):
            total[tuple(box)] += np.flip(answer, flip) * weights
        if progress:
            progress(done + 1, len(jobs))
    yield finished(first + patch[axis])


def stream_labels(
    network: Network, image: np.ndarray, plans: Plans, step: float, mirror: Sequence[int], progress: Progress | None
) -> np.ndarray:
    """Class of every voxel of ``image`` (C, a, b, c), uint8 or uint16; sums are dropped once they are complete."""
    found = bands(network, image, plans.heads, plans.patch, step, mirror, progress)
    parts = [(axis, best_of(sums, plans)) for axis, _, sums in found]
    return np.concatenate([part for _, part in parts], parts[0][0])


def mean_logits(
    networks: Iterable[Network],
    count: int,
    image: np.ndarray,
    plans: Plans,
    step: float,
    mirror: Sequence[int],
    progress: Progress | None,
) -> np.ndarray:
    """Mean logits of every voxel over tiles, flips and networks: (K, a, b, c) float32.

    Networks are taken one after the other, and let go of before the next is asked for.
    """
    total = np.zeros((plans.heads, *image.shape[1:]), np.float32)
    # No enumerate(): it holds the last item while it fetches the next.
    waiting, number = iter(networks), 0
    while network := next(waiting, None):
        tell = None if progress is None else lambda done, n, k=number: progress(k * n + done, count * n)
        for axis, rows, sums in bands(network, image, plans.heads, plans.patch, step, mirror, tell):
            part = np.moveaxis(total, axis + 1, 1)[:, rows]
            part += np.moveaxis(sums, axis + 1, 1)
        number += 1
        del network
    total /= weight_sums(image.shape[1:], plans.patch, step) * np.float32(count * 2 ** len(mirror))
    return total


def best_of(logits: Iterable[np.ndarray], plans: Plans) -> np.ndarray:
    """Channels of logits, or positive multiples of them, one by one to classes (first of equals).

    Regions overwrite each other in the order of the plans where their probability exceeds 0.5.
    """
    best, top = np.zeros(0), np.zeros(0)
    for k, channel in enumerate(logits):
        if k == 0:
            best = np.zeros(channel.shape, np.uint8 if max(plans.heads - 1, *plans.regions, 0) < 256 else np.uint16)
            top = np.zeros_like(channel) if plans.regions else channel.copy()
        if plans.regions:
            best[channel > 0] = plans.regions[k]
        elif k > 0:
            best[channel > top] = k
            np.maximum(top, channel, out=top)
    return best


def class_probabilities(logits: np.ndarray, plans: Plans) -> np.ndarray:
    """(K, ...) logits to probabilities of classes 0 .. n - 1 that sum to 1, float32; ``logits`` is overwritten.

    A region's class has the probability that this region holds and none that is painted after it.
    """
    if not plans.regions:
        logits -= logits.max(axis=0)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=0)
        return logits
    out = np.zeros((max(plans.regions) + 1, *logits.shape[1:]), np.float32)
    out[0] = 1
    for label, region in zip(plans.regions, logits, strict=True):
        holds = 1 / (1 + np.exp(-np.clip(region, -80, 80)))
        out *= 1 - holds
        out[label] += holds
    return out


def on_image(values: np.ndarray, prepared: Prepared, plans: Plans, outside: float = 0) -> np.ndarray:
    """(a, b, c) of the crop before resampling to (X, Y, Z) of the image; ``outside`` the crop."""
    whole = np.full(prepared.shape, outside, values.dtype)
    whole[prepared.box] = values
    return np.ascontiguousarray(whole.transpose(np.argsort(plans.axes)))


def unresampled(logits: np.ndarray, prepared: Prepared, plans: Plans) -> Iterator[np.ndarray]:
    """The channels of ``logits`` in the voxel size of the image, one by one."""
    for channel in logits:
        yield resampled(channel, prepared.inner, plans.spacing, prepared.zoom, plans.logits)


def tile_weights(patch: Shape) -> np.ndarray:
    """nnU-Net's Gaussian weights of a tile, (a, b, c) float32, 1 in the centre.

    The published system turns the Gaussian (sum 1, so about 1e-5 high) into float16 before it scales it: the flanks
    are steps of the smallest float16 and have a floor, up to 0.2 % of the centre.  Masks follow it, so we do (measured:
    with exact weights 3 to 7 % of the voxels of its recorded answers change).
    """
    rows = []
    for length in patch:
        row = np.exp(-0.5 * ((np.arange(length) - length // 2) / (length * SIGMA)) ** 2)
        # SciPy's filter makes its kernel sum to 1 over this radius.
        reach = np.arange(-int(4 * length * SIGMA + 0.5), int(4 * length * SIGMA + 0.5) + 1)
        rows.append(row / np.exp(-0.5 * (reach / (length * SIGMA)) ** 2).sum())
    a, b, c = rows
    weights = (a[:, None, None] * b[:, None] * c).astype(np.float16)
    weights[weights == 0] = weights[weights > 0].min()
    return weights.astype(np.float32) / np.float32(weights.max())


def weight_sums(shape: Sequence[int], patch: Shape, step: float) -> np.ndarray:
    """Weights of all tiles summed per voxel: (a, b, c) float32."""
    padded = [max(n, p) for n, p in zip(shape, patch, strict=True)]
    total = np.zeros(padded, np.float32)
    weights = tile_weights(patch)
    for start in product(*(tile_starts(n, p, step) for n, p in zip(padded, patch, strict=True))):
        total[tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))] += weights
    before = [(m - n) // 2 for m, n in zip(padded, shape, strict=True)]
    return total[tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))]


def _answers(
    network: Network, image: np.ndarray, classes: int, patch: Shape, jobs: Sequence[Job]
) -> Iterator[tuple[Job, np.ndarray]]:
    """Every job with its logits (K, *patch)."""

    def tiles(part: slice) -> np.ndarray:
        found = []
        for start, flip in jobs[part]:
            box = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
            found.append(np.flip(image[(slice(None), *box)], tuple(axis + 1 for axis in flip)))
        return np.stack(found).astype(np.float32, copy=False)

    for part, logits in in_batches(network, tiles, len(jobs), _first_batch(network, patch)):
        if isinstance(logits, dict) or logits.shape[1] != classes:
            raise ModelError(f"The network does not answer with {classes} classes.", "Install the model again.")
        yield from zip(jobs[part], logits, strict=True)


def _first_batch(network: Network, patch: Shape) -> int:
    """Tiles per call: what fits on a GPU; 1 on a CPU, where more gain nothing."""
    device = getattr(network, "device", None)
    if getattr(device, "type", "cpu") != "cuda":
        return 1
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(np.clip(MEMORY_SHARE * free // (BYTES_PER_VOXEL * np.prod(patch)), 1, LARGEST_BATCH))


def _shift(band: np.ndarray, axis: int, rows: int) -> None:
    """Drop the first rows of every class, in place, and add empty ones."""
    for total in band:
        view = np.moveaxis(total, axis, 0)
        view[:-rows] = view[rows:]
        view[-rows:] = 0
