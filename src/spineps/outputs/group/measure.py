"""One scan's vertebrae and discs, measured from the files that its record vouches for."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spineps.anatomy import CORPUS, CORPUS_INNER, DISC, DISC_OFFSET, SACRUM, VERTEBRAE, instance_name
from spineps.outputs.nifti import read_labels
from spineps.outputs.paths import parse_name, results_beside, strip_suffix
from spineps.outputs.provenance import read_record
from spineps.volume import Volume

#: Values of ``status``.
DONE, FAILED, BROKEN, UNFINISHED = "done", "failed", "broken", "unfinished"
#: A body or disc is cut where at least so much of it lies in the outermost layer: less is a ragged edge (a body's
#: middle section measures some 700 mm2).
CUT_MM2 = 50.0
BODY = (CORPUS, CORPUS_INNER)
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
_POINT = {"vertebra": "50", "disc": "100"}


def measure_scan(record_path: Path) -> dict[str, Any]:
    """Everything that the tables and the page need of one scan, ready for JSON.

    Never raises for what is on the disk: results that cannot be read come back with status ``broken`` and a message.

    Returns:
        ``scan`` (path of the input), ``participant``, ``session``, ``status``, ``message``, ``notes``, ``named``,
        ``ambiguous``, ``height_mm`` (field of view from head to foot), ``touches`` (sides of the field of view at which
        bodies or discs end, of ``RLAPSI``) and ``rows``, one per vertebra and disc from top to bottom.
    """
    record = read_record(record_path)
    source = record.get("input", {})
    name = str(source.get("name", record_path.name.removesuffix("_prov.json")))
    found: dict[str, Any] = {"scan": str(source.get("path", name)), **who(name), "status": DONE, "message": ""}
    if not record:
        return {**found, "status": BROKEN, "message": f"{record_path.name} cannot be read.", "rows": []}
    if "final" not in record.get("stages", {}):
        return {**found, "status": UNFINISHED, "message": "Interrupted: run again to go on from here.", "rows": []}
    from nibabel.filebasedimages import ImageFileError

    naming, files = record.get("naming", {}), results_beside(record_path)
    try:
        semantic, instance = read_labels(files["out_spine"]), read_labels(files["out_vert"])
        points = json.loads(files["out_ctd"].read_text(encoding="utf-8"))
        rows, touches = measure(semantic, instance, points, naming)
    # nibabel, gzip and json each have their own words for a file cut short, and any JSON can stand in a points file.
    except (
        *(OSError, EOFError, zlib.error, ImageFileError),
        *(ValueError, LookupError, TypeError, AttributeError),
    ) as error:
        text = f"The results cannot be read ({type(error).__name__}: {error}). Run this scan again."
        return {**found, "status": BROKEN, "message": text.replace(str(record_path.parent), "."), "rows": []}
    axis = next(k for k, code in enumerate(instance.axcodes) if code in "SI")
    return {
        **found,
        "notes": list(record.get("warnings", ())),
        "named": bool(naming),
        "ambiguous": bool(naming.get("ambiguous", False)),
        "height_mm": round(instance.shape[axis] * instance.zoom[axis], 1),
        "touches": touches,
        "rows": rows,
    }


def who(name: str) -> dict[str, str]:
    """Participant and session in a scan's name.

    >>> who("sub-01_ses-2_T2w.nii.gz"), who("scan.nii.gz")
    ({'participant': 'sub-01', 'session': 'ses-2'}, {'participant': 'sub-scan', 'session': ''})
    """
    entities = parse_name(strip_suffix(name))[0]
    return {"participant": f"sub-{entities['sub']}", "session": f"ses-{entities['ses']}" if "ses" in entities else ""}


def measure(
    semantic: Volume, instance: Volume, points: list[Any], naming: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str]:
    """Rows of one scan, and the sides at which bodies or discs end.

    Args:
        semantic: structures.
        instance: vertebrae, same grid.
        points: a ``_ctd.json`` document.
        naming: ``confidence`` and ``alternatives`` by name; empty when the vertebrae were only numbered.

    Raises:
        ValueError: the masks do not lie on one grid.
    """
    if semantic.shape != instance.shape:
        raise ValueError(f"the masks have different shapes {semantic.shape} and {instance.shape}")
    inside = np.flatnonzero(instance.array)
    labels, parts = instance.array.ravel()[inside], semantic.array.ravel()[inside]
    voxel = abs(float(np.linalg.det(instance.affine[:3, :3])))
    total = np.bincount(labels, minlength=300) * voxel
    bodies = np.bincount(labels[np.isin(parts, BODY)], minlength=300) * voxel
    cut = _cut(semantic, instance)
    header, coordinates = points[0], points[1]
    confidence, alternatives = naming.get("confidence", {}), naming.get("alternatives", {})
    rows = []
    for vertebra in (*VERTEBRAE, SACRUM):
        name = instance_name(vertebra) if naming or vertebra == SACRUM else f"#{vertebra}"
        for kind, label in (("vertebra", vertebra), ("disc", DISC_OFFSET + vertebra)):
            if not total[label]:
                continue
            index = coordinates.get(str(vertebra), {}).get(_POINT[kind])
            other = alternatives.get(name, (None, None))
            rows.append(
                {
                    "kind": kind,
                    "label": label,
                    "name": name if kind == "vertebra" else f"disc below {name}",
                    "confidence": confidence.get(name),
                    "alternative": other[0],
                    "alternative_confidence": other[1],
                    "volume": round(float(total[label]), 1),
                    "body": round(float(bodies[label]), 1) if kind == "vertebra" else None,
                    "centre": None if index is None else _world(header, index),
                    "cut": cut.get(label, ""),
                }
            )
    return rows, "".join(side for side in "RLAPSI" if any(side in sides for sides in cut.values()))


def _cut(semantic: Volume, instance: Volume) -> dict[int, str]:
    """For each label whose body or disc is cut by the border of the field of view the sides, of ``RLAPSI``."""
    sides: dict[int, str] = {}
    voxel = abs(float(np.linalg.det(instance.affine[:3, :3])))
    for axis, code in enumerate(instance.axcodes):
        least = CUT_MM2 * instance.zoom[axis] / voxel
        for position, side in ((0, OPPOSITE[code]), (-1, code)):
            here = np.isin(semantic.array.take(position, axis), (*BODY, DISC, SACRUM))
            found = zip(*np.unique(instance.array.take(position, axis)[here], return_counts=True), strict=True)
            for label, count in ((int(label), int(count)) for label, count in found):
                if label and count >= least:
                    sides[label] = sides.get(label, "") + side
    return sides


def _world(header: Mapping[str, Any], index: list[float]) -> list[float]:
    """RAS mm of voxel indices, from the header of a points file."""
    place = np.array(header["rotation"]) @ (np.array(header["zoom"]) * np.array(index, float)) + header["origin"]
    return [round(float(v), 2) for v in place]
