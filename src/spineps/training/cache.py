"""Compact caches: label maps of generated spines, and real scans with coarse labels, as one compressed ``.npz`` each.

Making one may need the rest of the package and nibabel; reading one needs numpy alone.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spineps.errors import InputNotFoundError, OptionError, UnreadableInputError
from spineps.volume import Volume

logger = logging.getLogger(__name__)

META = "__meta__"
#: Grey values of real scans are kept as rint(spread * 200): 0 .. 240 for 0 .. 1.2.
GREY_STEP = 200.0
#: Hounsfield units from which a voxel may be bone.
BONE_UNITS = 130.0
#: Cord on T2w scans (looked at in 24 of SPIDER): share of the scan's height that surely holds it, its grey value as a
#: share of the fluid's, least area.
CORD_SHARE, CORD_GREY, CORD_MM2 = 0.2, 0.66, 20.0
#: Label of voxels about which nothing is known (:mod:`spineps.training.loss`, which needs torch).
UNKNOWN = 255


class Cache:
    """Arrays by name, unpacked when asked for (and kept if ``keep``)."""

    def __init__(self, path: Path, keep: bool = False) -> None:
        if not path.is_file():
            raise InputNotFoundError(
                f"Cache {path} does not exist.", "Make it: python -m spineps.training cache --help"
            )
        try:
            self._file = np.load(path, allow_pickle=False)
            self.meta: dict[str, Any] = json.loads(str(self._file[META]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UnreadableInputError(f"Cache {path} is damaged: {error}.", "Make it again.") from error
        self.names: list[str] = sorted(name for name in self._file.files if name != META)
        self._kept: dict[str, np.ndarray] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> np.ndarray:
        if self._kept is None:
            return self._file[name]
        if name not in self._kept:
            self._kept[name] = self._file[name]
        return self._kept[name]


def write_cache(
    path: Path, meta: dict[str, Any], arrays: Iterable[tuple[str, np.ndarray]], most_mib: float = 1e9
) -> int:
    """Write arrays one by one until they end or the file has ``most_mib`` MiB; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        _write(archive, META, np.array(json.dumps(meta)))
        for name, array in arrays:
            _write(archive, name, array)
            count += 1
            if path.stat().st_size > most_mib * 2**20:
                break
    logger.info("%s: %d arrays, %.1f MiB", path, count, path.stat().st_size / 2**20)
    return count


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


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
        if any(name in file.name for name in refused):
            continue
        mask = file.with_name(file.name.replace("_T2w", "_seg-coarse_msk"))
        image, labels = (_read(file).reoriented("PIR"), _read(mask).reoriented("PIR"))
        grey = spread(to_model_grid(image, zoom).array)
        shares = [to_model_grid(labels.with_array(labels.array == k), zoom).array for k in range(4)]
        coarse = mark_cord(grey, np.argmax(shares, axis=0), zoom)
        yield file.name.split("_")[0], np.stack([np.rint(grey * GREY_STEP), coarse]).astype(np.uint8)


def mark_cord(grey: np.ndarray, coarse: np.ndarray, zoom: tuple[float, float, float]) -> np.ndarray:
    """Coarse labels of a lumbar T2w scan with the cord (7) and the fluid around it (8) in its cranial fifth.

    There (T11, T12) the dark compact core of the canal is cord; further down it may be cord or nerve roots, and the
    canal (3) stays as it is.  Rows without such a core stay as well.

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
    for row in rows[rows < CORD_SHARE * grey.shape[1]]:
        near = slice(max(row - 8, 0), row + 9)
        fluid = np.percentile(grey[:, near][canal[:, near]], 92)
        parts, count = label(binary_erosion(canal[:, row]) & (smooth[:, row] < CORD_GREY * fluid))
        if count == 0:
            continue
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        if sizes.max() * zoom[0] * zoom[2] >= CORD_MM2:
            marked[:, row][canal[:, row]] = 8
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
        if any(name in file.name for name in refused):
            continue
        image = _read(file).reoriented("PIR")
        mask = _read(file.with_name(file.name.replace("_ct", "_seg-vert_msk"))).reoriented("PIR")
        units = to_model_grid(image, zoom).array
        vertebra = to_model_grid(mask.with_array(mask.array > 0), zoom).array > 0.5
        # Cut-off vertebrae, ribs and sacrum are not labelled in these sets: bone outside the mask may be anything.
        unknown = binary_dilation((units > BONE_UNITS) & ~vertebra) & ~vertebra
        labels = np.where(vertebra, 5, np.where(unknown, UNKNOWN, 6))
        yield file.name.split("_")[0], np.stack([np.rint(spread(units) * GREY_STEP), labels]).astype(np.uint8)


def _read(file: Path) -> Volume:
    import nibabel as nib

    image = nib.nifti1.load(file)
    return Volume(np.asanyarray(image.dataobj), image.affine)


def refuse_held_out(cache: Cache, held_out: Iterable[str]) -> None:
    """Raise OptionError when a scan that must not be trained on lies in the cache."""
    found = [name for name in cache.names for refused in held_out if refused in name]
    if found:
        raise OptionError(f"Held-out scans in the training cache: {', '.join(found)}.", "Make the cache again.")
