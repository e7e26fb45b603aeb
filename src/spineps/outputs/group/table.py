"""All scans of a data set: measured once, remembered, and written as two tables and a page.

Scans are streamed: one is in memory at a time (one per thread), what was measured goes straight into ``cache.jsonl``.
A scan is measured again only when one of its files has another size or time of change, or when its record has another
key: the times notice every writing, and the key (version, input, models, options) notices a copy that kept its times.
Bytes are not read again for that; hashes are the business of the runs themselves.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from spineps.anatomy import SACRUM
from spineps.outputs.group.flags import FLAGS, Cohort, judge_rows, scan_flags
from spineps.outputs.group.measure import DONE, FAILED, measure_scan, who
from spineps.outputs.group.page import Thumbnails, write_page
from spineps.outputs.paths import results_beside
from spineps.outputs.provenance import read_record
from spineps.outputs.writer import Writer

logger = logging.getLogger(__name__)

FOLDER, CACHE = "group", "cache.jsonl"
#: Another number when what is measured changes: then everything is measured again.
CACHE_FORMAT = 2
#: Files that a scan's lines come from.
MEASURED = ("out_spine", "out_vert", "out_ctd", "out_snap")
SKIPPED = ("output_raw_", "debug_", ".")
NOT_ENTERED = {FOLDER, "work", "spineps_ledger", "figures", "logs"}

STRUCTURES = {
    "participant_id": "Participant.",
    "session_id": "Session, n/a without one.",
    "scan": "Path of the scan, relative to the data set.",
    "kind": "vertebra or disc.",
    "label": "Value in the mask of vertebrae.",
    "name": "Name of the vertebra (#n: number from the top, not named), or of the disc by the vertebra above it.",
    "confidence": "Probability, 0 to 1, that this name is right.",
    "alternative": "Next best name.",
    "alternative_confidence": "Probability of the next best name.",
    "volume_mm3": "Volume of everything with this label, in mm^3.",
    "body_volume_mm3": "Volume of the vertebral body alone, in mm^3.",
    "x_mm": "Centre of the body or disc in mm, towards the right (RAS+ axes of the scan's affine: larger is right).",
    "y_mm": "Likewise, towards the front.",
    "z_mm": "Likewise, towards the head.",
    "cut": "Sides of the field of view (R L A P S I) that cut the body or disc; n/a when it is whole.",
    "neighbour_ratio": "Body (disc) volume over the geometric mean of both neighbours.",
    "cohort_z": "Robust z of the log volume among all scans of this data set.",
    "flags": "Why the volume is odd: neighbours, cohort.",
}
SCANS = {
    "participant_id": "Participant.",
    "session_id": "Session, n/a without one.",
    "scan": "Path of the scan, relative to the data set.",
    "status": "done, failed, broken or unfinished.",
    "flags": "Comma-separated, worst first; see FlagRules.",
    "n_vertebrae": "Vertebrae in the mask, the sacrum not counted.",
    "first": "Topmost vertebra.",
    "last": "Lowest vertebra or sacrum.",
    "min_confidence": "Smallest probability of a name.",
    "touches": "Sides of the field of view that cut a body or disc.",
    "message": "What went wrong, or warnings.",
}


@dataclass
class Group:
    """What came out.

    Attributes:
        folder: of the tables and the page.
        scans: number of scans, failed ones included.
        measured: read from the masks in this run; the others were remembered.
        flags: how many scans carry each flag.
    """

    folder: Path
    scans: int = 0
    measured: int = 0
    flags: dict[str, int] = field(default_factory=dict)

    @property
    def page(self) -> Path:
        """To be opened in a browser."""
        return self.folder / "index.html"

    @property
    def table(self) -> Path:
        """A row per vertebra and disc."""
        return self.folder / "structures.tsv"


def write_group(
    root: Path,
    failures: Iterable[tuple[str, str]] = (),
    title: str = "",
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Group:
    """Tables, sidecars and page of all results below ``root``, in ``<root>/group``.

    Args:
        root: folder of the results, in either layout.
        failures: (path of the scan, message) of scans whose last run failed.
        title: name of the data set on the page.
        threads: masks read at once.
        progress: called with (done, total).

    Raises:
        OutputError: the folder cannot be written to.
    """
    group = Group(root / FOLDER)
    failed = dict(failures)
    cohort, cards = Cohort(), list[dict[str, Any]]()
    records = find_records(root)
    thumbnails = Thumbnails(group.folder)
    cache = group.folder / CACHE
    with Writer() as writer:
        writer.write(cache, partial(_measure_all, root, records, cache, threads, progress, thumbnails, cohort, group))
    with cache.open(encoding="utf-8") as lines, Writer() as writer:
        scans = _judged(lines, cohort, failed, thumbnails, group, cards)
        writer.write(group.table, lambda stream: _structures(stream, scans))
        writer.write(group.folder / "scans.tsv", lambda stream: _table(stream, SCANS, map(_scan_row, cards)))
        writer.json(group.folder / "structures.json", {k: {"Description": text} for k, text in STRUCTURES.items()})
        rules = {flag.code: flag.rule for flag in FLAGS}
        about = {k: {"Description": text} for k, text in SCANS.items()}
        writer.json(group.folder / "scans.json", {**about, "FlagRules": rules})
        write_page(writer, group.page, title or root.absolute().parent.name, cards)
    thumbnails.forget_others(card["thumb"] for card in cards)
    group.scans = len(cards)
    return group


def find_records(root: Path) -> list[Path]:
    """All records below ``root``, sorted."""
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in NOT_ENTERED and not name.startswith(SKIPPED)]
        found += [Path(folder, name) for name in names if name.endswith("_prov.json") and not name.startswith(".")]
    return sorted(found)


def _measure_all(
    root: Path,
    records: Sequence[Path],
    cache: Path,
    threads: int,
    progress: Callable[[int, int], None] | None,
    thumbnails: Thumbnails,
    cohort: Cohort,
    group: Group,
    stream: IO[bytes],
) -> None:
    """Write the new cache, a line per scan in the order of ``records``."""
    known = _Known(cache)

    def one(record: Path) -> tuple[bytes, dict[str, Any], bool]:
        name = record.relative_to(root).as_posix()
        mark = _mark(record)
        line = known.line(name, mark)
        if line is not None:
            scan = json.loads(line)
            if scan["thumb"] and not (group.folder / scan["thumb"]).is_file():  # deleted by hand or by another run
                thumbnails.make(scan["scan"], results_beside(record)["out_snap"])
            return line, scan, False
        scan = {**measure_scan(record), "record": name, "mark": mark}
        scan["thumb"] = thumbnails.make(scan["scan"], results_beside(record)["out_snap"])
        scan["picture"] = Path(os.path.relpath(results_beside(record)["out_snap"], root)).as_posix()
        return json.dumps(scan, separators=(",", ":")).encode() + b"\n", scan, True

    for number, (line, scan, new) in enumerate(_in_order(one, records, threads), 1):
        stream.write(line)
        cohort.add(scan)
        group.measured += new
        if progress is not None:
            progress(number, len(records))


def _in_order(work: Callable[[Path], Any], items: Sequence[Path], threads: int) -> Iterator[Any]:
    """``map`` in threads that never runs far ahead of its reader, so that memory stays flat."""
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        waiting: deque[Future[Any]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Known:
    """Lines of the cache of the run before, by record; only their places are kept in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        with suppress(OSError), path.open("rb") as stream:
            place = 0
            for line in stream:
                self._places[str(_parsed(line).get("record", ""))] = (place, len(line))
                place += len(line)

    def line(self, record: str, mark: list[Any]) -> bytes | None:
        """The line on ``record`` if its files are still the same."""
        if record not in self._places:
            return None
        place, length = self._places[record]
        with suppress(OSError), self._path.open("rb") as stream:
            stream.seek(place)
            line = stream.read(length)
            found = _parsed(line)
            return line if found.get("record") == record and found.get("mark") == mark else None
        return None


