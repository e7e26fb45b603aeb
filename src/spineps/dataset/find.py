"""Which files of a data set are scans that a model should see (filters of the published system 2.1.3).

Our own walk and not TPTBox's ``BIDS_Global_info``: that one is quick enough, but it ends with the first folder that may
not be read, keeps only one of two files of the same name, does not enter linked folders and does not see names with
dots (numbers in docs/datasets.md; a test holds both to the same answer on an ordinary tree).
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from spineps.errors import InputNotFoundError, OptionError
from spineps.models.enums import Acquisition, Modality
from spineps.outputs.paths import SUFFIXES, Scan, scan_from

logger = logging.getLogger(__name__)

Pair = tuple[Modality, Acquisition]
#: Dixon images other than the in-phase one, as written in DICOM ``ImageType`` and in file names.
NOT_IN_PHASE = {"W", "F", "FAT", "WATER", "OP", "OPP", "OUTPHASE", "DIFFERENCE"}
RAWDATA_NAME = "rawdata"
UNSORTED = "unsorted"
#: Sidecars read at once: nothing to gain on a local disk, much where each one is a round trip to a file server.
READERS = 8


@dataclass
class Found:
    """What a search has found.

    Attributes:
        scans: each with the pair that it fits, sorted by subject, then path.
        left_out: (file or folder, why).
        extra: further columns of a list, by the path of the scan.
    """

    scans: list[tuple[Scan, Pair]] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    extra: dict[Path, dict[str, str]] = field(default_factory=dict)


def find_scans(
    dataset: Path,
    pairs: Sequence[Pair],
    rawdata_name: str = RAWDATA_NAME,
    ignore_bids_filter: bool = False,
    participants: Collection[str] = (),
    sessions: Collection[str] = (),
) -> Found:
    """The scans below ``<dataset>/<rawdata_name>``, each with the first (modality, plane) pair that it fits.

    ``rawdata_name`` may be ``"."``; hidden folders and folders of derivatives are never entered.  A folder that is
    linked to is entered once; a link to a scan that is found itself, and one to nothing, are left out.

    Args:
        dataset: the data set's folder.
        pairs: wanted modality and plane; a scan is listed once.
        rawdata_name: folder of the scans.
        ignore_bids_filter: take every NIfTI file without a ``seg`` key, whatever its name.
        participants: only these subjects, with or without ``sub-``; empty takes all.
        sessions: only these sessions, with or without ``ses-``.

    Raises:
        InputNotFoundError: there is no such folder.
    """
    root = dataset / rawdata_name
    if not root.is_dir():
        cure = (
            f"Scans are looked for in its folder {rawdata_name!r}; name another with --rawdata-name, or '.' for itself "
            "(and --ignore-bids-filter when the names are not BIDS)."
        )
        raise InputNotFoundError(f"{root} is not a folder.", cure if dataset.is_dir() else "Check the path.")
    subjects, visits = _labels(participants, "sub"), _labels(sessions, "ses")
    found, links, missing = Found(), {}, set(subjects)
    candidates: list[tuple[Scan, Pair, bool]] = []
    for path, linked, sidecar in _niftis(root, subjects, found.left_out):
        scan = scan_from(path, dataset, root)
        if (subjects and scan.entities["sub"] not in subjects) or (visits and _session(scan) not in visits):
            continue
        missing.discard(scan.entities["sub"])
        if linked:
            links[path] = Path(os.path.realpath(path))
        pair, reason = _judge(scan, pairs, ignore_bids_filter)
        if linked and not links[path].is_file():
            reason = "is a link to a file that is not there"
        if pair is None or reason:
            found.left_out.append((path, reason))
        else:
            candidates.append((scan, pair, sidecar and not ignore_bids_filter))
    real = {scan.path.resolve(): scan.path for scan, *_ in candidates if scan.path not in links} if links else {}
    with ThreadPoolExecutor(READERS) as pool:
        dixon = pool.map(lambda item: item[2] and _other_phase(item[0]), candidates)
        for (scan, pair, _), other in zip(candidates, dixon, strict=True):
            if other:
                found.left_out.append((scan.path, "is a Dixon image other than the in-phase one"))
            elif links.get(scan.path) in real:
                found.left_out.append((scan.path, f"is a link to {real[links[scan.path]].name}"))
            else:
                found.scans.append((scan, pair))
    for label in sorted(missing):
        logger.warning("There is no scan of participant %s in %s.", label, root)
    found.scans.sort(key=lambda item: (subject(item[0]), str(item[0].path)))
    return found


def listed_scans(table: Path, dataset: Path, pairs: Sequence[Pair], rawdata_name: str = RAWDATA_NAME) -> Found:
    """The scans of a list: tab-separated, with a column ``path`` (absolute, or relative to the data set or the list).

    No filter but the modality applies.  Files outside the data set keep the folders below the one they share.

    Raises:
        InputNotFoundError: no such list.
        OptionError: it has no column ``path``.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputNotFoundError(f"The list {table} cannot be read ({error}).", "Check the path.") from error
    if rows and "path" not in rows[0]:
        raise OptionError(f"{table} has no column 'path'.", "Give a tab-separated table with a line of column names.")
    rows = [row for row in rows if row["path"]]
    paths = [_listed(row["path"], dataset, table.parent) for row in rows]
    outside = [str(path.parent) for path in paths if not path.is_relative_to(dataset.absolute())]
    shared = Path(os.path.commonpath(outside)) if outside else None
    raw = (dataset / rawdata_name).absolute()
    found = Found()
    for path, row in zip(paths, rows, strict=True):
        inside = raw if path.is_relative_to(raw) else dataset.absolute()
        scan = scan_from(path, dataset, inside if path.is_relative_to(inside) else shared)
        pair, reason = _judge(scan, pairs, anything=True)
        modality = _modality_is_wanted(scan, pairs)
        if path in found.extra:
            found.left_out.append((path, "is listed twice"))
        elif pair is None or not modality:
            found.left_out.append((path, reason or f"is {scan.format}: no model was asked for"))
        else:
            found.extra[path] = {k: v for k, v in row.items() if k and k != "path" and isinstance(v, str)}
            found.scans.append((scan, pair))
    return found


