"""Make the network's instances and the bodies that were found agree: one body, one instance."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from spineps.anatomy import BODY_PARTS, CORPUS, CORPUS_INNER, VERTEBRA_PARTS
from spineps.phases.components import centres, counts, is_in, label_components, overlap_counts, relabel, touching
from spineps.phases.corpus import Bodies
from spineps.phases.territory import divide

logger = logging.getLogger(__name__)

#: An instance owns a body from this share of its voxels on.
OWNS = 0.5
#: With fewer bodies than this share owned one to one, the network's answer is not used at all.
USABLE = 0.5
#: A vertebra above the first body lies within this many distances between bodies.
NEXT = 1.8
#: Up to this share of a usual body, body voxels outside all bodies are taken for a fragment of a vertebra.
FRAGMENT = 0.1


def one_instance_per_body(sem: np.ndarray, inst: np.ndarray, bodies: Bodies, zoom: Sequence[float]) -> np.ndarray:
    """Instances renumbered so that body b is instance b, whatever the network said.

    * Fewer than half of the bodies owned by an instance of their own: the network is not believed, every vertebra voxel
      goes to the body with the shortest way to it (:func:`~spineps.phases.territory.divide`).
    * An instance with several bodies is divided among them in the same way.
    * A body that no instance owns becomes one, with the vertebra voxels that hang on it and are free.
    * An instance without a body stays (numbered after the bodies) only right above the first body, where the image may
      show the arch of a vertebra without its body; elsewhere it is dissolved.

    Args:
        sem: semantic codes, PIR.
        inst: the vote's instances, any numbers.
        bodies: what :func:`~spineps.phases.corpus.find_bodies` found; at least one.
        zoom: voxel size in mm.

    Returns:
        uint16; voxels outside vertebra parts are 0.
    """
    vertebra = is_in(sem, VERTEBRA_PARTS) & ~_not_of_this_spine(sem, bodies)
    inst = np.where(vertebra, inst, 0)
    number = len(bodies.centres)
    table = overlap_counts(bodies.labels, inst)
    size = table.sum(axis=1)
    owner = {
        b: int(table[b, 1:].argmax()) + 1
        for b in range(1, number + 1)
        if table.shape[1] > 1 and table[b, 1:].max() >= OWNS * size[b]
    }
    owned: dict[int, list[int]] = {}
    for body, instance in owner.items():
        owned.setdefault(instance, []).append(body)
    good = [found[0] for found in owned.values() if len(found) == 1]
    if len(good) < USABLE * number:
        logger.warning(
            "the instance model separates only %d of %d vertebrae: falling back to nearest bodies", len(good), number
        )
        return divide(vertebra, bodies.labels, zoom).astype(np.uint16)
    out = np.zeros(inst.shape, np.uint16)
    one_to_one = {instance: found[0] for instance, found in owned.items() if len(found) == 1}
    out[...] = relabel(inst, one_to_one, keep_others=False)
    # A body is whole: pieces of it that a neighbour took come back.
    out[bodies.labels > 0] = bodies.labels[bodies.labels > 0]
    for instance, found in owned.items():
        if len(found) > 1:
            logger.info("one instance held %d bodies and is divided", len(found))
            part = inst == instance
            seeds = np.where(is_in(bodies.labels, found), bodies.labels, 0)
            out = np.where(part, divide(part | (seeds > 0), seeds, zoom), out).astype(np.uint16)
    bodyless = [i for i in np.unique(inst).tolist() if i and i not in owned]
    out = _keep_top(sem, inst, bodyless, bodies, out)
    missing = [b for b in range(1, number + 1) if b not in owner]
    if missing:
        logger.info("%d bodies were missed by the instance model and are added", len(missing))
        free = vertebra & (out == 0)
        grown = divide(free | (out > 0), out, zoom)
        out = np.where(free & is_in(grown, missing), grown, out).astype(np.uint16)
    return out


def bring_back(sem: np.ndarray, inst: np.ndarray, voted: np.ndarray) -> np.ndarray:
    """Parts of a vertebra that cleaning deleted as fragments, although they hang on nothing else, come back.

    Where pedicles are not seen (outside the slab, or thinner than a voxel) an arch hangs free.  Free pieces that touch
    no instance go to the one that the vote had given them to.

    Args:
        sem: semantic codes, PIR.
        inst: cleaned instances.
        voted: the vote before cleaning, with other numbers.
    """
    free = is_in(sem, VERTEBRA_PARTS) & (inst == 0)
    components, count = label_components(free, 26)
    if not count or not voted.any():
        return inst
    table = overlap_counts(voted, inst)
    table[:, 0] = 0
    now = np.where(table.any(axis=1), table.argmax(axis=1), 0)
    now[0] = 0
    votes = overlap_counts(components, now[voted])
    votes[:, 0] = 0
    winner = np.where(votes.any(axis=1), votes.argmax(axis=1), 0)
    winner[[0, *touching(components, inst, 26)]] = 0
    return np.where(free, winner[components], inst).astype(inst.dtype)


def _not_of_this_spine(sem: np.ndarray, bodies: Bodies) -> np.ndarray:
    """Body labels that :mod:`~spineps.phases.chain` took for something else (sacrum, pelvis), unless they are small."""
    other = is_in(sem, (CORPUS, CORPUS_INNER)) & (bodies.labels == 0)
    components, count = label_components(other, 26)
    usual = float(np.median(counts(bodies.labels)[1:]))
    large = counts(components, count + 1) > FRAGMENT * usual
    large[0] = False
    return large[components]


def _keep_top(
    sem: np.ndarray, inst: np.ndarray, bodyless: Sequence[int], bodies: Bodies, out: np.ndarray
) -> np.ndarray:
    if not bodyless:
        return out
    is_body = is_in(sem, BODY_PARTS)
    heights = np.sort(bodies.centres[:, 1])
    spacing = float(np.median(np.diff(heights))) if len(heights) > 1 else 40.0
    behind = centres(np.where(is_body, 0, out))
    drop = float(np.median([behind[b][1] - bodies.centres[b - 1, 1] for b in behind])) if behind else 0.0
    size = counts(np.where((out == 0), inst, 0), int(inst.max()) + 1)
    where = centres(np.where(is_body, 0, inst))
    front = centres(np.where(is_body, inst, 0))
    number = len(bodies.centres)
    for instance in bodyless:
        if instance in front:
            height = front[instance][1]
        else:
            height = where[instance][1] - drop
        # Not below the last body: an arch lies no higher than its body, and a body cut by the image was found as one.
        if 0.5 * spacing < heights[0] - height < NEXT * spacing and size[instance]:
            number += 1
            out = np.where((inst == instance) & (out == 0), number, out).astype(np.uint16)
    return out
