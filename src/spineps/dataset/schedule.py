"""Many scans: one after the other with reading and writing beside the networks, or in workers, wherever they are."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Any, Protocol

from spineps.dataset import ledger as book
from spineps.dataset.memory import SPARE_BYTES, available_bytes, estimated_need
from spineps.dataset.plan import Plan, Resume, compare, may_try_again
from spineps.dataset.pool import LocalPool, WorkerDied
from spineps.dataset.worker import Setup, Task, Work, run_one
from spineps.errors import ErrCode, SpinepsError
from spineps.outputs.writer import remove_leftovers
from spineps.pipeline import Progress

logger = logging.getLogger(__name__)

#: How often (s) the ledger is asked whether another process is done with a scan.
PATIENCE = 5.0
#: A task whose worker dies this often before it has even begun is given up.
FALSE_STARTS = 3
_USELESS = SpinepsError(
    "Workers end before they have begun a scan.",
    "A script must guard its call with `if __name__ == '__main__':`. Without workers the reason can be seen.",
)

#: Makes the progress callback of a task when its turn comes.
Tell = Callable[[Task], Progress | None]


class Pool(Protocol):
    """Where tasks run: :class:`~spineps.dataset.pool.LocalPool` or :class:`~spineps.dataset.cluster.DaskPool`."""

    @property
    def threads(self) -> int | None:
        """CPU threads of the networks in each worker."""

    @property
    def size(self) -> int:
        """Tasks that can run at once."""

    def submit(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        """``function(task)`` in a worker; the future raises :class:`WorkerDied` when its worker does not survive."""

    def close(self) -> None:
        """End; tasks at work are abandoned."""


class Interrupted(KeyboardInterrupt):
    """The run was ended by a signal; the ledger knows how far it came.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Stop:
    """First Ctrl-C: no new scan is begun.  Second Ctrl-C, or SIGTERM: scans at work are abandoned.  Then: end at once.

    Signals are only taken over in the main thread.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.abandoned = False
        self._event = threading.Event()
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """No new scan may be begun."""
        return self.signal != 0

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> None:
        """Sleep, but not through a signal."""
        self._event.wait(seconds)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.abandoned:
            os._exit(128 + number)
        second, self.signal = self.asked, number
        self._event.set()
        if second or number == signal.SIGTERM:
            self.abandoned = True
            raise Interrupted(number)
        logger.warning("Stopping after the scans at work. Once more to abandon them.")


def run(
    plan: Plan, setup: Setup, how: Resume, stop: Stop, pool: Pool | None = None, tell: Tell | None = None
) -> Generator[book.Entry, None, None]:
    """Do what is to be done; yields the last word on each scan that was not finished before.

    Scans that another process is working on are waited for, and done when that process turns out to be gone.
    """
    todo, claimed = plan.todo, plan.claimed
    while True:
        yield from in_this_process(todo, stop, tell) if pool is None else in_workers(todo, setup, stop, pool)
        if stop.asked or not claimed:
            return
        again = compare(claimed, setup, how)
        for entry in again.finished:
            yield replace(entry, code=ErrCode.ALL_DONE.name)
        yield from again.failed
        todo, claimed = again.todo, again.claimed
        if not todo and claimed:
            stop.wait(PATIENCE)


def in_this_process(tasks: Iterable[Task], stop: Stop, tell: Tell | None = None) -> Generator[book.Entry, None, None]:
    """While one scan is in the networks, the next is read and the one before is written; never more than three."""
    works = (Work(task, _Turn(tell, task) if tell else None) for task in tasks)
    open_works: list[Work] = []

    def begin() -> tuple[Work, Future[None]] | None:
        work = None if stop.asked else next(works, None)
        if work is None:
            return None
        open_works.append(work)
        return work, reader.submit(work.read)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        try:
            writing: Future[book.Entry] | None = None
            reading = begin()
            while reading is not None:
                work, ready = reading
                ready.result()
                reading = begin()
                work.segment()
                if writing is not None:
                    yield writing.result()
                open_works.remove(work)
                writing = writer.submit(work.write)
                del work  # else its volumes would stay until the next scan has been read
            if writing is not None:
                yield writing.result()
        finally:
            reader.shutdown(wait=True)
            for work in open_works:
                work.record(_abandoned(work.task))


def in_workers(tasks: Iterable[Task], setup: Setup, stop: Stop, pool: Pool) -> Generator[book.Entry, None, None]:
    """Tasks in the workers of a pool; a task whose worker dies is tried once more, elsewhere."""
    packed = setup.packed(pool.threads)
    journal = book.ledger_in(setup.ledger)
    waiting, running = deque(tasks), dict[Future[book.Entry], Task]()
    needs: dict[str, int] = {}
    false_starts: dict[str, int] = {}
    retried: set[str] = set()
    proven = False
    try:
        while running or (waiting and not stop.asked):
            while waiting and not stop.asked and _may_start(waiting[0], running.values(), needs, pool):
                task = waiting.popleft()
                running[pool.submit(run_one, replace(task, setup=packed))] = task
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                try:
                    entry, proven = future.result(), True
                    yield entry
                except WorkerDied as death:
                    entry = _after_death(task, death, setup, journal, false_starts)
                    if false_starts.get(task.name) == FALSE_STARTS and not proven:
                        raise _USELESS from death
                    if entry.status == book.STARTED:
                        waiting.appendleft(task)
                    elif may_try_again(entry) and entry.code == "CRASHED" and task.name not in retried:
                        retried.add(task.name)
                        waiting.appendleft(replace(task, attempt=task.attempt + 1))
                    else:
                        yield entry
    finally:
        if running:
            pool.close()
            for task in running.values():
                with suppress(OSError):
                    journal.write(_abandoned(task))


def _after_death(
    task: Task, death: WorkerDied, setup: Setup, journal: book.Ledger, false_starts: dict[str, int]
) -> book.Entry:
    """The last word on a task whose worker died; with status ``started`` when it had not even begun."""
    last = book.last_word(setup.ledger, task.name)
    mine = last is not None and last.settings == task.settings and last.attempt == task.attempt
    if mine and last is not None and last.status not in (book.STARTED, book.SKIPPED, book.CRASHED):
        return last  # it had ended before its worker did, or because of the time limit
    if not mine:
        false_starts[task.name] = false_starts.get(task.name, 0) + 1
        if false_starts[task.name] <= FALSE_STARTS:
            return task.entry(book.STARTED)
    logger.error("%s: %s", task.name, death)
    for folder in {path.parent for path in setup.paths(task.scan).values()}:
        remove_leftovers(folder)
    worker = last.worker if mine and last is not None else ""
    known = last.input if mine and last is not None else (0, 0)
    return journal.write(task.entry(book.CRASHED, code="CRASHED", message=str(death), worker=worker, input=known))


def _may_start(task: Task, running: Iterable[Task], needs: dict[str, int], pool: Pool) -> bool:
    """Is there a free worker, and on this machine the memory for it?  A scan alone is always tried."""
    others = list(running)
    if not others:
        return True
    if len(others) >= pool.size:
        return False
    free = available_bytes() if isinstance(pool, LocalPool) else None
    if free is None or not isinstance(pool, LocalPool):
        return True
    for one in (task, *others):
        if one.name not in needs:
            needs[one.name] = estimated_need(one.scan.path)
    promised = max(sum(needs[other.name] for other in others) - pool.resident(), 0)
    return needs[task.name] <= free - promised - SPARE_BYTES


def _abandoned(task: Task) -> book.Entry:
    return task.entry(book.SKIPPED, message="Abandoned: the run was interrupted.")


class _Turn:
    """Progress of a scan, told from the thread of the networks only and from its first phase on."""

    def __init__(self, tell: Tell, task: Task) -> None:
        self._make, self._task, self._thread = tell, task, threading.get_ident()
        self._progress: Progress | None = None
        self._begun = False

    def __call__(self, phase: str, done: int, total: int) -> None:
        if threading.get_ident() != self._thread:
            return
        if not self._begun:
            self._begun, self._progress = True, self._make(self._task)
        if self._progress is not None:
            self._progress(phase, done, total)