def _parsed(line: bytes) -> dict[str, Any]:
    """A line of the cache; empty when it is damaged, which costs measuring that scan again."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and line.endswith(b"\n") else {}


def _mark(record: Path) -> list[Any]:
    """Sizes and times of change of all files of a scan, and the key that its record holds."""
    key = read_record(record).get("stages", {}).get("final", {}).get("key", "")
    files = results_beside(record)
    return [CACHE_FORMAT, key, *map(_file_mark, (record, *(files[name] for name in MEASURED)))]


def _file_mark(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


def _judged(
    lines: Iterable[str],
    cohort: Cohort,
    failed: dict[str, str],
    thumbnails: Thumbnails,
    group: Group,
    cards: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Scans with their flags; what tables and page need of them beyond their rows is collected in ``cards``."""
    for line in lines:
        scan = json.loads(line)
        message = failed.pop(scan["scan"], None)
        if message is not None:
            scan.update(status=FAILED, message=message)
        judge_rows(scan, cohort)
        cards.append(_card(scan, group))
        yield scan
    for name, message in sorted(failed.items()):
        cards.append(
            _card({"scan": name, **who(Path(name).name), "status": FAILED, "message": message, "rows": []}, group)
        )
    cards.sort(key=lambda card: (card["participant"], card["session"], card["scan"]))


