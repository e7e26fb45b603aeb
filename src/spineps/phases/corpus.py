"""Find every vertebral body in a semantic mask, and cut bodies that have grown together.

All arrays are ``PIR``; lengths are millimetres.  Bodies are numbered from caudal to cranial (published order).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spineps.anatomy import BODY_PARTS, CORPUS, CORPUS_INNER, DENS, DISC, SACRUM
from spineps.phases.chain import spine_of
from spineps.phases.components import (
    centres,
    counts,
    grow,
    is_in,
    label_components,
    overlap_counts,
    relabel,
    remove_small,
)
from spineps.phases.splitting import Shape, describe, expected, is_dens, pieces_in, split_body
from spineps.volume import Box, bounding_box

logger = logging.getLogger(__name__)

#: Two voxels of the published models; on coarse grids two would eat cervical bodies.
EROSION_MM = 1.5
#: A body lost by erosion, or cut by the image border, still counts from this share of the usual body volume on.
LOST_SHARE = 0.15


@dataclass(frozen=True, eq=False)
class Bodies:
    """The vertebral bodies of a mask.

    Attributes:
        labels: uint16, shape of the mask; 1..n from caudal to cranial.
        centres: (n, 3) voxel indices: centre of the eroded body, so that bridges and spurs do not pull it.
    """

    labels: np.ndarray
    centres: np.ndarray


def find_bodies(
    sem: np.ndarray,
    zoom: Sequence[float],
    minimum: int = 1,
    clean: bool = True,
    solve_merged: bool = True,
    above: int = 0,
) -> Bodies:
    """Every body once.

    Args:
        sem: semantic codes, PIR.
        zoom: voxel size in mm.
        minimum: voxels below which a body fragment is noise.
        clean: erode before components are taken, so that bodies which touch come apart.
        solve_merged: find and cut bodies that have grown together.
        above: slices of the scan above ``sem``.

    Returns:
        Labels and centres; both empty when there is no body.
    """
    core = _above_sacrum(sem, _cores(sem, zoom, minimum, clean))
    whole = _whole_bodies(sem, core)
    extent = _seen_extent(sem)
    discs = _disc_centres(sem)
    spine = spine_of(whole, zoom, extent, discs)
    core, whole = (relabel(array, spine, keep_others=False) for array in (core, whole))
    if solve_merged:
        core, whole = _solve_merged(core, whole, zoom, extent, discs, above)
        core, whole = _with_dens(core, whole, zoom, extent, above)
    found = centres(core)
    order = sorted(found, key=lambda i: (-found[i][1], i))
    whole = relabel(whole, {old: new for new, old in enumerate(order, 1)}).astype(np.uint16)
    return Bodies(whole, np.array([found[i] for i in order]).reshape(-1, 3))


def _body_mask(sem: np.ndarray) -> np.ndarray:
    # CT models of the published system label the inside of bodies (50) apart: there bodies do not touch.
    inner = sem == CORPUS_INNER
    return inner | (sem == DENS) if inner.any() else sem == CORPUS


def _cores(sem: np.ndarray, zoom: Sequence[float], minimum: int, clean: bool) -> np.ndarray:
    """Components of the eroded bodies; a body that erosion loses comes back whole."""
    from scipy.ndimage import binary_erosion, generate_binary_structure

    body = _body_mask(sem)
    out = np.zeros(sem.shape, np.uint16)
    box = bounding_box(body, 2)
    if box is None:
        return out
    part = body[box]
    eroded = part
    if clean and not (sem[box] == CORPUS_INNER).any():
        # Border value 1: a body cut by the edge of the image is no thinner for it.
        depth = min(max(round(EROSION_MM / max(zoom[:2])), 1), 2)
        eroded = binary_erosion(part, generate_binary_structure(3, 2), iterations=depth, border_value=1)
    eroded = remove_small(eroded.astype(np.uint8), minimum, connectivity=6)
    core, count = label_components(eroded, 26)
    raw, raw_count = label_components(part, 26)
    size = counts(raw, raw_count + 1)
    kept = overlap_counts(raw, core > 0)
    with_core = kept[:, 1] > 0 if kept.shape[1] > 1 else np.zeros(len(size), bool)
    usual = float(np.median(size[1:][with_core[1:]])) if with_core[1:].any() else 0.0
    lost = ~with_core & (size >= max(minimum, 2, LOST_SHARE * usual))
    lost[0] = False
    core = core.astype(np.uint16)
    for new, old in enumerate(np.flatnonzero(lost).tolist(), count + 1):
        core[raw == old] = new
    out[box] = core
    return out


def _above_sacrum(sem: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Nothing below the middle of the sacrum is a vertebra (bladder, rectum and coccyx look like one).

    Believed only where the sacrum is as large as a body and most of the bodies lie above it.
    """
    sacrum, count = label_components(sem == SACRUM, 26)
    middle = centres(core)
    if not count or len(middle) < 2:
        return core
    size, bodies = counts(sacrum, count + 1), counts(core)
    size[0] = 0
    limit = centres(sacrum)[int(size.argmax())][1]
    below = [i for i, c in middle.items() if c[1] > limit]
    if size.max() < np.median(bodies[list(middle)]) or bodies[below].sum() > 0.5 * bodies[1:].sum():
        return core
    return relabel(core, dict.fromkeys(below, 0))


