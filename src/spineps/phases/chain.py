"""Which body components are vertebrae of one spine, which are fragments, and which are something else.

A semantic mask of a hard scan holds body labels in the pelvis, the abdomen and the sacrum, and bodies broken into
pieces.  Vertebrae follow each other: full-sized, each below the last, with a disc's height between them.  Counting
depends on this.  All lengths are millimetres; axes are PIR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from spineps.phases.components import boxes, centres, counts
from spineps.phases.splitting import NECK

#: A full-sized body has this share of the volumes within ``SIMILAR`` mm above or below it: bodies grow by about 4 per
#: cent from level to level, and a fracture costs at most half of the volume.
FULL_SIZE, SIMILAR = 0.35, 60.0
#: Next bodies are at least this far apart (C4 to C5 of a small adult: 14 mm), and not further aside than this slope.
LEAST_STEP, SLOPE, SLACK = 8.0, 1.2, 5.0
#: Multiples of the usual body height.  The space between two bodies is about 0.3; with a body missing 1.6, with a flat
#: one between them 0.9.  An end of the row beyond ``FAR`` is none of it; from ``ROOM`` on fragments may be a body.
FAR, ROOM = 1.8, 0.7
#: Two pieces without a disc between them that reach no further than this are one body (two bodies: 2.3).
ONE_BODY = 1.25
#: In a neck, what lies this far (mm), and without a disc, above a body so many times as tall as those below it (C2 with
#: its dens) is of the skull or the brain; so far if it is no C2 itself.
SKULL_GAP, SMALL_GAP, C2_TALL = 8.0, 5.0, 1.6
#: A body cut by the edge of the scan counts from this share of its neighbour's volume on.
CUT_SHARE = 0.1
#: The same for a broken body between two discs.
BROKEN_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Candidate:
    """A component that may be a body.

    Attributes:
        number: of the component.
        centre: (3,) mm.
        volume: mm3.
        low, high: extent along axis 1, mm.
        depth: extent along axis 0, mm.
        cut: reaches the upper or lower end of the scan.
    """

    number: int
    centre: np.ndarray
    volume: float
    low: float
    high: float
    depth: float
    cut: bool


def spine_of(
    whole: np.ndarray, zoom: Sequence[float], extent: tuple[int, int], discs: Sequence[np.ndarray] = ()
) -> dict[int, int]:
    """Which component belongs to which vertebral body.

    Args:
        whole: component numbers, PIR.
        zoom: voxel size in mm.
        extent: first slice along axis 1 that the scan is seen to cover, and the one after the last.
        discs: voxel indices of the centres of all discs.

    Returns:
        {component: component that stands for its body}; components that are no vertebra are missing.
    """
    found = candidates(whole, zoom, extent)
    if len(found) < 2:
        return {c.number: c.number for c in found}
    chain = _heaviest_chain([c for c in found if _full_sized(c, found)])
    disc_places = [disc * np.asarray(zoom) for disc in discs]
    chain, result = _joined(chain, disc_places)
    chain = _trimmed(_below_skull(chain, disc_places), disc_places)
    kept = {c.number for c in chain}
    result = {piece: body for piece, body in result.items() if body in kept}
    if len(chain) < 2:
        return result
    rest = [c for c in found if c.number not in result]
    for k, (upper, lower) in enumerate(pairwise(chain)):
        has_room = lower.low - upper.high > ROOM * _usual_height(chain, k)
        result.update(_between(upper, lower, rest, has_room, disc_places))
    result.update(_beyond(chain, rest))
    result.update(_beyond(chain[::-1], rest))
    return result


def candidates(whole: np.ndarray, zoom: Sequence[float], extent: tuple[int, int]) -> list[Candidate]:
    """All components from the top."""
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
                float(box[1].start * scale[1]),
                float(box[1].stop * scale[1]),
                float((box[0].stop - box[0].start) * scale[0]),
                bool(box[1].start <= extent[0] + 1 or box[1].stop >= extent[1] - 1),
            )
        )
    return sorted(found, key=lambda c: (c.centre[1], c.number))


def _full_sized(candidate: Candidate, found: Sequence[Candidate]) -> bool:
    near = sorted(c.volume for c in found if abs(c.centre[1] - candidate.centre[1]) <= SIMILAR)
    # The largest may be two bodies grown together (2.3 times as large) or three (3.6).
    return candidate.volume >= (FULL_SIZE * near[-2] if len(near) > 2 else near[-1] / 4)


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


def _usual_height(row: Sequence[Candidate], place: int, width: int = 2) -> float:
    """Median height of up to three whole bodies on each side of the ``width`` ones from ``place`` on."""
    others = [*row[max(place - 3, 0) : place], *row[place + width : place + width + 3]]
    heights = [c.high - c.low for c in others if not c.cut] or [c.high - c.low for c in row[place : place + width]]
    return float(np.median(heights))


def _joined(chain: list[Candidate], discs: Sequence[np.ndarray]) -> tuple[list[Candidate], dict[int, int]]:
    """Two pieces of one body, one above the other, become one."""
    owner = {c.number: c.number for c in chain}
    place = 0
    while place + 1 < len(chain):
        upper, lower = chain[place : place + 2]
        alone = len(chain) == 2
        small = lower.high - upper.low <= ONE_BODY * _usual_height(chain, place)
        if alone or not small or _disc_between(upper, lower, discs):
            place += 1
            continue
        total = upper.volume + lower.volume
        whole = replace(
            upper,
            centre=(upper.centre * upper.volume + lower.centre * lower.volume) / total,
            volume=total,
            high=max(upper.high, lower.high),
            low=min(upper.low, lower.low),
            cut=upper.cut or lower.cut,
        )
        owner.update({n: upper.number for n, o in owner.items() if o == lower.number})
        chain = [*chain[:place], whole, *chain[place + 2 :]]
    return chain, owner


def _disc_between(upper: Candidate, lower: Candidate, discs: Sequence[np.ndarray]) -> bool:
    for disc in discs:
        aside = disc - (upper.centre + lower.centre) / 2
        if upper.centre[1] < disc[1] < lower.centre[1] and float(np.hypot(aside[0], aside[2])) < upper.depth:
            return True
    return False


def _below_skull(chain: list[Candidate], discs: Sequence[np.ndarray]) -> list[Candidate]:
    """Without what lies above a C2."""
    if len(chain) < 3:
        return chain
    first, second = chain[:2]
    heights = [c.high - c.low for c in chain[2:5] if not c.cut] or [chain[2].high - chain[2].low]
    usual = float(np.median(heights))
    is_c2 = usual < NECK and second.high - second.low >= C2_TALL * usual
    parted = not any(first.high - SLACK < disc[1] < second.low + SLACK for disc in discs)
    gap = SMALL_GAP if first.high - first.low < C2_TALL * usual else SKULL_GAP
    return chain[1:] if is_c2 and parted and _space(first, second) > gap else chain


def _trimmed(chain: Sequence[Candidate], discs: Sequence[np.ndarray]) -> list[Candidate]:
    """Ends that are much smaller than the bodies inwards, or far away from them, are taken off.

    A body cut by the scan may be small, but not if the whole one next to it is small, too (pieces of the sacrum).
    A body between two discs may be small: it is a badly seen vertebra.
    """
    kept = list(chain)
    for end in (-1, 1):
        row = kept[::end]
        while len(row) > 2:
            far = _space(row[0], row[1]) > FAR * _usual_height(row, 0, 1)
            if far or (_is_small(row, 0) and not _has_discs_around(row, discs)):
                row = row[1:]
            elif len(row) > 3 and row[0].cut and _is_small(row, 1) and not _has_discs_around(row[1:], discs):
                # Of three the one that would be left may be several bodies that hang together.
                row = row[2:]
            else:
                break
        kept = row[::end]
    return kept


def _has_discs_around(row: Sequence[Candidate], discs: Sequence[np.ndarray]) -> bool:
    end, inner = row[0], row[1]
    if end.volume < CUT_SHARE * inner.volume:
        return False
    outwards = np.sign(end.centre[1] - inner.centre[1])
    reach = _usual_height(row, 0, 1)
    sides = set()
    for disc in discs:
        away = disc - end.centre
        if abs(away[1]) < reach and float(np.hypot(away[0], away[2])) < inner.depth:
            sides.add(bool(away[1] * outwards > 0))
    return len(sides) == 2


def _space(a: Candidate, b: Candidate) -> float:
    return max(a.low, b.low) - min(a.high, b.high)


def _is_small(row: Sequence[Candidate], place: int) -> bool:
    inwards = [c.volume for c in row[place + 1 : place + 4]]
    return bool(inwards) and not row[place].cut and row[place].volume < FULL_SIZE * float(np.median(inwards))


def _between(
    upper: Candidate, lower: Candidate, rest: Sequence[Candidate], has_room: bool, discs: Sequence[np.ndarray]
) -> dict[int, int]:
    """The fragments between two bodies are one more where there is room for it, or where they lie between two discs."""
    inside = []
    for c in rest:
        t = (c.centre[1] - upper.centre[1]) / (lower.centre[1] - upper.centre[1])
        if 0.2 < t < 0.8 and _aside(c, upper.centre + t * (lower.centre - upper.centre)) <= 0.8 * lower.depth:
            inside.append(c)
    share = sum(c.volume for c in inside) / min(upper.volume, lower.volume)
    if not has_room:
        if share < BROKEN_SHARE:
            return {}
        middle = max(inside, key=lambda c: c.volume)
        middle = replace(
            middle, centre=np.average([c.centre for c in inside], axis=0, weights=[c.volume for c in inside])
        )
        if not (_disc_between(upper, middle, discs) and _disc_between(middle, lower, discs)):
            return {}
    return _as_one(inside) if share >= CUT_SHARE else {}


def _beyond(row: Sequence[Candidate], rest: Sequence[Candidate]) -> dict[int, int]:
    """A small component beyond the first of a row is one more body only when the scan cuts it off."""
    end, inner = row[0], row[1]
    usual = _usual_height(row, 0, 1)
    slope = (end.centre - inner.centre) / max(abs(end.centre[1] - inner.centre[1]), 1e-6)
    inside = []
    for c in rest:
        step = (c.centre[1] - end.centre[1]) * np.sign(slope[1])
        next_to_it = step > 0.3 * usual and _space(c, end) <= ROOM * usual
        if c.cut and next_to_it and _aside(c, end.centre + slope * step) <= 0.8 * end.depth:
            inside.append(c)
    return _as_one(inside) if sum(c.volume for c in inside) >= CUT_SHARE * end.volume else {}


def _aside(candidate: Candidate, point: np.ndarray) -> float:
    away = candidate.centre - point
    return float(np.hypot(away[0], away[2]))


def _as_one(parts: Sequence[Candidate]) -> dict[int, int]:
    largest = max(parts, key=lambda c: (c.volume, -c.number))
    return {c.number: largest.number for c in parts}
