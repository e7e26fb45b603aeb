"""Each bundled model on generated scans that it was not trained on, with the truth of the stage before as its input.

    python benchmarks/phantoms.py [--count 40] [--first 900000] [--only semantic,instance,labeling]
    python benchmarks/phantoms.py --only chain [--count 16] [--first 950000] [--fields chest]

Prints, for all regions and contrasts together: semantic Dice per structure; vertebrae found and their Dice; names right
(of all vertebrae, of whole scans), split by whether the naming called itself ambiguous and by whether the person has
the usual twelve thoracic and five lumbar vertebrae; and what that means where one person in twelve has other numbers.

``chain`` sends scans of usual voxel sizes and fields of view, whole spines included, through all phases one after the
other and counts, per region, bodies found and names right.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from spineps.anatomy import BY_ID, SACRUM, T13, VERTEBRAE
from spineps.models.registry import get_instance_model, get_labeling_model, get_semantic_model
from spineps.options import InstanceOptions, LabelingOptions, Options
from spineps.phases.instance import predict_instances, upsample_instances
from spineps.phases.labeling import name_instances
from spineps.pipeline import Models, segment_volume, semantic_stage
from spineps.synth.phantom import make_phantom
from spineps.volume import Volume

REGIONS = ("cervical", "thoracic", "lumbar", "sacral")
CONTRASTS = ("T2", "T1", "STIR", "CT", "Dixon")
ZOOM, SHAPE = (1.5, 1.5, 1.5), (88, 128, 52)
#: A body smaller than this (mm3) is a sliver at the border.
LEAST_BODY = 800
#: In thick slices at the border more is needed.
LEAST_BODY_OF_A_SCAN = 2000
#: People with other numbers than twelve thoracic and five lumbar vertebrae (one in twelve, as the naming reckons).
OTHERS = 1 / 12
#: What is scanned by turns, and how: contrast, mm along P, I, R.
FIELDS = ("cervical", "thoracic", "lumbar", "whole", "cervical", "lumbar", "thoracic", "sacral")
SCANS: dict[str, tuple[tuple[str, tuple[float, float, float]], ...]] = {
    "cervical": (("T2", (0.6, 0.6, 3.3)), ("T1", (0.8, 0.8, 3.3)), ("CT", (0.8, 1.0, 0.8)), ("STIR", (0.8, 0.8, 3.6))),
    "thoracic": (("T2", (0.9, 0.9, 3.6)), ("T1", (0.9, 0.9, 4.0)), ("CT", (1.0, 1.5, 1.0)), ("STIR", (1.0, 1.0, 4.0))),
    "lumbar": (
        ("T2", (0.8, 0.8, 4.4)),
        ("T1", (0.8, 0.8, 4.4)),
        ("CT", (1.0, 1.5, 1.0)),
        ("STIR", (0.9, 0.9, 4.4)),
        ("Dixon", (1.5, 1.5, 3.0)),
    ),
    "sacral": (("T1", (1.0, 1.0, 4.0)), ("T2", (0.9, 0.9, 3.0))),
    "whole": (("T2", (1.0, 1.0, 3.6)), ("CT", (1.5, 1.5, 1.5)), ("Dixon", (1.5, 1.5, 3.0))),
    # Slices across the body, as thick as a disc is high.
    "chest": (("CT", (0.8, 5.0, 0.8)), ("CT", (0.8, 3.0, 0.8)), ("T1", (1.2, 5.0, 1.2))),
}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return float(2 * (a & b).sum() / total) if total else float("nan")


def scans(first: int, count: int) -> Iterator[tuple[str, Volume, Volume, Volume, bool]]:
    """What it is, image, truth, and whether the person has 12 thoracic and 5 lumbar vertebrae."""
    for k in range(count):
        region, contrast = REGIONS[k % len(REGIONS)], CONTRASTS[k % len(CONTRASTS)]
        image, semantic, instance, spec, _ = make_phantom(first + k, region, contrast, ZOOM, SHAPE)
        ids = {level.id for level in spec.levels}
        usual = {19, 24} <= ids and not ids & {25, T13}
        yield f"{region} {contrast}", *(v.reoriented("PIR") for v in (image, semantic, instance)), usual


def bodies(semantic: Volume, instance: Volume, least: float = LEAST_BODY) -> list[int]:
    inside = np.bincount(instance.array[semantic.array == 49].astype(int), minlength=256)
    return [v for v in VERTEBRAE if inside[v] * float(np.prod(semantic.zoom)) > least]


def vertebrae(instance: Volume) -> Volume:
    """Vertebrae alone (no sacrum, discs, plates)."""
    keep = (instance.array <= 25) | (instance.array == T13)
    return instance.with_array(np.where(keep, instance.array, 0).astype(np.uint16))


def chain(first: int, count: int, semantic_model: str, fields: Sequence[str]) -> None:
    """All phases; a body is found when most of it is one instance that no other body has."""
    models = Models(get_semantic_model(semantic_model), get_instance_model(), get_labeling_model())
    rows: dict[str, list[tuple[int, int, int, bool, bool]]] = defaultdict(list)
    for k in range(count):
        field = fields[k % len(fields)]
        contrast, zoom = SCANS[field][(k // len(fields) + k) % len(SCANS[field])]
        region = "thoracic" if field == "chest" else field
        image, semantic, instance, *_ = make_phantom(first + k, region, contrast, zoom)
        result = segment_volume(image, models)
        body = np.where(semantic.array == 49, instance.array, 0)
        wanted, used, wrong = bodies(semantic, instance, LEAST_BODY_OF_A_SCAN), set(), []
        for v in wanted:
            votes = np.bincount(result.instance.array[body == v], minlength=30)[:30]
            votes[[0, SACRUM]] = 0
            best = int(votes.argmax())
            if votes[best] * 2 < (body == v).sum() or best in used:
                wrong.append(f"{v} lost")
                continue
            used.add(best)
            wrong += [f"{v} called {best}"] if best != v else []
        found, right, sure = len(used), len(wanted) - len(wrong), not (result.naming and result.naming.ambiguous)
        rows[field].append((len(wanted), found, right, right == len(wanted), sure))
        doubt = "sure" if sure else "ambiguous"
        print(f"{first + k} {field} {contrast}  {right}/{len(wanted)} {doubt}  {', '.join(wrong)}", flush=True)
    heads = ("region", "scans", "bodies found", "names right", "scans all right", "of the sure ones")
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    everything = [row for some in rows.values() for row in some]
    for field, some in [*rows.items(), ("all", everything)]:
        n, found, right, whole, claimed = (sum(column) for column in zip(*some, strict=True))
        both = sum(row[3] and row[4] for row in some)
        cells = (field, len(some), f"{found}/{n}", f"{right}/{n}", whole, f"{both} of {claimed}")
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--first", type=int, default=900_000)
    parser.add_argument("--only", default="semantic,instance,labeling")
    parser.add_argument("--fields", default=",".join(FIELDS), help=f"of the chain, by turns: {', '.join(SCANS)}")
    parser.add_argument("--semantic", default="semantic", help="id or folder of another semantic model")
    args = parser.parse_args()
    only = set(args.only.split(","))
    if "chain" in only:
        chain(args.first, args.count, args.semantic, args.fields.split(","))
        return
    structures: dict[int, list[float]] = defaultdict(list)
    found: list[float] = []
    surplus, names = 0, defaultdict(list)
    for what, image, semantic, instance, usual in scans(args.first, args.count):
        line = [what]
        if "semantic" in only:
            # As a user gets it: probabilities on the scan's own grid, not the model's voxels.
            stage = semantic_stage(image, get_semantic_model(args.semantic), Options(), lambda phase, done, n: None)
            mask = stage.native
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
            names[naming.ambiguous, usual].append(right)
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
        print(
            "| naming | numbers of vertebrae | scans | vertebrae named right | scans all right |\n" + "|---" * 5 + "|"
        )
        for doubt, who in product((False, True), ("any", "12 and 5", "others")):
            rows = [
                row
                for (ambiguous, usual), some in names.items()
                for row in some
                if ambiguous == doubt and who in ("any", "12 and 5" if usual else "others")
            ]
            if rows:
                each, whole = np.concatenate(rows).mean(), np.mean([all(row) for row in rows])
                print(f"| {'ambiguous' if doubt else 'sure'} | {who} | {len(rows)} | {each:.3f} | {whole:.3f} |")
        print(f"\nOf people as they are, scans that are called sure and are all right: {among_people(names):.3f}")


def among_people(names: dict[tuple[bool, bool], list[list[bool]]]) -> float:
    """Share of sure scans that are all right where ``OTHERS`` of the people, not a quarter, have other numbers."""
    sure, right = 0.0, 0.0
    for usual, people in ((True, 1 - OTHERS), (False, OTHERS)):
        here = names[False, usual]
        every = max(len(here) + len(names[True, usual]), 1)
        sure += people * len(here) / every
        right += people * sum(all(row) for row in here) / every
    return right / sure if sure else 0.0


if __name__ == "__main__":
    main()
