"""Clean the two masks against each other, number the vertebrae, hand discs and endplates to them.

Arrays are ``PIR`` inside this module (axis 1 grows to inferior); :func:`postprocess` turns any grid there and back.
Step letters follow section 3.4 of the specification of the published system 2.1.3.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from spineps.anatomy import (
    ARCUS,
    BODY_PARTS,
    CORPUS,
    CORPUS_INNER,
    DENS,
    DISC,
    ENDPLATE,
    METAL,
    SACRUM,
    SPINOSUS,
    VERTEBRA_PARTS,
)
from spineps.options import PostOptions
from spineps.phases.components import (
    boxes,
    centres,
    counts,
    grow,
    is_in,
    label_components,
    overlap_counts,
    ranked_components,
    relabel,
    touching,
)
from spineps.phases.endplates import assign_discs_and_endplates
from spineps.phases.heights import body_heights
from spineps.volume import Volume, bounding_box, mm2_to_voxels, mm3_to_voxels

logger = logging.getLogger(__name__)

#: The published system also counts the unused id 40 as part of a vertebra.
PARTS = (40, *VERTEBRA_PARTS)
ARTICULAR = (45, 46, 47, 48)
#: mm2 and mm3 of one voxel of the published models (0.75 x 0.75 x 1.65 mm); their thresholds are multiples of it.
REFERENCE_VOLUME = 0.75 * 0.75 * 1.65
#: An instance on top with less than this share of the next one's body is a C1, which has none.
RING = 0.1

Namer = Callable[[np.ndarray], Mapping[int, int]]


def postprocess(
    semantic: Volume,
    instance: Volume,
    options: PostOptions,
    *,
    sacrum_ids: Sequence[int] = (SACRUM,),
    metal: int | Sequence[int] = METAL,
    names: Namer | None = None,
) -> tuple[Volume, Volume]:
    """Final masks from the semantic mask and the instance mask, both on the same grid (usually the input's).

    Args:
        semantic: codes of :mod:`spineps.anatomy`; any orientation.
        instance: vertebrae as 1..n in any order, on the grid of ``semantic``.
        options: what to repair.
        sacrum_ids: semantic codes that become instance 26.
        metal: semantic code or codes that keep their number in the instance mask.
        names: called once with the cleaned instance array (grid and orientation of the arguments, numbered 1..n from
            the top); returns ``{n: vertebra id}``.  Vertebrae that it leaves out or maps to 0 are dropped from the
            instance mask.  Without it they are numbered ``1 + labeling_offset`` and on.

    Returns:
        Semantic mask (dtype as given; endplates become 52 superior, 53 inferior) and instance mask (uint16: vertebrae,
        26 sacrum, 80 metal, 100 + v the disc below v, 200 + v the endplates beside that disc, 226 the sacrum's).
    """
    if semantic.shape != instance.shape:
        raise ValueError(f"semantic mask {semantic.shape} and instance mask {instance.shape} differ in shape")
    sem_pir, inst_pir = semantic.reoriented("PIR"), instance.reoriented("PIR")
    box = bounding_box((sem_pir.array != 0) | (inst_pir.array != 0), 1)
    if box is None:
        return semantic.with_array(semantic.array.copy()), instance.with_array(instance.array.astype(np.uint16))
    sem = sem_pir.array[box].copy()
    inst = inst_pir.array[box].astype(np.uint16)

    def back(part: np.ndarray) -> np.ndarray:
        whole = np.zeros(sem_pir.shape, part.dtype)
        whole[box] = part
        return Volume(whole, sem_pir.affine).reoriented(semantic.axcodes).array

    sem, inst = clean_masks(sem, inst, semantic.zoom, options)
    inst = number_from_top(sem, inst)
    found = [i for i in np.unique(inst).tolist() if i]
    if names is None:
        mapping: Mapping[int, int] = {
            i: i + options.labeling_offset for i in found if i + options.labeling_offset < SACRUM
        }
        if len(mapping) < len(found):
            logger.warning("%d instance(s) more than there are vertebrae: left out", len(found) - len(mapping))
    else:
        mapping = names(back(inst)) if found else {}
    inst = relabel(inst, mapping, keep_others=False) if found else inst
    inst = add_other_bones(sem, inst, sacrum_ids, (metal,) if isinstance(metal, int) else tuple(metal))
    sem, inst = assign_discs_and_endplates(sem, inst)
    return semantic.with_array(back(sem)), instance.with_array(back(inst))


def clean_masks(
    sem: np.ndarray, inst: np.ndarray, zoom: Sequence[float], options: PostOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Steps a to d.  ``zoom`` only turns mm2 and mm3 into voxels, so its order does not matter."""
    if options.clean_inst_by_sem:
        inst = np.where(sem != 0, inst, 0)
    if not inst.any():
        # The published system deletes every vertebra from the semantic mask here.
        return sem, inst
    if options.vertebra_inconsistency:
        inst = unify_articular(sem, inst)
    if options.assign_missing_cc:
        sem, inst = assign_missing(sem, inst, zoom, grow_first=options.assign_missing_cc_fast)
    inst = join_split_top(sem, inst, zoom)
    return sem, give_away_posterior_fragments(sem, inst)


def unify_articular(sem: np.ndarray, inst: np.ndarray) -> np.ndarray:
    """Step a: an articular process that one vertebra holds by more than twice the next becomes wholly its own."""
    articular = np.where(is_in(sem, ARTICULAR), sem, 0)
    box = bounding_box(articular)
    if box is None:
        return inst
    out = inst.copy()
    components, _ = label_components(articular[box], 26)
    table = overlap_counts(components, inst[box])
    ordered = np.sort(table, axis=1)
    first = ordered[:, -1]
    second = ordered[:, -2] if table.shape[1] > 1 else np.zeros_like(first)
    clear = (0.5 * first > second) & (second > 0)
    clear[0] = False
    winner = table.argmax(axis=1).astype(inst.dtype)
    part = out[box]
    where = clear[components]
    part[where] = winner[components[where]]
    return out


def assign_missing(
    sem: np.ndarray, inst: np.ndarray, zoom: Sequence[float], grow_first: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Step b: vertebra voxels without an instance go to their neighbour, instance voxels outside vertebrae go.

    After two layers of growth every uncovered 18-connected piece goes to the instance that it touches most (ties: the
    smaller number).  A piece that touches none is deleted from the semantic mask when it is a speck (under 250 mm3, the
    smallest vertebra that the published system keeps); larger pieces stay there without an instance.
    """
    vertebra = is_in(sem, PARTS)
    inst = np.where(vertebra, inst, 0)
    if grow_first:
        inst = grow(inst, vertebra, max(inst.shape), 6)
    inst = grow(inst, vertebra, 2, 6)
    uncovered = vertebra & (inst == 0)
    box = bounding_box(uncovered, 1)
    if box is None:
        return sem, inst
    components, count = label_components(uncovered[box], 18)
    target = np.zeros(count + 1, inst.dtype)
    for component, found in touching(components, inst[box], 18).items():
        target[component] = min(found, key=lambda i: (-found[i], i))
    speck = (target == 0) & (counts(components, count + 1) < mm3_to_voxels(250 * REFERENCE_VOLUME, zoom))
    speck[0] = False
    sem = sem.copy()
    sem[box][speck[components]] = 0
    part = inst[box]
    part[uncovered[box]] = target[components[uncovered[box]]]
    return sem, inst


def join_split_top(sem: np.ndarray, inst: np.ndarray, zoom: Sequence[float]) -> np.ndarray:
    """Step c: a C2 cut in two (dens and body) is joined: the two topmost bodies without a disc between them.

    Joined when the upper one has less than half the volume of the lower and their *bodies* touch by more than 19 mm2.
    (The published system also counts contact of facets, which can swallow a vertebra cut by the image border.)
    """
    plates = np.isin(sem, (DISC, ENDPLATE))
    if not (sem == DISC).any():
        return inst
    body = is_in(sem, (CORPUS, CORPUS_INNER, DENS, ARCUS))
    height = {i: c[1] for i, c in centres(np.where(body, inst, 0)).items()}
    order = sorted(height, key=lambda i: height[i])
    bodies = np.where(is_in(sem, BODY_PARTS), inst, 0)
    size = counts(bodies, int(inst.max()) + 1)
    if len(order) > 2 and size[order[0]] < RING * size[order[1]]:
        order = order[1:]  # the ring of C1 above a cut C2
    if len(order) < 2:
        return inst
    first, second = order[:2]
    components, _ = label_components(np.where(plates, DISC, 0).astype(np.uint8), 26)
    if any(c[1] < height[second] for c in centres(components).values()):
        return inst
    volume = counts(inst)
    if volume[first] >= 0.5 * volume[second]:
        return inst
    contact = touching(np.where(bodies == first, 1, 0).astype(np.uint8), np.where(bodies == second, second, 0), 26)
    if contact.get(1, {}).get(second, 0) <= mm2_to_voxels(20 * REFERENCE_VOLUME ** (2 / 3), zoom):
        return inst
    return relabel(inst, {first: second})


def give_away_posterior_fragments(sem: np.ndarray, inst: np.ndarray) -> np.ndarray:
    """Step d: an instance's second or third piece, if nothing but arch and spinous process, goes to the only other
    instance in its bounding box (grown by a voxel), if it touches that one; with several or none there it stays.

    The published system does not ask for contact: in a narrow slab, where processes hang free, neighbours swap theirs.
    """
    from scipy.ndimage import binary_dilation

    out = inst.copy()
    box = bounding_box(inst, 1)
    if box is None:
        return out
    part, changed = inst[box], out[box]
    components, _ = label_components(part, 26)
    elsewhere = overlap_counts(components, is_in(sem[box], (ARCUS, SPINOSUS)))[:, 0]
    where = boxes(components)
    for instance, ranked in ranked_components(part, components).items():
        for piece in ranked[1:3] if instance < SACRUM else ():
            i, j, k = (slice(max(s.start - 1, 0), s.stop + 1) for s in where[piece])
            others = set(np.unique(part[i, j, k]).tolist()) - {0, instance}
            if len(others) == 1 and not elsewhere[piece]:
                own, other = components[i, j, k] == piece, others.pop()
                if (binary_dilation(own, np.ones((3, 3, 3), bool)) & (part[i, j, k] == other)).any():
                    changed[i, j, k][own] = other
    return out


def number_from_top(sem: np.ndarray, inst: np.ndarray) -> np.ndarray:
    """Step e: vertebrae renumbered 1..n from cranial to caudal.

    Sorted by the height of their bodies.  A vertebra of which only posterior parts are seen is sorted by where its body
    would be: those parts hang lower than the body, by the amount that the other vertebrae show.
    """
    order = sorted(body_heights(sem, inst).items(), key=lambda item: (item[1], item[0]))
    return relabel(inst, {old: new for new, (old, _) in enumerate(order, 1)})


def add_other_bones(sem: np.ndarray, inst: np.ndarray, sacrum_ids: Iterable[int], metal: Iterable[int]) -> np.ndarray:
    """Step g: sacrum, metal, and the dens to C2 where there is a C2."""
    out = inst.copy()
    out[is_in(sem, sacrum_ids)] = SACRUM
    for code in metal:
        out[sem == code] = code
    if (out == 2).any():
        out[sem == DENS] = 2
    return out
