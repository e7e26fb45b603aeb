"""What a labelling network sees of each vertebra.  Training calls the very same function on phantoms.

Two recipes, chosen by the model's ``expected_inputs``:

- ``("img",)``, published models: the image alone, cubic, on the model's grid; the box is centred on the body's bounding
  box and standardised over its non-zero voxels.
- ``("img", "seg")``, bundled models: coarse and wide (2.5 mm, 160 x 200 x 80 mm), so that ribs, sacrum and neighbours
  come into view; beside the image it carries the shape of the spine, which no contrast can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spineps.anatomy import (
    CANAL_PARTS,
    CORPUS,
    CORPUS_INNER,
    DENS,
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

BODY_PARTS: tuple[int, ...] = (CORPUS, CORPUS_INNER, DENS)
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


def cutout_inputs(
    image: Volume, semantic: Volume, instance: Volume, ids: Sequence[int], config: InferenceConfig
) -> np.ndarray:
    """Network input for some vertebrae.

    Args:
        image: the scan (pre-processed or not: each box is standardised).
        semantic: structure ids, on the grid of ``image``.
        instance: instance ids, on the grid of ``image``.
        ids: instances wanted, in the order wanted; each must have a body.
        config: orientation, voxel size, ``cutout_size`` and ``inputs`` of the model.

    Returns:
        (len(ids), C, X, Y, Z) float32; C is 1 for published models and 7 for bundled ones: image (mean 0, deviation 1
        inside the field of view, 0 outside), body, arch with processes, disc with endplates, canal with cord, sacrum,
        this vertebra.
    """
    wanted = np.where(is_in(instance.array, ids), instance.array, 0)
    box = bounding_box(wanted, [int(MARGIN_MM / z) for z in instance.zoom])
    if box is None:
        return np.zeros((0, 1 if len(config.inputs) == 1 else CHANNELS, *config.cutout_size), np.float32)
    image, semantic, instance = (
        v.cropped(box).reoriented(config.orientation) for v in (image, semantic, instance.with_array(wanted))
    )
    zoom = config.target_zoom(image.zoom)
    recipe = _image_only if len(config.inputs) == 1 else _with_shape
    return recipe(image, semantic, instance, ids, zoom, config.cutout_size)


def _image_only(
    image: Volume, semantic: Volume, instance: Volume, ids: Sequence[int], zoom: Sequence[float], size: Sequence[int]
) -> np.ndarray:
    bodies = instance.with_array(np.where(is_in(semantic.array, BODY_PARTS), instance.array, 0)).rescaled(zoom)
    found = boxes(bodies.array)
    values = image.rescaled(zoom, order=3).array
    out = np.zeros((len(ids), 1, *size), np.float32)
    for row, vertebra in enumerate(ids):
        middle = [s.start + (s.stop - s.start) // 2 for s in found[vertebra]]
        take, put = _window(middle, size, values.shape)
        out[(row, 0, *put)] = values[take]
        _standardise(out[row, 0], out[row, 0] != 0)
    return out


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
