"""The group level of a data set: what lies on the disk together with what the ledger knows of failures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from spineps.dataset import ledger as book
from spineps.errors import InputNotFoundError
from spineps.outputs.group.table import Group, find_records, write_group
from spineps.outputs.paths import DERIVATIVE_NAME, derivative_folder


def results_folder(folder: Path, derivative_name: str = DERIVATIVE_NAME) -> Path:
    """The folder of results: ``folder`` itself, or the one in it under its usual name in either layout.

    Raises:
        InputNotFoundError: there are no results.
    """
    for layout in ("published", "bids"):
        inner = derivative_folder(folder, derivative_name, layout)
        if inner.is_dir() and derivative_name:
            return inner
    if folder.is_dir() and ((folder / book.FOLDER).is_dir() or find_records(folder)):
        return folder
    cure = "Give the data set (and --derivative-name when it is not the usual one), or the folder of results."
    raise InputNotFoundError(f"{folder} holds no results of spineps.", cure)


def report_group(
    folder: str | Path,
    derivative_name: str = DERIVATIVE_NAME,
    title: str = "",
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Group:
    """Tables and page of a data set, in ``<results>/group``; what has not changed is not read again.

    Args:
        folder: the data set, or its folder of results.
        derivative_name: name of the folder of results.
        title: on the page; by default the name of the data set's folder.
        threads: masks read at once.
        progress: called with (done, total).

    Raises:
        InputNotFoundError: there are no results.
        OutputError: the tables cannot be written.
    """
    folder = Path(folder).absolute()
    root = results_folder(folder, derivative_name)
    failures = [(e.scan, _without_path(e)) for e in book.read(root) if e.status in (book.FAILED, book.CRASHED)]
    if not title:
        title = folder.name if folder != root else " / ".join(root.parts[-2:])
    return write_group(root, failures, title, threads, progress)


def _without_path(entry: book.Entry) -> str:
    """The message, with the bare name of the scan for its path: the page is shown to people elsewhere."""
    return re.sub(r"(?:[A-Za-z]:)?[/\\].*?" + re.escape(entry.scan), Path(entry.scan).name, entry.message)