def misfit(scan: Scan, pair: Pair) -> str:
    """Why the name says that this is no scan of that modality and plane; empty when it is one.

    >>> pair = Modality.T2w, Acquisition.sag
    >>> misfit(scan_from("sub-1_acq-ax_T2w.nii.gz"), pair), misfit(scan_from("sub-1_acq-sag_T2w.nii.gz"), pair)
    ('has acq-ax: sag is wanted', '')
    """
    modality, plane = pair
    entities = scan.entities
    if scan.format not in modality.format_keys:
        return f"is {scan.format}: {modality.name} is wanted"
    if key := next((key for key in ("label", "lesions") if key in entities), None):
        return f"has a {key}- key: a mask"
    if "acq" in entities and entities["acq"] not in plane.format_keys:
        return f"has acq-{entities['acq']}: {plane.name} is wanted"
    if entities.get("part", "inphase") != "inphase" or entities.get("rec", "").upper() in NOT_IN_PHASE:
        return "is a Dixon image other than the in-phase one"
    return ""


def subject(scan: Scan) -> str:
    """Value of ``sub``, or ``unsorted`` when the name has none."""
    return scan.entities["sub"] if scan.path.name.startswith("sub-") else UNSORTED


def _judge(scan: Scan, pairs: Sequence[Pair], anything: bool) -> tuple[Pair | None, str]:
    """The pair that a scan goes to, and why it goes to none."""
    if "seg" in scan.entities:
        return None, "has a seg- key: a mask"
    reasons = [misfit(scan, pair) for pair in pairs]
    if "" in reasons:
        if subject(scan) == UNSORTED and not anything:
            return None, "has no subject (sub-...) in its name"
        return pairs[reasons.index("")], ""
    of_modality = [n for n, (modality, _) in enumerate(pairs) if scan.format in modality.format_keys]
    if anything:
        return pairs[of_modality[0] if of_modality else 0], ""
    wanted = ", ".join(dict.fromkeys(modality.name for modality, _ in pairs))
    return None, reasons[of_modality[0]] if of_modality else f"is {scan.format}: {wanted} is wanted"


def _modality_is_wanted(scan: Scan, pairs: Sequence[Pair]) -> bool:
    named = [m for m in Modality if scan.format in m.format_keys]
    return not named or any(modality in named for modality, _ in pairs)


def _niftis(
    root: Path, subjects: Collection[str], problems: list[tuple[Path, str]]
) -> Iterator[tuple[Path, bool, bool]]:
    """Every NIfTI file below ``root``: path, whether it is a link, whether it has a JSON sidecar."""
    folders, linked = [root], list[Path]()
    entered: set[tuple[int, int]] = set()
    while folders or linked:  # linked folders last, so that a folder is entered under its own name
        folder = folders.pop() if folders else linked.pop()
        try:
            status = folder.stat()
            with os.scandir(folder) as entries:
                content = list(entries)
        except OSError as error:
            logger.warning("%s cannot be read (%s): its scans are left out.", folder, error.strerror)
            problems.append((folder, f"cannot be read ({error.strerror})"))
            continue
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        names = {entry.name for entry in content if entry.name.endswith(".json")}
        for entry in content:
            name = entry.name
            if name.lower().endswith(SUFFIXES):
                if not name.startswith(".") and not entry.is_dir():
                    stem = name[: name.lower().rindex(".nii")]
                    yield Path(entry.path), entry.is_symlink(), f"{stem}.json" in names
            elif not _skipped(name, folder == root, subjects) and entry.is_dir():
                (linked if entry.is_symlink() else folders).append(Path(entry.path))


def _skipped(folder: str, top: bool, subjects: Collection[str]) -> bool:
    if top and subjects and folder.startswith("sub-") and folder[4:] not in subjects:
        return True
    return folder.startswith((".", "derivatives", "output_raw_", "debug_"))


def _other_phase(scan: Scan) -> bool:
    sidecar = scan.path.with_name(f"{scan.stem}.json")
    try:
        types = {str(v).upper() for v in json.loads(sidecar.read_text(encoding="utf-8")).get("ImageType", [])}
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    return bool(types & NOT_IN_PHASE)


def _labels(given: Collection[str], key: str) -> set[str]:
    labels = [given] if isinstance(given, str) else given
    return {part.removeprefix(f"{key}-") for label in labels for part in label.replace(",", " ").split()}


def _session(scan: Scan) -> str:
    inner = [part[4:] for part in scan.path.parent.parts if part.startswith("ses-")]
    return scan.entities.get("ses") or (inner[-1] if inner else "")


def _listed(text: str, *bases: Path) -> Path:
    candidates = [Path(os.path.normpath(base.absolute() / text)) for base in bases]
    return next((path for path in candidates if path.exists()), candidates[0])
