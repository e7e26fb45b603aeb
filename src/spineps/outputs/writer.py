"""The one writer: all files of a step appear together, complete, or not at all.

Every file is written under a temporary name in its own folder, flushed to the disk and only then renamed.  A run that
is killed leaves at most temporary files, which no run ever reads and the next one removes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from platform import node
from types import TracebackType
from typing import IO, Any

import numpy as np

from spineps.errors import OutputError
from spineps.outputs.nifti import write_nifti
from spineps.volume import Volume

logger = logging.getLogger(__name__)

SUFFIX = ".spineps-part"
#: A temporary file of another machine, or of a system that cannot be asked, counts as left over after a day.
STALE_SECONDS = 24 * 3600.0
#: Looking through a folder for longer (s) is not done before every scan: 30,000 scans in one folder take 0.5 s.
LONG_SWEEP = 0.01
_SWEEP_AGAIN: dict[Path, float] = {}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Writer:
    """Collects files and makes them appear at the end of a ``with`` block; an error inside removes them all.

    Attributes:
        written: fingerprint (size, sha256) of each file so far, by its final path.

    Raises:
        OutputError: a folder is read-only, the disk is full, or writing fails in another way.
    """

    def __init__(self) -> None:
        self.written: dict[Path, dict[str, Any]] = {}
        self._pending: list[tuple[Path, Path]] = []
        self._folders: list[Path] = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._commit()
        else:
            self.discard()

    def write(self, path: Path, content: Callable[[IO[bytes]], Any]) -> None:
        """Any content, as a function that writes it to a stream."""
        try:
            self._make_folder(path.parent)
            part = path.with_name(f".{path.name}.{_owner()}{SUFFIX}")
            self._pending.append((part, path))
            with part.open("wb") as stream:
                content(stream)
                stream.flush()
                os.fsync(stream.fileno())
            self.written[path] = fingerprint(part)
        except OSError as error:
            raise _output_error(path, error) from error

    def mask(self, path: Path, volume: Volume) -> None:
        """Labels as uint16 ``.nii.gz``."""
        self.image(path, volume.with_array(volume.array.astype(np.uint16, copy=False)))

    def image(self, path: Path, volume: Volume) -> None:
        """A volume in its own dtype as ``.nii.gz``; equal content gives equal bytes."""
        self.write(path, lambda stream: write_nifti(volume, stream))

    def json(self, path: Path, content: Any) -> None:
        """JSON, indented by 4 as in the published system."""
        text = json.dumps(content, indent=4) + "\n"
        self.write(path, lambda stream: stream.write(text.encode()))

    def arrays(self, path: Path, **arrays: np.ndarray) -> None:
        """A compressed ``.npz``; no pickles inside."""
        self.write(path, lambda stream: np.savez_compressed(stream, **arrays))  # type: ignore[arg-type]

    def _commit(self) -> None:
        try:
            for part, path in self._pending:
                part.replace(path)
        except OSError as error:
            self.discard()
            raise _output_error(path, error) from error
        for folder in {path.parent for _, path in self._pending}:
            _flush_folder(folder)
        self._pending.clear()

    def discard(self) -> None:
        """Remove everything that was written so far."""
        for part, _ in self._pending:
            part.unlink(missing_ok=True)
        self._pending.clear()
        with suppress(OSError):  # another run may have put something there meanwhile
            for folder in reversed(self._folders):
                folder.rmdir()

    def _make_folder(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            self._folders.append(new)


def check_writable(folder: Path) -> None:
    """Leaves nothing behind.

    Raises:
        OutputError: nothing can be written to ``folder`` (which need not exist yet).
    """
    writer = Writer()
    try:
        writer.write(folder / "probe", lambda stream: stream.write(b"spineps"))
    finally:
        writer.discard()


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and hash of a file, as provenance records them."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files of killed runs in ``folder`` and its subfolders' first level; returns how many."""
    parts = [part for pattern in (f".*{SUFFIX}", f"*/.*{SUFFIX}") for part in folder.glob(pattern)]
    count = sum(_removed(part) for part in parts)
    if count:
        logger.info("Removed %d temporary file(s) of interrupted runs from %s.", count, folder)
    return count


def sweep(folder: Path) -> None:
    """:func:`remove_leftovers`, but in a folder of very many files at most for one per cent of the time."""
    start = time.monotonic()
    if start < _SWEEP_AGAIN.get(folder, 0.0):
        return
    remove_leftovers(folder)
    seconds = time.monotonic() - start
    if seconds > LONG_SWEEP:
        _SWEEP_AGAIN[folder] = start + 100 * seconds


def _removed(part: Path) -> bool:
    try:
        if not _left_over(part):
            return False
        part.unlink()
    except OSError as error:
        logger.debug("leftover %s stays: %s", part, error)
        return False
    return True


def _machine() -> str:
    return f"{zlib.crc32(node().encode()):08x}"


def _owner() -> str:
    return f"{_machine()}-{os.getpid()}"


def _left_over(part: Path) -> bool:
    machine, _, pid = part.name.removesuffix(SUFFIX).rpartition(".")[2].partition("-")
    # On Windows os.kill(pid, 0) would end the process, so only age can tell there.
    if machine == _machine() and pid.isdigit() and os.name == "posix":
        return int(pid) != os.getpid() and not is_running(int(pid))
    return time.time() - part.stat().st_mtime > STALE_SECONDS


def is_running(pid: int) -> bool:
    """Does this process of this machine still run?  POSIX only: elsewhere asking would end it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError, IndexError):  # in a container no one may bury the dead (state Z)
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    return True


def _flush_folder(folder: Path) -> None:
    """Make the renames themselves durable, where the system can."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        logger.debug("folder %s not flushed: %s", folder, error)


def _output_error(path: Path, error: OSError) -> OutputError:
    where = path.parent
    elsewhere = "Or write elsewhere: --derivative-name (derivative_name=) accepts a whole path."
    if error.errno in FULL:
        what = f"{path} cannot be written: the disk is full ({error.strerror})."
        return OutputError(what, f"Free some space. {elsewhere}")
    if error.errno in DENIED:
        return OutputError(f"{where} may not be written to ({error.strerror}).", f"Change its permissions. {elsewhere}")
    return OutputError(f"{path} cannot be written ({error.strerror or error}).", elsewhere)
