"""What the user sees while a scan is worked on, and in the end."""

from __future__ import annotations

import cProfile
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from spineps.seg_run import Result

LABELS = {
    "preprocess": "pre-processing",
    "semantic": "structures",
    "instance": "vertebrae",
    "postprocess": "cleaning",
    "labeling": "naming",
    "points": "points",
    "files": "files",
}
#: Says what a network really runs on, which everybody should see.
DEVICE_LOG = "spineps.inference.engine"
FILES = {
    "out_spine": "structures",
    "out_vert": "vertebrae",
    "out_ctd": "points",
    "out_snap": "picture",
    "out_stats": "measurements",
    "out_report": "report",
    "out_spine_dicom": "DICOM SEG",
    "out_vert_dicom": "DICOM SEG",
}


class Reporter:
    """Progress on the terminal (bars) or in a pipe (one line per phase), both on stderr; log lines beside it."""

    def __init__(self, verbose: bool = False, quiet: bool = False) -> None:
        self.quiet = quiet
        self.handler = _Handler(self)
        self.level = logging.INFO if verbose else logging.WARNING
        self.bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._phase, self._start = "", 0.0
        self._told: set[str] = set()

    def __enter__(self) -> Reporter:
        logger = logging.getLogger("spineps")
        logger.addHandler(self.handler)
        logger.setLevel(self.level)
        logger.propagate = False
        if not self.quiet:
            logging.getLogger(DEVICE_LOG).setLevel(logging.INFO)
        if sys.stderr.isatty() and not self.quiet:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description:>15}"), BarColumn(), TimeElapsedColumn())
            self.bars = Progress(*columns, console=Console(stderr=True))
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_of_phase()
        if self.bars is not None:
            self.bars.stop()
        logger = logging.getLogger("spineps")
        logger.removeHandler(self.handler)
        logger.propagate = True
        logging.getLogger(DEVICE_LOG).setLevel(logging.NOTSET)

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase:
            self._end_of_phase()
            self._phase, self._start = phase, time.perf_counter()
        if self.bars is not None:
            if phase not in self._tasks:
                self._tasks[phase] = self.bars.add_task(LABELS.get(phase, phase), total=total)
            self.bars.update(self._tasks[phase], completed=done, total=total)

    def say(self, text: str) -> None:
        """A line on stderr that does not tear the bars."""
        if self.bars is not None:
            self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text, err=True)

    def next_scan(self) -> None:
        """Forget the phases of the scan before."""
        self._end_of_phase()
        self._told.clear()
        if self.bars is not None:
            for task in self._tasks.values():
                self.bars.remove_task(task)
        self._tasks.clear()

    def _end_of_phase(self) -> None:
        # Only the next phase shows that one is over: some work in several passes.
        if self._phase and self._phase not in self._told and self.bars is None and not self.quiet:
            self._told.add(self._phase)
            label = LABELS.get(self._phase, self._phase)
            typer.echo(f"{label:>15}  {time.perf_counter() - self._start:6.1f} s", err=True)
        self._phase = ""


class _Handler(logging.Handler):
    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        told = record.getMessage()
        self.reporter.say(told if record.name == DEVICE_LOG else f"{record.levelname.lower()}: {told}")


def summary(result: Result, scan: str) -> dict[str, Any]:
    """What ``--json`` prints for one scan."""
    import spineps

    return {
        "input": scan,
        "code": result.errcode.name,
        "exit_code": result.errcode.exit_code,
        "files": {key: str(path) for key, path in result.output_paths.items() if path.is_file()},
        "warnings": list(result.warnings),
        "error": result.error.message if result.error else None,
        "cure": result.error.cure if result.error else None,
        "seconds": round(result.seconds, 2),
        "peak_memory_gb": peak_memory_gb(),
        "version": spineps.__version__,
    }


def print_json(content: Mapping[str, Any]) -> None:
    """One line on stdout."""
    typer.echo(json.dumps(content, default=str))


def print_files(result: Result) -> None:
    """The files that people look for."""
    for key, label in FILES.items():
        path = result.output_paths.get(key)
        if path is not None and path.is_file():
            typer.echo(f"{label:>12}  {_short(path)}")


def peak_memory_gb() -> float | None:
    """Largest memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e9 if sys.platform == "darwin" else 1e6), 3)


@contextmanager
def profiled(wanted: bool) -> Iterator[None]:
    """``--run-cprofiler``."""
    if not wanted:
        yield
        return
    profile = cProfile.Profile()
    with profile:
        yield
    profile.dump_stats("spineps.prof")
    typer.echo("profile: spineps.prof (read it with: python -m pstats spineps.prof)", err=True)


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)
