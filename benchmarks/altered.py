"""Real volumes as other scanners would have made them: does the whole chain still find and name every body?

    python benchmarks/altered.py DATA/real/lumbar-bodies [--only 04 20] [--ways plain axial ...]

Each 1 mm volume (bodies T11 to L5 labelled) is made thick in each plane, coarse, tilted, inverted, noisy, shaded,
in 61 grey values, cut in half or down to a slab, in other contrasts, with ghosts, with moved slices, padded, out of the
slab.  A body that is in view counts when most of it bears its own name.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter, uniform_filter1d

from spineps.anatomy import SACRUM
from spineps.models.registry import get_instance_model, get_labeling_model, get_semantic_model
from spineps.pipeline import Models, segment_volume
from spineps.volume import Volume

#: A body is asked for when at least this share of it is in view.
IN_VIEW = 0.3


def thick(scan: Volume, mm: tuple[float, float, float]) -> Volume:
    """Slices of ``mm`` along P, I, R, averaged over their thickness."""
    array = scan.array.astype(np.float32)
    for axis, (wanted, present) in enumerate(zip(mm, scan.zoom, strict=True)):
        array = uniform_filter1d(array, max(round(wanted / present), 1), axis=axis)
    return scan.with_array(array).rescaled(mm, order=1)


def tilted(scan: Volume, degrees: float, axes: tuple[int, int] = (0, 1)) -> Volume:
    """The patient stays, the voxel grid turns in the plane of two axes (sagittal)."""
    turn, middle = np.eye(3), (np.array(scan.shape) - 1) / 2
    turn[axes, axes] = np.cos(np.deg2rad(degrees))
    turn[axes] = -np.sin(np.deg2rad(degrees))
    turn[axes[::-1]] = -turn[axes]
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = turn, middle - turn @ middle
    return Volume(affine_transform(scan.array.astype(np.float32), turn, move[:3, 3], order=1), scan.affine @ move)


def inverted(scan: Volume) -> Volume:
    """Bright becomes dark, air stays dark."""
    array = scan.array.astype(np.float32)
    bright = np.percentile(array, 99.5)
    air = gaussian_filter(array, 2) < 0.08 * bright
    return scan.with_array(np.where(air, array, np.clip(bright - array, 0, None)))


def noisy(scan: Volume) -> Volume:
    noise = np.random.default_rng(0).normal(0, 0.12 * np.percentile(scan.array, 99), scan.shape)
    return scan.with_array(np.abs(scan.array + noise))


def shaded(scan: Volume) -> Volume:
    """A surface coil: an e-fold less signal every 40 % of the way to the front."""
    return scan.with_array(scan.array * np.exp(np.linspace(-2.5, 0, scan.shape[0]))[:, None, None])


def coarse_grey(scan: Volume) -> Volume:
    return scan.with_array(np.clip(scan.array / np.percentile(scan.array, 99.9) * 60, 0, 60).astype(np.uint8))


def recoloured(scan: Volume, seed: int) -> Volume:
    """Grey values through a random curve with eight corners; air stays dark."""
    corners = np.random.default_rng(seed).uniform(0, 1, 8)
    corners[0] = 0
    bright = 1.2 * np.percentile(scan.array, 99.5)
    smooth = gaussian_filter(scan.array.astype(np.float32), 0.6)
    return scan.with_array(np.interp(smooth / bright * 7, np.arange(8), corners))


def ghosts(scan: Volume) -> Volume:
    """Three faint copies, moved along the spine and across it."""
    a, (p, i, _) = scan.array.astype(np.float32), scan.shape
    return scan.with_array(a + 0.3 * (np.roll(a, i // 4, 1) + np.roll(a, -i // 4, 1)) + 0.25 * np.roll(a, p // 3, 0))


def restless(scan: Volume) -> Volume:
    """Sagittal slices of 4 mm between which the patient moved by up to 3 mm, of uneven brightness."""
    slices, rng = thick(scan, (1, 1, 4)), np.random.default_rng(1)
    array = slices.array.copy()
    for k in range(array.shape[2]):
        array[..., k] = np.roll(array[..., k], rng.integers(-3, 4, 2), (0, 1)) * rng.uniform(0.5, 1.3)
    return slices.with_array(array)


def padded(scan: Volume) -> Volume:
    """Zeros around it, more on one side than on the other."""
    before, after = np.array([60, 40, 5]), np.array([10, 120, 60])
    affine = scan.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    return Volume(np.pad(scan.array, list(zip(before, after, strict=True))), affine)


def part(scan: Volume, axis: int, low: float, high: float) -> Volume:
    box = [slice(0, n) for n in scan.shape]
    n = scan.shape[axis]
    box[axis] = slice(round(low * n), round(high * n))
    return scan.cropped((box[0], box[1], box[2]))


WAYS: dict[str, Callable[[Volume], Volume]] = {
    "plain": lambda scan: scan,
    "sagittal 4.4 mm": lambda scan: thick(scan, (1, 1, 4.4)),
    "axial 4 mm": lambda scan: thick(scan, (1, 4, 1)),
    "coronal 4 mm": lambda scan: thick(scan, (4, 1, 1)),
    "3 mm isotropic": lambda scan: thick(scan, (3, 3, 3)),
    "tilted by 25 degrees": lambda scan: tilted(scan, 25),
    "axial 4 mm, leaning by 20 degrees": lambda scan: thick(tilted(scan, 20), (1, 4, 1)),
    "inverted": inverted,
    "noisy": noisy,
    "shaded": shaded,
    "61 grey values": coarse_grey,
    "upper half": lambda scan: part(scan, 1, 0, 0.55),
    "lower half": lambda scan: part(scan, 1, 0.47, 1),
    "slab of 18 mm": lambda scan: part(scan, 2, 0.38, 0.62),
    "one contrast": lambda scan: recoloured(scan, 1),
    "another contrast": lambda scan: recoloured(scan, 2),
    "ghosts": ghosts,
    "restless": restless,
    "padded": padded,
    "without the sacrum": lambda scan: part(scan, 1, 0.2, 0.7),
    "leaving the slab": lambda scan: tilted(scan, 30, (1, 2)),
    "back halves of the bodies": lambda scan: part(part(scan, 0, 0.42, 0.72), 2, 0.3, 0.7),
}


def main() -> None:
    from nibabel import nifti1

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--semantic", default="semantic", help="id or folder of another semantic model")
    args = parser.parse_args()
    models = Models(get_semantic_model(args.semantic), get_instance_model(), get_labeling_model())
    pairs = []
    for file in sorted(args.folder.glob("*_T2w.nii.gz")):
        if any(name in file.name for name in args.only):
            images = [nifti1.load(file), nifti1.load(str(file).replace("_T2w", "_seg-bodies_msk"))]
            pairs.append([Volume(np.asanyarray(image.dataobj), image.affine).reoriented("PIR") for image in images])
    print("| scan as | bodies found and named | scans called sure | not right | CPU s |\n" + "|---" * 5 + "|")
    for way in args.ways:
        right = total = sure = 0
        wrong: list[str] = []
        start = time.process_time()
        for scan, truth in pairs:
            seen = WAYS[way](scan)
            result = segment_volume(seen, models)
            answer = result.instance.on(truth.grid).array
            inside = seen.with_array(np.ones(seen.shape, np.uint8)).on(truth.grid).array > 0
            for label in (int(v) for v in np.unique(truth.array) if v):
                body = truth.array == label
                view = body & inside
                if view.sum() < IN_VIEW * body.sum():
                    continue
                votes = np.bincount(answer[view], minlength=SACRUM + 1)
                total += 1
                right += bool(votes[label] * 2 > view.sum())
                if votes[label] * 2 <= view.sum():
                    votes[0] = 0
                    wrong.append(f"{label} called {votes.argmax()}" if votes.any() else f"{label} lost")
            sure += not (result.naming and result.naming.ambiguous)
        seconds = (time.process_time() - start) / len(pairs)
        cells = (way, f"{right}/{total}", f"{sure}/{len(pairs)}", ", ".join(wrong), f"{seconds:.1f}")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
