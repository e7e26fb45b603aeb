"""One scan on whichever machine: the function that every kind of parallel run calls.

``run_one(task)`` runs in this process, in a worker process or on a Dask worker; it always comes back with the entry
that it wrote into the ledger.  Only the death of the process itself keeps it from doing so.
"""

from __future__ import annotations

import copyreg
import faulthandler
import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import spineps
from spineps.dataset import ledger as book
from spineps.dataset.find import Pair
from spineps.dataset.job import Job, JobRun, identity
from spineps.dataset.memory import peak_mb, reset_peak
from spineps.errors import ErrCode, SpinepsError
from spineps.models.model import Model
from spineps.options import Options
from spineps.outputs import sink
from spineps.outputs.paths import Scan, output_paths
from spineps.outputs.provenance import stage_key
from spineps.pipeline import Models, Progress

logger = logging.getLogger(__name__)

#: Exit status of a worker that ended itself because of ``timeout``.
TIMED_OUT = 124
#: A hang that also stops Python's own timer is ended by the system's this much later (s).
GRACE = 30.0


def _read_only(content: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(content)


# Configs may hold read-only mappings, which pickle does not know.
copyreg.pickle(MappingProxyType, lambda mapping: (_read_only, (dict(mapping),)))


@dataclass(frozen=True)
class Setup:
    """What all scans of a run share.

    Attributes:
        dataset: its folder, absolute.
        pairs: (modality, plane).
        models: one set for each pair.
        options: what to do.
        keywords: as given, for the header of the points.
        derivative_name: folder of results below ``dataset``.
        snapshots: also put pictures there.
        override: stages that must be done again.
        ignore_compatibility: show the models any scan.
        timeout: seconds for one scan; its process is ended then.
        work: folder of raw masks in the ``bids`` layout.
        runner: does the work; replaced in tests and measurements of what the rest costs.
    """

    dataset: Path
    pairs: tuple[Pair, ...]
    models: tuple[Models, ...]
    options: Options = field(default_factory=Options)
    keywords: Mapping[str, Any] = field(default_factory=dict)
    derivative_name: str = "derivatives_seg"
    snapshots: Path | None = None
    override: frozenset[str] = frozenset()
    ignore_compatibility: bool = False
    timeout: float | None = None
    work: Path | None = None
    runner: type[JobRun] = JobRun

    @property
    def derivatives(self) -> Path:
        """Folder of the results."""
        return self.dataset / self.derivative_name

    @property
    def ledger(self) -> Path:
        """Folder of the ledger."""
        return self.derivatives / book.FOLDER

    def paths(self, scan: Scan) -> dict[str, Path]:
        """Where the results of a scan go."""
        return output_paths(scan, self.derivative_name, self.snapshots, self.options.output.layout, self.work)

    def settings(self, pair: Pair) -> str:
        """Hash of all that decides about a result, but for the scan itself."""
        models = self.fingerprints(pair)
        options, landmarks = self.options.as_dict(), self.models[self.pairs.index(pair)].landmarks
        where = {"copies": bool(self.snapshots), "any": self.ignore_compatibility, "landmarks": landmarks}
        return stage_key(version=spineps.__version__, models=models, options=options, **where)[:16]

    def fingerprints(self, pair: Pair) -> dict[str, str]:
        """Of the models, 16 characters each."""
        models = self.models[self.pairs.index(pair)]
        return {part: identity(model)[:16] for part, model in models.by_phase().items()}

    def packed(self, threads: int | None = None) -> bytes:
        """For other processes: models without their loaded networks, and with so many threads."""
        return pickle.dumps(replace(self, models=tuple(_bare(models, threads) for models in self.models)))


@dataclass(frozen=True)
class Task:
    """One scan to be done.

    Attributes:
        scan: the file.
        name: what the ledger calls it.
        pair: modality and plane, which choose the models.
        setup: the run's, or its packed form.
        settings: hash of the run's settings for this pair.
        attempt: 1 for the first.
        extra: for the ledger.
    """

    scan: Scan
    name: str
    pair: Pair
    setup: Setup | bytes
    settings: str
    attempt: int = 1
    extra: Mapping[str, str] = field(default_factory=dict)

    def entry(self, status: str, **more: Any) -> book.Entry:
        """A line of the ledger on this task."""
        pair = f"{self.pair[0].name} {self.pair[1].name}"
        known = {"settings": self.settings, "attempt": self.attempt, "pair": pair, "extra": dict(self.extra)}
        return book.Entry(self.name, status, **{**known, **more})


def run_one(task: Task, progress: Progress | None = None) -> book.Entry:
    """Segment one scan and enter it into the ledger."""
    work = Work(task, progress)
    with deadline(work):
        work.read()
        work.segment()
        return work.write()


class Work:
    """A task in the three steps of :class:`~spineps.dataset.job.JobRun`, none of which ever raises an ``Exception``."""

    def __init__(self, task: Task, progress: Progress | None = None) -> None:
        self.task = task
        self.setup = _unpacked(task.setup) if isinstance(task.setup, bytes) else task.setup
        self.ledger = book.ledger_in(self.setup.ledger)
        self.input = _mark(task.scan.path)
        setup = self.setup
        self.job = Job(
            task.scan,
            setup.models[setup.pairs.index(task.pair)],
            setup.options,
            setup.paths(task.scan),
            setup.keywords,
            override=setup.override,
            ignore_compatibility=setup.ignore_compatibility,
            progress=progress,
        )
        self.run = setup.runner(self.job)
        self._error: Exception | None = None

    def read(self) -> None:
        """First step."""
        reset_peak()
        self.record(self.task.entry(book.STARTED, input=self.input))
        self._survive(self.run.read)

    def segment(self) -> None:
        """Second step."""
        self._survive(self.run.segment)

    def write(self) -> book.Entry:
        """Last step, and the end of the scan in the ledger."""
        self._survive(self.run.write)
        outcome = self.run.outcome
        code, error = outcome.code, outcome.error
        if self._error is not None:
            code = ErrCode.UNKNOWN
            error = SpinepsError(f"{type(self._error).__name__}: {self._error}", "Please report it.")
        ended = {ErrCode.OK: book.DONE, ErrCode.ALL_DONE: book.ALREADY_DONE}
        return self.record(
            self.task.entry(
                ended.get(code, book.FAILED),
                code=code.name,
                message=str(error) if error is not None else " ".join(outcome.warnings),
                seconds=round(outcome.seconds, 3),
                peak_mb=peak_mb(),
                models=self.setup.fingerprints(self.task.pair),
                input=self.input,
                outputs=self._outputs() if code in ended else {},
            )
        )

    def record(self, entry: book.Entry) -> book.Entry:
        """Into the ledger; a full disk must not cost more than the line."""
        try:
            return self.ledger.write(entry)
        except SpinepsError as error:
            logger.error("%s", error)
            return entry

    def _survive(self, step: Callable[[], None]) -> None:
        """Even a programming error stays with its scan: the others must not pay for it."""
        if self._error is not None:
            return
        try:
            step()
        except Exception as error:
            logger.exception("%s: unexpected error; please report it.", self.task.scan.path.name)
            self._error = error

    def _outputs(self) -> dict[str, list[Any]]:
        job = self.job
        wanted = sink.wanted_files(job.paths, job.options.output, job.scan.format)
        keys = {path: key for key, path in reversed(list(job.paths.items()))}  # the first of two names counts
        marks = {path: _mark(path) for path in (*wanted.final, *wanted.extras, job.paths["out_prov"])}
        return {
            keys.get(path, path.name): [os.path.relpath(path, self.setup.derivatives), *mark]
            for path, mark in marks.items()
            if mark != (0, 0)
        }


def unchanged(entry: book.Entry, path: Path, derivatives: Path) -> bool:
    """Are the scan and its outputs, by size and time of change, the ones that the ledger tells of?"""
    if entry.input != _mark(path):
        return False
    files = entry.paths(derivatives)
    return all(_mark(files[key]) == tuple(mark[1:]) for key, mark in entry.outputs.items())


@contextmanager
def deadline(work: Work) -> Iterator[None]:
    """Ends this process when the scan takes longer than ``timeout``; the ledger says so."""
    seconds = work.setup.timeout
    if not seconds:
        yield
        return

    def give_up() -> None:
        message = f"Not done after {seconds:g} s. Give it more time with --timeout, or leave it out."
        work.record(work.task.entry(book.FAILED, code="TIMEOUT", message=message, seconds=seconds, input=work.input))
        os._exit(TIMED_OUT)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    # Foreign code can hang while it holds Python's lock; this timer does not need it.
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=2)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()


@lru_cache(maxsize=2)
def _unpacked(setup: bytes) -> Setup:
    # Kept, so that networks are loaded once per process.
    return pickle.loads(setup)


def _bare(models: Models, threads: int | None) -> Models:
    # A copy of the dataclass has no cached network; models of another kind must bring their own pickling.
    parts: dict[str, Any] = {
        part: replace(model, threads=model.threads or threads) if isinstance(model, Model) else model
        for part, model in models.by_phase().items()
    }
    return replace(models, **parts)


def _mark(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
