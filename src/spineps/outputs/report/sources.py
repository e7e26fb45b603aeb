"""What a report is made of: the files of one scan, checked, and what its record says."""

from __future__ import annotations

import csv
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spineps.anatomy import DISC_OFFSET, SACRUM, VERTEBRAE
from spineps.errors import InputNotFoundError, SpinepsError, UnreadableInputError
from spineps.outputs.group.flags import FLAGS, Cohort, Flag, judge_rows, scan_flags
from spineps.outputs.group.measure import DONE, measure
from spineps.outputs.nifti import read_image, read_labels
from spineps.outputs.paths import results_beside
from spineps.outputs.provenance import read_record, stage_key
from spineps.outputs.writer import fingerprint
from spineps.volume import Volume

logger = logging.getLogger(__name__)

#: Another number when pages are made in another way, so that older ones are made again.
FORMAT = 1
#: What the record says of a run that the page shows.
ABOUT = ("software", "created", "input", "models", "options", "warnings", "naming")
#: Masks of unknown origin: their values are taken for names, of which nobody said how sure they are.
UNSAID: dict[str, Any] = {"confidence": {}}


@dataclass(frozen=True)
class Sources:
    """Files of one report; those that are missing are None.

    Attributes:
        title: name of the scan.
        out: where the page goes.
        semantic: structures.
        vertebrae: vertebrae, same grid.
        image: the scan.
        points, stats, picture: further results.
        record: what made them; empty for masks from elsewhere.
        volume: the scan, where it is no file (DICOM).
    """

    title: str
    out: Path
    semantic: Path
    vertebrae: Path
    image: Path | None = None
    points: Path | None = None
    stats: Path | None = None
    picture: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    volume: Volume | None = None

    def files(self) -> dict[str, Path]:
        """All files that are there."""
        every = {
            **{"image": self.image, "structures": self.semantic, "vertebrae": self.vertebrae, "points": self.points},
            **{"measurements": self.stats, "picture": self.picture},
        }
        return {key: path for key, path in every.items() if path is not None}

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Size and hash of every file.

        Raises:
            InputNotFoundError: a mask is missing.
            UnreadableInputError: a file may not be read.
        """
        try:
            return {key: fingerprint(path) for key, path in self.files().items()}
        except FileNotFoundError as error:
            raise InputNotFoundError(f"{error.filename} is not there.", "Segment the scan first.") from error
        except OSError as error:
            raise UnreadableInputError(f"{error.filename} cannot be read ({error.strerror}).", "Look at it.") from error


def sources_of(record: Path, image: Path | None, volume: Volume | None = None) -> Sources:
    """The sources that the record ``.._prov.json`` knows; ``image`` is the scan where it can be found.

    Raises:
        InputNotFoundError: the record is of no finished run.
    """
    about, files = read_record(record), results_beside(record)
    if "final" not in about.get("stages", {}):
        raise InputNotFoundError(f"{record.name} tells of no finished run.", "Segment the scan first.")
    there = {key: path for key, path in files.items() if path.is_file()}
    return Sources(
        str(about.get("input", {}).get("name") or record.name),
        files["out_report"],
        files["out_spine"],
        files["out_vert"],
        image,
        there.get("out_ctd"),
        there.get("out_stats"),
        there.get("out_snap"),
        about,
        volume,
    )


def key_of(sources: Sources, marks: Mapping[str, Any], program: str) -> str:
    """Changes with anything that the page shows, and with the page's own program."""
    about = {part: sources.record.get(part) for part in ABOUT}
    return stage_key(format=FORMAT, program=program, title=sources.title, files=marks, about=about)


@dataclass(frozen=True)
class Findings:
    """All that is told of a scan.

    Attributes:
        image: the scan, None when it was not found.
        semantic, vertebrae: masks.
        rows: one per vertebra and disc, from top to bottom: ``label``, ``kind``, ``name``, ``confidence``,
            ``alternative``, ``alternative_confidence``, ``cut``, ``odd`` and ``measured`` (a row of the table).
        spine: the table's row on the whole spine.
        flags: raised ones, worst first.
        notes: what the reader must know: warnings of the run, parts that are missing.
    """

    image: Volume | None
    semantic: Volume
    vertebrae: Volume
    rows: list[dict[str, Any]]
    spine: Mapping[str, str]
    flags: list[Flag]
    notes: list[str]


