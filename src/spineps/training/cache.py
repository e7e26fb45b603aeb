"""Compact caches: label maps of generated spines, or real scans with labels, as one compressed ``.npz`` each.

Making one may need the rest of the package and nibabel; reading one needs numpy alone.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from spineps.errors import InputNotFoundError, OptionError, UnreadableInputError

logger = logging.getLogger(__name__)

META = "__meta__"
#: Grey values of real scans are kept as rint(spread * 200): 0 .. 240 for 0 .. 1.2.
GREY_STEP = 200.0
#: Label of voxels about which nothing is known (:mod:`spineps.training.loss`, which needs torch).
UNKNOWN = 255
#: Coarse label of the endplates.
PLATE = 4
#: First label of scans whose structures are all labelled: FULL + k is class k of the network.
FULL = 9


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


def refuse_held_out(cache: Cache, held_out: Iterable[str]) -> None:
    """Raise OptionError when a scan that must not be trained on lies in the cache."""
    found = [name for name in cache.names for refused in held_out if refused in name]
    if found:
        raise OptionError(f"Held-out scans in the training cache: {', '.join(found)}.", "Make the cache again.")
