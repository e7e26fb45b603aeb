"""Log lines on the terminal and in a file, and the seconds of each phase."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spineps.pipeline import Progress

logger = logging.getLogger(__name__)


def clocked(progress: Progress | None) -> Progress:
    """Logs the seconds of every phase on the way."""
    state: dict[str, float] = {}

    def tell(phase: str, done: int, total: int) -> None:
        start = state.setdefault(phase, time.perf_counter())
        if done == total:
            logger.info("%s: %.2f s", phase, time.perf_counter() - start)
        if progress is not None:
            progress(phase, done, total)

    return tell


@contextmanager
def talking(verbose: bool) -> Iterator[None]:
    """Log lines of this package on the terminal while the block runs, unless logging is set up already."""
    if not verbose or logging.getLogger("spineps").handlers or logging.getLogger().handlers:
        yield
        return
    with _heard_by(logging.StreamHandler(), "%(levelname)s %(message)s"):
        yield


@contextmanager
def log_file(dataset: Path | None) -> Iterator[None]:
    """Log lines of this package into ``<dataset>/logs`` while the block runs."""
    if dataset is None:
        yield
        return
    now = time.localtime()
    name = f"date-{time.strftime('%Y-%m-%d', now)}_time-{now.tm_hour}-{now.tm_min}-{now.tm_sec}"
    try:
        (dataset / "logs").mkdir(parents=True, exist_ok=True)
        path = dataset / "logs" / f"{name}_segmentation_pipeline_log.log"
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        logger.warning("No log file in %s: %s", dataset, error)
        yield
        return
    with _heard_by(handler, "%(asctime)s %(levelname)s %(message)s"):
        yield


@contextmanager
def _heard_by(handler: logging.Handler, form: str) -> Iterator[None]:
    """INFO and above of this package go to ``handler`` too."""
    root = logging.getLogger("spineps")
    level = root.level
    handler.setFormatter(logging.Formatter(form))
    root.addHandler(handler)
    root.setLevel(min(root.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
