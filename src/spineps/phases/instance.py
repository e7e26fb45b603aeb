"""Separate the vertebrae of a semantic mask.

Around every vertebral body a cutout goes to a network that marks the vertebra above, the one in the centre and the one
below; neighbouring cutouts vote.  Whatever the network says, every body that was found ends as exactly one instance:
counting and naming depend on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from spineps.anatomy import CORPUS, VERTEBRA_PARTS
from spineps.errors import EmptyError
from spineps.inference.first_layer import Cutouts, Scan
from spineps.options import InstanceOptions
from spineps.phases.components import (
    NEIGHBOURS,
    fill_holes,
    is_in,
    keep_largest,
    relabel,
    remove_small,
)
from spineps.phases.corpus import find_bodies
from spineps.phases.published_bodies import published_centres
from spineps.phases.reconcile import bring_back, one_instance_per_body
from spineps.phases.vote import Answer, vote
from spineps.volume import Box, Grid, Volume, bounding_box, mm3_to_voxels, mm_to_voxels

if TYPE_CHECKING:
    from spineps.models.config import InferenceConfig

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

#: No threshold for bodies or vertebrae is smaller: 40 voxels of the published models (0.75 x 0.75 x 1.65 mm).
LEAST_MM3 = 40 * 0.75 * 0.75 * 1.65
#: Margin around the mask, mm (published).
MARGIN = 3.75


class InstanceNetwork(Protocol):
    """What this phase needs of a model (see :class:`spineps.models.model.InstanceModel`)."""

    @property
    def config(self) -> InferenceConfig:
        """Orientation, voxel size, cutout size, mapping and thresholds."""
        ...

    def segment(self, cutouts: np.ndarray, batch_size: int = 4) -> np.ndarray:
        """(N, X, Y, Z) uint8 labels -> (N, X, Y, Z) uint8 in {0, 1, 2, 3}."""
        ...


def predict_instances(
    semantic: Volume, model: InstanceNetwork, options: InstanceOptions, progress: Progress | None = None
) -> Volume:
    """Vertebra instances of a semantic mask.

    Args:
        semantic: codes of :mod:`spineps.anatomy`, any grid.
        model: network and its config.
        options: what to clean.
        progress: called with (cutouts done, cutouts in all).

    Returns:
        uint16 ids 1..n on the grid of ``semantic`` turned to PIR at the model's voxel size; from caudal to cranial, or
        with published models in order of agreement.

    Raises:
        EmptyError: the mask holds no vertebral body, or a published model found no vertebra.
    """
    config = model.config
    turned = semantic.reoriented(config.orientation)
    working = turned.on(working_grid(turned.grid, config), order=0, fill=None).reoriented("PIR")
    margin = int(MARGIN / min(working.zoom)) if config.published else mm_to_voxels(MARGIN, working.zoom)
    box = bounding_box(working.array, margin)
    out = np.zeros(working.shape, np.uint16)
    if box is None:
        raise EmptyError("The semantic mask is empty.", "Check that the image shows a spine.")
    part = working.cropped(box)
    if config.published:
        out[box] = _as_published(part, model, options, progress)
    else:
        out[box] = _one_per_body(part, model, options, progress, box[1].start)
    return Volume(out, working.affine)


def working_grid(grid: Grid, config: InferenceConfig) -> Grid:
    """The grid that a model wants: all of the field of view, or 2.1.3's, which may end before the last slice."""
    zoom = config.target_zoom(grid.zoom)
    return grid.rescaled(zoom) if config.published else grid.covering(zoom)


