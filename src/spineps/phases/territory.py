"""Divide vertebra voxels among bodies without a network: the fallback of the instance phase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spineps.phases.components import centres, label_components, overlap_counts
from spineps.volume import bounding_box

#: Where posterior parts lie seen from their body when no vertebra shows it: 40 mm behind, 10 mm below (lumbar mean).
POSTERIOR_OFFSET = (40.0, 10.0)
#: A loose piece further away than this from where posterior parts are expected (mm) is none: transverse processes and
#: spinous tips lie within 45 mm of their middle.
FAR = 60.0


def divide(mask: np.ndarray, seeds: np.ndarray, zoom: Sequence[float]) -> np.ndarray:
    """Every voxel of ``mask`` goes to the seed with the shortest way to it inside the mask (millimetres).

    The arch hangs on its own body by the pedicles, and to its neighbours only by facets further away: so the way is
    what tells vertebrae apart.  Pieces that hang on no seed go, as a whole, to the seed whose posterior parts are
    expected there.

    Args:
        mask: bool, PIR.
        seeds: labels, 0 where free; seeds outside the mask are ignored.
        zoom: voxel size in mm.

    Returns:
        Labels inside the mask (dtype of ``seeds``), 0 elsewhere and when there is no seed.
    """
    out = np.where(mask, seeds, 0)
    box = bounding_box(mask)
    if box is None or not out.any():
        return out
    part, inside = out[box], mask[box]
    part[inside] = _nearest_by_way(inside, part, zoom)
    _give_loose_pieces(part, inside, seeds[box], zoom)
    return out


def _nearest_by_way(inside: np.ndarray, seeds: np.ndarray, zoom: Sequence[float]) -> np.ndarray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    # 32 bits: SciPy before 1.13, all that Python 3.10 gets, finds no ways through graphs with 64-bit indices.
    number = np.full(inside.shape, -1, np.int32)
    total = int(inside.sum())
    number[inside] = np.arange(total)
    rows, columns, lengths = [], [], []
    for axis in range(3):
        a = np.moveaxis(number, axis, 0)[:-1].ravel()
        b = np.moveaxis(number, axis, 0)[1:].ravel()
        linked = (a >= 0) & (b >= 0)
        rows.append(a[linked])
        columns.append(b[linked])
        lengths.append(np.full(int(linked.sum()), float(zoom[axis])))
    graph = coo_array((np.concatenate(lengths), (np.concatenate(rows), np.concatenate(columns))), (total, total))
    labels = seeds[inside]
    starts = np.flatnonzero(labels)
    _, _, source = dijkstra(graph.tocsr(), directed=False, indices=starts, min_only=True, return_predecessors=True)
    return np.where(source >= 0, labels[np.maximum(source, 0)], 0)


def _give_loose_pieces(part: np.ndarray, inside: np.ndarray, seeds: np.ndarray, zoom: Sequence[float]) -> None:
    components, count = label_components(inside & (part == 0), 26)
    if not count:
        return
    scale = np.asarray(zoom, float)
    body = {i: c * scale for i, c in centres(seeds).items()}
    rest = {i: c * scale for i, c in centres(np.where(seeds == 0, part, 0)).items()}
    offsets = [rest[i] - body[i] for i in rest if i in body and rest[i][0] - body[i][0] > 0.5 * POSTERIOR_OFFSET[0]]
    offset = np.median(offsets, axis=0) if offsets else np.array([*POSTERIOR_OFFSET, 0.0])
    ids = sorted(body)
    goals = np.array([body[i] + offset for i in ids])
    voxels = np.argwhere(components > 0)
    # Height decides: how far behind a part lies says nothing about its level.
    gap = np.abs(voxels[:, 1:2] * scale[1] - goals[None, :, 1])
    best = gap.argmin(axis=1)
    near = np.linalg.norm(voxels * scale - goals[best], axis=1) <= FAR
    nearest = np.where(near, np.array(ids, part.dtype)[best], 0)
    owner = components[tuple(voxels.T)]
    table = overlap_counts(owner, nearest)
    whole = table.max(axis=1) >= 0.7 * table.sum(axis=1)
    winner = table.argmax(axis=1)
    part[tuple(voxels.T)] = np.where(whole[owner], winner[owner], nearest)