def _card(scan: dict[str, Any], group: Group) -> dict[str, Any]:
    flags = scan_flags(scan)
    for code in flags:
        group.flags[code] = group.flags.get(code, 0) + 1
    vertebrae = [row for row in scan["rows"] if row["kind"] == "vertebra"]
    sure = [row["confidence"] for row in vertebrae if row["confidence"] is not None]
    odd = [row["name"] for row in scan["rows"] if row.get("odd")]
    return {
        **{key: scan[key] for key in ("scan", "participant", "session", "status")},
        "message": scan["message"] or " ".join(scan.get("notes", ())),
        "flags": flags,
        "count": sum(row["label"] != SACRUM for row in vertebrae),
        "first": vertebrae[0]["name"] if vertebrae else "",
        "last": vertebrae[-1]["name"] if vertebrae else "",
        "confidence": min(sure) if sure else None,
        "touches": scan.get("touches", ""),
        "odd": odd,
        "thumb": scan.get("thumb", ""),
        "picture": scan.get("picture", ""),
        "report": _report(group.folder.parent, scan.get("record", "")),
    }


def _report(root: Path, record: str) -> str:
    """Path of the scan's report below ``root``; it may have come, or gone, since the scan was measured."""
    page = results_beside(root / record)["out_report"] if record else None
    return page.relative_to(root).as_posix() if page is not None and page.is_file() else ""


def _structures(stream: IO[bytes], scans: Iterable[dict[str, Any]]) -> None:
    _table(stream, STRUCTURES, (values for scan in scans for values in _structure_rows(scan)))


def _structure_rows(scan: dict[str, Any]) -> Iterator[list[Any]]:
    # Numbers from a failed run's predecessor would look like results of now.
    for row in scan["rows"] if scan["status"] == DONE else ():
        yield [
            *(scan["participant"], scan["session"], scan["scan"], row["kind"], row["label"], row["name"]),
            *(row["confidence"], row["alternative"], row["alternative_confidence"], row["volume"], row["body"]),
            *(row["centre"] or (None,) * 3),
            *(row["cut"], _rounded(row["ratio"]), _rounded(row["z"]), ",".join(row["odd"])),
        ]


def _scan_row(card: dict[str, Any]) -> list[Any]:
    counted = card["status"] == DONE
    return [
        *(card["participant"], card["session"], card["scan"], card["status"], ",".join(card["flags"])),
        *(card["count"] if counted else None, card["first"], card["last"], card["confidence"], card["touches"]),
        card["message"],
    ]


def _table(stream: IO[bytes], columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
    stream.write(("\t".join(columns) + "\n").encode())
    for row in rows:
        stream.write(("\t".join(map(_cell, row)) + "\n").encode())


def _cell(value: Any) -> str:
    return "n/a" if value is None or value == "" else " ".join(str(value).split())


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
