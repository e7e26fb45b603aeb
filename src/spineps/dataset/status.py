"""How far a data set is, from its ledger alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spineps.dataset import ledger as book
from spineps.dataset.ledger import Entry
from spineps.dataset.plan import explained, may_try_again
from spineps.errors import InputNotFoundError

#: The throughput is that of the last hour of work.
RECENT = 3600.0


def dataset_status(folder: Path) -> dict[str, Any]:
    """Counts by status, failures by reason, throughput and what is being done; ready for JSON.

    Args:
        folder: the derivatives folder, or the ledger in it.

    Raises:
        InputNotFoundError: there is no ledger.
    """
    if not book.ledger_folder(folder).is_dir():
        cure = "Give the data set that `spineps dataset` has worked on (and its --derivative-name)."
        raise InputNotFoundError(f"{folder} holds no ledger of scans.", cure)
    entries = book.read(folder)
    counts = Counter(entry.status for entry in entries)
    failures = [entry for entry in entries if entry.status in (book.FAILED, book.CRASHED)]
    return {
        "scans": len(entries),
        "counts": {status: counts[status] for status in book.STATUSES if counts[status]},
        "failures": [
            {"code": code, "message": message, "count": count}
            for (code, message), count in explained(failures).most_common()
        ],
        "failed_scans": [
            {"scan": e.scan, "status": e.status, "code": e.code, "message": e.message, "attempt": e.attempt,
             "tried_again": may_try_again(e)}
            for e in failures
        ],
        "running": [
            {"scan": e.scan, "worker": e.worker, "seconds": round(time.time() - e.time)}
            for e in entries
            if e.status == book.STARTED
        ],
        **throughput(entries),
    }  # fmt: skip


def throughput(entries: Sequence[Entry]) -> dict[str, float]:
    """Scans per hour over the last hour of work, mean seconds of a scan and largest memory of a worker (MB)."""
    done = [entry for entry in entries if entry.status == book.DONE]
    if not done:
        return {"scans_per_hour": 0.0, "seconds_per_scan": 0.0, "peak_mb": 0.0}
    end = max(entry.time for entry in done)
    recent = [entry for entry in done if entry.time > end - RECENT]
    span = end - min(entry.time - entry.seconds for entry in recent)
    return {
        "scans_per_hour": round(3600.0 * len(recent) / max(span, 1e-3), 1),
        "seconds_per_scan": round(sum(entry.seconds for entry in done) / len(done), 2),
        "peak_mb": max(entry.peak_mb for entry in done),
    }