def read_findings(sources: Sources, marks: Mapping[str, Mapping[str, Any]]) -> Findings:
    """Read everything.

    Raises:
        UnreadableInputError: a mask is damaged, or the masks do not fit together.
    """
    notes = list(sources.record.get("warnings", ()))
    semantic, vertebrae = _mask(sources.semantic), _mask(sources.vertebrae)
    if not semantic.grid.same_as(vertebrae.grid, 0.01):
        name = sources.vertebrae.name
        raise UnreadableInputError(f"{name} does not lie on the grid of the other mask.", "Segment the scan again.")
    naming = sources.record.get("naming") or {}
    rows, touches = measure(semantic, vertebrae, [{}, {}], naming or ({} if sources.record else UNSAID))
    axis = next(k for k, code in enumerate(vertebrae.axcodes) if code in "SI")
    scan = {
        **{"status": DONE, "rows": rows, "touches": touches, "named": bool(naming) or not sources.record},
        **{"ambiguous": bool(naming.get("ambiguous")), "height_mm": vertebrae.shape[axis] * vertebrae.zoom[axis]},
    }
    judge_rows(scan, Cohort())
    raised = scan_flags(scan)
    table = _table(sources.stats, notes)
    measured = {int(row["label"]): row for row in table if row["label"].isdigit()}
    for row in rows:
        row["measured"] = measured.get(row["label"], {})
    image = _image(sources, vertebrae, notes)
    notes += _told(sources, marks)
    return Findings(
        image, semantic, vertebrae, rows, measured.get(0, {}), [flag for flag in FLAGS if flag.code in raised], notes
    )


def _mask(path: Path) -> Volume:
    from nibabel.filebasedimages import ImageFileError

    try:
        volume = read_labels(path)
    except FileNotFoundError as error:
        raise InputNotFoundError(f"{path} is not there.", "Segment the scan first.") from error
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError) as error:
        raise UnreadableInputError(f"{path} cannot be read ({error}).", "Segment the scan again.") from error
    array = volume.array
    if array.ndim != 3 or not np.array_equal(array, np.clip(np.rint(array), 0, 255)):
        raise UnreadableInputError(f"{path.name} is no mask of labels up to 255.", "Give the masks of spineps.")
    return volume.with_array(array.astype(np.uint8))


def _image(sources: Sources, mask: Volume, notes: list[str]) -> Volume | None:
    if sources.image is None and sources.volume is not None:
        return sources.volume
    if sources.image is None:
        notes.append("The scan itself was not found: the masks are shown without it.")
        return None
    try:
        image, info, _ = read_image(sources.image)
    except SpinepsError as error:
        notes.append(f"The scan itself cannot be shown: {error.message}")
        return None
    if not image.grid.same_as(mask.grid, 0.01):
        notes.append("The scan does not lie on the grid of its masks: they are shown without it.")
        return None
    known = sources.record.get("input", {}).get("sha256")
    if known and known != info.sha256:
        notes.append("The scan has changed since this run: the masks may belong to another image.")
    return image


def _table(path: Path | None, notes: list[str]) -> list[dict[str, str]]:
    """Rows of the table of measurements."""
    if path is None:
        notes.append("There is no table of measurements.")
        return []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE, restval="n/a"))
    except (OSError, ValueError, csv.Error) as error:
        notes.append(f"The table of measurements cannot be read ({error}).")
        return []
    if not rows or "label" not in rows[0]:
        notes.append("The table of measurements is empty.")
        return []
    return rows


def _told(sources: Sources, marks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Missing parts, and masks that are not those of the run."""
    notes = []
    if sources.record and sources.points is None:
        notes.append("The file of points is missing.")
    if sources.record and sources.picture is None:
        notes.append("There is no picture (_snp.png).")
    written = sources.record.get("stages", {}).get("final", {}).get("files", {})
    for key, what in (("structures", "structures"), ("vertebrae", "vertebrae")):
        path = sources.files()[key]
        known = next((mark for name, mark in written.items() if Path(name).name == path.name), None)
        if known is not None and known.get("sha256") != marks[key].get("sha256"):
            notes.append(f"The mask of {what} was changed after the run; names and measurements may not fit it.")
    return notes


def level_name(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What a row is called in the report: discs by both neighbours.

    >>> bones = [{"kind": "vertebra", "label": 24, "name": "L5"}, {"kind": "vertebra", "label": 26, "name": "S1"}]
    >>> disc = {"kind": "disc", "label": 124, "name": "disc below L5"}
    >>> level_name(disc, bones), level_name(disc, bones[:1])
    ('L5–S1', 'disc below L5')
    """
    if row["kind"] != "disc":
        return str(row["name"])
    order = [*VERTEBRAE, SACRUM]
    names = {other["label"]: other["name"] for other in rows if other["kind"] == "vertebra"}
    upper = row["label"] - DISC_OFFSET
    below = next((names[v] for v in order[order.index(upper) + 1 :] if v in names), None) if upper in names else None
    return f"{names[upper]}–{below}" if below else str(row["name"])
