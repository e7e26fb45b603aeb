"""Discs that the network sees but never quite believes.

In slices as thick as a disc is high (chest CT of 5 mm) every voxel of a disc is more probably bone, and a whole column
comes out as one body.  The mean over a cross-section still peaks at every disc, and discs follow each other at even
steps.  Where such a peak is not a disc in the mask already, a thin one is drawn.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from spineps.anatomy import CORPUS, CORPUS_INNER, DISC, ENDPLATE
from spineps.phases.components import boxes, is_in, label_components
from spineps.volume import Volume

if TYPE_CHECKING:
    from spineps.phases.semantic import SemanticPrediction

logger = logging.getLogger(__name__)

#: Mean probability of disc and endplate over a cross-section from which a peak may be a disc (inside of bodies .01 to
#: .03 on real CT, weakest real disc of three chest CT .09), and how far it must stand out from both sides.
LEAST, STANDS_OUT = 0.06, 1.6
#: The surface that is taken off bodies, as in the instance phase, and from where to where a body must then be the same
#: above and below a place, mm, to be two bodies in one.
EROSION_MM, NEAR_MM = 1.5, (3.0, 8.0)
#: Steps from disc to disc, mm, spread of the logarithm of the ratio of two, and most that one ratio can cost (nats).
STEPS, STEP_SPREAD, STEP_LIMIT = (11.0, 48.0), 0.17, 3.0
#: Slices thinner than this along the spine, mm, show every disc: what looks like one there may be the line between the
#: dens and C2's body (two of two heads in T1w, one in CT).
THICK_MM = 3.0
#: No disc lies in the dens or below it: least share of the usual area, at the place and so many mm above it; and, where
#: the column ends inside the image, least of it above a disc, mm (a C2 with its dens is 38 high).
LEAST_AREA, ABOVE_MM, LEAST_TOP_MM = 0.6, (16, 6), 26.0
#: Length over which the column's middle line is smoothed; half the thickness of a drawn disc; how far its plane is
#: looked for; largest slope of the plane.
SMOOTH_MM, HALF_MM, REACH_MM, SLOPE = 12.0, 1.7, 4.5, 0.35
#: Pieces of a column shorter than this, mm, show no two steps.
LEAST_LENGTH = 40.0


def draw_faint_discs(prediction: SemanticPrediction, scan: Volume) -> tuple[Volume, int]:
    """The mask of a prediction with a thin disc at every peak of probability that has none.

    Where slices are thin, only discs that are there for the most part are closed.

    Args:
        prediction: with probabilities, any orientation.
        scan: what it was made of; only the voxel size along the spine counts.

    Returns:
        The mask, and how many of the discs were hardly there before.
    """
    mask, ids = prediction.mask, prediction.class_ids
    if prediction.probabilities is None or DISC not in ids or ENDPLATE not in ids:
        return mask, 0
    thick = scan.zoom[next(k for k, code in enumerate(scan.axcodes) if code in "SI")] >= THICK_MM
    axis = next(k for k, code in enumerate(mask.axcodes) if code in "SI")
    down = mask.axcodes[axis] == "I"
    columns, _ = label_components(is_in(mask.array, (CORPUS, CORPUS_INNER, DISC, ENDPLATE)), 26)
    array, count = mask.array.copy(), 0
    for number, box in boxes(columns).items():
        if (box[axis].stop - box[axis].start) * mask.zoom[axis] < LEAST_LENGTH:
            continue
        voxels = np.argwhere(columns[box] == number)
        here = tuple((voxels + [s.start for s in box]).T)
        likely = np.sum([prediction.probabilities[ids.index(label)][here] for label in (DISC, ENDPLATE)], axis=0)
        along, across = _straightened(voxels * np.array(mask.zoom), axis)
        places = _places(along if down else -along, likely) * (1 if down else -1)
        if box[axis].start > 0 if down else box[axis].stop < mask.shape[axis]:
            top = along.min() if down else along.max()
            places = places[np.abs(places - top) > LEAST_TOP_MM]
        if len(places):
            bodies = _cores(is_in(mask.array[box], (CORPUS, CORPUS_INNER)), mask.zoom)[tuple(voxels.T)]
            places = places[[_joined(along - place, bodies) for place in places]]
        values = array[here]
        bone = is_in(values, (CORPUS, CORPUS_INNER))
        for place in places:
            slab = _slab(along - place, across, likely)
            # Less than half: a disc that is well seen, and bridged.
            faint = bool(bone[slab].mean() > 0.5)
            if thick or not faint:
                values[slab & bone] = DISC
                count += int(faint)
        array[here] = values
    if count:
        logger.info("%d disc(s) can hardly be seen and are drawn from whole cross-sections", count)
    return mask.with_array(array), count


def _straightened(points: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) mm along the column's middle line and (n, 2) mm across it of (n, 3) points."""
    from scipy.ndimage import gaussian_filter1d

    others = [k for k in range(3) if k != axis]
    step = float(np.diff(np.unique(points[:, axis])).min(initial=np.inf))
    if not np.isfinite(step):
        return np.zeros(len(points)), points[:, others]
    row = np.rint((points[:, axis] - points[:, axis].min()) / step).astype(int)
    number = np.bincount(row)
    seen = np.flatnonzero(number)
    middle = np.stack([np.bincount(row, points[:, k])[seen] / number[seen] for k in others], -1)
    rows = np.arange(len(number))
    middle = np.stack([np.interp(rows, seen, m) for m in middle.T], -1)
    middle = gaussian_filter1d(middle, SMOOTH_MM / step, axis=0, mode="nearest")
    slope = np.gradient(middle, axis=0) / step if len(rows) > 1 else np.zeros_like(middle)
    length = np.sqrt(1 + (slope**2).sum(1))
    arc = np.concatenate([[0.0], np.cumsum((length[1:] + length[:-1]) / 2 * step)])
    across = points[:, others] - middle[row]
    # A point beside the line belongs to the cross-section that the line's direction cuts there.
    return arc[row] + (across * (slope / length[:, None])[row]).sum(1), across


