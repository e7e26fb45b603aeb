"""Does the locator's box hold the whole spine?  On real scans that were not trained on, and on wide generated ones.

    python benchmarks/locator.py DATA [--phantoms 14] [--compare SCAN]

DATA holds ``real/lumbar-bodies``, ``real/spider-native`` and ``labelmaps/verse``.  Printed: share of the labelled
voxels inside the box (before it is widened), the box as a share of the volume, CPU seconds.  ``--compare`` runs the
semantic phase of one scan with and without the locator.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from semantic_dice import read

from spineps.inference.resample import to_model_grid
from spineps.inference.sliding import busy_box
from spineps.models.model import SemanticModel
from spineps.models.registry import get_semantic_model
from spineps.options import SemanticOptions
from spineps.phases.semantic import predict_semantic
from spineps.synth.image import random_image_spec, synthesise
from spineps.synth.labelmap import field_of_view, render
from spineps.synth.spec import random_spec
from spineps.volume import Volume

FINE, WIDE = (1.5, 1.5, 1.5), (84, 112, 30)
SETS = (
    ("real/lumbar-bodies/*_T2w.nii.gz", "_T2w", "_seg-bodies_msk"),
    ("real/spider-native/*_T2w.nii.gz", "_T2w", "_seg-coarse_msk"),
    ("labelmaps/verse/*007_ct.nii.gz", "_ct", "_seg-vert_msk"),
)


def report(name: str, locator: SemanticModel, small: Volume, shape: tuple[int, ...], where: np.ndarray) -> None:
    """``where``: (n, 3) labelled places in voxels of the image of ``shape``."""
    start = time.process_time()
    upright = next(axis for axis, code in enumerate(small.axcodes) if code in "SI")
    box = busy_box(locator.probabilities(small, tta=False)[0] < 0.5, shape, (upright, small.zoom))
    seconds = time.process_time() - start
    if box is None:
        print(f"{name}: nothing found ({seconds:.2f} CPU s)")
        return
    inside = np.all([(where[:, a] >= s.start - 0.5) & (where[:, a] <= s.stop - 0.5) for a, s in enumerate(box)], axis=0)
    share = np.prod([s.stop - s.start for s in box]) / np.prod(shape)
    print(f"{name}: {inside.mean():.3f} inside, box {share:.2f} of the volume, {seconds:.2f} CPU s", flush=True)


def real(data: Path, locator: SemanticModel) -> None:
    for pattern, ending, mask in SETS:
        for file in sorted(data.glob(pattern)):
            image = read(file).reoriented("PIR")
            truth = read(file.with_name(file.name.replace(ending, mask))).reoriented("PIR")
            fine = to_model_grid(image, FINE)
            where = np.argwhere(truth.array > 0) * np.array(truth.zoom) / np.array(FINE)
            report(file.name[:14], locator, to_model_grid(fine, locator.config.zoom_min), fine.shape, where)


def generated(count: int, locator: SemanticModel) -> None:
    zoom = locator.config.zoom_min
    for seed in range(950_000, 950_000 + count):
        rng = np.random.default_rng(seed)
        person = render(random_spec(rng), field_of_view(WIDE, zoom))
        image = Volume(synthesise(person, random_image_spec(rng)).astype(np.float32), person.grid.affine)
        where = np.argwhere(person.semantic > 0) * 3 + 1.0
        report(f"generated {seed}", locator, image, tuple(3 * n for n in WIDE), where)


def compare(scan: Path, model: SemanticModel) -> None:
    image = read(scan)
    with tempfile.TemporaryDirectory() as folder:
        alone = shutil.copytree(model.folder, Path(folder) / "alone", ignore=shutil.ignore_patterns("locator"))
        for name, used in (("with", model), ("without", get_semantic_model(alone))):
            used.load()
            start = time.process_time()
            predict_semantic(image, used, SemanticOptions())
            print(f"{scan.name} {name} locator: {time.process_time() - start:.1f} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--phantoms", type=int, default=14)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--model", default="semantic", help="id or folder of another semantic model")
    args = parser.parse_args()
    model = get_semantic_model(args.model)
    assert model.locator is not None
    real(args.data, model.locator)
    generated(args.phantoms, model.locator)
    if args.compare:
        compare(args.compare, model)


if __name__ == "__main__":
    main()