def _as_published(
    semantic: Volume, model: InstanceNetwork, options: InstanceOptions, progress: Progress | None
) -> np.ndarray:
    """The rules of 2.1.3 without its two ways to fail (an empty couple, a network that is fed zeros)."""
    sem, zoom, config = semantic.array, semantic.zoom, model.config
    smallest_body = _threshold(config.corpus_size_cleaning, config, zoom) if options.corpus_clean else 0
    solve = options.detect_and_solve_merged_corpi
    has_body = bool((sem == CORPUS).any())
    centres = published_centres(sem, smallest_body, solve, zoom[1]) if has_body else np.zeros((0, 3))
    if not len(centres):
        raise _no_body()
    inst = _cleaned(vote(ask(semantic, centres, model, options, progress), sem.shape), config, zoom, options)
    ids = np.flatnonzero(np.bincount(inst.ravel())[1:]) + 1
    if not len(ids):
        raise EmptyError(
            f"The instance model found no vertebra around {len(centres)} bodies.", "Choose another instance model."
        )
    return relabel(inst, {old: new for new, old in enumerate(ids.tolist(), 1)})


def _one_per_body(
    semantic: Volume, model: InstanceNetwork, options: InstanceOptions, progress: Progress | None, above: int
) -> np.ndarray:
    sem, zoom, config = semantic.array, semantic.zoom, model.config
    bodies = find_bodies(
        sem,
        zoom,
        minimum=_threshold(config.corpus_size_cleaning, config, zoom),
        clean=options.corpus_clean,
        solve_merged=options.detect_and_solve_merged_corpi,
        above=above,
    )
    if not len(bodies.centres):
        raise _no_body()
    voted = vote(ask(semantic, bodies.centres, model, options, progress), sem.shape)
    return bring_back(sem, one_instance_per_body(sem, _cleaned(voted, config, zoom, options), bodies, zoom), voted)


def _cleaned(inst: np.ndarray, config: InferenceConfig, zoom: Sequence[float], options: InstanceOptions) -> np.ndarray:
    if options.clean_small_cc_artifacts:
        inst = remove_small(inst, _threshold(config.vert_size_threshold, config, zoom), connectivity=6)
    return fill_holes(inst) if options.fill_3d_holes else inst