def _cores(body: np.ndarray, zoom: tuple[float, float, float]) -> np.ndarray:
    """Components of bodies without their surface, which may bridge a disc."""
    from scipy.ndimage import binary_erosion

    thin = [max(round(EROSION_MM / z), 1) for z in zoom]
    block = np.ones([2 * n + 1 if body.shape[k] > 4 * n else 1 for k, n in enumerate(thin)], bool)
    return np.asarray(label_components(binary_erosion(body, block), 26)[0])


def _joined(off: np.ndarray, bodies: np.ndarray) -> bool:
    """Whether the same body lies above and below: most of each side."""
    owners = []
    for side in (-1, 1):
        near = bodies[(side * off > NEAR_MM[0]) & (side * off < NEAR_MM[1]) & (bodies > 0)]
        if not len(near):
            return False
        owners.append(int(np.bincount(near).argmax()))
    return owners[0] == owners[1]


def _places(along: np.ndarray, likely: np.ndarray) -> np.ndarray:
    """Middles of discs, mm along the column."""
    from scipy.ndimage import gaussian_filter1d

    low = along.min()
    row = (along - low).astype(int)
    number = np.maximum(np.bincount(row).astype(float), 1e-6)
    area, total = (gaussian_filter1d(x, 1.2, mode="nearest") for x in (number, np.bincount(row, likely)))
    evidence = total / area
    high, near = ABOVE_MM
    least = LEAST_AREA * np.median(area)
    peaks = [
        k for k in _peaks(evidence) if area[k] >= least and (k < high or area[k - high : k - near].mean() >= least)
    ]
    chosen = _evenly(np.array(peaks, float), np.log(evidence[peaks] / LEAST)) if peaks else []
    return low + 0.5 + np.array([peaks[k] for k in chosen], float)


def _peaks(evidence: np.ndarray) -> list[int]:
    """Local maxima that stand out from the lowest places between them and something higher, on both sides."""
    found = []
    for k in range(1, len(evidence) - 1):
        value = evidence[k]
        if value < LEAST or value < evidence[k - 1] or value <= evidence[k + 1]:
            continue
        sides = []
        for side in (evidence[k - 1 :: -1], evidence[k + 1 :]):
            higher = np.flatnonzero(side > value)
            sides.append(side[: higher[0] if len(higher) else len(side)].min())
        if value > STANDS_OUT * max(sides):
            found.append(k)
    return found


def _evenly(places: np.ndarray, worth: np.ndarray) -> list[int]:
    """The peaks that are worth most together when uneven steps cost (exact, over pairs of neighbours)."""
    n = len(places)
    best = {(-1, k): float(worth[k]) for k in range(n)}
    before: dict[tuple[int, int], tuple[int, int]] = {}
    for j in range(n):
        for i in range(j):
            step = places[j] - places[i]
            if not STEPS[0] <= step <= STEPS[1]:
                continue
            options = [(best[(-1, i)], (-1, i))]
            for h in range(i):
                if (h, i) in best:
                    ratio = np.log(step / (places[i] - places[h]))
                    cost = min(ratio**2 / (2 * STEP_SPREAD**2), STEP_LIMIT)
                    options.append((best[(h, i)] - cost, (h, i)))
            value, came = max(options)
            best[(i, j)], before[(i, j)] = value + float(worth[j]), came
    at = max(best, key=lambda pair: best[pair])
    chosen = []
    while at[1] >= 0:
        chosen.append(at[1])
        if at not in before:
            break
        at = before[at]
    return chosen[::-1]


def _slab(off: np.ndarray, across: np.ndarray, likely: np.ndarray) -> np.ndarray:
    """Which points lie in the disc whose middle is near 0 along the column: a plane through what is most likely."""
    near = np.abs(off) < REACH_MM
    weight = likely[near] ** 2 + 1e-9
    terms = np.column_stack([np.ones(near.sum()), across[near]]) * np.sqrt(weight)[:, None]
    # A little against slopes, so that a flat peak gives a flat disc.
    ridge = np.diag([0.0, 1.0, 1.0]) * weight.sum() * 4.0
    plane = np.linalg.solve(terms.T @ terms + ridge + 1e-9 * np.eye(3), terms.T @ (off[near] * np.sqrt(weight)))
    slope = plane[1:] * min(1.0, SLOPE / max(float(np.hypot(*plane[1:])), 1e-9))
    return np.asarray(np.abs(off - plane[0] - across @ slope) <= HALF_MM)
