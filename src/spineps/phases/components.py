"""Connected components, growth and holes: the small set of mask operations that the phases share.

Every function makes one labelled pass (``cc3d``), works on the voxels that matter and uses look-up tables, so that
25 vertebrae cost hardly more than one.  Neighbourhoods are called 6, 18 and 26 after their number of neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from spineps.volume import Box, bounding_box

#: Neighbours that a voxel has: 6 across faces, 18 with edges, 26 with corners.
Connectivity = Literal[6, 18, 26]

#: (26, 3) offsets of all neighbours, faces first, then edges, then corners.
NEIGHBOURS = np.array(
    sorted(
        ((i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1) if (i, j, k) != (0, 0, 0)),
        key=lambda offset: (sum(map(abs, offset)), offset),
    )
)


def is_in(array: np.ndarray, labels: Iterable[int]) -> np.ndarray:
    """True where ``array`` (non-negative integers) holds one of ``labels``.

    >>> is_in(np.array([0, 49, 7]), (7, 49, 300)).tolist()
    [False, True, True]
    """
    table = np.zeros(int(array.max(initial=0)) + 1, bool)
    wanted = np.fromiter(labels, int)
    table[wanted[(wanted >= 0) & (wanted < len(table))]] = True
    return table[array]


def relabel(array: np.ndarray, mapping: Mapping[int, int], keep_others: bool = True) -> np.ndarray:
    """Values replaced through one look-up table; the dtype stays.

    >>> relabel(np.array([0, 1, 2, 3]), {1: 5, 3: 0}).tolist()
    [0, 5, 2, 0]
    """
    table = np.arange(int(array.max(initial=0)) + 1) if keep_others else np.zeros(int(array.max(initial=0)) + 1, int)
    for old, new in mapping.items():
        if 0 <= old < len(table):
            table[old] = new
    return table.astype(array.dtype)[array]


def label_components(array: np.ndarray, connectivity: Connectivity = 26) -> tuple[np.ndarray, int]:
    """Number the connected regions of equal non-zero value, 1..n in memory order.

    Args:
        array: bool or non-negative integers, shape (X, Y, Z).
        connectivity: 6, 18 or 26.

    Returns:
        The numbering (unsigned integers, same shape) and n.
    """
    import cc3d

    if array.dtype.kind not in "bu":
        array = array.astype(np.uint32)
    # A fixed memory order makes the numbering independent of how the caller came by the array.
    components, count = cc3d.connected_components(np.ascontiguousarray(array), connectivity=connectivity, return_N=True)
    return components, int(count)


def boxes(labels: np.ndarray) -> dict[int, Box]:
    """Bounding box of every non-zero value present."""
    from scipy.ndimage import find_objects

    return {value: found for value, found in enumerate(find_objects(labels), 1) if found is not None}


def counts(labels: np.ndarray, minlength: int = 0) -> np.ndarray:
    """Voxels of each value 0..max."""
    return np.bincount(labels.ravel(), minlength=minlength)


def centres(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Mean voxel index (3,) float64 of every non-zero value present."""
    box = bounding_box(labels)
    if box is None:
        return {}
    part = labels[box]
    index = np.nonzero(part)
    values = part[index]
    number = np.bincount(values)
    sums = [np.bincount(values, weights=axis) for axis in index]
    start = np.array([s.start for s in box], float)
    return {int(v): np.array([total[v] for total in sums]) / number[v] + start for v in np.flatnonzero(number)}


