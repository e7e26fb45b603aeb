"""A last vertebra that the network calls sacrum, in part or altogether (a transitional one, mostly)."""

from __future__ import annotations

import logging

import numpy as np

from spineps.anatomy import CORPUS, CORPUS_INNER, DISC, ENDPLATE, SACRUM
from spineps.phases.components import counts, is_in, label_components
from spineps.volume import Volume

logger = logging.getLogger(__name__)

#: Share of the body above that the half called body has at least, and that the whole then has at most.
LEAST_HALF, MOST_WHOLE = 0.15, 1.4
#: A body called body throughout: nothing is to be done.
WHOLE = 0.8
#: The cylinder between the two discs is as wide and deep as so many of the body above.
ROOM = 1.1
#: Called sacrum altogether it must have this share of the body above, and the disc and endplate below it must cover
#: this share of the area of those above it (chu16: .4; 34 other lumbar scans have less than LEAST_DISC_MM3 there).
LEAST_WHOLE, LEAST_BAND = 0.5, 0.3
#: Least disc and endplate below the half, mm3: a third of a thin rudimentary disc.
LEAST_DISC_MM3 = 300.0


def complete_last_body(mask: Volume) -> np.ndarray:
    """The mask in which sacrum between the last body's two discs is body.

    A sacrum begins below the last disc: what lies above that disc, in line with the body above, belongs to a body.
    Where no part of it is called body already, the disc must be as wide as a body.

    Args:
        mask: structure ids, any orientation.
    """
    turned = mask.reoriented("PIR")
    array = turned.array
    places, size, order = _row(turned)
    if len(order) < 2:
        return mask.array
    last, above = order[-1], order[-2]
    found = None
    if size[last] < WHOLE * size[above]:
        if size[last] > LEAST_HALF * size[above]:
            found = _between_discs(turned, places[above], places[last].mean(0), float(size[last]), known=True)
        order = order[:-1]
    if found is None and len(order) > 1:
        # All of it may be called sacrum: then it lies where the row goes on.
        end = 2 * places[order[-1]].mean(0) - places[order[-2]].mean(0)
        found = _between_discs(turned, places[order[-1]], end, 0.0, known=False)
    if found is None:
        return mask.array
    volume = len(found) * turned.grid.voxel_volume
    logger.info("the last body was called sacrum: %.1f ml are body now", volume / 1e3)
    array = array.copy()
    array[tuple(found.T)] = CORPUS
    return turned.with_array(array).reoriented(mask.axcodes).array


def _between_discs(mask: Volume, above: np.ndarray, end: np.ndarray, part: float, known: bool) -> np.ndarray | None:
    """Voxels (n, 3) of sacrum that are the body between the disc below ``above`` and the next one.

    Args:
        mask: PIR.
        above: (m, 3) mm, voxels of the body above.
        end: (3,) mm, about where the body lies.
        part: mm3 of it that are called body.
        known: a part of it is called body, so that it need not be proven.
    """
    array, zoom, voxel = mask.array, np.array(mask.zoom), mask.grid.voxel_volume
    top, usual = above.mean(0), len(above) * voxel
    upper, lower = _bands(mask, top, end)
    if min(len(upper), len(lower)) * voxel < LEAST_DISC_MM3:
        return None
    if not known and _area(lower, upper.mean(0), zoom) < LEAST_BAND * _area(upper, top, zoom):
        return None
    # Along the spine, from the disc above; then to the left, then to the front.
    down = (end - top) / np.linalg.norm(end - top)
    start, stop = upper.mean(0), lower.mean(0)
    length = float(np.linalg.norm(stop - start))
    along = (stop - start) / length
    aside = np.array([0.0, 0.0, 1.0]) - along[2] * along
    aside /= np.linalg.norm(aside)
    frame = np.stack([along, aside, np.cross(along, aside)])
    offset = (above - top) @ np.stack([down, aside, np.cross(down, aside)]).T
    # A slab of one slice has no width of its own.
    reach = np.maximum(ROOM * np.percentile(np.abs(offset[:, 1:]), 95, axis=0), zoom.max())
    voxels = np.argwhere(array == SACRUM)
    t, b, c = ((voxels * zoom - start) @ frame.T).T
    inside = (t > 0) & (t < length) & ((b / reach[0]) ** 2 + (c / reach[1]) ** 2 < 1)
    whole = part + inside.sum() * voxel
    if not inside.any() or whole > MOST_WHOLE * usual or not (known or whole > LEAST_WHOLE * usual):
        return None
    return voxels[inside]


def disc_in_sacrum(mask: Volume) -> float:
    """Area of disc and endplate where the next vertebra would end, over that of those above it; 0 where there is none.

    The sacrum of a transitional last vertebra shows them, and an ordinary one does not: see :data:`LEAST_BAND`.

    Args:
        mask: structure ids, any orientation.
    """
    turned = mask.reoriented("PIR")
    places, size, order = _row(turned)
    if len(order) > 1 and size[order[-1]] < WHOLE * size[order[-2]]:
        order = order[:-1]
    if len(order) < 2:
        return 0.0
    top = places[order[-1]].mean(0)
    upper, lower = _bands(turned, top, 2 * top - places[order[-2]].mean(0))
    if min(len(upper), len(lower)) * turned.grid.voxel_volume < LEAST_DISC_MM3:
        return 0.0
    zoom = np.array(turned.zoom)
    return _area(lower, upper.mean(0), zoom) / _area(upper, top, zoom)


def _row(mask: Volume) -> tuple[dict[int, np.ndarray], np.ndarray, list[int]]:
    """Body components of a PIR mask with a sacrum: voxels in mm, mm3 (by number), and the large ones from the top."""
    parts, count = label_components(is_in(mask.array, (CORPUS, CORPUS_INNER)), 6)
    size = counts(parts, count + 1) * mask.grid.voxel_volume
    size[0] = 0
    if count < 2 or not (mask.array == SACRUM).any():
        return {}, size, []
    big = np.flatnonzero(size > LEAST_HALF * np.median(size[size > 0.3 * size.max()]))
    places = {int(k): np.argwhere(parts == k) * np.array(mask.zoom) for k in big}
    return places, size, sorted(places, key=lambda k: places[k][:, 1].mean())


def _bands(mask: Volume, top: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (n, 3) in mm of disc and endplate above and below a body at ``end``, the next below the one at ``top``."""
    step = float(np.linalg.norm(end - top))
    down = (end - top) / step
    disc = np.argwhere(is_in(mask.array, (DISC, ENDPLATE))) * np.array(mask.zoom)
    far = (disc - end) @ down
    near = np.linalg.norm((disc - end) - far[:, None] * down, axis=1) < step
    return disc[near & (far < 0) & (far > -step)], disc[near & (far > 0) & (far < step)]


def _area(band: np.ndarray, seen_from: np.ndarray, zoom: np.ndarray) -> float:
    """mm2 that a layer of voxels (mm) covers, seen from a point."""
    away = band.mean(0) - seen_from
    away /= np.linalg.norm(away)
    across = band - band.mean(0)
    across -= (across @ away)[:, None] * away
    # In two directions across: cells of the coarsest voxel.
    first = np.cross(away, [1.0, 0.0, 0.0] if abs(away[0]) < 0.9 else [0.0, 1.0, 0.0])
    first /= np.linalg.norm(first)
    # A quarter off: voxels lie at whole or half cells from their mean.
    cells = np.floor(np.column_stack([across @ first, across @ np.cross(away, first)]) / zoom.max() + 0.25).astype(int)
    return float(len(np.unique(cells, axis=0)) * zoom.max() ** 2)
