"""Finished results on a disk, without a network: what the group level reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from spineps.anatomy import CORPUS, DISC, DISC_OFFSET, SACRUM, instance_name
from spineps.outputs.paths import output_paths, scan_from
from spineps.outputs.poi import poi_document
from spineps.outputs.provenance import FORMAT
from spineps.phases.points import Point
from spineps.volume import Volume

#: 2 x 2 x 3 mm, axes towards the back, the feet and the right.
AFFINE = np.array([[0, 0, 3.0, -15], [-2.0, 0, 0, 40], [0, -2.0, 0, 200], [0, 0, 0, 1]])
LUMBAR = (18, 19, 20, 21, 22, 23, 24, SACRUM)


def masks(
    labels: tuple[int, ...] = LUMBAR,
    heights: dict[int, int] | None = None,
    front: int = 4,
    wide: tuple[int, ...] = (),
    ragged: int = 0,
) -> tuple[Volume, Volume]:
    """(structures, vertebrae): bodies of 8 x 10 x 6 voxels (other heights by label), one voxel of disc between.

    ``wide`` ones reach from side to side, the ``ragged`` one with two voxels.
    """
    semantic = np.zeros((20, 14 + 12 * len(labels), 10), np.uint16)
    instance = semantic.copy()
    top = 3
    for label in labels:
        tall = (heights or {}).get(label, 10)
        box = np.s_[front : front + 8, top : top + tall, 0 if label in wide else 2 : 10 if label in wide else 8]
        semantic[box], instance[box] = (SACRUM if label == SACRUM else CORPUS), label
        if label == ragged:
            semantic[front, top : top + 2, :2], instance[front, top : top + 2, :2] = CORPUS, label
        if label != SACRUM:
            semantic[front : front + 8, top + tall : top + tall + 1, 2:8] = DISC
            instance[front : front + 8, top + tall : top + tall + 1, 2:8] = DISC_OFFSET + label
        top += tall + 1
    return Volume(semantic, AFFINE), Volume(instance, AFFINE)


def write_scan(
    root: Path, name: str, pair: tuple[Volume, Volume] | None = None, layout: str = "published", **naming: Any
) -> dict[str, Path]:
    """Write one scan's results below ``root``; returns its paths."""
    semantic, instance = pair or masks()
    scan = scan_from(root.parent / "rawdata" / f"{name}.nii.gz", root.parent)
    paths = output_paths(scan, root.name, layout=layout)
    found = [int(v) for v in np.unique(instance.array) if 0 < v < DISC_OFFSET]
    points = []
    for label in found:
        middle = np.argwhere(instance.array == label).mean(axis=0)
        points.append(Point(label, 50, tuple(instance.grid.to_world(middle)), "body", 1.0))
    for key in ("out_spine", "out_snap"):
        paths[key].parent.mkdir(parents=True, exist_ok=True)
    for key, mask in (("out_spine", semantic), ("out_vert", instance)):
        nib.save(nib.Nifti1Image(mask.array, mask.affine), paths[key])
    paths["out_ctd"].write_text(json.dumps(poi_document(points, instance.grid)))
    Image.new("RGB", (64, 40), (20, 90, sum(map(ord, name)) % 255)).save(paths["out_snap"])
    sure = {instance_name(v): 0.9 for v in found}
    told = {"confidence": sure, "alternatives": {}, "ambiguous": False, "notes": [], **naming}
    record = {
        "format": FORMAT,
        "input": {"name": scan.path.name, "path": f"rawdata/{scan.path.name}"},
        "warnings": [],
        "naming": {} if naming.get("confidence", 1) is None else told,
        "stages": {"final": {"key": "k", "files": {}}},
    }
    paths["out_prov"].write_text(json.dumps(record))
    return paths
