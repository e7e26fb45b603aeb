"""Which files of a data set are scans that a model should see (filters of the published system 2.1.3)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from spineps.errors import InputNotFoundError
from spineps.models.enums import Acquisition, Modality
from spineps.outputs.paths import SUFFIXES, Scan, scan_from

logger = logging.getLogger(__name__)

Pair = tuple[Modality, Acquisition]
#: Dixon images other than the in-phase one, as written in DICOM ``ImageType`` and in file names.
NOT_IN_PHASE = {"W", "F", "FAT", "WATER", "OP", "OPP", "OUTPHASE", "DIFFERENCE"}
RAWDATA_NAME = "rawdata"
UNSORTED = "unsorted"


def find_scans(
    dataset: Path, pairs: Sequence[Pair], rawdata_name: str = RAWDATA_NAME, ignore_bids_filter: bool = False
) -> list[tuple[Scan, Pair]]:
    """The scans below ``<dataset>/<rawdata_name>``, each with the first (modality, plane) pair that it fits.

    Sorted by subject, then name.  ``rawdata_name`` may be ``"."``; hidden folders and folders of derivatives are never
    entered.

    Args:
        dataset: the data set's folder.
        pairs: wanted modality and plane; a scan is listed once.
        rawdata_name: folder of the scans.
        ignore_bids_filter: take every NIfTI file without a ``seg`` key, whatever its name.

    Raises:
        InputNotFoundError: there is no such folder.
    """
    root = dataset / rawdata_name
    if not root.is_dir():
        cure = (
            f"Scans are looked for in its folder {rawdata_name!r}; name another with --rawdata-name, or '.' for itself."
        )
        raise InputNotFoundError(f"{root} is not a folder.", cure if dataset.is_dir() else "Check the path.")
    found = []
    for path in sorted(root.rglob("*.nii*")):
        inner = path.relative_to(root).parts[:-1]
        if not path.name.lower().endswith(SUFFIXES) or path.name.startswith(".") or any(map(_skipped, inner)):
            continue
        scan = scan_from(path, dataset, root)
        pair = next((p for p in pairs if ignore_bids_filter or fits(scan, p)), None)
        if pair is None or "seg" in scan.entities:
            continue
        if subject(scan) == UNSORTED and not ignore_bids_filter:
            logger.info("%s is left out: its name holds no subject (sub-...).", path)
            continue
        found.append((scan, pair))
    return sorted(found, key=lambda item: (subject(item[0]), str(item[0].path)))


def fits(scan: Scan, pair: Pair) -> bool:
    """Does the name (and the sidecar of a Dixon image) say that this is a scan of that modality and plane?"""
    modality, plane = pair
    entities = scan.entities
    if scan.format not in modality.format_keys or "label" in entities or "lesions" in entities:
        return False
    if "acq" in entities and entities["acq"] not in plane.format_keys:
        return False
    if entities.get("part", "inphase") != "inphase" or entities.get("rec", "").upper() in NOT_IN_PHASE:
        return False
    return not _image_type(scan) & NOT_IN_PHASE


def subject(scan: Scan) -> str:
    """Value of ``sub``, or ``unsorted`` when the name has none."""
    return scan.entities["sub"] if scan.path.name.startswith("sub-") else UNSORTED


def _skipped(folder: str) -> bool:
    return folder.startswith((".", "derivatives", "output_raw_", "debug_"))


def _image_type(scan: Scan) -> set[str]:
    sidecar = scan.path.with_name(f"{scan.stem}.json")
    try:
        return {str(v).upper() for v in json.loads(sidecar.read_text(encoding="utf-8")).get("ImageType", [])}
    except (OSError, ValueError, AttributeError, TypeError):
        return set()
