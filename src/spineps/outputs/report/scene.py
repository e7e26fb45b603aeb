"""What the viewer is given: the scan and its masks, cropped to the spine, in bytes, small enough for a page.

Everything lies on one grid whose axes run to the right, to the front and to the head (RAS), so that a fraction of an
axis means the same here and in the viewer.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spineps.anatomy import CANAL, CORD, CORPUS, CORPUS_INNER, DISC_OFFSET, SACRUM
from spineps.inference.resample import to_model_grid
from spineps.outputs.nifti import write_nifti
from spineps.outputs.snapshot import CT_AIR, CT_WINDOW
from spineps.volume import Box, Grid, Volume, bounding_box

#: Largest zipped image in bytes (on the page one third more).  With the viewer's program (1.1 MB), masks and picture a
#: page stays below 9 MB; a lumbar scan needs half of it.
BUDGET = 4_500_000
#: What is shown beyond the masks, in mm: the muscles of the back, the vessels in front.
MARGIN_MM = 30.0
#: Voxel size (mm) of the bodies in 3-D, and how many voxels they may have: a graphics card holds them three times.
SOLID_MM, SOLID_VOXELS = 1.0, 5_000_000
#: Smoothing of a mask before it becomes a body, in voxels of the mask: takes away the steps between slices.
SMOOTHING = 0.6
#: Labels of C1 and C2 in 3-D, which stand for nothing else.
C1_IN_3D, C2_IN_3D = 99, 98
#: Percentiles of the grey values (MR): the highest that is kept, black, and the range in which white lies at first, so
#: that vertebral bodies get the brightness ``BODY`` (0..1).
KEPT, BLACK, WHITE, BODY = 99.95, 1.0, (97.5, 99.7), 0.33


@dataclass(frozen=True)
class Scene:
    """Volumes as ``.nii.gz`` bytes.

    Attributes:
        volumes: ``image``, ``structures``, ``vertebrae`` (uint8 on ``grid``), and ``structures3d``, ``vertebrae3d`` on
            a grid of even voxels.
        grid: of the slices, axes RAS.
        scale: (grey value at 0, grey values per step of ``image``).
        shown: steps of ``image`` that are black and white at first.
        coarse: the slices are coarser than the scan.
        anchors: for every value of the vertebra mask fractions of the three axes, see :func:`_anchors`.
    """

    volumes: Mapping[str, bytes]
    grid: Grid
    scale: tuple[float, float]
    shown: tuple[float, float]
    coarse: bool
    anchors: Mapping[int, Mapping[str, list[float]]]


def build_scene(image: Volume | None, semantic: Volume, instance: Volume) -> Scene:
    """Crop, window and pack a scan.

    Args:
        image: the scan; None shows the masks on black.
        semantic: structures, values up to 255.
        instance: vertebrae, same grid.
    """
    semantic, instance = (v.with_array(v.array.astype(np.uint8)).reoriented("RAS") for v in (semantic, instance))
    margin = [round(MARGIN_MM / z) for z in semantic.zoom]
    box = bounding_box(semantic.array | instance.array, margin) or _all(semantic)
    semantic, instance = semantic.cropped(box), instance.cropped(box)
    if image is None:
        grey, scale, shown = np.zeros(semantic.shape, np.uint8), (0.0, 1.0), (0.0, 255.0)
    else:
        grey, scale, shown = _windowed(image.reoriented("RAS").cropped(box).array, semantic.array)
    solids = {"structures3d": _solid(semantic), "vertebrae3d": _solid(_with_canal(semantic, instance))}
    anchors = _anchors(semantic, instance)
    fine, packed = semantic.grid, b""
    picture = Volume(grey, fine.affine)
    target = min(fine.zoom)
    while True:
        zoom = tuple(max(z, target) for z in fine.zoom)
        small = picture
        if zoom != fine.zoom:
            small = to_model_grid(picture, zoom)
            small = small.with_array(np.rint(small.array).astype(np.uint8))
        packed = _packed(small)
        if len(packed) <= BUDGET:
            break
        target *= max((len(packed) / BUDGET) ** (1 / 3), 1.02)
    volumes = {"image": packed, **{key: _packed(mask) for key, mask in solids.items()}}
    for key, mask in (("structures", semantic), ("vertebrae", instance)):
        volumes[key] = _packed(mask.on(small.grid, fill=None))
    return Scene(volumes, small.grid, scale, shown, small is not picture, anchors)


def _all(volume: Volume) -> Box:
    a, b, c = (slice(0, n) for n in volume.shape)
    return a, b, c


def _windowed(array: np.ndarray, semantic: np.ndarray) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """uint8 with (offset, step) of the grey values and the steps that are black and white."""
    if array.min() < CT_AIR:
        low, high = CT_WINDOW
        black, white = low, high
    else:
        low, black, least, most, high = (float(v) for v in np.percentile(array, (0, BLACK, *WHITE, KEPT)))
        bodies = array[np.isin(semantic, (CORPUS, CORPUS_INNER))]
        white = most
        if bodies.size:
            white = float(np.clip(black + (float(np.median(bodies)) - black) / BODY, least, most))
    step = max(high - low, 1e-6) / 255
    grey = np.clip(np.rint((array - low) / step), 0, 255).astype(np.uint8)
    return grey, (low, step), ((black - low) / step, (white - low) / step)


def _with_canal(semantic: Volume, instance: Volume) -> Volume:
    """Vertebrae for 3-D, and cord and canal under their own numbers, which no vertebra has."""
    free = (instance.array == 0) & np.isin(semantic.array, (CORD, CANAL))
    # NiiVue 0.69 takes the background of a first label map for a mixture of labels 1 and 2, which would fill the view.
    names = np.arange(256, dtype=np.uint8)
    names[1], names[2] = C1_IN_3D, C2_IN_3D
    return instance.with_array(np.where(free, semantic.array, names[instance.array]))


def _solid(mask: Volume) -> Volume:
    """The mask at even voxels with smooth surfaces: each label is smoothed and sampled on its own, the largest wins."""
    from scipy.ndimage import gaussian_filter

    edge = max(SOLID_MM, (float(np.prod(mask.shape)) * mask.grid.voxel_volume / SOLID_VOXELS) ** (1 / 3))
    target = mask.grid.rescaled((edge,) * 3)
    labels = np.zeros(target.shape, np.uint8)
    best = np.full(target.shape, 0.45, np.float32)
    ratio = np.array(target.zoom) / mask.zoom
    for label, tight in _boxes(mask.array):
        box = tuple(slice(max(s.start - 3, 0), min(s.stop + 3, n)) for s, n in zip(tight, mask.shape, strict=True))
        part = Volume((mask.array[box] == label).astype(np.float32), mask.grid.cropped((box[0], box[1], box[2])).affine)
        low = [int(np.ceil(s.start / r)) for s, r in zip(box, ratio, strict=True)]
        high = [min(int((s.stop - 1) / r) + 1, n) for s, r, n in zip(box, ratio, target.shape, strict=True)]
        where = tuple(slice(a, max(b, a)) for a, b in zip(low, high, strict=True))
        here = target.cropped((where[0], where[1], where[2]))
        if 0 in here.shape:
            continue
        # Voxels that are finer than those of the target need as much smoothing as keeps them from being missed.
        soft = gaussian_filter(part.array, [max(SMOOTHING, 0.5 * r) for r in ratio], mode="nearest")
        value = part.with_array(soft).on(here, order=1, fill=None).array
        won = value > best[where]
        labels[where][won], best[where][won] = label, value[won]
    return Volume(labels, target.affine)


def _anchors(semantic: Volume, instance: Volume) -> dict[int, dict[str, list[float]]]:
    """Where each vertebra and disc is, in fractions of the axes.

    ``at`` is the middle of its body (all of it where it has none), ``front`` the foremost point of the body and
    ``side`` the one of all of it that lies farthest to the patient's right: names are written beside them.
    """
    found = {}
    size = np.array(instance.shape)
    for label, box in _boxes(instance.array):
        if label >= 2 * DISC_OFFSET:
            continue
        start = [s.start for s in box]
        mine = np.argwhere(instance.array[box] == label) + start
        body = np.isin(semantic.array[tuple(mine.T)], (CORPUS, CORPUS_INNER))
        core = mine[body] if label < DISC_OFFSET and label != SACRUM else mine
        core = core if len(core) else mine
        middle = core.mean(axis=0)
        front, side = middle.copy(), middle.copy()
        front[1], side[0] = np.percentile(core[:, 1], 98), np.percentile(mine[:, 0], 99)
        points = {"at": middle, "front": front, "side": side}
        found[label] = {key: [round(float(v), 4) for v in (p + 0.5) / size] for key, p in points.items()}
    return found


def _boxes(labels: np.ndarray) -> list[tuple[int, tuple[slice, ...]]]:
    from scipy.ndimage import find_objects

    return [(label, box) for label, box in enumerate(find_objects(labels), 1) if box is not None]


def _packed(volume: Volume) -> bytes:
    stream = io.BytesIO()
    write_nifti(volume, stream)
    return stream.getvalue()
