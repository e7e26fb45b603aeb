"""The semantic phase: every voxel gets a structure, then what cannot belong to the spine is deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spineps.anatomy import ARCUS, CANAL, CANAL_PARTS, CORD, CORPUS, CORPUS_INNER, DISC, SACRUM
from spineps.errors import EmptyError
from spineps.options import SemanticOptions
from spineps.phases.components import counts, fill_holes, is_in, label_components, relabel, remove_small
from spineps.phases.transition import complete_last_body
from spineps.volume import Volume, bounding_box, mm3_to_voxels

if TYPE_CHECKING:
    from spineps.models.model import SemanticModel

logger = logging.getLogger(__name__)

#: Specks of fewer voxels than this volume go (30 voxels of the published reference grid 0.75 x 0.75 x 1.65 mm).
SPECK_MM3 = 30 * 0.928125
#: Structures in which specks are looked for, and the ones whose holes are filled, in this order (published 2.1.3).
SPECK_LABELS: tuple[int, ...] = (*range(ARCUS, CORPUS + 1), CANAL, DISC)
HOLE_LABELS: tuple[int, ...] = (CORPUS, CANAL, DISC, CORD)
#: Reach above and below the canal, and gap between parts of one spine (published 2.1.3).
BEYOND_CANAL_MM, GAP_MM = 64.0, 3.0
#: Gap between pieces of one sacrum (ours: a thin disc S1-S2 is left out by some models).
SACRUM_GAP_MM = 20.0
#: Less than this share of the bodies' volume is a stray where it lies above them; more, and the image is upside down.
STRAY_SACRUM = 0.02
#: Touching faces (mm2) of the lowest body and the sacrum that are no accident (nine real scans: 0 to 280 where the
#: masks are right, 2,650 where half of L5 is called sacrum).
FUSED_MM2 = 800.0
#: Mean probability of what was found, below which it is hardly a spine (20 real and 12 generated scans of spines: .80
#: in slices of 10 mm to .95; two images of a brain: .55 and .64).
SPINE_LIKE = 0.72
#: So many discs that can hardly be seen make the number of vertebrae an estimate.
MANY_FAINT = 3
#: Bodies and canal that make a separate part column, and how far from it other parts may lie (spinous processes of a
#: narrow slab hang free, about 5 mm behind the canal).
COLUMN_MM3, COLUMN_GAP_MM = 3000.0, 12.0


@dataclass(frozen=True, eq=False)
class SemanticPrediction:
    """What the network says, on the model's own grid.

    Attributes:
        mask: most probable structure, uint8 ids.
        probabilities: (K, X, Y, Z) float32 that sum to 1 over K; None when a published model was asked for labels only.
        class_ids: id of each of the K classes, background (0) first.
    """

    mask: Volume
    probabilities: np.ndarray | None
    class_ids: tuple[int, ...]


def predict_semantic(
    image: Volume,
    model: SemanticModel,
    options: SemanticOptions,
    progress: Callable[[int, int], None] | None = None,
    need_probabilities: bool = True,
) -> SemanticPrediction:
    """Ask the network.

    Args:
        image: pre-processed scan, any orientation and voxel size.
        model: anything with ``config``, ``probabilities`` and, if published, ``labels``.
        options: tile step and mirrored passes.
        progress: called with (tiles done, tiles in all).
        need_probabilities: without them published models answer in labels, in far less memory.

    Returns:
        Mask and probabilities in the orientation and voxel size of the model.
    """
    from spineps.inference.resample import to_model_grid

    config = model.config
    ready = image.reoriented(config.orientation)
    zoom = config.target_zoom(ready.zoom)
    ready = ready.rescaled(zoom, order=3) if config.published else to_model_grid(ready, zoom, whole=True)
    logger.info("semantic network on %s voxels of %s mm", ready.shape, tuple(round(z, 2) for z in ready.zoom))
    if config.published and not need_probabilities:
        found = model.labels(ready, options.step_size, options.tta, progress)
        return SemanticPrediction(ready.with_array(relabel(found, config.labels)), None, config.class_ids)
    probabilities = model.probabilities(ready, options.step_size, options.tta, progress)
    return SemanticPrediction(
        ready.with_array(most_probable(probabilities, config.class_ids)), probabilities, config.class_ids
    )


def most_probable(probabilities: np.ndarray, class_ids: tuple[int, ...]) -> np.ndarray:
    """Id of the most probable class of every voxel (first of equals), uint8, class by class to spare memory."""
    best = probabilities[0].copy()
    mask = np.full(best.shape, class_ids[0], np.uint8)
    for label, probability in zip(class_ids[1:], probabilities[1:], strict=True):
        better = probability > best
        mask[better] = label
        np.maximum(best, probability, out=best)
    return mask


def certainty(prediction: SemanticPrediction, mask: Volume) -> float | None:
    """Mean over all that was found of the largest class probability, 0..1; None without probabilities.

    Args:
        prediction: what the network said.
        mask: what was made of it, on the same grid; not empty.
    """
    if prediction.probabilities is None:
        return None
    found = mask.array > 0
    return float(np.max([p[found] for p in prediction.probabilities], axis=0).mean()) if found.any() else None


def doubts(certain: float | None, faint: int) -> tuple[str, ...]:
    """Why no name can be sure, for people.

    Args:
        certain: answer of :func:`certainty`.
        faint: discs that had to be drawn (:mod:`spineps.phases.faint_discs`).
    """
    found = []
    if certain is not None and certain < SPINE_LIKE:
        found.append(
            f"what was found is hardly a spine (mean probability {certain:.2f}, spines have .8 to .95): check the image"
        )
    if faint >= MANY_FAINT:
        found.append(f"{faint} discs can hardly be seen: where vertebrae part, and how many there are, is an estimate")
    return tuple(found)


def clean_semantic(mask: Volume, options: SemanticOptions, published: bool = False) -> Volume:
    """Delete what is not spine and fill holes: steps and order of the published system 2.1.3, and stray pieces.

    Args:
        mask: structure ids, unsigned integers, any orientation.
        options: the four switches of the cleaning.
        published: nothing but the steps of 2.1.3.

    Raises:
        EmptyError: nothing is left, or nothing was there.
    """
    box = bounding_box(mask.array)
    if box is None:
        raise _no_spine()
    part = mask.cropped(box)
    beyond = options.remove_inferior_beyond_canal

    def near_canal(array: np.ndarray) -> np.ndarray:
        return remove_beyond_canal(part.with_array(array)) if beyond else array

    array = near_canal(part.array)
    if options.clean_small_cc_artifacts:
        array = remove_small(array, mm3_to_voxels(SPECK_MM3, mask.zoom), SPECK_LABELS, 6)
        if not published:
            array = keep_one_sacrum(part.with_array(array))
    array = near_canal(array)
    if options.clean_beyond_largest_bounding_box:
        array = keep_main_part(part.with_array(array))
        if beyond:
            array = keep_main_part(part.with_array(near_canal(array)))
        if not published:
            array = keep_near_column(part.with_array(array))
            array = complete_last_body(part.with_array(array))
    if options.fill_3d_holes:
        array = fill_holes(array, HOLE_LABELS)
    if not array.any():
        raise _no_spine()
    out = np.zeros_like(mask.array)
    out[box] = array
    return mask.with_array(out)


def remove_beyond_canal(mask: Volume) -> np.ndarray:
    """Delete everything more than 64 mm above or below the canal, except the sacrum; no canal, no change."""
    box = bounding_box(is_in(mask.array, CANAL_PARTS))
    if box is None:
        return mask.array
    axis = _cranio_caudal(mask)
    reach = int(BEYOND_CANAL_MM / mask.zoom[axis])
    outside = np.ones(mask.shape[axis], bool)
    outside[max(box[axis].start - reach, 0) : box[axis].stop + reach] = False
    out = mask.array.copy()
    beyond = np.moveaxis(out, axis, 0)
    beyond[outside] = np.where(beyond[outside] == SACRUM, SACRUM, 0)
    return out


def keep_main_part(mask: Volume) -> np.ndarray:
    """Keep the largest part and every part whose box, grown by 3 mm (6 mm along the spine), meets a kept one."""
    gap = GAP_MM / min(mask.zoom)
    along = np.zeros(3)
    along[_cranio_caudal(mask)] = round(gap)
    far = _far_from_largest(mask.array > 0, int(gap), along)
    return mask.array if far is None else np.where(far, 0, mask.array).astype(mask.array.dtype)


def keep_one_sacrum(mask: Volume) -> np.ndarray:
    """Keep the largest piece of sacrum and what lies within 20 mm of it: nobody has two, and names depend on it.

    A few voxels above the bodies (in a brain) are none.  The published system keeps every piece.
    """
    far = _far_from_largest(mask.array == SACRUM, round(SACRUM_GAP_MM / 2 / min(mask.zoom)), np.zeros(3))
    array = mask.array if far is None else np.where(far, 0, mask.array).astype(mask.array.dtype)
    sacrum, bodies = array == SACRUM, array == CORPUS
    if 0 < np.count_nonzero(sacrum) < STRAY_SACRUM * np.count_nonzero(bodies):
        up = [float(mask.grid.to_world(np.argwhere(part).mean(axis=0))[2]) for part in (sacrum, bodies)]
        if up[0] > up[1]:
            return np.where(sacrum, 0, array).astype(array.dtype)
    return array


def keep_near_column(mask: Volume) -> np.ndarray:
    """Delete separate pieces further than 12 mm from the column of bodies and canal (skin, air and pelvis hold some).

    The published system keeps all that its boxes reach, which in a bent spine is much.  A spine in several parts stays:
    a part with 3 cm3 of bodies and canal belongs to the column where it goes on above or below it, not beside it.
    """
    from edt import edt
    from scipy.ndimage import minimum

    from spineps.inference.parts import continuing

    components, count = label_components(mask.array > 0, 26)
    column = np.where(is_in(mask.array, (CORPUS, CORPUS_INNER, *CANAL_PARTS)), components, 0)
    size = counts(column, count + 1).astype(float) * mask.grid.voxel_volume
    size[0] = 0
    if not size.any():
        return mask.array
    parts = np.flatnonzero(size >= min(COLUMN_MM3, size.max()))
    parts = parts[np.argsort(-size[parts], kind="stable")]
    places = [np.argwhere(column == k) * np.array(mask.zoom) for k in parts]
    is_column = np.zeros(count + 1, bool)
    is_column[parts[continuing(places, _cranio_caudal(mask))]] = True
    if is_column[1:].all():
        return mask.array
    distance = edt(~is_column[components], anisotropy=mask.zoom)
    near = np.asarray(minimum(distance, components, np.arange(1, count + 1))) <= COLUMN_GAP_MM
    if near.all():
        return mask.array
    logger.info("%d of %d separate parts lie too far from the column and are deleted", (~near).sum(), count)
    return np.where(np.concatenate([[False], ~near])[components], 0, mask.array).astype(mask.array.dtype)


def body_on_sacrum(mask: Volume) -> float:
    """Area (mm2, of voxel faces) over which vertebral bodies touch the sacrum without disc or endplate between them."""
    box = bounding_box(mask.array == SACRUM, 1)
    if box is None:
        return 0.0
    part = mask.array[box]
    body, sacrum, area = is_in(part, (CORPUS, CORPUS_INNER)), part == SACRUM, 0.0
    for axis, zoom in enumerate(mask.zoom):
        b, s = np.moveaxis(body, axis, 0), np.moveaxis(sacrum, axis, 0)
        faces = np.count_nonzero(b[1:] & s[:-1]) + np.count_nonzero(b[:-1] & s[1:])
        area += faces * mask.grid.voxel_volume / zoom
    return float(area)


def _far_from_largest(mask: np.ndarray, grow: int, along: np.ndarray) -> np.ndarray | None:
    """True in the components that no chain of touching boxes joins to the largest one; None when there are none.

    Args:
        mask: bool.
        grow: voxels by which every box is grown (within the volume).
        along: (3,) voxels by which one of two boxes is grown once more when they are compared.
    """
    import cc3d

    components, count = label_components(mask, 26)
    if count < 2:
        return None
    boxes = cc3d.statistics(components)["bounding_boxes"][1:]
    # Boxes that touch are one part where they are painted; grown at one end alone they touch as if both grew by half.
    painted = np.zeros(np.array(mask.shape) + along.astype(int), bool)
    for box in boxes:
        painted[
            tuple(slice(max(s.start - grow, 0), s.stop + grow + int(r)) for s, r in zip(box, along, strict=True))
        ] = 1
    parts, _ = label_components(painted, 26)
    part = np.array([parts[tuple(s.start for s in box)] for box in boxes])
    kept = part == part[int(np.argmax(counts(components)[1:]))]
    if kept.all():
        return None
    logger.info("%d of %d separate parts lie too far from the largest and are deleted", (~kept).sum(), count)
    return np.concatenate([[False], ~kept])[components]


def _cranio_caudal(mask: Volume) -> int:
    """Array axis along which the body stands."""
    return next(axis for axis, code in enumerate(mask.axcodes) if code in "SI")


def _no_spine() -> EmptyError:
    return EmptyError(
        "No spine was found in the image.",
        "Check that the scan shows a spine, that its orientation is right and that the model fits its contrast.",
    )
