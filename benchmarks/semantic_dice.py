"""Dice of the semantic model against real scans, on their own grid.

    python benchmarks/semantic_dice.py [--coarse FOLDER] [--crops] [--abdomen FOLDER] [--model FOLDER] [--step 0.5]
    OMP_NUM_THREADS=1 python benchmarks/semantic_dice.py --coarse FOLDER --precision f32 bf16 int8

``--coarse`` is a folder of ``*_T2w.nii.gz`` with ``*_seg-coarse_msk.nii.gz`` (SPIDER: 1 vertebra, 2 disc, 3 canal), of
which ``--only 22 57`` keeps some subjects.  ``--crops`` adds the two annotated crops inside TPTBox (all labels).
``--abdomen`` is ``tests/reference_files`` of TotalSegmentator's source archive: an axial T1w MR of 3 mm with its own
automatic masks of bodies, discs and the contents of the canal.
Of several precisions the last table has CPU seconds and Dice side by side, each scan in all before the next.
The tool that is measured is network + resampling alone: no pre-processing, no cleaning.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from first_light import coarse, dice

from spineps.anatomy import BY_ID, CANAL_PARTS
from spineps.inference.resample import argmax_on_grid, to_model_grid
from spineps.models.model import SemanticModel
from spineps.models.registry import BUNDLED, get_actual_model
from spineps.volume import Volume


def read(path: Path) -> Volume:
    import nibabel as nib

    image = nib.load(path)
    return Volume(np.asanyarray(image.dataobj), image.affine)


def segment(image: Volume, model: SemanticModel, tta: bool | None, step: float | None) -> np.ndarray:
    """Semantic ids on the image's own grid."""
    config = model.config
    oriented = image.reoriented(config.orientation)
    small = to_model_grid(oriented, config.target_zoom(oriented.zoom), not config.published, not config.published)
    probabilities = model.probabilities(small, step, tta)
    classes = argmax_on_grid(probabilities, small.grid, image.grid)
    return np.array(config.class_ids, np.uint8)[classes]


def coarse_dice(prediction: np.ndarray, truth: np.ndarray, zoom: tuple[float, ...]) -> list[float]:
    """Vertebra, disc and canal, endplates counting for the nearer of the two; then the first two without plates."""
    answer, bare = coarse(prediction, zoom), coarse(prediction, zoom, plates_count=False)
    return [dice(answer == k, truth == k) for k in (1, 2, 3)] + [dice(bare == k, truth == k) for k in (1, 2)]


def as_text(scores: Sequence[float]) -> str:
    v, d, c, bare_v, bare_d = scores
    return f"vertebra {v:.3f}  disc {d:.3f}  canal {c:.3f}  without plates: vertebra {bare_v:.3f}  disc {bare_d:.3f}"


def crops() -> list[tuple[str, Path, Path]]:
    import TPTBox

    tests = Path(TPTBox.__file__).parent / "tests"
    found = []
    for name in ("sample_mri", "sample_ct"):
        files = sorted((tests / name).glob("*.nii.gz"))
        mask = next(f for f in files if "seg-subreg" in f.name)
        image = next(f for f in files if "seg-" not in f.name)
        found.append((name, image, mask))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coarse", type=Path)
    parser.add_argument("--only", nargs="*", type=int)
    parser.add_argument("--crops", action="store_true")
    parser.add_argument("--abdomen", type=Path)
    parser.add_argument("--model", type=Path, default=BUNDLED / "semantic")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", nargs="+", choices=("f32", "bf16", "int8"), default=[None])
    parser.add_argument("--step", type=float)
    parser.add_argument("--patch", nargs=3, type=int)
    parser.add_argument("--zoom", nargs=3, type=float)
    parser.add_argument("--tta", action=argparse.BooleanOptionalAction)
    args = parser.parse_args()
    models = {}
    for precision in args.precision:
        model = get_actual_model(args.model, engine=args.engine, precision=precision)
        assert isinstance(model, SemanticModel)
        config = model.config
        if args.patch:
            config = replace(config, patch_size=tuple(args.patch))
        if args.zoom:
            config = replace(config, zoom_min=tuple(args.zoom), zoom_max=tuple(args.zoom))
        models[precision] = replace(model, config=config)
        models[precision].load()
    rows = defaultdict(list)
    for file in sorted(args.coarse.glob("*_T2w.nii.gz")) if args.coarse else []:
        number = int(re.sub(r"\D", "", file.name.split("_")[0]))
        if args.only and number not in args.only:
            continue
        image, truth = read(file), read(Path(str(file).replace("T2w", "seg-coarse_msk")))
        for precision, model in models.items():
            start = time.process_time()
            prediction = segment(image, model, args.tta, args.step)
            seconds = time.process_time() - start
            rows[precision].append([*coarse_dice(prediction, np.asarray(truth.array), image.zoom), seconds])
            print(f"{number:4d} {precision or ''} {as_text(rows[precision][-1][:5])}  {seconds:.1f} CPU s", flush=True)
    for precision, some in rows.items():
        *scores, seconds = np.mean(some, axis=0)
        print(f"mean {precision or ''} {as_text(scores)}  {seconds:.1f} CPU s")
    model = models[args.precision[0]]
    if args.abdomen:
        truth = np.asarray(read(args.abdomen / "example_seg_mr.nii.gz").array)
        prediction = segment(read(args.abdomen / "example_mr_sm.nii.gz"), model, args.tta, args.step)
        pairs = (("body", (49,), 19), ("disc with endplates", (100, 62), 20), ("canal", CANAL_PARTS, 21))
        text = (f"{what} {dice(np.isin(prediction, ours), truth == theirs):.3f}" for what, ours, theirs in pairs)
        print("abdomen", "  ".join(text))
    for name, image_file, mask_file in crops() if args.crops else []:
        image, truth = read(image_file), np.asarray(read(mask_file).array).astype(int)
        prediction = segment(image, model, args.tta, args.step)
        truth[truth == 50] = 49
        # These crops split endplates in two and may name the dens apart; the model does not.
        truth[np.isin(truth, (52, 53))] = 62
        present = [i for i in BY_ID if np.any(truth == i)]
        scores = {i: dice(prediction == i, truth == i) for i in present}
        line = "  ".join(f"{i} {s:.2f}" for i, s in scores.items())
        canal = dice(np.isin(prediction, CANAL_PARTS), np.isin(truth, CANAL_PARTS))
        print(f"{name}  mean {np.mean(list(scores.values())):.3f}  [{line}]  60+61 {canal:.2f}")


if __name__ == "__main__":
    main()