def overlap_counts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Table (max a + 1, max b + 1) of how many voxels hold each pair of values."""
    rows, columns = int(a.max(initial=0)) + 1, int(b.max(initial=0)) + 1
    pairs = a.ravel().astype(np.int64) * columns + b.ravel()
    return np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)


def remove_small(
    array: np.ndarray, minimum: int, labels: Iterable[int] | None = None, connectivity: Connectivity = 6
) -> np.ndarray:
    """Delete connected regions with fewer than ``minimum`` voxels.

    Args:
        array: integers, shape (X, Y, Z); not changed.
        minimum: smallest size that stays.
        labels: values to clean; None cleans all.
        connectivity: 6, 18 or 26.
    """
    box = bounding_box(array)
    if box is None or minimum <= 1:
        return array.copy()
    out = array.copy()
    part = out[box]
    components, _ = label_components(part if labels is None else np.where(is_in(part, labels), part, 0), connectivity)
    small = counts(components) < minimum
    small[0] = False
    part[small[components]] = 0
    return out


def keep_largest(array: np.ndarray, k: int, connectivity: Connectivity = 26) -> np.ndarray:
    """Keep the ``k`` largest regions of every value; of equally large ones the first in memory order."""
    out = array.copy()
    box = bounding_box(array)
    if box is None or k <= 0:
        return out
    part = out[box]
    components, _ = label_components(part, connectivity)
    keep = np.zeros(int(components.max(initial=0)) + 1, bool)
    for ranked in ranked_components(part, components).values():
        keep[ranked[:k]] = True
    part[~keep[components]] = 0
    return out


def ranked_components(array: np.ndarray, components: np.ndarray) -> dict[int, list[int]]:
    """For each non-zero value of ``array`` its component numbers, largest first (ties: lower number first)."""
    size = counts(components)
    owner = np.zeros(len(size), np.int64)
    owner[components.ravel()] = array.ravel()
    order = np.argsort(-size[1:], kind="stable") + 1
    ranked: dict[int, list[int]] = {}
    for component in order.tolist():
        if size[component]:
            ranked.setdefault(int(owner[component]), []).append(component)
    ranked.pop(0, None)
    return ranked


def fill_holes(array: np.ndarray, labels: Iterable[int] | None = None) -> np.ndarray:
    """Fill background that is enclosed by one value (3-D, 6-connected background) with that value.

    Args:
        array: integers, shape (X, Y, Z); not changed.
        labels: values to treat, in this order; None treats all in ascending order.
    """
    import fill_voids

    out = array.copy()
    found = boxes(array)
    for label in sorted(found) if labels is None else labels:
        if label not in found:
            continue
        part = out[found[label]]
        # Padded: fill_voids 2.1 takes a lone background voxel on an edge of the array for a hole.
        filled = fill_voids.fill(np.pad(part == label, 1), in_place=True)[1:-1, 1:-1, 1:-1]
        part[filled & (part == 0)] = label
    return out


def grow(labels: np.ndarray, within: np.ndarray, rounds: int, connectivity: Connectivity = 6) -> np.ndarray:
    """Let all labels grow at the same pace into free voxels of ``within``; where two meet the smaller number wins.

    Args:
        labels: non-negative integers, shape (X, Y, Z); not changed.
        within: bool, where growth is allowed.
        rounds: voxel layers.
        connectivity: 6, 18 or 26.

    Returns:
        The grown labels; voxels that were labelled keep their label, inside ``within`` or not.
    """
    out = labels.copy()
    box = bounding_box(within & (labels == 0), 1)
    if box is None:
        return out
    padded = np.pad(out[box], 1)
    free = np.pad(within[box], 1) & (padded == 0)
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    steps = NEIGHBOURS[:connectivity] @ strides
    flat = padded.ravel()
    waiting = np.flatnonzero(free.ravel())
    top = np.iinfo(labels.dtype).max
    for _ in range(rounds):
        best = np.full(len(waiting), top, labels.dtype)
        for step in steps:
            neighbour = flat[waiting + step]
            np.minimum(best, np.where(neighbour == 0, top, neighbour), out=best)
        reached = best != top
        if not reached.any():
            break
        flat[waiting[reached]] = best[reached]
        waiting = waiting[~reached]
    out[box] = padded[1:-1, 1:-1, 1:-1]
    return out


def nearest_label(labels: np.ndarray, where: np.ndarray, reach: int) -> np.ndarray:
    """For the voxels of ``where`` the label at the smallest chessboard distance (ties: smaller number).

    Args:
        labels: uint8 or uint16, shape (X, Y, Z); 0 is free.
        where: bool, the voxels asked for.
        reach: largest distance in voxels.

    Returns:
        One label per true voxel of ``where`` in memory order, 0 where none is near.
    """
    box = bounding_box(where, reach)
    if box is None:
        return np.zeros(0, labels.dtype)
    none = np.iinfo(labels.dtype).max
    asked = where[box]
    field = np.where(labels[box] == 0, none, labels[box])
    answer = field[asked]
    for _ in range(reach):
        open_ = answer == none
        if not open_.any():
            break
        for axis in range(3):
            along, before = np.moveaxis(field.copy(), axis, 0), np.moveaxis(field, axis, 0)
            np.minimum(before[1:], along[:-1], out=before[1:])
            np.minimum(before[:-1], along[1:], out=before[:-1])
        answer = np.where(open_, field[asked], answer)
    return np.where(answer == none, 0, answer).astype(labels.dtype)


def touching(components: np.ndarray, labels: np.ndarray, connectivity: Connectivity = 18) -> dict[int, dict[int, int]]:
    """For each component the labels next to it, with the number of distinct neighbouring voxels of each label."""
    box = bounding_box(components, 1)
    if box is None:
        return {}
    comp, lab = np.pad(components[box], 1), np.pad(labels[box], 1).ravel()
    strides = np.array([comp.shape[1] * comp.shape[2], comp.shape[2], 1])
    flat = comp.ravel()
    voxels = np.flatnonzero(flat)
    pairs = []
    for step in NEIGHBOURS[:connectivity] @ strides:
        beside = voxels + step
        hit = (lab[beside] != 0) & (flat[beside] != flat[voxels])
        pairs.append(np.stack([flat[voxels[hit]].astype(np.int64), beside[hit]]))
    # One neighbouring voxel may be seen from several sides; it counts once.
    owner, voxel = np.unique(np.concatenate(pairs, axis=1), axis=1)
    keys, number = np.unique(np.stack([owner, lab[voxel].astype(np.int64)]), axis=1, return_counts=True)
    result: dict[int, dict[int, int]] = {}
    for (component, label), n in zip(keys.T.tolist(), number.tolist(), strict=True):
        result.setdefault(component, {})[label] = n
    return result
