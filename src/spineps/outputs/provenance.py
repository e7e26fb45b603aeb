"""What made the outputs, and whether they may be used again.

A small JSON beside the outputs is written after everything else.  For each stage (semantic, instance, final) it holds
a key over all that can change the result, and size and hash of every file.  A result is used again only when its key is
the one wanted now and its files are still those that were written.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spineps.outputs.writer import fingerprint

logger = logging.getLogger(__name__)

FORMAT = 1


def stage_key(**content: Any) -> str:
    """Hash of everything a stage's result depends on.

    >>> stage_key(a=1, b=2) == stage_key(b=2, a=1) != stage_key(a=1, b=3)
    True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """The record at ``path``; an empty one when it is missing, damaged or of another format."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s is not readable (%s); results are made anew.", path, error)
        return {}
    return record if isinstance(record, dict) and record.get("format") == FORMAT else {}


def stage_entry(key: str, written: Mapping[Path, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """What the record says of one stage: its key and its files, relative to ``folder`` where they lie inside."""
    return {"key": key, "files": {_relative(path, folder): dict(mark) for path, mark in written.items()}}


def is_current(record: Mapping[str, Any], stage: str, key: str, wanted: Iterable[Path], folder: Path) -> bool:
    """True when ``stage`` was made with ``key`` and every wanted file is byte for byte the one written then."""
    entry = record.get("stages", {}).get(stage, {})
    if entry.get("key") != key:
        return False
    files = entry.get("files", {})
    return all(_unchanged(path, files.get(_relative(path, folder))) for path in wanted)


def _unchanged(path: Path, mark: Mapping[str, Any] | None) -> bool:
    try:
        return mark is not None and path.stat().st_size == mark["size"] and fingerprint(path) == mark
    except (OSError, KeyError):
        return False


def _relative(path: Path, folder: Path) -> str:
    # A snapshot copied to another folder is known by its name alone: no machine paths in the record.
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else f"copy:{path.name}"
