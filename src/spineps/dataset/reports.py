"""Reports of scans that are segmented already: where the results of a scan are, and where the scan of results is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from spineps.dataset.report import results_folder
from spineps.errors import InputNotFoundError, OutputError, SpinepsError
from spineps.outputs.group.table import find_records
from spineps.outputs.paths import DERIVATIVE_NAME, output_paths, scan_from, strip_suffix
from spineps.outputs.provenance import read_record
from spineps.outputs.report.page import write_report
from spineps.outputs.report.sources import Sources, sources_of

logger = logging.getLogger(__name__)


@dataclass
class Reports:
    """What came out.

    Attributes:
        pages: all pages, old and new.
        written: how many of them were written now.
        failed: (name of the record, why) of results that cannot be shown.
    """

    pages: list[Path] = field(default_factory=list)
    written: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def report_scan(
    scan: str | Path,
    derivative_name: str = DERIVATIVE_NAME,
    masks: tuple[Path, Path] | None = None,
    out: Path | None = None,
    always: bool = False,
) -> tuple[Path, bool]:
    """Write the report of one scan.

    Args:
        scan: the image; its results are looked for beside it and in the data sets around it, in either layout.
        derivative_name: name of the folder of results, or its whole path.
        masks: structures and vertebrae from elsewhere, instead of results.
        out: the page; default: beside the results, or the mask of vertebrae.
        always: also when the page that is there shows the same content.

    Returns:
        The page, and whether it was written now.

    Raises:
        InputNotFoundError: no such scan, or no results.
        UnreadableInputError: a mask is damaged.
        OutputError: the page cannot be written.
    """
    path = Path(scan).absolute()
    if not path.is_file():
        raise InputNotFoundError(f"{scan} is not there.", "Give a scan (.nii, .nii.gz) or a data set.")
    if masks is not None:
        semantic, vertebrae = (Path(mask).absolute() for mask in masks)
        stem = strip_suffix(vertebrae.name).removesuffix("_msk").removesuffix("_dseg")
        stats = vertebrae.with_name(f"{stem}_stats.tsv")
        page = vertebrae.with_name(f"{stem}_report.html")
        sources = Sources(path.name, page, semantic, vertebrae, path, None, stats if stats.is_file() else None)
    else:
        sources = sources_of(find_record(path, derivative_name), path)
    if out is not None:
        sources = replace(sources, out=Path(out).absolute())
    return sources.out, write_report(sources, always)


def report_dataset(
    folder: str | Path,
    derivative_name: str = DERIVATIVE_NAME,
    always: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Reports:
    """Write the reports of all finished scans of a data set, beside their results; those that are up to date stay.

    Args:
        folder: the data set, or its folder of results.
        derivative_name: name of the folder of results, or its whole path.
        always: also pages that are up to date.
        progress: called with (done, total).

    Raises:
        InputNotFoundError: there are no results.
        OutputError: pages cannot be written.
    """
    folder = Path(folder).absolute()
    root = results_folder(folder, derivative_name)
    bases = _bases(folder, root)
    records = find_records(root)
    reports = Reports()
    for number, record in enumerate(records, 1):
        try:
            if "final" in read_record(record).get("stages", {}):
                sources = sources_of(record, _scan_of(record, bases))
                reports.written += write_report(sources, always)
                reports.pages.append(sources.out)
        except OutputError:
            raise
        except (SpinepsError, ValueError, ArithmeticError, LookupError) as error:  # one odd scan must not end the rest
            logger.warning("%s: no report: %s", record.name, error)
            reports.failed.append((record.name, str(error)))
        if progress is not None:
            progress(number, len(records))
    return reports


def find_record(scan: Path, derivative_name: str = DERIVATIVE_NAME) -> Path:
    """The record of a scan's results: beside it, or in a data set that it lies in.

    Raises:
        InputNotFoundError: it has none.
    """
    for dataset in scan.parents:
        for layout in ("published", "bids"):
            # With rawdata_name="." folders of the results begin at the data set itself.
            for root in (None, dataset):
                record = output_paths(scan_from(scan, dataset, root), derivative_name, layout=layout)["out_prov"]
                if record.is_file() and read_record(record).get("input", {}).get("name") == scan.name:
                    return record
    cure = "Segment it first, name the folder of results with --derivative-name, or give two masks with --masks."
    raise InputNotFoundError(f"{scan.name} has no results of spineps.", cure)


def _bases(folder: Path, root: Path) -> list[Path]:
    """Folders that the scans' paths in the records may start from."""
    bases = [folder, root.parent, root.parent.parent]
    try:
        links = json.loads((root / "dataset_description.json").read_text(encoding="utf-8"))["DatasetLinks"]
        raw = (root / str(links["raw"])).resolve()
        bases += [raw, raw.parent]
    except (OSError, ValueError, LookupError, TypeError):  # only in the bids layout, and people edit it
        pass
    return bases


def _scan_of(record: Path, bases: list[Path]) -> Path | None:
    """The scan itself; None when it lies elsewhere."""
    source = read_record(record).get("input", {})
    places = [base / str(source.get("path", "")) for base in bases]
    places += [record.parent / str(source.get("name", "")), record.parent.parent / str(source.get("name", ""))]
    return next((place for place in places if place.is_file()), None)
