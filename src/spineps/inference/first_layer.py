"""The first layer of a network that sees labels, computed only where labels are, and once for all cutouts of a scan.

Most of a cutout is background, where a convolution of one-hot channels says the same at every voxel but for the zeros
beyond the cutout's border; and cutouts of a scan overlap almost fully.  Nothing is left out: the answer is that of the
whole convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spineps.inference.engine import Network
from spineps.models.model import one_hot
from spineps.volume import bounding_box

#: Voxels that the published first convolution (7 x 7 x 7) sees in every direction.
REACH = 3
#: Least image that shows every kind of background voxel: one far from all borders, and each distance from each border.
SMALL = 2 * REACH + 2
#: Planes computed at once: memory for a band, not for a scan.
BAND = 32


@dataclass(eq=False)
class Scan:
    """Labels (X, Y, Z) with 0 around, and what the first layer answers near them; filled at first use.

    Attributes:
        labels: uint8.
        low: where ``answers`` begin in ``labels``; may be negative.
        answers: (x, y, z, C), as if background went on for ever around the labels.
    """

    labels: np.ndarray
    low: tuple[int, ...] = (0, 0, 0)
    answers: np.ndarray | None = None


class Cutouts(np.ndarray):
    """Cutouts (N, X, Y, Z) that know where they come from.

    Attributes:
        scan: what they were cut out of.
        starts: of each cutout in ``scan``; may be negative.
    """

    scan: Scan
    starts: Sequence[Sequence[int]]

    @classmethod
    def of(cls, array: np.ndarray, scan: Scan, starts: Sequence[Sequence[int]]) -> Cutouts:
        """``array`` as such, not copied."""
        self = array.view(cls)
        self.scan, self.starts = scan, starts
        return self


def first_layer(
    network: Network, labels: np.ndarray, channels: int, scan: Scan | None = None, start: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    """What ``network``, a first layer, answers to ``labels``.

    Args:
        network: (N, channels, X, Y, Z) to (N, X, Y, Z, C); see :func:`~spineps.inference.published_graphs.parts`.
        labels: (X, Y, Z) uint8, 0 is background, sizes even.
        channels: labels with background.
        scan: what ``labels`` were cut out of; None if nothing else will be.
        start: of ``labels`` in ``scan``.

    Returns:
        (X, Y, Z, C) float32.
    """

    def answer(labels: np.ndarray) -> np.ndarray:
        result = network(one_hot(labels[None], channels))
        assert isinstance(result, np.ndarray)
        return result[0]

    out = answer(np.zeros([min(n, SMALL) for n in labels.shape], np.uint8))
    for axis in (2, 1, 0):
        out = np.take(out, _stretched(labels.shape[axis]), axis)
    scan = scan or Scan(labels)
    if scan.answers is None:
        _look_at(scan, answer)
    assert scan.answers is not None
    target, source = [], []
    for s, low, n, m in zip(start, scan.low, labels.shape, scan.answers.shape, strict=False):
        first = max(low - s, REACH)
        last = max(min(low - s + m, n - REACH), first)
        target.append(slice(first, last))
        source.append(slice(first + s - low, last + s - low))
    if all(t.stop > t.start for t in target):
        out[tuple(target)] = scan.answers[tuple(source)]
    # The outermost planes see zeros beyond the cutout, whatever the scan holds there.
    for axis in range(3):
        for outer, seen in ((slice(REACH), slice(2 * REACH)), (slice(-REACH, None), slice(-2 * REACH, None))):
            before = (slice(None),) * axis
            if (slab := labels[(*before, seen)]).any():
                out[(*before, outer)] = answer(slab)[(*before, outer)]
    return out


def _look_at(scan: Scan, answer: Callable[[np.ndarray], np.ndarray]) -> None:
    box = bounding_box(scan.labels)
    if box is None:
        scan.answers = np.zeros((0, 0, 0, 0), np.float32)
        return
    scan.low = tuple(side.start - REACH for side in box)
    y, z = (side.stop - side.start + 2 * REACH for side in box[1:])
    wide = 2 * REACH
    room = np.pad(scan.labels[box], [(wide, wide), (wide, wide + BAND), (wide, wide + z % 2)])
    inner = (slice(REACH, -REACH),) * 3
    bands = [answer(room[:, at : at + BAND + wide])[inner] for at in range(0, y, BAND)]
    scan.answers = np.concatenate(bands, axis=1)[:, :y, :z]


def _stretched(n: int) -> np.ndarray:
    """For each of ``n`` voxels in a row, the one of min(n, SMALL) that is as far from either end."""
    at = np.arange(n)
    return np.where(at < n - SMALL // 2, np.minimum(at, SMALL // 2 - 1), at - n + min(n, SMALL))
