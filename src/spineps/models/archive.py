"""Zip archives from outside: what is in them is looked at before a single byte is written.

Refused are names that lead out of the target folder or mean something else on another system, links, encrypted members,
rare compressions, and archives that unpack to absurd sizes.  What the archive declares is checked first, what really
comes out while unpacking.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

from spineps.errors import ModelError
from spineps.models.config import CONFIG_FILE
from spineps.models.download import output_error

#: Published archives have some ten files of some hundred MB; these are far beyond any model.
MOST_FILES = 10_000
LARGEST = 40 * 2**30
#: Weights hardly compress; small archives may (a config does so twentyfold), up to FREE_SIZE bytes.
LARGEST_RATIO = 100
FREE_SIZE = 64 * 2**20
BLOCK = 1 << 20
#: Names that are no files on Windows, with any ending.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³")}
P = TypeVar("P", Path, PurePosixPath)
_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*]')


def model_roots(path: Path, called: str) -> list[PurePosixPath]:
    """Folders inside the archive that hold an ``inference_config.json``; a model inside a model is part of it.

    Args:
        path: the archive.
        called: what errors call it (a download lies under another name).

    Raises:
        ModelError: not a zip archive, damaged, dangerous, or without a model.
    """
    with _opened(path, called) as archive:
        names = [name for name, info in _members(archive, path, called) if not info.is_dir()]
    if found := outermost([name.parent for name in names if name.name == CONFIG_FILE]):
        return found
    raise no_model(called)


def unpack(path: Path, root: PurePosixPath, into: Path) -> None:
    """Write everything below ``root`` to the new folder ``into``.

    Raises:
        ModelError: as :func:`model_roots`, or a member is not what it declares.
        OutputError: the disk is full or may not be written.
    """
    with _opened(path, path.name) as archive:
        wanted = [(n, i) for n, i in _members(archive, path, path.name) if n.is_relative_to(root) and not i.is_dir()]
        try:
            into.mkdir(parents=True)
            need = sum(info.file_size for _, info in wanted)
            if need > shutil.disk_usage(into).free:
                raise OSError(errno.ENOSPC, f"{need} bytes are needed")
            for name, info in wanted:
                target = into.joinpath(*name.relative_to(root).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                _write(archive, info, target)
        except OSError as error:
            raise output_error(into, error) from error


def portable_name(name: str) -> bool:
    """Whether one part of a path means the same harmless thing on every system.

    >>> [portable_name(n) for n in ("fold_0", "..", "a/b", "a\\\\b", "C:", "nul.txt", "x. ", "")]
    [True, False, False, False, False, False, False, False]
    """
    plain = bool(name) and not _FORBIDDEN.search(name) and not set(name) & {"/", "\\"}
    return plain and not name.endswith((".", " ")) and name.split(".")[0].strip().lower() not in _DEVICES


def is_clutter(name: str) -> bool:
    """Whether a file is only there because a desktop has looked at the folder."""
    return name in (".DS_Store", "Thumbs.db") or name.startswith("._")


def no_model(called: str) -> ModelError:
    """The error for a source without a model."""
    cure = "Give what a release holds, or write that file for a network of your own (docs/models.md)."
    return ModelError(f"{called} holds no {CONFIG_FILE}, so it is no model.", cure)


def outermost(folders: list[P]) -> list[P]:
    """Folders that lie in no other one of the list, sorted."""
    kept: list[P] = []
    for folder in sorted(set(folders), key=lambda f: (len(f.parts), f)):
        if not any(folder.is_relative_to(other) for other in kept):
            kept.append(folder)
    return sorted(kept)


@contextmanager
def _opened(path: Path, called: str) -> Iterator[zipfile.ZipFile]:
    """The archive; everything that a damaged one can raise becomes a ModelError."""
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
        if not zipfile.is_zipfile(path):
            seen = "an HTML page" if start.lstrip()[:1] == b"<" else f"it starts with {start[:16]!r}"
            cure = "A proxy's or a login page may have come instead; open the address in a browser, and try again."
            raise ModelError(f"{called} is not a zip archive ({seen}).", cure)
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{called} is damaged ({error}).", "Fetch it again.") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}).", "Check its permissions.") from error


def _members(archive: zipfile.ZipFile, path: Path, called: str) -> list[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """Checked names and members, without what the desktops of macOS and Windows add."""
    infos = archive.infolist()
    total = sum(info.file_size for info in infos)
    size = path.stat().st_size
    why = ""
    if len(infos) > MOST_FILES:
        why = f"{len(infos)} files"
    elif total > LARGEST:
        why = f"{total >> 30} GiB unpacked"
    elif total > max(FREE_SIZE, LARGEST_RATIO * size):
        why = f"{total} bytes out of {size}"
    elif sum(info.compress_size for info in infos) > size:
        why = "members share the same bytes"
    if why:
        raise ModelError(f"{called} looks like a zip bomb ({why}).", "Do not use it.")
    members = [(_safe(info, called), info) for info in infos]
    seen: set[str] = set()
    for name, info in members:
        # Case and accents are one on some file systems: the second would overwrite the first.
        key = unicodedata.normalize("NFC", str(name)).casefold()
        if key in seen and not info.is_dir():
            raise ModelError(f"{called} holds {name} twice.", "Do not use it.")
        seen.add(key)
    return [(name, info) for name, info in members if name.parts[0] != "__MACOSX" and not is_clutter(name.name)]


def _safe(info: zipfile.ZipInfo, called: str) -> PurePosixPath:
    # Old Windows tools write backslashes; orig_filename is what stands in the file, before zipfile cuts it at a NUL.
    text = info.orig_filename.replace("\\", "/")
    parts = [part for part in text.removesuffix("/").split("/") if part != "."]
    kind = stat.S_IFMT(info.external_attr >> 16)
    fault, cure = "", "Do not use it."
    if not parts or not all(portable_name(part) for part in parts):
        fault = "a name that leads elsewhere or is not allowed on every system"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "a link or a device"
    elif info.flag_bits & 0x1:
        fault, cure = "encrypted", "Unpack it yourself with its password, and give the folder."
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile expands whole blocks of bzip2 and LZMA in memory: a megabyte can become 20 gigabytes there.
        fault, cure = "compressed in a way that is not read here", "Unpack it yourself, and give the folder."
    if fault:
        raise ModelError(f"{called} is refused: {text!r} is {fault}.", cure)
    return PurePosixPath(*parts)


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    written = 0
    with target.open("xb") as out:
        for block in _blocks(archive, info):
            written += len(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if written != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename} holds less than it declares")


def _blocks(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content, at most as declared.  Reading beyond the archive is an OSError, but no fault of the disk."""
    try:
        with archive.open(info) as source:
            while block := source.read(BLOCK):
                yield block
    except OSError as error:
        raise zipfile.BadZipFile(str(error)) from error
