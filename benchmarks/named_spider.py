"""Names on SPIDER scans, told by their discs: the lowest disc of the reference lies below L5, the next one below L4.

    python benchmarks/named_spider.py FOLDER... [--semantic FOLDER]

A folder holds ``*_T2w.nii.gz`` with ``*_seg-coarse_msk.nii.gz`` (2 disc; no sacrum, no names).  A disc counts when most
labelled voxels in it bear its name.  People with other than five lumbar vertebrae are counted as wrong: nothing in
the reference tells.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.ndimage import label
from semantic_dice import read

from spineps.anatomy import DISC_OFFSET, VERTEBRA_NAMES
from spineps.models.registry import get_instance_model, get_labeling_model, get_semantic_model
from spineps.pipeline import Models, segment_volume

#: From the sacrum upwards; a reference disc smaller than this (mm3) is a sliver at the border.
FROM_BELOW = (24, 23, 22, 21, 20, 19, 18, 17, 16, 15)
LEAST_MM3 = 500


def discs_from_below(mask: np.ndarray, voxel_mm3: float) -> list[np.ndarray]:
    """Every whole disc of a reference (PIR), the lowest first."""
    labels, count = label(mask == 2)
    found = [labels == i for i in range(1, count + 1)]
    found = [disc for disc in found if disc.sum() * voxel_mm3 > LEAST_MM3]
    return sorted(found, key=lambda disc: -np.argwhere(disc)[:, 1].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--semantic", default="semantic", help="id or folder of another semantic model")
    args = parser.parse_args()
    models = Models(get_semantic_model(args.semantic), get_instance_model(), get_labeling_model())
    print("| scan | discs named right | naming | not right |\n" + "|---" * 4 + "|")
    for file in sorted(f for folder in args.folder for f in folder.glob("*_T2w.nii.gz")):
        truth = read(Path(str(file).replace("T2w", "seg-coarse_msk"))).reoriented("PIR")
        result = segment_volume(read(file).reoriented("PIR"), models)
        right, wrong = 0, []
        discs = discs_from_below(truth.array, truth.grid.voxel_volume)
        for disc, wanted in zip(discs, FROM_BELOW, strict=False):
            seen = result.instance.array[disc]
            seen = seen[(seen > DISC_OFFSET) & (seen < 2 * DISC_OFFSET)] - DISC_OFFSET
            got = int(np.bincount(seen).argmax()) if seen.size else 0
            right += got == wanted
            if got != wanted:
                wrong.append(f"{VERTEBRA_NAMES[wanted]} {VERTEBRA_NAMES.get(got, 'nothing')}")
        sure = "sure" if result.naming and not result.naming.ambiguous else "ambiguous"
        print(f"| {file.name.split('_')[0]} | {right}/{len(discs)} | {sure} | {', '.join(wrong)} |", flush=True)


if __name__ == "__main__":
    main()