def _seen_extent(sem: np.ndarray) -> tuple[int, int]:
    """Slices along axis 1 in which anything is labelled: padding around the scan holds nothing."""
    seen = np.flatnonzero(sem.any(axis=(0, 2)))
    return (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, sem.shape[1])


def _whole_bodies(sem: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Each core grown back into the body that it was eroded from."""
    return grow(core, is_in(sem, BODY_PARTS), 12, 26)


def _solve_merged(
    core: np.ndarray,
    whole: np.ndarray,
    zoom: Sequence[float],
    extent: tuple[int, int],
    discs: Sequence[np.ndarray],
    above: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut every body that is far taller and larger than its neighbours predict, if the pieces look like bodies."""
    core, whole = core.copy(), whole.copy()
    shapes = describe(whole, zoom, extent, above)
    usual = float(np.median([s.volume for s in shapes.values()])) if shapes else 0.0
    # A sliver of C1's ring may lie above the first body.
    top = min((s.place for s in shapes.values() if s.volume > LOST_SHARE * usual), default=0)
    for body in sorted(shapes, key=lambda i: shapes[i].centre[1]):
        shape, others = shapes[body], [s for i, s in shapes.items() if i != body]
        disc_inside = _has_disc_inside(shape, discs, zoom)
        number = pieces_in(shape, expected(shape, others), disc_inside, top=shape.place == top)
        if number < 2:
            continue
        box = _box_of(whole, body)
        mask = whole[box] == body
        sides = split_body(mask, zoom, shape.axis, number)
        if sides is None:
            continue
        logger.info("one body holds %d vertebrae and is cut", number)
        for side in range(2, int(sides.max()) + 1):
            new = int(whole.max()) + 1
            whole[box][mask & (sides == side)] = new
            core[box][(core[box] == body) & (sides == side)] = new
    # A piece without a core keeps its own voxels as core, so that it counts.
    for lost in set(np.unique(whole).tolist()) - set(np.unique(core).tolist()):
        core[whole == lost] = lost
    return core, whole


def _with_dens(
    core: np.ndarray, whole: np.ndarray, zoom: Sequence[float], extent: tuple[int, int], above: int
) -> tuple[np.ndarray, np.ndarray]:
    """A dens that erosion or a line at its root parted from C2 is one body with it."""
    shapes = sorted(describe(whole, zoom, extent, above).items(), key=lambda item: item[1].place)
    usual = float(np.median([s.volume for _, s in shapes])) if shapes else 0.0
    # A sliver of C1's ring may lie above it.
    shapes = [(body, s) for body, s in shapes if s.volume > LOST_SHARE * usual]
    if len(shapes) < 3 or not is_dens(shapes[0][1], [s for _, s in shapes[1:]]):
        return core, whole
    logger.info("the first body is the dens of the second")
    together = {shapes[0][0]: shapes[1][0]}
    return relabel(core, together), relabel(whole, together)


def _box_of(labels: np.ndarray, label: int) -> Box:
    box = bounding_box(labels == label)
    assert box is not None
    return box


def _disc_centres(sem: np.ndarray) -> list[np.ndarray]:
    box = bounding_box(sem == DISC)
    if box is None:
        return []
    components, _ = label_components(sem[box] == DISC, 26)
    start = np.array([s.start for s in box], float)
    return [c + start for c in centres(components).values()]


def _has_disc_inside(shape: Shape, discs: Sequence[np.ndarray], zoom: Sequence[float]) -> bool:
    """A disc fragment lies in the middle half of the body's height: two bodies fused around it."""
    for disc in discs:
        off = (disc - shape.centre) * np.asarray(zoom)
        along = abs(float(off @ shape.axis))
        across = float(np.linalg.norm(off - (off @ shape.axis) * shape.axis))
        if along < 0.25 * shape.height and across < 0.75 * shape.depth:
            return True
    return False
