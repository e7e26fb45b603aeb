"""One process at a time: a lock that the system itself takes away from a process that dies."""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


@contextmanager
def exclusive(path: Path, poll: float = 0.1) -> Iterator[None]:
    """Hold the lock file ``path`` (its folder exists); waits for whoever has it.

    The file stays: deleting it would let a third process lock a new one while a second still waits for the old one.
    On a file system without locks everyone gets it; the installer's renames are atomic without it too.
    """
    with path.open("a+b") as stream:
        told = False
        while not _lock(stream):
            if not told:
                logger.warning("Another process is installing the same; waiting for it.")
                told = True
            time.sleep(poll)
        yield


def _lock(stream: IO[bytes]) -> bool:
    """False when another process has it.  Closing the stream gives it back."""
    try:
        if sys.platform == "win32":
            import msvcrt

            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            return False
        logger.debug("no locks on this file system: %s", error)
    return True
