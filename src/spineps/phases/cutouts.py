"""What a labelling network sees of each vertebra.  Training calls the very same function on phantoms.

Two recipes:

- published models (:func:`published_inputs`): the image alone, cubic, on the model's grid; the box is centred on the
  body's bounding box, turned upright where the model was trained so, and standardised over its non-zero voxels.
- bundled models (:func:`cutout_inputs`): coarse and wide (2.5 mm, 160 x 200 x 80 mm), so that ribs, sacrum and
  neighbours come into view; beside the image it carries the shape of the spine, which no contrast can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spineps.anatomy import (
    BODY_PARTS,
    CANAL_PARTS,
    DISC,
    ENDPLATE,
    ENDPLATE_INFERIOR,
    ENDPLATE_SUPERIOR,
    POSTERIOR_PARTS,
    SACRUM,
)
from spineps.phases.components import boxes, centres, is_in
from spineps.volume import Box, Volume, bounding_box

if TYPE_CHECKING:
    from spineps.models.config import InferenceConfig

#: Structures per channel of the bundled recipe, between the image (first) and the vertebra's own mask (last).
CHANNEL_GROUPS: tuple[tuple[int, ...], ...] = (
    BODY_PARTS,
    POSTERIOR_PARTS,
    (DISC, ENDPLATE, ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR),
    CANAL_PARTS,
    (SACRUM,),
)
CHANNELS = 1 + len(CHANNEL_GROUPS) + 1
#: A body of less volume (mm3) is a sliver at the image's border: no network is asked about it, nor trained on it.
SMALLEST_BODY_MM3 = 800.0
#: Surroundings that are kept before resampling (mm); more than half of any box.
MARGIN_MM = 128.0
#: Voxels added at each side of a slice that is turned, and cut off afterwards (published).
ROOM = 32


def published_inputs(
    image: Volume,
    semantic: Volume,
    instance: Volume,
    ids: Sequence[int],
    config: InferenceConfig,
    size: Sequence[int],
    upright: bool,
) -> tuple[np.ndarray, list[int]]:
    """Network input of published models (VERIDAH), as in 2.1.3.

    Args:
        image: the scan, untouched.
        semantic: structure ids, on the grid of ``image``.
        instance: instance ids, on the grid of ``image``.
        ids: instances wanted, from top to bottom.
        config: orientation and voxel size of the model.
        size: voxels of one cutout.
        upright: turn each one in the sagittal plane until the line through its neighbours' centres points down.

    Returns:
        (n, 1, X, Y, Z) float32 and the n ids; ids whose body vanishes at the model's voxel size are left out.
    """
    bodies = np.where(is_in(semantic.array, BODY_PARTS) & is_in(instance.array, ids), instance.array, 0)
    box = bounding_box(bodies, int(MARGIN_MM / min(instance.zoom)))
    if box is None:
        return np.zeros((0, 1, *size), np.float32), []
    image, labels = (v.cropped(box).reoriented(config.orientation) for v in (image, instance.with_array(bodies)))
    zoom = config.target_zoom(image.zoom)
    scan, labels = image.rescaled(zoom, order=3), labels.rescaled(zoom)
    found, middle = boxes(labels.array), centres(labels.array)
    seen = [vertebra for vertebra in ids if vertebra in found]
    out = np.zeros((len(seen), 1, *size), np.float32)
    for row, vertebra in enumerate(seen):
        place = [s.start + (s.stop - s.start) // 2 for s in found[vertebra]]
        if upright:
            below, above = seen[min(row + 1, len(seen) - 1)], seen[max(row - 1, 0)]
            out[row, 0] = _upright(scan, place, size, middle[below] - middle[above])
        else:
            take, put = _window(place, size, scan.shape)
            out[(row, 0, *put)] = scan.array[take]
        _standardise(out[row, 0], out[row, 0] != 0)
    return out, seen


def _upright(scan: Volume, place: Sequence[int], size: Sequence[int], down: np.ndarray) -> np.ndarray:
    """A cutout turned in the plane of the first two axes of ``IPL`` until ``down`` (voxels) is the first one."""
    from scipy.ndimage import affine_transform, spline_filter

    wide = (size[0] + 2 * ROOM, size[1] + 2 * ROOM, size[2])
    take, put = _window(place, wide, scan.shape)
    room = np.zeros(wide, scan.array.dtype)
    room[put] = scan.array[take]
    turned = Volume(room, scan.affine).reoriented("IPL")
    towards = turned.grid.to_index(scan.grid.to_world(down)) - turned.grid.to_index(scan.grid.to_world(np.zeros(3)))
    angle = np.arctan2(towards[1], towards[0])
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = turned.shape[0] - 2 * ROOM, turned.shape[1] - 2 * ROOM
    # About the middle of the slice; only what is kept is computed.
    middle = (np.array(turned.shape[:2]) - 1) / 2
    offset = middle - matrix @ (middle - ROOM)
    out = np.zeros((*shape, turned.shape[2]), np.float32)
    for k in range(out.shape[2]):
        plane = turned.array[:, :, k]
        if plane.any():
            out[:, :, k] = affine_transform(spline_filter(plane), matrix, offset, shape, prefilter=False)
    if scan.array.dtype.kind in "iu":
        info = np.iinfo(scan.array.dtype)
        out = np.clip(np.rint(out), info.min, info.max)
    return Volume(out, turned.affine).reoriented(scan.axcodes).array


def cutout_inputs(
    image: Volume, semantic: Volume, instance: Volume, ids: Sequence[int], config: InferenceConfig
) -> np.ndarray:
    """Network input of bundled models.

    Args:
        image: the scan (pre-processed or not: each box is standardised).
        semantic: structure ids, on the grid of ``image``.
        instance: instance ids, on the grid of ``image``.
        ids: instances wanted, in the order wanted; each must have a body.
        config: orientation, voxel size and ``cutout_size`` of the model.

    Returns:
        (len(ids), 7, X, Y, Z) float32: image (mean 0, deviation 1 inside the field of view, 0 outside), body, arch with
        processes, disc with endplates, canal with cord, sacrum, this vertebra.
    """
    wanted = np.where(is_in(instance.array, ids), instance.array, 0)
    box = bounding_box(wanted, [int(MARGIN_MM / z) for z in instance.zoom])
    if box is None:
        return np.zeros((0, CHANNELS, *config.cutout_size), np.float32)
    image, semantic, instance = (
        v.cropped(box).reoriented(config.orientation) for v in (image, semantic, instance.with_array(wanted))
    )
    return _with_shape(image, semantic, instance, ids, config.target_zoom(image.zoom), config.cutout_size)


def _with_shape(
    image: Volume, semantic: Volume, instance: Volume, ids: Sequence[int], zoom: Sequence[float], size: Sequence[int]
) -> np.ndarray:
    from spineps.inference.resample import to_model_grid

    values = to_model_grid(image, zoom).array
    structures, own = semantic.rescaled(zoom).array, instance.rescaled(zoom).array
    groups = np.zeros(256, np.uint8)
    for channel, parts in enumerate(CHANNEL_GROUPS, 1):
        groups[list(parts)] = channel
    structures = groups[structures]
    # Centres come from the fine grid: a coarse one moves them by up to half a voxel.
    fine = centres(np.where(is_in(semantic.array, BODY_PARTS), instance.array, 0))
    ratio = np.array(image.zoom) / np.asarray(zoom)
    out = np.zeros((len(ids), CHANNELS, *size), np.float32)
    for row, vertebra in enumerate(ids):
        middle = [round(c) for c in fine[vertebra] * ratio]
        take, put = _window(middle, size, values.shape)
        seen = np.zeros(tuple(size), bool)
        seen[put] = True
        out[(row, 0, *put)] = values[take]
        _standardise(out[row, 0], seen)
        for channel in range(1, CHANNELS - 1):
            out[(row, channel, *put)] = structures[take] == channel
        out[(row, CHANNELS - 1, *put)] = own[take] == vertebra
    return out


def _window(middle: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[Box, Box]:
    """Where a box around ``middle`` lies in the image, and where that part lies in the box."""
    take, put = [], []
    for m, s, n in zip(middle, size, shape, strict=True):
        low = m - s // 2
        start, stop = min(max(low, 0), n), max(min(low + s, n), 0)
        take.append(slice(start, max(stop, start)))
        put.append(slice(start - low, max(stop, start) - low))
    return (take[0], take[1], take[2]), (put[0], put[1], put[2])


def _standardise(values: np.ndarray, where: np.ndarray) -> None:
    """Mean 0, deviation 1 over ``where``, in place; the rest stays as it is."""
    if where.any():
        inside = values[where]
        values[where] = (inside - inside.mean()) / max(float(inside.std()), 1e-8)
