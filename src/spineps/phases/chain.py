"""Which body components are vertebrae of one spine, which are fragments, and which are something else.

A semantic mask of a hard scan holds body labels in the pelvis, the abdomen and the sacrum, and bodies broken into
pieces.  Vertebrae follow each other: full-sized, each below the last, at regular distances.  Counting depends on this.
All lengths are millimetres; axes are PIR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from spineps.phases.components import boxes, centres, counts

#: A full-sized body has this share of the volumes within ``SIMILAR`` mm above or below it: bodies grow by about 4 per
#: cent from level to level, and a fracture costs at most half of the volume.
FULL_SIZE, SIMILAR = 0.35, 60.0
#: Next bodies are at least this far apart (C4 to C5 of a small adult: 14 mm), and not further aside than this slope.
LEAST_STEP, SLOPE, SLACK = 8.0, 1.2, 5.0
#: Between two bodies there is room for a third from this multiple of the usual distance on (a flat vertebra: 1.45).
ROOM = 1.4
#: A body at the end of the row that lies further away than this multiple of the usual distance is none of it.
FAR = 1.8
#: A body cut by the edge of the scan counts from this share of its neighbour's volume on.
CUT_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Candidate:
    """A component that may be a body: number, centre (mm), volume (mm3), extent along the spine, cut by the scan."""

    number: int
    centre: np.ndarray
    volume: float
    low: float
    high: float
    depth: float
    cut: bool


def spine_of(whole: np.ndarray, zoom: Sequence[float], extent: tuple[int, int]) -> dict[int, int]:
    """Which component belongs to which vertebral body.

    Args:
        whole: component numbers, PIR.
        zoom: voxel size in mm.
        extent: first and last slice along axis 1 that the scan is seen to cover.

    Returns:
        {component: component that stands for its body}; components that are no vertebra are missing.
    """
    found = _candidates(whole, zoom, extent)
    if len(found) < 2:
        return {c.number: c.number for c in found}
    chain = _trimmed(_heaviest_chain([c for c in found if _full_sized(c, found)]))
    if len(chain) < 2:
        return {c.number: c.number for c in chain}
    steps = _steps(chain)
    usual = [_usual_step(chain, steps, k) for k in range(len(steps))]
    result = {c.number: c.number for c in chain}
    rest = [c for c in found if c.number not in result]
    for k, (upper, lower) in enumerate(pairwise(chain)):
        if steps[k] > ROOM * usual[k]:
            result.update(_between(upper, lower, rest))
    result.update(_beyond(chain[0], chain[1], usual[0], rest))
    result.update(_beyond(chain[-1], chain[-2], usual[-1], rest))
    return result


def _candidates(whole: np.ndarray, zoom: Sequence[float], extent: tuple[int, int]) -> list[Candidate]:
    scale = np.asarray(zoom, float)
    size, where = counts(whole), boxes(whole)
    found = []
    for number, centre in centres(whole).items():
        box = where[number]
        found.append(
            Candidate(
                number,
                centre * scale,
                float(size[number] * np.prod(scale)),
                box[1].start * scale[1],
                box[1].stop * scale[1],
                (box[0].stop - box[0].start) * scale[0],
                box[1].start <= extent[0] + 1 or box[1].stop >= extent[1],
            )
        )
    return sorted(found, key=lambda c: (c.centre[1], c.number))


def _full_sized(candidate: Candidate, found: Sequence[Candidate]) -> bool:
    near = sorted(c.volume for c in found if abs(c.centre[1] - candidate.centre[1]) <= SIMILAR)
    # Among three or more the largest may be two bodies grown together.
    return candidate.volume >= FULL_SIZE * near[-2 if len(near) > 2 else -1]


def _heaviest_chain(found: Sequence[Candidate]) -> list[Candidate]:
    """The row of components, each below the last, with the largest total volume."""
    best = [c.volume for c in found]
    before = [-1] * len(found)
    for j, lower in enumerate(found):
        for i, upper in enumerate(found[:j]):
            if _follows(upper, lower) and best[i] + lower.volume > best[j]:
                best[j], before[j] = best[i] + lower.volume, i
    place = int(np.argmax(best)) if found else -1
    chain = []
    while place >= 0:
        chain.append(found[place])
        place = before[place]
    return chain[::-1]


def _follows(upper: Candidate, lower: Candidate) -> bool:
    step = lower.centre - upper.centre
    return bool(step[1] >= LEAST_STEP and float(np.hypot(step[0], step[2])) <= SLOPE * step[1] + SLACK)


def _trimmed(chain: Sequence[Candidate]) -> list[Candidate]:
    """Ends that are much smaller than the bodies inwards, or far away from them, are taken off.

    A body cut by the scan may be small, but not if the whole one next to it is small, too (pieces of the sacrum).
    """
    kept = list(chain)
    for end in (-1, 1):
        row = kept[::end]
        while len(row) > 2:
            if _is_far(row) or _is_small(row, 0):
                row = row[1:]
            elif row[0].cut and _is_small(row, 1):
                row = row[2:]
            else:
                break
        kept = row[::end]
    return kept


def _is_small(row: Sequence[Candidate], place: int) -> bool:
    inwards = [c.volume for c in row[place + 1 : place + 4]]
    return bool(inwards) and not row[place].cut and row[place].volume < FULL_SIZE * float(np.median(inwards))


def _is_far(row: Sequence[Candidate]) -> bool:
    steps = np.abs(_steps(row))
    return bool(steps[0] > FAR * _usual_step(row, steps, 0))


def _steps(chain: Sequence[Candidate]) -> np.ndarray:
    return np.array([b.centre[1] - a.centre[1] for a, b in pairwise(chain)])


def _usual_step(chain: Sequence[Candidate], steps: np.ndarray, place: int) -> float:
    """Distance expected at one gap: the median of up to three others on each side, or what the bodies' heights say."""
    others = [float(steps[k]) for k in range(max(place - 3, 0), min(place + 4, len(steps))) if k != place]
    heights = [c.high - c.low for c in chain[place : place + 2] if not c.cut]
    guess = 1.2 * min(heights) if heights else float(steps[place])
    return float(np.median(others)) if len(others) >= 2 else max([guess, *others])


