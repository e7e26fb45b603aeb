"""Discs and endplates get the number of the vertebra that they belong to.

100 + v is the disc below vertebra v.  200 + v are the two endplates beside that disc (the published convention); the
semantic mask tells the lower plate of v (53) from the upper plate of the next vertebra (52).  The sacrum's own upper
plate is 226.
"""

from __future__ import annotations

import numpy as np

from spineps.anatomy import (
    CORPUS,
    CORPUS_INNER,
    DENS,
    DISC,
    DISC_OFFSET,
    ENDPLATE,
    ENDPLATE_INFERIOR,
    ENDPLATE_OFFSET,
    ENDPLATE_SUPERIOR,
    SACRUM,
    T13,
    VERTEBRAE,
)
from spineps.phases.components import centres, is_in, label_components, nearest_label
from spineps.volume import bounding_box

#: Layers that a vertebra may be away from its endplate (published: 14).
REACH = 14


def vertebra_above(vertebra: int) -> int:
    """The next vertebra upwards; 0 above C1.  T13 is too rare to be guessed.

    >>> vertebra_above(20), vertebra_above(28), vertebra_above(2), vertebra_above(1)
    (19, 19, 1, 0)
    """
    if vertebra not in VERTEBRAE:
        return 0
    place = VERTEBRAE.index(vertebra) - 1
    if place >= 0 and VERTEBRAE[place] == T13:
        place -= 1
    return VERTEBRAE[place] if place >= 0 else 0


def assign_discs_and_endplates(sem: np.ndarray, inst: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps h and i: 100 + v and 200 + v into the instance mask, 52 and 53 into the semantic mask.

    A disc or plate belongs to the nearest body above its centre.  Above the topmost body it belongs to the vertebra
    that anatomy puts there although the image does not show it (above C1: to none).

    Args:
        sem: semantic codes, PIR.
        inst: vertebra ids, 26 the sacrum, PIR; every other value is left alone.

    Returns:
        New semantic and instance arrays; no voxel of either is deleted.
    """
    bodies = _bodies(sem, inst)
    if not bodies:
        return sem, inst
    sem, inst = sem.copy(), inst.copy()
    _number(sem == DISC, DISC_OFFSET, bodies, inst)
    bones = np.where(is_in(inst, bodies), inst, 0).astype(np.uint8)
    for code in (ENDPLATE, ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR):
        _number(sem == code, ENDPLATE_OFFSET, bodies, inst)
    _tell_plates_apart(sem, inst, bones, bodies)
    return sem, inst


def _bodies(sem: np.ndarray, inst: np.ndarray) -> dict[int, float]:
    """Height (axis 1) of every vertebra body and, lowest, the sacrum.

    An instance of which no body is seen lies at no height: the published system puts it at 0, above everything.
    """
    corpus = centres(np.where(sem == CORPUS, inst, 0))
    other = centres(np.where(is_in(sem, (CORPUS_INNER, DENS)), inst, 0))
    found = {i: float(c[1]) for i, c in {**other, **corpus}.items() if i in VERTEBRAE}
    if not found:
        return {}
    sacrum = centres((inst == SACRUM).astype(np.uint8))
    return {**found, SACRUM: float(sacrum[1][1])} if sacrum else found


def _number(mask: np.ndarray, offset: int, bodies: dict[int, float], inst: np.ndarray) -> None:
    box = bounding_box(mask)
    if box is None:
        return
    components, count = label_components(mask[box], 26)
    table = np.zeros(count + 1, inst.dtype)
    for component, centre in centres(components).items():
        owner = _nearest_above(float(centre[1]) + box[1].start, bodies)
        table[component] = offset + owner if owner else 0
    part = inst[box]
    part[mask[box]] = table[components[mask[box]]]


def _nearest_above(height: float, bodies: dict[int, float]) -> int:
    above = [i for i, at in bodies.items() if at < height]
    if above:
        return max(above, key=lambda i: bodies[i])
    top = min(bodies, key=lambda i: bodies[i])
    return vertebra_above(top)


def _tell_plates_apart(sem: np.ndarray, inst: np.ndarray, bones: np.ndarray, bodies: dict[int, float]) -> None:
    """Endplates (62) become 53 when the bone nearest to them lies above, 52 when it lies below; the sacrum's get 226.

    The published system deletes the voxels that an unexpected vertebra is nearest to, and calls the lower plate of a
    vertebra numbered 1 an upper one.
    """
    plates = is_in(sem, (ENDPLATE, ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR))
    box = bounding_box(plates)
    if box is None:
        return
    nearest = np.zeros(sem.shape, np.uint8)
    nearest[plates] = nearest_label(bones, plates, REACH)
    height_of = np.full(256, np.nan)
    height_of[list(bodies)] = list(bodies.values())
    part, near, number = sem[box], nearest[box], inst[box]
    components, count = label_components(part == ENDPLATE, 26)
    height = np.zeros(count + 1)
    for component, centre in centres(components).items():
        height[component] = centre[1] + box[1].start
    told = (components > 0) & (near > 0)
    part[told] = np.where(height_of[near[told]] < height[components[told]], ENDPLATE_INFERIOR, ENDPLATE_SUPERIOR)
    number[(part == ENDPLATE_SUPERIOR) & (near == SACRUM)] = ENDPLATE_OFFSET + SACRUM