def ask(
    semantic: Volume,
    centres: np.ndarray,
    model: InstanceNetwork,
    options: InstanceOptions,
    progress: Progress | None = None,
) -> list[Answer]:
    """One cutout around every centre, in batches through the network; answers placed in ``semantic`` (PIR)."""
    config = model.config
    mapped = relabel(semantic.array, dict(config.mapping), keep_others=False).astype(np.uint8)
    size = Grid(config.cutout_size, semantic.grid.reoriented(config.orientation).affine).reoriented("PIR").shape
    known = mapped > 0
    starts = [[int(c) - n // 2 for c, n in zip(_centre_inside(known, centre), size, strict=True)] for centre in centres]
    answers, scan = [], Scan(mapped)
    for first in range(0, len(starts), options.batch_size):
        batch = starts[first : first + options.batch_size]
        cutouts = np.stack([_turned(_cutout(mapped, s, size), semantic.affine, config.orientation) for s in batch])
        if config.orientation == "PIR":
            cutouts = Cutouts.of(cutouts, scan, batch)
        results = model.segment(cutouts, options.batch_size)
        back_affine = semantic.grid.reoriented(config.orientation).affine
        for start, result in zip(batch, results, strict=True):
            label = _turned(result.astype(np.uint8), back_affine, "PIR")
            answers.append(_placed(keep_largest(label, options.largest_k_cc), start, mapped.shape))
        if progress is not None:
            progress(min(first + len(batch), len(starts)), len(starts))
    return answers


def upsample_instances(instance: Volume, semantic_on_target: Volume, reach: float = 1.5) -> Volume:
    """Instances seen on another grid, following the sharper edges of a semantic mask there.

    Every voxel of a vertebra takes the nearest instance (millimetres between voxel centres) within ``reach`` voxels of
    the instance mask.  Nothing is written outside the frame of ``instance``, so that no label is smeared over an image
    of which only a part was segmented.

    Args:
        instance: uint16 ids on the model's grid.
        semantic_on_target: semantic codes on the grid wanted.
        reach: in voxels of ``instance``, at most 2.

    Returns:
        uint16 ids on the grid of ``semantic_on_target``, 0 outside vertebrae.
    """
    out = np.zeros(semantic_on_target.shape, np.uint16)
    voxels = np.flatnonzero(is_in(semantic_on_target.array, VERTEBRA_PARTS))
    if not len(voxels):
        return semantic_on_target.with_array(out)
    index_map = np.linalg.inv(instance.affine) @ semantic_on_target.affine
    index = np.stack(np.unravel_index(voxels, out.shape), axis=1)
    place = index @ index_map[:3, :3].T + index_map[:3, 3]
    base = np.rint(place).astype(np.int64)
    inside = ((place >= -0.5) & (place <= np.array(instance.shape) - 0.5)).all(axis=1)
    voxels, place, base = voxels[inside], place[inside], np.minimum(base[inside], np.array(instance.shape) - 1)
    padded = np.pad(instance.array, 2)
    flat = padded.ravel()
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    start = (base + 2) @ strides
    found = flat[start]
    open_ = np.flatnonzero(found == 0)
    found[open_] = _nearest_of_neighbours(flat, start[open_], strides, place[open_] - base[open_], instance.zoom, reach)
    out.ravel()[voxels] = found
    return semantic_on_target.with_array(out)


def _nearest_of_neighbours(
    flat: np.ndarray, start: np.ndarray, strides: np.ndarray, within: np.ndarray, zoom: Sequence[float], reach: float
) -> np.ndarray:
    """Label of the nearest labelled voxel around ``start``, 0 if none; ``within`` is the place inside that voxel."""
    steps = np.unique(np.concatenate([NEIGHBOURS, 2 * NEIGHBOURS[:6]]), axis=0)
    best = np.full(len(start), np.inf)
    label = np.zeros(len(start), flat.dtype)
    for step in steps:
        seen = flat[start + int(step @ strides)]
        away = step - within
        distance = np.where(
            (seen > 0) & ((away**2).sum(axis=1) <= reach**2), ((away * np.asarray(zoom)) ** 2).sum(axis=1), np.inf
        )
        nearer = distance < best
        best[nearer], label[nearer] = distance[nearer], seen[nearer]
    return label


def _threshold(voxels_of_model: float, config: InferenceConfig, zoom: Sequence[float]) -> int:
    """Voxels at ``zoom``; config thresholds count voxels of the model's finest size; never under LEAST_MM3."""
    volume = float(np.prod(config.zoom_min)) * voxels_of_model
    return max(int(volume / float(np.prod(zoom))), mm3_to_voxels(LEAST_MM3, zoom))


def _no_body() -> EmptyError:
    return EmptyError("No vertebral body was found.", "Check that the image shows a spine and fits the model.")


def _centre_inside(known: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """A centre that fell into background moves down in steps of 5 voxels until it meets a vertebra (published)."""
    x, y, z = (int(c) for c in centre)
    for lower in range(y, known.shape[1], 5):
        if known[x, lower, z]:
            return np.array([centre[0], centre[1] + (lower - y), centre[2]])
    return centre


def _cutout(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    out = np.zeros(size, array.dtype)
    source, target = _overlap(start, size, array.shape)
    out[target] = array[source]
    return out


def _placed(label: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> Answer:
    """The part of an answer that holds anything: cutouts are far larger than three vertebrae."""
    source, target = _overlap(start, label.shape, shape)
    seen = label[target]
    box = bounding_box(seen) or (slice(0, 0), slice(0, 0), slice(0, 0))
    place = [slice(p.start + q.start, p.start + q.stop) for p, q in zip(source, box, strict=True)]
    return Answer((place[0], place[1], place[2]), seen[box].copy())


def _overlap(start: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[Box, Box]:
    """Where a cutout and the volume meet: slices of the volume, slices of the cutout."""
    low = [max(s, 0) for s in start]
    high = [min(s + n, m) for s, n, m in zip(start, size, shape, strict=True)]
    a = [slice(p, q) for p, q in zip(low, high, strict=True)]
    b = [slice(p - s, q - s) for p, q, s in zip(low, high, start, strict=True)]
    return (a[0], a[1], a[2]), (b[0], b[1], b[2])


def _turned(array: np.ndarray, affine: np.ndarray, axcodes: str) -> np.ndarray:
    # Only axes and directions matter here, not where the cutout lies.
    return Volume(array, affine).reoriented(axcodes).array
