"""Every vertebra is seen in up to three cutouts (as above, centre, below); the answers that agree make one vertebra.

The published rules (section 3.3, steps 5 and 6 of its specification), computed from one 4 x 4 overlap table per pair of
neighbouring cutouts instead of one mask comparison per pair of predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spineps.phases.components import boxes
from spineps.volume import Box

#: Least Dice of two predictions of the same vertebra (published).
SAME = 0.3
#: A couple that others have already taken by more than this is dropped (published).
TAKEN = 0.6
#: Cutouts compared: up to this many bodies away.
REACH = 2

Prediction = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Answer:
    """What the network said about one cutout.

    Attributes:
        box: the part of the volume that the cutout covers.
        array: uint8 of the box's shape, 0..3 (1 above, 2 centre, 3 below; the vote treats the three alike).
    """

    box: Box
    array: np.ndarray


@dataclass(frozen=True)
class Couple:
    """One to three predictions of the same vertebra.

    Attributes:
        members: (cutout, class - 1) ascending.
        agreement: mean Dice, 0 for a single prediction.
    """

    members: tuple[Prediction, ...]
    agreement: float


def find_couples(answers: Sequence[Answer]) -> list[Couple]:
    """Group the predictions, best agreement first.  Empty predictions take no part."""
    sizes = [np.bincount(a.array.ravel(), minlength=4) for a in answers]
    dice = _dice_table(answers, sizes)
    predictions = [(i, k) for i, size in enumerate(sizes) for k in range(3) if size[k + 1]]
    seen: dict[tuple[Prediction, ...], list[float]] = {}
    for prediction in predictions:
        near = [q for q in predictions if 0 < abs(q[0] - prediction[0]) <= REACH]
        partners = sorted(
            (q for q in near if dice.get((prediction, q), 0.0) > SAME), key=lambda q: -dice[prediction, q]
        )[:2]
        if len(partners) == 2 and dice.get((partners[0], partners[1]), 0.0) < SAME:
            partners = partners[:1]
        agreement = float(np.mean([dice[prediction, q] for q in partners])) if partners else 0.0
        seen.setdefault(tuple(sorted((prediction, *partners), key=lambda q: q[0])), []).append(agreement)
    couples = [Couple(members, float(np.mean(values))) for members, values in seen.items()]
    return sorted(couples, key=lambda c: -(len(c.members) + 1) * c.agreement)


def vote(answers: Sequence[Answer], shape: Sequence[int]) -> np.ndarray:
    """Instances 1..n (uint16, ``shape``) from all cutouts; in order of agreement, not of anatomy.

    A couple without a voxel in agreement is skipped (the published system gives up the whole scan).
    """
    out = np.zeros(shape, np.uint16)
    number = 0
    where = [_boxes(answer) for answer in answers]
    for couple in find_couples(answers):
        found = [(answers[i], k + 1, where[i][k + 1]) for i, k in couple.members]
        box = _hull([place for _, _, place in found])
        votes = np.zeros([s.stop - s.start for s in box], np.uint8)
        for answer, k, place in found:
            votes[_inside(place, box)] += answer.array[_inside(place, answer.box)] == k
        size = len(couple.members)
        weak = size <= 2 or couple.agreement < 0.3 + 0.15 * (4 - size)
        chosen = votes >= (1 if weak else 2)
        part = out[box]
        free = chosen & (part == 0)
        total = int(np.count_nonzero(chosen))
        if total == 0 or 1 - int(np.count_nonzero(free)) / total > TAKEN:
            continue
        number += 1
        part[free] = number
    return out


def _dice_table(answers: Sequence[Answer], sizes: Sequence[np.ndarray]) -> dict[tuple[Prediction, Prediction], float]:
    table: dict[tuple[Prediction, Prediction], float] = {}
    for i, a in enumerate(answers):
        # Twice as far as partners are sought: one above and one below must agree with each other too.
        for j in range(i + 1, min(i + 2 * REACH + 1, len(answers))):
            common = _common(a.box, answers[j].box)
            if common is None:
                continue
            # Both labels in one byte: one histogram gives all nine overlaps.
            pairs = a.array[_inside(common, a.box)] * np.uint8(4) + answers[j].array[_inside(common, answers[j].box)]
            shared = np.bincount(pairs.ravel(), minlength=16).reshape(4, 4)
            for k in range(3):
                for m in range(3):
                    if shared[k + 1, m + 1]:
                        value = 2 * int(shared[k + 1, m + 1]) / int(sizes[i][k + 1] + sizes[j][m + 1])
                        table[(i, k), (j, m)] = table[(j, m), (i, k)] = value
    return table


def _boxes(answer: Answer) -> dict[int, Box]:
    """Bounding box of each class, in the volume."""
    found = {}
    for k, box in boxes(answer.array).items() if answer.array.size else ():
        axes = [slice(p.start + q.start, p.stop + q.start) for p, q in zip(box, answer.box, strict=True)]
        found[k] = (axes[0], axes[1], axes[2])
    return found


def _common(a: Box, b: Box) -> Box | None:
    both = [slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True)]
    return None if any(s.start >= s.stop for s in both) else (both[0], both[1], both[2])


def _hull(found: Sequence[Box]) -> Box:
    axes = [slice(min(b[n].start for b in found), max(b[n].stop for b in found)) for n in range(3)]
    return axes[0], axes[1], axes[2]


def _inside(inner: Box, outer: Box) -> Box:
    axes = [slice(p.start - q.start, p.stop - q.start) for p, q in zip(inner, outer, strict=True)]
    return axes[0], axes[1], axes[2]
