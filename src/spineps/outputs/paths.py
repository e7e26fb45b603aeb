"""Names and folders of all outputs, from the name of the scan.

The names are those of the published system (users' scripts rely on them): the key-value pairs of the input, plus
``mod-<format of the input>`` and ``seg-<what>``, in TPTBox's order of BIDS entities.

>>> scan = scan_from("/data/sub-01_acq-sag_run-2_T2w.nii.gz")
>>> output_paths(scan)["out_spine"].name
'sub-01_acq-sag_mod-T2w_seg-spine_run-2_msk.nii.gz'
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spineps.errors import InputNotFoundError

#: Order of BIDS entities in a name (TPTBox 1.1.0 ``bids_constants.entities``); unknown keys follow in their own order.
ENTITY_ORDER = (
    *("sub", "ses", "sequ", "acq", "task", "chunk", "hemi", "sample", "split", "ce", "trc", "stain", "rec", "proc"),
    *("mod", "recording", "res", "dir", "echo", "flip", "inv", "mt", "part", "space", "seg", "source", "ovl", "run"),
    *("label", "den", "version", "desc", "nameconflict"),
)
SUFFIXES = (".nii.gz", ".nii")
DERIVATIVE_NAME = "derivatives_seg"

#: Folder of the derivative data set in the ``bids`` layout when no other was named.
BIDS_DERIVATIVE_NAME = "derivatives/spineps"
#: Entities that ``_dseg`` files may carry, in the order of BIDS 1.10 (tried out with bids-validator-deno 3.0.2), and
#: what a value must look like; all others go into ``desc``.
BIDS_ENTITIES = {
    **dict.fromkeys(("sub", "ses", "task", "acq", "ce", "rec"), r"[0-9A-Za-z]+"),
    **dict.fromkeys(("run", "echo"), r"[0-9]+"),
    "part": r"mag|phase|real|imag",
    "chunk": r"[0-9]+",
}


@dataclass(frozen=True)
class Scan:
    """One scan file and what its name says.

    Attributes:
        path: the image.
        dataset: folder that the outputs' folder hangs under.
        root: folder below which the scan's own sub-folders are kept in the outputs; by default the first-level folder
            of ``dataset`` (usually ``rawdata``).
        entities: key-value pairs of the name, in their order; ``sub`` is made from the name when it has none.
        format: last part of the name, such as ``T2w``.
        bids: the name had the form ``sub-<label>[_<key>-<value>...]_<format>``.
    """

    path: Path
    dataset: Path
    entities: dict[str, str] = field(default_factory=dict)
    format: str = ""
    bids: bool = True
    root: Path | None = None

    @property
    def stem(self) -> str:
        """Name without ``.nii`` / ``.nii.gz``."""
        return strip_suffix(self.path.name)


def strip_suffix(name: str) -> str:
    """
    >>> strip_suffix("a.b.nii.gz"), strip_suffix("a.NII"), strip_suffix("a.v2")
    ('a.b', 'a', 'a.v2')
    """
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def parse_name(name: str) -> tuple[dict[str, str], str, bool]:
    """Key-value pairs, format and BIDS-likeness of a file name.

    >>> parse_name("sub-x_foo-bar_T2w.nii.gz")
    ({'sub': 'x', 'foo': 'bar'}, 'T2w', True)
    >>> parse_name("my scan.v2.nii.gz")
    ({'sub': 'my-scan-v2'}, 'my-scan-v2', False)
    """
    *pairs, last = strip_suffix(name).split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if re.fullmatch(r"[^-]+-.+", pair))
    bids = "sub" in entities and len(entities) == len(pairs) and bool(re.fullmatch(r"[A-Za-z0-9-]+", last))
    if "sub" not in entities:
        entities = {"sub": _label(strip_suffix(name)), **entities}
    return {key: _label(value) for key, value in entities.items()}, _label(last), bids


def scan_from(reference: Any, dataset: str | Path | None = None, root: Path | None = None) -> Scan:
    """A :class:`Scan` from a path or a TPTBox ``BIDS_FILE``.

    Args:
        reference: path with or without ``.nii.gz``, or an object with ``file``, ``dataset`` (TPTBox ``BIDS_FILE``).
        dataset: folder for the outputs; by default the ``BIDS_FILE``'s dataset, else the folder of the file.
        root: see :class:`Scan`.

    Raises:
        TypeError: neither a path nor a ``BIDS_FILE``.
        InputNotFoundError: the ``BIDS_FILE`` holds no NIfTI file.
    """
    if isinstance(reference, Scan):
        return reference
    if isinstance(reference, (str, os.PathLike)):
        path = with_suffix(Path(reference))
    elif hasattr(reference, "file") and hasattr(reference, "dataset"):
        path = _file_of_bids(reference)
        dataset = dataset if dataset is not None else reference.dataset
    else:
        raise TypeError(f"a scan is given as a path or a TPTBox BIDS_FILE, not as {type(reference).__name__}")
    entities, form, bids = parse_name(path.name)
    return Scan(path, Path(dataset) if dataset is not None else path.parent, entities, form, bids, root)


def with_suffix(path: Path) -> Path:
    """The file itself, or with ``.nii.gz`` / ``.nii`` added when only that exists."""
    if not path.name.lower().endswith(SUFFIXES) and not path.is_file():
        for suffix in SUFFIXES:
            if path.with_name(path.name + suffix).is_file():
                return path.with_name(path.name + suffix)
    return path


def output_folder(scan: Scan, derivative_name: str = DERIVATIVE_NAME) -> Path:
    """``<dataset>/<derivative_name>/<sub-path below the first-level folder>``; an absolute name is taken as it is."""
    below = scan.root or scan.dataset
    try:
        parents = scan.path.absolute().parent.relative_to(below.absolute()).parts
    except ValueError:  # the file does not lie in the dataset that was named
        parents = ()
    return scan.dataset.joinpath(derivative_name, *(parents if scan.root else parents[1:]))


def output_name(scan: Scan, what: str, suffix: str) -> str:
    """File name of one output.

    >>> output_name(scan_from("sub-x_T2w.nii"), "spine-raw", "msk.nii.gz")
    'sub-x_mod-T2w_seg-spine-raw_msk.nii.gz'
    """
    entities = {**scan.entities, "mod": scan.format, "seg": what}
    known = [key for key in ENTITY_ORDER if key in entities]
    unknown = [key for key in entities if key not in ENTITY_ORDER]
    return "_".join([*(f"{key}-{entities[key]}" for key in known + unknown), suffix])


def output_paths(
    scan: Scan,
    derivative_name: str = DERIVATIVE_NAME,
    snapshot_copy_folder: str | Path | None = None,
    layout: str = "published",
    work_folder: Path | None = None,
) -> dict[str, Path]:
    """Where everything goes, under the names that ``process_img_nii`` returns.

    Beside the published keys: ``out_prov`` (what made the results), ``out_report`` (a page), ``out_uncertainty``,
    ``out_spine_modelres``, ``out_vert_modelres``, ``out_spine_native`` (raw semantic mask on the input grid); in the
    ``bids`` layout also ``out_spine_json``, ``out_spine_tsv``, ``out_vert_json``, ``out_vert_tsv``.

    Args:
        scan: the scan.
        derivative_name: see :func:`derivative_folder`.
        snapshot_copy_folder: also put the picture there.
        layout: ``published`` or ``bids``.
        work_folder: where raw masks and intermediate volumes go in the ``bids`` layout.
    """
    if layout == "bids":
        return _bids_paths(
            scan, derivative_folder(scan.dataset, derivative_name, layout), snapshot_copy_folder, work_folder
        )
    folder = output_folder(scan, derivative_name)
    raw = folder / f"output_raw_{scan.format}"
    snapshot = folder / output_name(scan, "spine", "snp.png")
    return {
        "out_spine": folder / output_name(scan, "spine", "msk.nii.gz"),
        "out_spine_raw": raw / output_name(scan, "spine-raw", "msk.nii.gz"),
        "out_vert": folder / output_name(scan, "vert", "msk.nii.gz"),
        "out_vert_raw": raw / output_name(scan, "vert-raw", "msk.nii.gz"),
        "out_stats": folder / output_name(scan, "vert", "stats.tsv"),
        "out_stats_json": folder / output_name(scan, "vert", "stats.json"),
        "out_logits": raw / output_name(scan, "spine", "logit.npz"),
        "out_snap": snapshot,
        "out_ctd": folder / output_name(scan, "spine", "ctd.json"),
        "out_snap2": _copied(snapshot, snapshot_copy_folder),
        "out_debug": folder / f"debug_{scan.format}",
        "out_raw": raw,
        "out_vibeseg": folder / output_name(scan, "VIBESeg-100", "msk.nii.gz"),
        "out_prov": folder / output_name(scan, "spine", "prov.json"),
        "out_report": folder / output_name(scan, "spine", "report.html"),
        "out_uncertainty": folder / output_name(scan, "spine", "uncertainty.nii.gz"),
        "out_spine_native": raw / output_name(scan, "spine-native", "msk.nii.gz"),
        "out_spine_modelres": raw / output_name(scan, "spine-modelres", "msk.nii.gz"),
        "out_vert_modelres": raw / output_name(scan, "vert-modelres", "msk.nii.gz"),
    }


def derivative_folder(dataset: Path, derivative_name: str = DERIVATIVE_NAME, layout: str = "published") -> Path:
    """Folder of all results of a data set; an absolute name is taken as it is.

    >>> derivative_folder(Path("d")).as_posix(), derivative_folder(Path("d"), layout="bids").as_posix()
    ('d/derivatives_seg', 'd/derivatives/spineps')
    """
    default = layout == "bids" and derivative_name == DERIVATIVE_NAME
    return dataset / (BIDS_DERIVATIVE_NAME if default else derivative_name)


def results_beside(record: Path) -> dict[str, Path]:
    """The files that the record ``.._prov.json`` vouches for, by its name alone, in either layout.

    >>> results_beside(Path("a/sub-1_mod-T2w_seg-spine_run-2_prov.json"))["out_vert"].name
    'sub-1_mod-T2w_seg-vert_run-2_msk.nii.gz'
    >>> results_beside(Path("sub-1/anat/sub-1_seg-structures_desc-T2w_prov.json"))["out_snap"].as_posix()
    'sub-1/figures/sub-1_desc-T2w_snp.png'
    """
    stem = record.name.removesuffix("_prov.json")
    if "_seg-structures_" in stem:
        folder, plain = record.parent, stem.replace("_seg-structures", "")
        return {
            "out_spine": folder / f"{stem}_dseg.nii.gz",
            "out_vert": folder / f"{stem.replace('seg-structures', 'seg-vertebrae')}_dseg.nii.gz",
            "out_ctd": folder / f"{plain}_ctd.json",
            "out_snap": folder.parent / "figures" / f"{plain}_snp.png",
            "out_stats": folder / f"{stem.replace('seg-structures', 'seg-vertebrae')}_stats.tsv",
            "out_report": folder.parent / "figures" / f"{plain}_report.html",
        }
    names = {
        "out_spine": f"{stem}_msk.nii.gz",
        "out_vert": f"{stem.replace('_seg-spine', '_seg-vert')}_msk.nii.gz",
        "out_ctd": f"{stem}_ctd.json",
        "out_snap": f"{stem}_snp.png",
        "out_stats": f"{stem.replace('_seg-spine', '_seg-vert')}_stats.tsv",
        "out_report": f"{stem}_report.html",
    }
    return {key: record.with_name(name) for key, name in names.items()}


def bids_entities(scan: Scan) -> dict[str, str]:
    """Key-value pairs of the outputs in the ``bids`` layout; the contrast and what BIDS does not know go into ``desc``.

    ``desc`` is always there, so that a name depends on its scan alone, not on which others lie beside it.

    >>> bids_entities(scan_from("sub-01_sequ-301_acq-sag_run-2_T2w.nii.gz"))
    {'sub': '01', 'acq': 'sag', 'run': '2', 'desc': 'T2wSequ301'}
    """
    plain = {key: re.sub(r"[^0-9A-Za-z]+", "", value) or "x" for key, value in scan.entities.items()}
    kept = {key: plain[key] for key, rule in BIDS_ENTITIES.items() if key in plain and re.fullmatch(rule, plain[key])}
    contrast = re.sub(r"[^0-9A-Za-z]+", "", scan.format) if scan.bids else "scan"
    others = "".join(f"{key.capitalize()}{value}" for key, value in plain.items() if key not in kept)
    return {**kept, "desc": re.sub(r"[^0-9A-Za-z]+", "", contrast + others)}


def _bids_paths(
    scan: Scan, root: Path, snapshot_copy_folder: str | Path | None, work_folder: Path | None
) -> dict[str, Path]:
    entities = bids_entities(scan)
    *known, desc = [f"{key}-{value}" for key, value in entities.items()]
    person = Path(*(part for part in known if part.startswith(("sub-", "ses-"))))
    folder, work = root / person / "anat", (work_folder or root / "work") / person
    raw = work / f"output_raw_{scan.format}"

    def name(what: str, suffix: str) -> str:
        return "_".join([*known, *([f"seg-{what}"] if what else []), desc, suffix])

    snapshot = root / person / "figures" / name("", "snp.png")
    return {
        "out_spine": folder / name("structures", "dseg.nii.gz"),
        "out_spine_json": folder / name("structures", "dseg.json"),
        "out_spine_tsv": folder / name("structures", "dseg.tsv"),
        "out_spine_raw": raw / name("structuresRaw", "dseg.nii.gz"),
        "out_vert": folder / name("vertebrae", "dseg.nii.gz"),
        "out_vert_json": folder / name("vertebrae", "dseg.json"),
        "out_vert_tsv": folder / name("vertebrae", "dseg.tsv"),
        "out_vert_raw": raw / name("vertebraeRaw", "dseg.nii.gz"),
        "out_stats": folder / name("vertebrae", "stats.tsv"),
        "out_stats_json": folder / name("vertebrae", "stats.json"),
        "out_logits": raw / name("structures", "logit.npz"),
        "out_snap": snapshot,
        "out_ctd": folder / name("", "ctd.json"),
        "out_snap2": _copied(snapshot, snapshot_copy_folder),
        "out_debug": work / f"debug_{scan.format}",
        "out_raw": raw,
        "out_vibeseg": folder / name("VIBESeg100", "dseg.nii.gz"),
        "out_prov": folder / name("structures", "prov.json"),
        "out_report": snapshot.with_name(name("", "report.html")),
        "out_uncertainty": folder / name("structures", "probseg.nii.gz").replace("_desc-", "_desc-entropy"),
        "out_spine_native": raw / name("structuresNative", "dseg.nii.gz"),
        "out_spine_modelres": raw / name("structuresModelres", "dseg.nii.gz"),
        "out_vert_modelres": raw / name("vertebraeModelres", "dseg.nii.gz"),
    }


def _copied(snapshot: Path, folder: str | Path | None) -> Path:
    """Where the picture goes a second time; itself where that is the same place."""
    if not folder or os.path.realpath(folder) == os.path.realpath(snapshot.parent):
        return snapshot
    return Path(folder) / snapshot.name


def _label(text: str) -> str:
    """What may stand between two underscores of an output name."""
    return re.sub(r"[\s_./\\:]+", "-", text.strip()) or "scan"


def _file_of_bids(reference: Any) -> Path:
    files = {key: Path(path) for key, path in reference.file.items()}
    for path in [files.get("nii.gz"), files.get("nii"), *files.values()]:
        # A dot inside the name makes TPTBox take "v2.nii.gz" for the file type.
        if path is not None and path.name.lower().endswith(SUFFIXES):
            return path
    names = ", ".join(p.name for p in files.values())
    raise InputNotFoundError(f"{names} is not a NIfTI image.", "Give a .nii or .nii.gz file.")
