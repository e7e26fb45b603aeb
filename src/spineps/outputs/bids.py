"""What the ``bids`` layout needs beside the images: a data set's description, label tables and sidecars.

A folder of results is a BIDS derivative data set of its own; bids-validator-deno finds no error in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import spineps
from spineps.anatomy import (
    BY_ID,
    CORPUS_INNER,
    DENS,
    DISC_OFFSET,
    ENDPLATE_INFERIOR,
    ENDPLATE_OFFSET,
    ENDPLATE_SUPERIOR,
    METAL,
    SACRUM,
    VERTEBRA_PARTS,
    instance_name,
)
from spineps.outputs.paths import Scan
from spineps.outputs.snapshot import instance_color, structure_color
from spineps.outputs.writer import Writer
from spineps.volume import Volume

if TYPE_CHECKING:
    from spineps.phases.labeling import Naming

BIDS_VERSION = "1.10.0"
#: What the validator would refuse: points, record, measurements, pictures, work, tables of the group.
IGNORED = (
    "*.mrk.json",
    "*.seg.nrrd",
    "*.label.txt",
    "*_ctd.json",
    "*_prov.json",
    "*_stats.*",
    "*.dcm",
    "**/figures",
    "work",
    "group",
    "logs",
    "spineps_ledger",
)
SIDECARS = ("out_spine_json", "out_spine_tsv", "out_vert_json", "out_vert_tsv")
#: BIDS' standard label for bone ("mapping" in a label table); discs, cord and canal have none.
BONE = "4"
EXTRA_NAMES = {
    CORPUS_INNER: "vertebral body, inner",
    DENS: "dens",
    ENDPLATE_SUPERIOR: "superior vertebral endplate",
    ENDPLATE_INFERIOR: "inferior vertebral endplate",
    METAL: "metal",
}
COLUMNS = {
    "volume_mm3": {"Description": "Voxels with this label times the volume of a voxel.", "Units": "mm^3"},
    "confidence": {"Description": "Probability, 0 to 1, that the vertebra has the right name."},
}


def prepare_dataset(root: Path, scan: Scan) -> None:
    """Write ``dataset_description.json``, ``.bidsignore`` and ``README.md`` where they are missing; never changes them.

    Safe in parallel: all writers write the same, whole or not at all.
    """
    link = _link(root, scan)
    description = {
        "Name": "Spine segmentations",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "spineps", "Version": spineps.__version__}],
        "SourceDatasets": [{"URL": link}],
        "DatasetLinks": {"raw": link},
    }
    readme = (
        "# Spine segmentations\n\nWritten by spineps. `seg-structures` masks hold 14 structures, `seg-vertebrae` masks "
        "single vertebrae with their\ndiscs (100 + v) and endplates (200 + v); the `.tsv` beside each mask names its "
        "labels. `_ctd.json` holds points (TPTBox\nPOI), `_prov.json` what made the results, `figures` a picture of "
        "each scan. Research software, not a medical device.\n"
    )
    with Writer() as writer:
        if not (root / "dataset_description.json").exists():
            writer.json(root / "dataset_description.json", description)
        for name, text in ((".bidsignore", "\n".join([*IGNORED, ""])), ("README.md", readme)):
            if not (root / name).exists():
                _text(writer, root / name, text)


def write_sidecars(
    writer: Writer, semantic: Volume, instance: Volume, naming: Naming | None, scan: Scan, paths: Mapping[str, Path]
) -> None:
    """Label tables and sidecars of both masks, and of the uncertainty where it was written."""
    source = source_uri(scan)
    entropy = paths["out_uncertainty"]
    if entropy.is_file():
        about = {"Description": "Entropy, 0 to 1, of the class probabilities.", "Sources": [source]}
        writer.json(entropy.with_name(entropy.name.replace(".nii.gz", ".json")), {**about, "SpatialReference": source})
    for key, mask, what in (
        ("out_spine", semantic, "Structures of the spine."),
        ("out_vert", instance, "Vertebrae v, discs below them (100 + v) and their endplates (200 + v)."),
    ):
        table = label_table(mask, key == "out_vert", naming)
        columns = {name: COLUMNS[name] for name in table[0] if name in COLUMNS}
        sidecar = {"Description": what, "Sources": [source], "SpatialReference": source, **columns}
        writer.json(paths[f"{key}_json"], sidecar)
        _text(writer, paths[f"{key}_tsv"], "".join("\t".join(row) + "\n" for row in table))


def label_table(mask: Volume, instances: bool, naming: Naming | None) -> list[list[str]]:
    """Rows of the ``dseg.tsv`` of a mask, one for each label that occurs in it, after a row of column names."""
    counts = np.bincount(mask.array.ravel().astype(np.int64))
    voxel = abs(float(np.linalg.det(mask.affine[:3, :3])))
    confidence = naming.confidence if naming is not None else {}
    rows = [["index", "name", "abbreviation", "color", "mapping", "volume_mm3", *(["confidence"] if instances else [])]]
    for label in (int(n) for n in np.flatnonzero(counts) if n):
        short, name = _names(label, instances)
        if instances and naming is None and label != SACRUM:
            # Numbered from the top: "C2" would be a name that nobody gave.
            what = "vertebra" if label < DISC_OFFSET else name.partition(" ")[0]
            short, name = f"#{label}", f"{what} #{label % DISC_OFFSET}"
        color = (instance_color if instances else structure_color)(label)
        bony = label < DISC_OFFSET and label != METAL if instances else label in (*VERTEBRA_PARTS, SACRUM)
        row = [str(label), name, short, color, BONE if bony else "n/a", f"{counts[label] * voxel:.1f}"]
        if instances:
            sure = confidence.get(label)
            row.append("n/a" if sure is None else f"{sure:.4f}")
        rows.append(row)
    return rows


def source_uri(scan: Scan) -> str:
    """BIDS URI of the scan.

    >>> from spineps.outputs.paths import scan_from
    >>> source_uri(scan_from("/d/rawdata/sub-1/sub-1_T2w.nii.gz", "/d", Path("/d/rawdata")))
    'bids:raw:sub-1/sub-1_T2w.nii.gz'
    """
    base, path = (scan.root or scan.dataset).absolute(), scan.path.absolute()
    return f"bids:raw:{path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name}"


def _link(root: Path, scan: Scan) -> str:
    source = (scan.root or scan.dataset).absolute()
    try:
        return Path(os.path.relpath(source, root.absolute())).as_posix()
    except ValueError:  # another drive on Windows
        return source.as_uri()


def _names(label: int, instances: bool) -> tuple[str, str]:
    """Abbreviation and name."""
    if not instances:
        known = BY_ID.get(label)
        return (known.key, known.name) if known else (f"part-{label}", EXTRA_NAMES.get(label, f"structure {label}"))
    name = instance_name(label)
    if label >= DISC_OFFSET:
        below = instance_name(label % DISC_OFFSET)
        return f"{below}-{'endplates' if label >= ENDPLATE_OFFSET else 'disc'}", name
    return name, "sacrum" if label == SACRUM else name


def _text(writer: Writer, path: Path, text: str) -> None:
    writer.write(path, lambda stream: stream.write(text.encode()))
