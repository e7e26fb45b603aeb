"""Each bundled model on generated scans that it was not trained on, with the truth of the stage before as its input.

    python benchmarks/phantoms.py [--count 40] [--first 900000] [--only semantic,instance,labeling]

Prints, for all regions and contrasts together: semantic Dice per structure; vertebrae found and their Dice; names right
(of all vertebrae, of whole scans), split by whether the naming called itself ambiguous.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from spineps.anatomy import BY_ID, T13, VERTEBRAE
from spineps.models.registry import get_instance_model, get_labeling_model, get_semantic_model
from spineps.options import InstanceOptions, LabelingOptions, SemanticOptions
from spineps.phases.instance import predict_instances, upsample_instances
from spineps.phases.labeling import name_instances
from spineps.phases.semantic import clean_semantic, predict_semantic
from spineps.synth.phantom import make_phantom
from spineps.volume import Volume

REGIONS = ("cervical", "thoracic", "lumbar", "sacral")
CONTRASTS = ("T2", "T1", "STIR", "CT", "Dixon")
ZOOM, SHAPE = (1.5, 1.5, 1.5), (88, 128, 52)
#: A body smaller than this (mm3) is a sliver at the border.
LEAST_BODY = 800


def dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return float(2 * (a & b).sum() / total) if total else float("nan")


def scans(first: int, count: int) -> Iterator[tuple[str, Volume, Volume, Volume]]:
    for k in range(count):
        region, contrast = REGIONS[k % len(REGIONS)], CONTRASTS[k % len(CONTRASTS)]
        image, semantic, instance, *_ = make_phantom(first + k, region, contrast, ZOOM, SHAPE)
        yield f"{region} {contrast}", *(v.reoriented("PIR") for v in (image, semantic, instance))


def bodies(semantic: Volume, instance: Volume) -> list[int]:
    inside = np.bincount(instance.array[semantic.array == 49].astype(int), minlength=256)
    return [v for v in VERTEBRAE if inside[v] * float(np.prod(ZOOM)) > LEAST_BODY]


def vertebrae(instance: Volume) -> Volume:
    """Vertebrae alone (no sacrum, discs, plates)."""
    keep = (instance.array <= 25) | (instance.array == T13)
    return instance.with_array(np.where(keep, instance.array, 0).astype(np.uint16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--first", type=int, default=900_000)
    parser.add_argument("--only", default="semantic,instance,labeling")
    args = parser.parse_args()
    only = set(args.only.split(","))
    structures: dict[int, list[float]] = defaultdict(list)
    found: list[float] = []
    surplus, names = 0, defaultdict(list)
    for what, image, semantic, instance in scans(args.first, args.count):
        line = [what]
        if "semantic" in only:
            mask = clean_semantic(
                predict_semantic(image, get_semantic_model(), SemanticOptions()).mask, SemanticOptions()
            )
            mask = mask.on(semantic.grid)
            scores = {i: dice(mask.array == i, semantic.array == i) for i in BY_ID if (semantic.array == i).sum() > 30}
            for i, score in scores.items():
                structures[i].append(score)
            line.append(f"semantic {np.mean(list(scores.values())):.3f}")
        wanted, truth = bodies(semantic, instance), vertebrae(instance)
        if "instance" in only and wanted:
            answer = upsample_instances(
                predict_instances(semantic, get_instance_model(), InstanceOptions()), semantic
            ).array
            here = []
            for v in wanted:
                votes = np.bincount(answer[truth.array == v])
                votes[0] = 0
                here.append(dice(answer == votes.argmax(), truth.array == v) if votes.any() else 0.0)
            extra = len(np.unique(answer[answer > 0])) - len(wanted)
            surplus += max(extra, 0)
            found += here
            line.append(f"instance {np.mean(here):.3f} ({len(wanted)} bodies, {extra:+d})")
        if "labeling" in only and wanted:
            asked = truth.with_array(np.where(np.isin(truth.array, wanted), truth.array, 0).astype(np.uint16))
            naming = name_instances(image, semantic, asked, get_labeling_model(), LabelingOptions())
            right = [naming.ids.get(v) == v for v in wanted]
            names[naming.ambiguous].append(right)
            doubt = " ambiguous" if naming.ambiguous else ""
            line.append(f"names {sum(right)}/{len(right)}{doubt}")
        print("  ".join(line), flush=True)
    print()
    if structures:
        print("| structure | Dice | phantoms |\n|---|---|---|")
        for i, scores in sorted(structures.items()):
            print(f"| {i} {BY_ID[i].name} | {np.mean(scores):.3f} | {len(scores)} |")
        print(f"| mean | {np.mean([np.mean(s) for s in structures.values()]):.3f} | |\n")
    if found:
        recognised = np.mean([score > 0.5 for score in found])
        print("| vertebrae | found (Dice > 0.5) | mean Dice | surplus instances |\n|---|---|---|---|")
        print(f"| {len(found)} | {recognised:.3f} | {np.mean(found):.3f} | {surplus} |\n")
    if names:
        print("| naming | scans | vertebrae named right | scans all right |\n|---|---|---|---|")
        for doubt, rows in sorted(names.items()):
            each = np.concatenate(rows)
            whole = np.mean([all(row) for row in rows])
            print(f"| {'ambiguous' if doubt else 'sure'} | {len(rows)} | {each.mean():.3f} | {whole:.3f} |")


if __name__ == "__main__":
    main()
