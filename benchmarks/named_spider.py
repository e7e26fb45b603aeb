"""Names on SPIDER scans, told by their discs: the lowest disc of the reference lies below L5, the next one below L4.

    python benchmarks/named_spider.py FOLDER... [--only 022 057 ...] [--ways plain inverted ...] [--semantic FOLDER]

A folder holds ``*_T2w.nii.gz`` with ``*_seg-coarse_msk.nii.gz`` (2 disc; no sacrum, no names).  A disc counts when most
labelled voxels in it bear its name.  People with other than five lumbar vertebrae are counted as wrong: nothing in
the reference tells.  Dice of vertebra, disc and canal is that of :mod:`semantic_dice`; ``--ways`` shows the scans as
other scanners would have made them (:mod:`altered`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from altered import IN_VIEW, WAYS
from scipy.ndimage import label
from semantic_dice import as_text, coarse_dice, read

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
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--ways", nargs="*", default=["plain"], choices=list(WAYS))
    parser.add_argument("--semantic", default="semantic", help="id or folder of another semantic model")
    args = parser.parse_args()
    models = Models(get_semantic_model(args.semantic), get_instance_model(), get_labeling_model())
    print("| scan | as | discs named right | naming | not right | vertebra, disc, canal |\n" + "|---" * 6 + "|")
    files = sorted(
        f for folder in args.folder for f in folder.glob("*_T2w.nii.gz") if any(k in f.name for k in args.only)
    )
    for file in files:
        truth = read(Path(str(file).replace("T2w", "seg-coarse_msk"))).reoriented("PIR")
        scan = read(file).reoriented("PIR")
        for way in args.ways:
            seen = WAYS[way](scan)
            result = segment_volume(seen, models)
            answer = result.instance.on(truth.grid).array
            inside = seen.with_array(np.ones(seen.shape, np.uint8)).on(truth.grid).array > 0
            right, wrong = 0, []
            discs = discs_from_below(truth.array, truth.grid.voxel_volume)
            row = [(d, w) for d, w in zip(discs, FROM_BELOW, strict=False) if inside[d].mean() > IN_VIEW]
            for disc, wanted in row:
                found = answer[disc]
                found = found[(found > DISC_OFFSET) & (found < 2 * DISC_OFFSET)] - DISC_OFFSET
                got = int(np.bincount(found).argmax()) if found.size else 0
                right += got == wanted
                if got != wanted:
                    wrong.append(f"{VERTEBRA_NAMES[wanted]} {VERTEBRA_NAMES.get(got, 'nothing')}")
            sure = "sure" if result.naming and not result.naming.ambiguous else "ambiguous"
            scores = as_text(
                coarse_dice(result.semantic.on(truth.grid).array, np.where(inside, truth.array, 0), truth.zoom)
            )
            name = file.name.split("_")[0]
            print(f"| {name} | {way} | {right}/{len(row)} | {sure} | {', '.join(wrong)} | {scores} |", flush=True)


if __name__ == "__main__":
    main()
