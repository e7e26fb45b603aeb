"""What a run has to do, and why it leaves the rest alone."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from spineps.dataset import ledger as book
from spineps.dataset.find import READERS, Found, Pair
from spineps.dataset.worker import Setup, Task, unchanged
from spineps.errors import OptionError
from spineps.outputs.paths import Scan

logger = logging.getLogger(__name__)

#: What has nothing to do with the scan is tried again by every run; what may be bad luck, up to so many attempts in all
#: (a scan whose worker dies is tried once elsewhere by the same run, and once more by the next).
ALWAYS_AGAIN, ATTEMPTS = ("WRITE", "MODEL", "NOT_FOUND"), {"MEMORY": 2, "CRASHED": 3}


@dataclass(frozen=True)
class Resume:
    """How far earlier runs are trusted.

    Attributes:
        resume: leave alone what is done; otherwise everything is done again.
        retry_failed: try again what has failed with these settings and this file.
        verify: believe hashes only, not sizes and times of change.
    """

    resume: bool = True
    retry_failed: bool = False
    verify: bool = False


@dataclass
class Plan:
    """What becomes of the scans of a data set.

    Attributes:
        todo: to be done now.
        finished: done by an earlier run.
        failed: failed in an earlier run and not tried again.
        claimed: another process is at work on them.
        left_out: (file or folder, why), not seen as scans of this run.
    """

    todo: list[Task] = field(default_factory=list)
    finished: list[book.Entry] = field(default_factory=list)
    failed: list[book.Entry] = field(default_factory=list)
    claimed: list[Task] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """Scans of this run, whatever becomes of them."""
        return len(self.todo) + len(self.finished) + len(self.failed) + len(self.claimed)


def make_plan(found: Found, setup: Setup, how: Resume = Resume(), shard: tuple[int, int] | None = None) -> Plan:
    """Compare what was found with what the ledger knows.

    Args:
        found: see :func:`~spineps.dataset.find.find_scans`.
        setup: of this run.
        how: how far earlier runs are trusted.
        shard: (k, n): only the k-th of n parts, k from 1.
    """
    settings = {pair: setup.settings(pair) for pair in setup.pairs}
    left_out, tasks = list(found.left_out), []
    for scan, pair in _alone(found.scans, setup, left_out):
        name = scan_name(scan, setup.dataset)
        if shard is None or in_shard(name, *shard):
            tasks.append(Task(scan, name, pair, setup, settings[pair], extra=found.extra.get(scan.path, {})))
    plan = compare(tasks, setup, how)
    plan.left_out = left_out
    return plan


def compare(tasks: Sequence[Task], setup: Setup, how: Resume) -> Plan:
    """Sort tasks by what the ledger says of them now."""
    plan = Plan()
    known = {entry.scan: entry for entry in book.read(setup.ledger)} if how.resume else {}
    with ThreadPoolExecutor(READERS) as pool:  # each scan is several round trips to a file server
        for task, entry, same in pool.map(lambda task: _compared(task, known.get(task.name), setup), tasks):
            _decide(plan, task, entry, same, how, setup)
    return plan


def scan_name(scan: Scan, dataset: Path) -> str:
    """What the ledger calls a scan: its path relative to the data set, else the absolute one."""
    path = scan.path.absolute()
    return path.relative_to(dataset).as_posix() if path.is_relative_to(dataset) else path.as_posix()


def in_shard(name: str, k: int, n: int) -> bool:
    """Is a scan in the k-th of n parts?  Its name alone decides, so that scans can be added at any time.

    >>> [in_shard("rawdata/sub-1_T2w.nii.gz", k, 3) for k in (1, 2, 3)]
    [True, False, False]
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % n == k - 1


def parse_shard(text: str) -> tuple[int, int]:
    """
    >>> parse_shard("2/8")
    (2, 8)
    """
    k, slash, n = text.partition("/")
    if not (slash and k.strip().isdigit() and n.strip().isdigit() and 1 <= int(k) <= int(n)):
        raise OptionError(f"--shard is {text!r}.", "Give k/N with k from 1 to N, such as 3/16.")
    return int(k), int(n)


def reasons(plan: Plan) -> Counter[str]:
    """How often each reason to leave something out occurs."""
    return Counter(why for _, why in plan.left_out)


def _alone(
    scans: Iterable[tuple[Scan, Pair]], setup: Setup, left_out: list[tuple[Path, str]]
) -> Iterable[tuple[Scan, Pair]]:
    """Scans whose outputs would not be those of another one."""
    taken: dict[Path, Path] = {}
    for scan, pair in scans:
        target = setup.paths(scan)["out_spine"]
        other = taken.setdefault(target, scan.path)
        if other != scan.path:
            left_out.append((scan.path, f"would get the same output names as {other.name}"))
        else:
            yield scan, pair


def _compared(task: Task, entry: book.Entry | None, setup: Setup) -> tuple[Task, book.Entry | None, bool]:
    """Has nothing changed since the ledger's entry: settings, scan, outputs?"""
    same = entry is not None and entry.settings == task.settings
    return task, entry, same and entry is not None and unchanged(entry, task.scan.path, setup.derivatives)


def _decide(plan: Plan, task: Task, entry: book.Entry | None, same: bool, how: Resume, setup: Setup) -> None:
    if entry is None:
        plan.todo.append(task)
    elif entry.status == book.STARTED and entry.worker != book.ledger_in(setup.ledger).worker:
        plan.claimed.append(replace(task, attempt=entry.attempt))
    elif not same or entry.status in (book.SKIPPED, book.STARTED):
        plan.todo.append(task)
    elif entry.status in book.FINISHED:
        if how.verify or setup.override:
            plan.todo.append(task)
        else:
            plan.finished.append(entry)
    elif may_try_again(entry) or how.retry_failed:
        plan.todo.append(replace(task, attempt=entry.attempt + 1))
    else:
        plan.failed.append(entry)


def may_try_again(entry: book.Entry) -> bool:
    """Is a failure worth another try without anything having changed?"""
    return entry.code in ALWAYS_AGAIN or entry.attempt < ATTEMPTS.get(entry.code, 0)


def explained(entries: Sequence[book.Entry]) -> Counter[tuple[str, str]]:
    """Failures by code and message, the scan's own path taken out of it."""
    return Counter((e.code, re.sub(rf"\S*{re.escape(Path(e.scan).name)}", "<scan>", e.message)) for e in entries)
