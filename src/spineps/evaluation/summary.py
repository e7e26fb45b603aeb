"""Rows for tables, and what many scans say together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spineps.anatomy import instance_name
from spineps.evaluation.instances import Quality
from spineps.evaluation.metrics import MISSING, NAN, SURPLUS, Score
from spineps.evaluation.scan import ScanResult

#: Columns of the table of structures and instances; ``level`` is structure, instance or quality (one kind, one scan).
COLUMNS = (
    *("scan", "level", "kind", "name", "predicted_name", "state", "dice", "iou", "assd_mm", "hd95_mm"),
    *("volume_mm3", "reference_mm3", "volume_error_mm3", "volume_error_percent", "centroid_mm"),
    *("matched", "missing", "surplus", "rq", "sq", "pq", "name_accuracy", "shift"),
)
#: Columns that are averaged over scans.
AVERAGED = ("dice", "assd_mm", "hd95_mm", "volume_error_percent", "rq", "sq", "pq", "centroid_mm", "name_accuracy")
RESAMPLES, SEED = 2000, 0


@dataclass(frozen=True)
class Summary:
    """One number over many scans; NaN values are left out.

    Attributes:
        n: scans with a value.
        p5: 5th percentile.
        low, high: bootstrap 95 % interval of the mean over scans; NaN for fewer than two.
    """

    n: int
    mean: float
    median: float
    p5: float
    low: float
    high: float


def summarise(values: Sequence[float]) -> Summary:
    """
    >>> s = summarise([0.8, 0.9, math.nan, 1.0])
    >>> s.n, round(s.mean, 3), s.median, round(s.p5, 3), s.low < s.mean < s.high
    (3, 0.9, 0.9, 0.81, True)
    """
    x = np.array([v for v in values if not math.isnan(v)])
    if not len(x):
        return Summary(0, NAN, NAN, NAN, NAN, NAN)
    low = high = NAN
    if len(x) > 1:
        draws = np.random.default_rng(SEED).integers(0, len(x), (RESAMPLES, len(x)))
        low, high = np.percentile(x[draws].mean(axis=1), [2.5, 97.5]).tolist()
    return Summary(len(x), float(x.mean()), float(np.median(x)), float(np.percentile(x, 5)), low, high)


def rows_of(result: ScanResult) -> list[dict[str, Any]]:
    """Rows of one scan with the columns :data:`COLUMNS` (only those that apply): structures, instances, kinds."""
    rows = [
        {"scan": result.scan, "level": "structure", "kind": "structure", "name": name, **_numbers(score)}
        for name, score in result.structures.items()
    ]
    for kind, quality in result.instances.items():
        here = {"scan": result.scan, "kind": kind}
        rows += [{**here, "level": "instance", **row} for row in _instance_rows(quality)]
        rows.append({**here, "level": "quality", "name": kind, **_quality(quality)})
    return rows


def summaries(results: Sequence[ScanResult]) -> dict[str, dict[str, Summary]]:
    """Every structure and every kind of instance over all scans: name -> column -> summary."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for row in rows_of(result):
            if row["level"] != "instance":
                name = row["name"] if row["level"] == "structure" else f"each {row['name']}"
                for column in AVERAGED:
                    if column in row:
                        values[name][column].append(row[column])
    return {name: {c: summarise(v) for c, v in columns.items()} for name, columns in values.items()}


def worst_first(results: Sequence[ScanResult]) -> list[ScanResult]:
    """By :attr:`ScanResult.score`, scans without any number last."""
    return sorted(results, key=lambda r: (math.isnan(r.score), r.score, r.scan))


def as_tsv(results: Sequence[ScanResult]) -> str:
    """One line per structure, instance and kind; ``n/a`` where a number does not exist (as in BIDS)."""
    lines = ["\t".join(COLUMNS)]
    lines += ["\t".join(_cell(row.get(c)) for c in COLUMNS) for result in results for row in rows_of(result)]
    return "\n".join(lines) + "\n"


def as_document(results: Sequence[ScanResult], settings: Mapping[str, Any], unmatched: Sequence[str]) -> dict[str, Any]:
    """Everything, ready for JSON: NaN becomes null."""
    scans = [
        {
            "scan": r.scan,
            "score": _plain(r.score),
            "notes": [*r.notes, *(f"{kind}: {q.verdict}" for kind, q in r.instances.items() if q.verdict)],
            "rows": [{k: _plain(v) for k, v in row.items() if k != "scan"} for row in rows_of(r)],
        }
        for r in worst_first(results)
    ]
    together = {
        name: {column: {k: _plain(v) for k, v in vars(s).items()} for column, s in columns.items()}
        for name, columns in summaries(results).items()
    }
    return {"settings": dict(settings), "scans": scans, "summary": together, "unmatched": list(unmatched)}


def _numbers(score: Score) -> dict[str, Any]:
    errors = {"volume_error_mm3": score.volume_error_mm3, "volume_error_percent": score.volume_error_percent}
    return {**vars(score), **errors, "state": score.state}


def _instance_rows(quality: Quality) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"name": instance_name(r), "predicted_name": instance_name(p), **_numbers(s)} for p, r, s in quality.matched
    ]
    rows += [{"name": instance_name(i), "state": MISSING} for i in quality.missing]
    return rows + [{"predicted_name": instance_name(i), "state": SURPLUS} for i in quality.surplus]


def _quality(quality: Quality) -> dict[str, Any]:
    centroid = [s.centroid_mm for _, _, s in quality.matched]
    return {
        **{"rq": quality.rq, "sq": quality.sq, "pq": quality.pq, "name_accuracy": quality.names_right},
        **{"matched": len(quality.matched), "missing": len(quality.missing), "surplus": len(quality.surplus)},
        **{"shift": quality.shift, "centroid_mm": float(np.mean(centroid)) if centroid else NAN},
    }


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