def _between(upper: Candidate, lower: Candidate, rest: Sequence[Candidate]) -> dict[int, int]:
    """The fragments that lie between two bodies with room for one more, joined level by level."""
    inside = []
    for c in rest:
        if upper.centre[1] < c.centre[1] < lower.centre[1]:
            t = (c.centre[1] - upper.centre[1]) / (lower.centre[1] - upper.centre[1])
            line = upper.centre + t * (lower.centre - upper.centre)
            aside = float(np.hypot(*(c.centre - line)[[0, 2]]))
            middle = 0.2 < t < 0.8
            if middle and aside <= 0.8 * max(upper.depth, lower.depth):
                inside.append(c)
    if not inside:
        return {}
    largest = max(inside, key=lambda c: (c.volume, -c.number))
    if sum(c.volume for c in inside) < CUT_SHARE * min(upper.volume, lower.volume):
        return {}
    return {c.number: largest.number for c in inside}


def _beyond(end: Candidate, inner: Candidate, usual: float, rest: Sequence[Candidate]) -> dict[int, int]:
    """A smaller component beyond the last body is one more only when the scan cuts it off."""
    outwards = np.sign(end.centre[1] - inner.centre[1])
    slope = (end.centre - inner.centre) / max(abs(end.centre[1] - inner.centre[1]), 1e-6)
    inside = []
    for c in rest:
        step = (c.centre[1] - end.centre[1]) * outwards
        if not (c.cut and 0.3 * usual <= step <= 1.5 * usual):
            continue
        aside = c.centre - (end.centre + slope * step)
        if float(np.hypot(aside[0], aside[2])) <= 0.8 * end.depth:
            inside.append(c)
    if not inside or sum(c.volume for c in inside) < CUT_SHARE * end.volume:
        return {}
    largest = max(inside, key=lambda c: (c.volume, -c.number))
    return {c.number: largest.number for c in inside}
