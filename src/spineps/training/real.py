"""Real scans with labels, on the training grid: coarse ones of public sets, or all structures of one's own scans."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spineps.anatomy import CLASS_IDS, CORPUS, CORPUS_INNER, ENDPLATE, ENDPLATE_INFERIOR, ENDPLATE_SUPERIOR
from spineps.errors import ValueRangeError
from spineps.training.cache import FULL, GREY_STEP, PLATE, UNKNOWN
from spineps.volume import Volume

logger = logging.getLogger(__name__)

#: Labels of SPIDER's scans once :func:`mark_plates` has seen them.
SPIDER_LABELS = (0, 1, 2, 3, PLATE, UNKNOWN)
#: Mask of one's own scans: its ending, and what a run puts into its name.
OWN_MASK, OWN_NAME = "_seg-spine_msk.nii.gz", re.compile(r"_mod-([A-Za-z0-9]+)_seg-spine_msk")
#: Hounsfield units from which a voxel may be bone.
BONE_UNITS = 130.0
#: Cord and the roots below it on T2w scans (looked at in 24 of SPIDER): grey value as a share of fluid's, least area.
CORD_GREY, CORD_MM2 = 0.66, 20.0
#: SPIDER leaves the endplates out: 1.5 to 2.3 mm of nothing between vertebra and disc (median of each of 30 scans; the
#: 90th percentiles are 2.2 to 3).  Slanting discs are crossed obliquely.
PLATE_GAP, BELOW_LAST_DISC = 4.5, 3.0


def real_arrays(folder: Path, zoom: tuple[float, float, float], held_out: Iterable[str]) -> Iterator[Any]:
    """Scans with coarse labels on the training grid: (name, uint8 (2, X, Y, Z) of grey values and labels).

    Args:
        folder: ``<name>_*_T2w.nii.gz`` with ``<name>_*_seg-coarse_msk.nii.gz`` (0 rest, 1 vertebra, 2 disc, 3 canal).
        zoom: voxel size in mm, axes P, I, R.
        held_out: scans whose file name contains one of these are left out.
    """
    from spineps.inference.resample import to_model_grid
    from spineps.models.scaling import spread

    refused = tuple(held_out)
    for file in sorted(folder.glob("*_T2w.nii.gz")):
        mask = file.with_name(file.name.replace("_T2w", "_seg-coarse_msk"))
        if not mask.is_file() or any(name in file.name for name in refused):  # it may have another kind of mask
            continue
        image, labels = (read_volume(file).reoriented("PIR"), read_volume(mask).reoriented("PIR"))
        grey = spread(to_model_grid(image, zoom).array)
        marked = mark_plates(labels.array, labels.zoom[1])
        shares = [to_model_grid(labels.with_array(marked == k), zoom).array for k in SPIDER_LABELS]
        coarse = mark_cord(grey, np.array(SPIDER_LABELS)[np.argmax(shares, axis=0)], zoom)
        yield file.name.split("_")[0], np.stack([np.rint(grey * GREY_STEP), coarse]).astype(np.uint8)


def mark_plates(coarse: np.ndarray, spacing: float) -> np.ndarray:
    """Coarse labels with the unlabelled gap between vertebra and disc as endplate (4).

    Taught as background, the gap would be cut into every disc.  Below the last disc lies the unlabelled sacrum's
    endplate: there nothing is known (255).

    Args:
        coarse: (P, I, R), 0 rest, 1 vertebra, 2 disc, 3 canal.
        spacing: mm along I.
    """
    rows = coarse.shape[1]
    place = np.arange(rows)[None, :, None]
    seen = coarse > 0
    above = np.maximum.accumulate(np.where(seen, place, -1), axis=1)
    below = np.minimum.accumulate(np.where(seen, place, rows)[:, ::-1], axis=1)[:, ::-1]
    label_above = np.take_along_axis(coarse, above.clip(0), 1) * (above >= 0)
    label_below = np.take_along_axis(coarse, below.clip(None, rows - 1), 1) * (below < rows)
    marked = coarse.astype(np.uint8)
    pair = ((label_above == 1) & (label_below == 2)) | ((label_above == 2) & (label_below == 1))
    marked[~seen & pair & ((below - above - 1) * spacing <= PLATE_GAP)] = PLATE
    marked[~seen & (label_above == 2) & (label_below != 1) & ((place - above) * spacing <= BELOW_LAST_DISC)] = UNKNOWN
    return marked


def mark_cord(grey: np.ndarray, coarse: np.ndarray, zoom: tuple[float, float, float]) -> np.ndarray:
    """Coarse labels of a lumbar T2w scan with the cord and the roots below it (7), and the bright fluid (8).

    What is neither the dark compact core of a row nor bright may be either: it stays canal (3).  Rows without such a
    core stay as they are.

    Args:
        grey: (P, I, R), bright fluid.
        coarse: (P, I, R), 3 is the canal.
        zoom: mm.
    """
    from scipy.ndimage import binary_erosion, gaussian_filter, label

    canal = coarse == 3
    rows = np.flatnonzero(canal.any((0, 2)))
    marked = coarse.copy()
    smooth = gaussian_filter(grey.astype(np.float32), 0.4)
    for row in rows:
        near = slice(max(row - 8, 0), row + 9)
        fluid = np.percentile(grey[:, near][canal[:, near]], 92)
        parts, count = label(binary_erosion(canal[:, row]) & (smooth[:, row] < CORD_GREY * fluid))
        if count == 0:
            continue
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        if sizes.max() * zoom[0] * zoom[2] >= CORD_MM2:
            marked[:, row][canal[:, row] & (smooth[:, row] > CORD_GREY * fluid)] = 8
            marked[:, row][parts == sizes.argmax()] = 7
    return marked


def whole_arrays(folder: Path, zoom: tuple[float, float, float], held_out: Iterable[str]) -> Iterator[Any]:
    """CT scans with whole vertebrae on the training grid, as :func:`real_arrays`, labels 5, 6 and 255 of the loss.

    Args:
        folder: ``<name>_ct.nii.gz`` (Hounsfield units) with ``<name>_seg-vert_msk.nii.gz`` (0 rest, else a vertebra).
        zoom: voxel size in mm, axes P, I, R.
        held_out: scans whose file name contains one of these are left out.
    """
    from scipy.ndimage import binary_dilation

    from spineps.inference.resample import to_model_grid
    from spineps.models.scaling import spread

    refused = tuple(held_out)
    for file in sorted(folder.glob("*_ct.nii.gz")):
        mask_file = file.with_name(file.name.replace("_ct", "_seg-vert_msk"))
        if not mask_file.is_file() or any(name in file.name for name in refused):
            continue
        image, mask = read_volume(file).reoriented("PIR"), read_volume(mask_file).reoriented("PIR")
        units = to_model_grid(image, zoom).array
        vertebra = to_model_grid(mask.with_array(mask.array > 0), zoom).array > 0.5
        # Cut-off vertebrae, ribs and sacrum are not labelled in these sets: bone outside the mask may be anything.
        unknown = binary_dilation((units > BONE_UNITS) & ~vertebra) & ~vertebra
        labels = np.where(vertebra, 5, np.where(unknown, UNKNOWN, 6))
        yield file.name.split("_")[0], np.stack([np.rint(spread(units) * GREY_STEP), labels]).astype(np.uint8)


def own_arrays(folder: Path, zoom: tuple[float, float, float], held_out: Iterable[str]) -> Iterator[Any]:
    """Scans whose structures are all labelled, as :func:`real_arrays`, labels FULL + class.

    Args:
        folder: searched with all folders in it for ``<name>_mod-<format>_seg-spine_msk.nii.gz`` (a run's result that
            somebody has corrected) or ``<name>_<format>_seg-spine_msk.nii.gz``, each with ``<name>_<format>.nii.gz``.
        zoom: voxel size in mm, axes P, I, R.
        held_out: scans whose file name contains one of these are left out.

    Raises:
        ValueRangeError: a mask holds ids that are no structures.
    """
    from spineps.inference.resample import to_model_grid
    from spineps.models.scaling import spread

    images = {file.name: file for file in sorted(folder.rglob("*.nii.gz"))}
    refused = tuple(held_out)
    for name, file in images.items():
        if not name.endswith(OWN_MASK) or any(part in name for part in refused):
            continue
        wanted = OWN_NAME.sub(r"_\1", name) if OWN_NAME.search(name) else name.replace(OWN_MASK, ".nii.gz")
        if wanted not in images:
            logger.warning("%s is left out: there is no %s", name, wanted)
            continue
        mask = read_volume(file).reoriented("PIR")
        ids = {CORPUS_INNER: CORPUS, ENDPLATE_SUPERIOR: ENDPLATE, ENDPLATE_INFERIOR: ENDPLATE}
        present = [int(i) for i in np.unique(mask.array)]
        if unknown := [i for i in present if ids.get(i, i) not in CLASS_IDS]:
            raise ValueRangeError(f"{file} holds {unknown}, which are no structures.", f"Use {CLASS_IDS}.")
        grey = spread(to_model_grid(read_volume(images[wanted]).reoriented("PIR"), zoom).array)
        best, labels = np.zeros(grey.shape, np.float32), np.full(grey.shape, FULL, np.uint8)
        for number in present:
            share = to_model_grid(mask.with_array(mask.array == number), zoom).array
            labels[share > best] = FULL + CLASS_IDS.index(ids.get(number, number))
            best = np.maximum(best, share)
        yield wanted.removesuffix(".nii.gz"), np.stack([np.rint(grey * GREY_STEP), labels]).astype(np.uint8)


def read_volume(file: Path) -> Volume:
    import nibabel as nib

    image = nib.nifti1.load(file)
    return Volume(np.asanyarray(image.dataobj), image.affine)
