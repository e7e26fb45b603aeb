"""Which instance is which: matching by overlap, panoptic quality, and whether the names are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from spineps.anatomy import DISC_OFFSET, ENDPLATE_OFFSET, SACRUM, T13, VERTEBRAE, instance_name
from spineps.evaluation.metrics import NAN, Compared, Score, iou_of

#: Kinds of instances and their codes, each evaluated by itself.
KINDS: dict[str, frozenset[int]] = {
    "vertebra": frozenset(VERTEBRAE),
    "sacrum": frozenset({SACRUM}),
    "disc": frozenset(DISC_OFFSET + v for v in (*VERTEBRAE, SACRUM)),
    "endplate": frozenset(ENDPLATE_OFFSET + v for v in (*VERTEBRAE, SACRUM)),
}


@dataclass(frozen=True)
class Quality:
    """Recognition, segmentation and panoptic quality (Kirillov et al. 2019) of one kind of instance.

    Attributes:
        matched: pairs (prediction, reference) with their scores, in the reference's order.
        missing, surplus: instances without partner, of the reference and of the prediction.
        names_right: share of the matched pairs with equal ids, NaN without pairs.
        offsets: how many pairs are off by k places; k > 0 means named too far caudally.
    """

    matched: tuple[tuple[int, int, Score], ...]
    missing: tuple[int, ...]
    surplus: tuple[int, ...]
    offsets: dict[int, int]

    @property
    def rq(self) -> float:
        """Matched over matched plus half of what is left over (F1); NaN when there is nothing in either mask."""
        return recognition_quality(len(self.matched), len(self.surplus), len(self.missing))

    @property
    def sq(self) -> float:
        """Mean IoU of the pairs; NaN without pairs."""
        return float(np.mean([s.iou for _, _, s in self.matched])) if self.matched else NAN

    @property
    def pq(self) -> float:
        """RQ times SQ; 0 when there are instances but no pairs."""
        return self.rq * self.sq if self.matched else self.rq

    @property
    def names_right(self) -> float:
        return sum(p == r for p, r, _ in self.matched) / len(self.matched) if self.matched else NAN

    @property
    def shift(self) -> int:
        """k when every pair is off by the same k, else 0."""
        return next(iter(self.offsets)) if len(self.offsets) == 1 else 0

    @property
    def verdict(self) -> str:
        """What to tell about the names."""
        wrong = {k: n for k, n in self.offsets.items() if k}
        if not wrong:
            return ""
        if self.shift:
            way = "caudally" if self.shift > 0 else "cranially"
            return f"all {len(self.matched)} names are {abs(self.shift)} too far {way}: the whole numbering is shifted"
        parts = ", ".join(f"{n} by {k:+d}" for k, n in sorted(wrong.items()))
        return f"{sum(wrong.values())} of {len(self.matched)} names are off ({parts})"


def recognition_quality(matched: int, surplus: int, missing: int) -> float:
    """
    >>> recognition_quality(3, 1, 1), recognition_quality(0, 0, 2), recognition_quality(0, 0, 0)
    (0.75, 0.0, nan)
    """
    everything = matched + 0.5 * (surplus + missing)
    return matched / everything if everything else NAN


def best_pairs(iou: np.ndarray, threshold: float = 0.5) -> list[tuple[int, int]]:
    """One-to-one pairs with the largest sum of IoU among those with IoU > 0 and >= ``threshold``.

    Args:
        iou: (P, R), prediction by reference.

    >>> best_pairs(np.array([[0.6, 0.0], [0.7, 0.9], [0.1, 0.0]]))
    [(0, 0), (1, 1)]
    """
    from scipy.optimize import linear_sum_assignment

    allowed = np.where((iou >= threshold) & (iou > 0), iou, 0.0)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if allowed[i, j] > 0]


def match(compared: Compared, kind: str = "vertebra", threshold: float = 0.5) -> Quality:
    """Pairs of one kind of instance and what is left over.

    Args:
        compared: two instance masks.
        kind: key of :data:`KINDS`.
        threshold: smallest IoU of a pair; above 0.5 no instance has two candidates.
    """
    rows = [i for i in compared.ids.tolist() if i in KINDS[kind]]
    places = [int(np.flatnonzero(compared.ids == i)[0]) for i in rows]
    first, second = compared.counts.sum(axis=1), compared.counts.sum(axis=0)
    predicted = [(i, k) for i, k in zip(rows, places, strict=True) if first[k]]
    wanted = [(i, k) for i, k in zip(rows, places, strict=True) if second[k]]
    iou = np.array([[iou_of(compared.counts[p, r], first[p], second[r]) for _, r in wanted] for _, p in predicted])
    pairs = best_pairs(iou.reshape(len(predicted), len(wanted)), threshold)
    found = [(predicted[i][0], wanted[j][0]) for i, j in pairs]
    order = cranial_to_caudal([i for i, _ in predicted] + [i for i, _ in wanted])
    found.sort(key=lambda pair: order[pair[1]])
    taken, met = {p for p, _ in found}, {r for _, r in found}
    return Quality(
        tuple((p, r, compared.score(p, r)) for p, r in found),
        tuple(sorted((i for i, _ in wanted if i not in met), key=order.__getitem__)),
        tuple(sorted((i for i, _ in predicted if i not in taken), key=order.__getitem__)),
        dict(sorted(Counter(order[p] - order[r] for p, r in found).items())),
    )


def cranial_to_caudal(labels: Iterable[int]) -> dict[int, int]:
    """Place of every instance code in its kind's row.  T13 takes a place only when one of ``labels`` belongs to it.

    >>> cranial_to_caudal([20, 19])[20] - cranial_to_caudal([20, 19])[19]
    1
    >>> row = cranial_to_caudal([19, 28, 20])
    >>> row[20] - row[19]
    2
    """
    seen = {label % DISC_OFFSET for label in labels}
    row = [v for v in (*VERTEBRAE, SACRUM) if v != T13 or T13 in seen]
    return {offset + v: k for offset in (0, DISC_OFFSET, ENDPLATE_OFFSET) for k, v in enumerate(row)}


def names(labels: Sequence[int]) -> str:
    """
    >>> names([20, 28])
    'L1, T13'
    """
    return ", ".join(instance_name(i) for i in labels)
