"""What is odd about a scan, by fixed rules with their thresholds; a flag asks for a look, it does not condemn."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from spineps.anatomy import SACRUM, T13, VERTEBRAE
from spineps.outputs.group.measure import BROKEN, FAILED, UNFINISHED

#: Fewer vertebrae than this, or than one in so many mm of the field of view's height (a lumbar scan of 280 mm shows
#: seven or eight, a whole spine of 700 mm twenty-four): half the scan went unseen.
FEW, MM_PER_VERTEBRA = 4, 60.0
#: A name less likely than this is more likely wrong than right.
UNSURE = 0.5
#: Body (disc) so many times larger or smaller than the mean of its two neighbours.  Bodies change by 5 to 15 % from one
#: level to the next; discs may be worn.  Our own choice.
BODY_RATIO, DISC_RATIO = 1.5, 2.0
#: Robust z of the log volume among all scans of the data set, limit after Iglewicz and Hoaglin (1993); from so many
#: values on; a spread below 5 % counts as 5 %.
ROBUST_Z, COHORT, LEAST_SPREAD = 3.5, 20, 0.05
#: C1 has no body and C2 carries the dens.
ODD_BODIES = (1, 2, SACRUM)


@dataclass(frozen=True)
class Flag:
    """One rule.

    Attributes:
        code: in tables.
        title: for people.
        rule: with its threshold.
        severity: 3 no result to use, 2 look at it, 1 good to know.
    """

    code: str
    title: str
    rule: str
    severity: int


FLAGS = (
    Flag("failed", "failed", "the last run of this scan ended with an error (see its message)", 3),
    Flag("broken", "broken files", "results cannot be read or do not fit together", 3),
    Flag("unfinished", "unfinished", "an interrupted run; the same command goes on from there", 3),
    Flag("empty", "no vertebra", "the mask holds no vertebra", 3),
    Flag("gap", "gap in names", "neighbours whose names do not follow each other (no T12, T13, L5, L6 is no gap)", 2),
    Flag("few", "few vertebrae", f"fewer than {FEW}, or than one per {MM_PER_VERTEBRA:g} mm of the scan's height", 2),
    Flag(
        "volume",
        "odd volume",
        f"a body {BODY_RATIO:g} (disc {DISC_RATIO:g}) times larger or smaller than the mean of both neighbours, or "
        f"|robust z| > {ROBUST_Z:g} among at least {COHORT} scans; what the border cuts is left out",
        2,
    ),
    Flag("unsure", "unsure names", f"a name with a probability below {UNSURE:g}", 2),
    Flag("ambiguous", "ambiguous names", "no landmark that fixes the names", 2),
    Flag(
        "cut",
        "cut off",
        "a body or disc, whole from head to foot, is cut at its left, right, front or back (not the sacrum)",
        2,
    ),
    Flag("unnamed", "not named", "vertebrae were numbered from the top, not named", 1),
)


class Cohort:
    """Volumes of every structure over all scans; 4 bytes each."""

    def __init__(self) -> None:
        self._values: dict[int, array[float]] = {}
        self._middle: dict[int, tuple[float, float]] = {}

    def add(self, scan: Mapping[str, Any]) -> None:
        """Remember one scan's volumes; numbered vertebrae of different scans cannot be compared."""
        if scan.get("named"):
            for row in scan["rows"]:
                if not row["cut"] and size(row) > 0:
                    self._values.setdefault(row["label"], array("f")).append(math.log(size(row)))

    def z(self, row: Mapping[str, Any]) -> float | None:
        """Robust z of the log volume: 0.6745 (x - median) / MAD; None when there are too few values."""
        label = row["label"]
        values = self._values.get(label)
        if values is None or len(values) < COHORT or size(row) <= 0:
            return None
        if label not in self._middle:
            every = np.frombuffer(values, np.float32)
            middle = float(np.median(every))
            self._middle[label] = middle, max(float(np.median(np.abs(every - middle))) / 0.6745, LEAST_SPREAD)
        middle, spread = self._middle[label]
        return (math.log(size(row)) - middle) / spread


def size(row: Mapping[str, Any]) -> float:
    """The volume (mm3) that is compared: the body of a vertebra (all of the sacrum), all of a disc."""
    return row["volume"] if row["body"] is None or row["label"] == SACRUM else row["body"]


def judge_rows(scan: Mapping[str, Any], cohort: Cohort) -> None:
    """Add ``ratio``, ``z`` and ``odd`` (why the volume is flagged) to every row."""
    for kind, limit in (("vertebra", BODY_RATIO), ("disc", DISC_RATIO)):
        chain = [row for row in scan["rows"] if row["kind"] == kind]
        comparable = [not row["cut"] and size(row) > 0 and row["label"] not in ODD_BODIES for row in chain]
        for k, row in enumerate(chain):
            z = cohort.z(row) if scan.get("named") and not row["cut"] else None
            ratio = None
            if 0 < k < len(chain) - 1 and all(comparable[k - 1 : k + 2]):
                ratio = size(row) / math.sqrt(size(chain[k - 1]) * size(chain[k + 1]))
            odd = []
            if ratio is not None and not 1 / limit <= ratio <= limit:
                odd.append("neighbours")
            if z is not None and abs(z) > ROBUST_Z:
                odd.append("cohort")
            row.update(ratio=ratio, z=z, odd=odd)


def scan_flags(scan: Mapping[str, Any]) -> list[str]:
    """Codes of all flags of a scan whose rows were judged, worst first."""
    if scan["status"] in (FAILED, BROKEN, UNFINISHED):
        return [scan["status"]]
    labels = [row["label"] for row in scan["rows"] if row["kind"] == "vertebra"]
    count = sum(label != SACRUM for label in labels)
    sure = [row["confidence"] for row in scan["rows"] if row["kind"] == "vertebra" and row["confidence"] is not None]
    raised = {
        "empty": not labels,
        "gap": scan["named"] and bool(gaps(labels)),
        "few": bool(labels) and count < max(FEW, scan["height_mm"] / MM_PER_VERTEBRA),
        "volume": any(row["odd"] for row in scan["rows"]),
        "unsure": min(sure, default=1.0) < UNSURE,
        "ambiguous": scan["ambiguous"],
        "cut": any(_cut_beside(row) for row in scan["rows"]),
        "unnamed": bool(labels) and not scan["named"],
    }
    return [flag.code for flag in FLAGS if raised.get(flag.code)]


def _cut_beside(row: Mapping[str, Any]) -> bool:
    """Nearly every scan ends inside a vertebra above and below, and hardly one shows the whole width of a sacrum."""
    return row["label"] != SACRUM and bool(row["cut"]) and not set(row["cut"]) & set("SI")


def gaps(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours in the mask that are none in the spine; people with 11 or 13 thoracic, 4 or 6 lumbar ones have none.

    >>> gaps([17, 18, 20, 21, 22, 23, 26]), gaps([19, 28, 20]), gaps([20, 22]), gaps([22, 26])
    ([], [], [(20, 22)], [(22, 26)])
    """
    order = (*VERTEBRAE, SACRUM)
    may_miss = {19, T13, 24, 25}
    found = []
    for upper, lower in pairwise(labels):
        between = order[order.index(upper) + 1 : order.index(lower)]
        # T12 may miss when there is no T13 either, L5 when there is no L6: the order of the names sees to that.
        if set(between) - may_miss:
            found.append((upper, lower))
    return found
