"""Centres of the vertebral bodies exactly as SPINEPS 2.1.3 finds them, for its instance models.

Our own way (:mod:`spineps.phases.corpus`) finds more: bodies cut by the image border, fused bodies without their disc.
Published models get the centres that they got there, because their cutouts, and with them the masks, hang on these.
Arrays are ``PIR``.
"""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np

from spineps.anatomy import CORPUS, CORPUS_INNER, DENS, DISC, ENDPLATE
from spineps.phases.components import centres, counts, is_in, label_components, remove_small
from spineps.phases.splitting import parting_plane
from spineps.volume import bounding_box

logger = logging.getLogger(__name__)

#: Consecutive entries of one kind nearer than this (mm along the spine) are pieces of the same body or disc: ten voxels
#: of the published models.
SAME_LEVEL_MM = 7.5
#: Entries looked at on either side, bodies needed among them, and the share of their mean volume that betrays two.
REACH, LEAST_BODIES, LARGE = 5, 4, 1.5
#: Added to the numbers of discs, to tell them from bodies.
_DISC = 1000


def published_centres(sem: np.ndarray, minimum: int, solve_merged: bool, pitch: float) -> np.ndarray:
    """Centres (n, 3) of the bodies, voxel indices, from caudal to cranial; n may be 0.

    Args:
        sem: semantic codes.
        minimum: voxels below which an eroded body is noise.
        solve_merged: cut a body that is much larger than its neighbours, where a surplus disc betrays it.
        pitch: voxel size in mm along axis 1.
    """
    inner = is_in(sem, (CORPUS_INNER,))
    dense = bool(inner.any())
    labels, _ = label_components(inner if dense else _eroded(sem == CORPUS, minimum), 26)
    if solve_merged:
        labels = _cut_large_bodies(labels, sem, pitch)
    found = sorted(centres(labels).values(), key=lambda centre: centre[1])
    if dense:
        found += centres(label_components(sem == DENS, 26)[0]).values()
    return np.array(found[::-1]).reshape(-1, 3)


def _eroded(body: np.ndarray, minimum: int) -> np.ndarray:
    from scipy.ndimage import binary_erosion, generate_binary_structure

    out = np.zeros(body.shape, np.uint8)
    box = bounding_box(body)
    if box is not None:
        part = binary_erosion(body[box], generate_binary_structure(3, 2), iterations=2)
        out[box] = remove_small(part.astype(np.uint8), minimum, connectivity=6)
    return out


def _cut_large_bodies(labels: np.ndarray, sem: np.ndarray, pitch: float) -> np.ndarray:
    discs, count = label_components(is_in(sem, (DISC, ENDPLATE)), 26)
    if not count or not labels.any():
        return labels
    labels = labels.astype(np.uint16)
    # Of equal heights the disc is the upper one; volumes are those before any cut, so a body may be cut twice.
    height = {_DISC + k: c[1] for k, c in centres(discs).items()}
    height |= {k: c[1] for k, c in centres(labels).items()}
    volume = counts(labels)
    order = sorted(height, key=lambda k: height[k])
    walk = order.copy()
    for upper, lower in pairwise(order):
        if (upper < _DISC) != (lower < _DISC):
            continue
        if abs(height[upper] - height[lower]) < SAME_LEVEL_MM / pitch:
            walk.remove(upper)
            continue
        place = walk.index(upper)
        around = [*walk[max(place - REACH, 0) : place], *walk[place + 1 : place + REACH + 1]]
        large = _far_largest([k for k in around if k < _DISC], volume)
        if large is not None:
            _cut(labels, large)
    return labels


def _far_largest(bodies: list[int], volume: np.ndarray) -> int | None:
    if len(bodies) < LEAST_BODIES:
        return None
    large = max(bodies, key=lambda k: volume[k])
    mean = float(np.mean([volume[k] for k in bodies if k != large]))
    return large if volume[large] / mean > LARGE else None


def _cut(labels: np.ndarray, body: int) -> None:
    """Give the lower half a new number, in place."""
    mask = labels == body
    plane = parting_plane(mask)
    if plane is None:
        logger.info("one body is much larger than its neighbours, but erosion does not part it")
        return
    logger.info("one body is much larger than its neighbours and is cut")
    reach = _plane_reach(mask.shape, *plane)
    labels[mask & (np.arange(mask.shape[1])[:, None] > reach[:, None])] = int(labels.max()) + 1


def _plane_reach(shape: tuple[int, ...], point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """(X, Z) lowest voxel along axis 1 that a plane drawn in voxels meets, -1 where it meets none.

    The plane is drawn along the axis nearest to its normal, clamped to the volume: a steep one leaves columns open, and
    these count as below it.
    """
    steep = int(np.abs(normal).argmax())
    i, j = (axis for axis in range(3) if axis != steep)
    place = np.indices([1 if axis == steep else n for axis, n in enumerate(shape)]).reshape(3, -1)
    # In this order of operations: where the plane runs through voxel centres, the last digit decides.
    height = (-normal[i] * place[i] - normal[j] * place[j] + point @ normal) / normal[steep]
    place[steep] = np.clip(height, 0, shape[steep] - 1)
    reach = np.full((shape[0], shape[2]), -1)
    np.maximum.at(reach, (place[0], place[2]), place[1])
    return reach
