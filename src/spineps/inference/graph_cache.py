"""Published networks in OpenVINO's own form, kept in the user's cache folder: a checkpoint is read only once.

An entry is named after the hash of the files that it was made from.  It is trusted only if its own hashes agree.  The
folder does not grow without end: what was not used for longest goes when it holds too much.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from spineps.errors import ModelError
from spineps.inference.network import Spec
from spineps.inference.published_graphs import spec_from_json
from spineps.models.checkpoints import read_published, sources
from spineps.models.config import InferenceConfig
from spineps.models.receipt import sha256
from spineps.models.registry import user_folder

logger = logging.getLogger(__name__)

#: Folder for what can be made again (ours), and the number to raise when graphs change.
CACHE_VARIABLE, FORMAT = "SPINEPS_CACHE", 4
GRAPH, WEIGHTS, LABEL = "network.xml", "network.bin", "network.json"
#: Bytes kept (all published models with five folds each take some 3 GB), and seconds for which a running process may
#: still want what it has looked at.
MOST, RECENT = 8 * 10**9, 24 * 3600


def cache_folder() -> Path:
    """Where things lie that can be made again; it need not exist."""
    if value := os.environ.get(CACHE_VARIABLE):
        return Path(value)
    folder = user_folder("Library/Caches", "XDG_CACHE_HOME", ".cache")
    return folder / "cache" if sys.platform == "win32" else folder


def published_graph(
    folder: Path, config: InferenceConfig, fold: str | int | None
) -> tuple[Spec, Path | Mapping[str, np.ndarray]]:
    """A published network and its graph file, or its parameters where the cache folder cannot be written.

    Raises:
        ModelError: the checkpoint cannot be used.
    """
    entry = cache_folder() / "networks" / _fingerprint(sources(folder, config, fold), config)
    try:
        return _stored(entry), entry / GRAPH
    except (OSError, ValueError, KeyError, TypeError, ModelError) as error:
        logger.debug("%s is not in the cache: %s", folder.name, error)
    logger.info("%s is converted for OpenVINO, once", folder.name)
    spec, params = read_published(folder, config, fold)
    try:
        _store(entry, spec, params)
    except OSError as error:
        logger.warning("The cache folder cannot be used, loading takes longer: %s", error)
        return spec, params
    return spec, entry / GRAPH


def _fingerprint(files: list[Path], config: InferenceConfig) -> str:
    from openvino import __version__

    digest = hashlib.sha256(f"{FORMAT} {__version__} {config.modeltype.name}".encode())
    try:
        digest.update(" ".join(sha256(file) for file in files).encode())
    except OSError as error:
        raise ModelError(f"The model's files cannot be read: {error}.", "Install the model again.") from error
    return digest.hexdigest()[:32]


def _stored(entry: Path) -> Spec:
    label = json.loads((entry / LABEL).read_text(encoding="utf-8"))
    for name in (GRAPH, WEIGHTS):
        if sha256(entry / name) != label[name]:
            raise ValueError(f"{entry / name} is damaged")
    with suppress(OSError):  # of a cache folder that may only be read
        os.utime(entry / LABEL)
    return spec_from_json(label["spec"])


def _store(entry: Path, spec: Spec, params: Mapping[str, np.ndarray]) -> None:
    from spineps.inference.openvino_engine import save_graph

    entry.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there whole, so that a killed run leaves no half entry.
    staging = Path(tempfile.mkdtemp(prefix=".", dir=entry.parent))
    try:
        save_graph(spec, params, staging / GRAPH)
        label = {name: sha256(staging / name) for name in (GRAPH, WEIGHTS)}
        (staging / LABEL).write_text(json.dumps({**label, "spec": spec.to_json()}), encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)
        staging.replace(entry)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _forget_old(entry.parent)


def _forget_old(networks: Path) -> None:
    """Delete what was not used for longest beyond MOST bytes, and what killed runs left; nothing used of late."""
    found = []
    for entry in networks.iterdir():
        label = entry / LABEL
        with suppress(OSError):  # another process deletes it just now
            used = (label if label.exists() else entry).stat().st_mtime
            found.append((used, sum(file.stat().st_size for file in entry.iterdir()), entry))
    kept = 0
    for used, size, entry in sorted(found, reverse=True):
        kept += size
        if time.time() - used > RECENT and (kept > MOST or entry.name.startswith(".")):
            gone = entry.with_name(f".{entry.name}.gone")
            # Renamed first: where another process holds a file open, the entry goes whole or not at all.
            with suppress(OSError):
                entry.replace(gone)
                shutil.rmtree(gone, ignore_errors=True)
                logger.debug("%s was not used for long and is deleted from the cache", entry.name)
