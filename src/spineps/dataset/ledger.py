"""What became of every scan: JSON lines that many processes and machines may write at once, without locks.

Every process that works on scans appends to a file of its own, ``<derivatives>/spineps_ledger/<worker>.jsonl`` (host,
process id, start in ms), so that no two writers ever share one, not even over a network file system.  Reading merges
them: the last line of a scan counts.  A line torn by a kill is ignored.  A scan that was started by a process which is
gone has *crashed*.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from platform import node
from typing import Any

from spineps.errors import OutputError
from spineps.outputs.writer import is_running

logger = logging.getLogger(__name__)

FOLDER = "spineps_ledger"
STARTED, DONE, ALREADY_DONE = "started", "done", "already done"
FAILED, SKIPPED, CRASHED = "failed", "skipped", "crashed"
STATUSES = (DONE, ALREADY_DONE, FAILED, CRASHED, SKIPPED, STARTED)
FINISHED = (DONE, ALREADY_DONE)
#: A working process touches its file this often (s); one on another machine that has not for so long counts as gone.
HEARTBEAT, SILENCE = 20.0, 180.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One scan at one moment.

    Attributes:
        scan: path relative to the data set (posix), or absolute when it lies elsewhere.
        status: one of :data:`STATUSES`.
        time: seconds since 1970.
        code: name of the :class:`~spineps.errors.ErrCode`.
        message: what went wrong, or why it was left out; else the warnings.
        seconds: time it took.
        peak_mb: largest resident memory of the worker during this scan, MB.
        models: fingerprint of each model (``semantic``, ``instance``, ``labeling``).
        settings: hash of version, models and options; another hash means that the scan must be looked at again.
        input: size (bytes) and modification time (ns) of the scan's file.
        outputs: ``{key of output_paths: [path relative to the derivatives folder, size, modification time]}``.
        worker: ``<host>-<pid>-<ms>`` of the process that worked on it.
        attempt: how many times it has been tried with these settings and this input.
        pair: modality and plane, such as ``T2w sag``.
        extra: further columns of the list that named the scan.
    """

    scan: str
    status: str
    time: float = 0.0
    code: str = ""
    message: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0
    models: dict[str, str] = field(default_factory=dict)
    settings: str = ""
    input: tuple[int, int] = (0, 0)
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    worker: str = ""
    attempt: int = 1
    pair: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    def paths(self, derivatives: Path) -> dict[str, Path]:
        """The output files, by the keys of :func:`~spineps.outputs.paths.output_paths`."""
        return {key: Path(os.path.normpath(derivatives / mark[0])) for key, mark in self.outputs.items()}


_NAMES = tuple(f.name for f in fields(Entry))
_EMPTY = {"", 0}


class Ledger:
    """Appends to this process's own file, made with the first line; safe in threads.

    Lines go to the system at once (a killed process loses none) but are not forced to the disk: after a power failure
    the records beside the outputs still vouch for what was done.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.worker = ""
        self._handle = -1
        self._torn = False
        self._lock = threading.Lock()

    def write(self, entry: Entry) -> Entry:
        """Append ``entry``, with the present time, and this worker's name unless it tells of another.

        Raises:
            OutputError: the folder cannot be written to.
        """
        with self._lock:
            try:
                if self._handle < 0:
                    self._open()
                entry = replace(entry, time=round(time.time(), 3), worker=entry.worker or self.worker)
                line = _line(entry)
                # After a line that a full disk cut short, a new one must not be glued to its rest.
                torn, self._torn = self._torn, True
                text = b"\n" + line if torn else line
                if os.write(self._handle, text) < len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._torn = False
            except OSError as error:
                cure = "Free some space or change the permissions; --derivative-name writes elsewhere."
                raise OutputError(f"The ledger in {self.folder} cannot be written ({error.strerror}).", cure) from error
        return entry

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        start = int(time.time() * 1000)
        while self._handle < 0:
            self.worker = f"{_host()}-{os.getpid()}-{start}"
            with suppress(FileExistsError):
                path = self.folder / f"{self.worker}.jsonl"
                self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
                threading.Thread(target=_beat, args=(path,), daemon=True).start()
            start += 1


@lru_cache(maxsize=8)
def ledger_in(folder: Path) -> Ledger:
    """The one ledger of this process in ``folder``."""
    return Ledger(folder)


def read(folder: str | Path) -> list[Entry]:
    """The last word on every scan, sorted by scan.

    Args:
        folder: the ledger, or the derivatives folder that holds it.
    """
    folder = ledger_folder(Path(folder))
    last: dict[str, dict[str, Any]] = {}
    for line in _lines(folder):
        other = last.get(line["scan"])
        # A kill and its report, or a quick failure, can fall into one millisecond: an end beats a start.
        if other is None or (line["time"], line["status"] != STARTED) >= (other["time"], other["status"] != STARTED):
            last[line["scan"]] = line
    living: dict[str, bool] = {}
    return [_judged(_entry(last[scan]), folder, living) for scan in sorted(last)]


def history(folder: str | Path) -> Iterator[Entry]:
    """Every line of every file, in no particular order."""
    for line in _lines(ledger_folder(Path(folder))):
        yield _entry(line)


def last_word(folder: str | Path, scan: str) -> Entry | None:
    """The last line on one scan, whether or not its writer still lives."""
    lines = [line for line in _lines(ledger_folder(Path(folder))) if line["scan"] == scan]
    return _entry(max(lines, key=lambda line: (line["time"], line["status"] != STARTED))) if lines else None


def ledger_folder(folder: Path) -> Path:
    """``folder`` itself when it is a ledger, else the ledger in it."""
    return folder if folder.name == FOLDER else folder / FOLDER


def alive(folder: Path, worker: str) -> bool:
    """Does the process that writes ``<worker>.jsonl`` still run?  Known at once on its machine, else by its silence."""
    host, pid, _ = worker.rsplit("-", 2) if worker.count("-") >= 2 else ("", "", "")
    if host == _host() and pid.isdigit() and os.name == "posix" and not is_running(int(pid)):
        return False
    try:
        return time.time() - (folder / f"{worker}.jsonl").stat().st_mtime < SILENCE
    except OSError:
        return False


def _judged(entry: Entry, folder: Path, living: dict[str, bool]) -> Entry:
    if entry.status != STARTED:
        return entry
    if entry.worker not in living:
        living[entry.worker] = alive(folder, entry.worker)
    if living[entry.worker]:
        return entry
    return replace(entry, status=CRASHED, code="CRASHED", message=f"{entry.worker} ended without a word.")


def _line(entry: Entry) -> bytes:
    content = {name: getattr(entry, name) for name in _NAMES}
    kept = {k: v for k, v in content.items() if (v not in _EMPTY if isinstance(v, (str, int, float)) else any(v))}
    return json.dumps(kept, separators=(",", ":")).encode() + b"\n"


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl")):
        try:
            content = path.read_bytes()
        except OSError as error:
            logger.warning("%s cannot be read (%s).", path, error.strerror)
            continue
        for text in content.splitlines():
            with suppress(ValueError):  # torn by a kill
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("scan"), str) and line.get("status") in STATUSES:
                    yield {**line, "time": float(line.get("time", 0.0))}


def _entry(line: Mapping[str, Any]) -> Entry:
    known = {name: line[name] for name in _NAMES if name in line}
    known["input"] = tuple(known.get("input", (0, 0)))
    return Entry(**known)


def _beat(path: Path) -> None:
    while True:
        time.sleep(HEARTBEAT)
        with suppress(OSError):
            os.utime(path)


def _host() -> str:
    return node().replace("/", "_") or "unknown"
