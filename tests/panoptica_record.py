"""What panoptica says of small masks: ``python tests/panoptica_record.py`` where it is installed writes the record.

Needs numpy and panoptica alone, which hold numpy and rich back: an environment of its own is best.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "golden"
RECORD, MASK = FOLDER / "panoptica.json", FOLDER / "panoptica.npz"


def cases() -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """(prediction, reference) by name, and their affine: a generated lumbar spine and copies of it with faults."""
    with np.load(MASK) as stored:
        inst, affine = stored["vertebrae"], stored["affine"]
    seen = np.unique(inst[inst > 0])
    noisy = np.where(np.random.default_rng(0).random(inst.shape) < 0.2, 0, inst)
    two = np.where(inst == seen[2], seen[1], inst)
    first, second = (boxes(seed) for seed in (1, 2))
    return {
        "shifted": (np.roll(inst, 1, 1), inst),
        "far": (np.roll(inst, 4, 1), inst),
        "one missing": (np.where(inst == seen[1], 0, inst), inst),
        "one surplus": (inst, np.where(inst == seen[3], 0, inst)),
        "renamed": (np.where(inst > 0, inst - 1, 0).astype(inst.dtype), inst),
        "two as one": (two, inst),
        "noisy": (noisy, inst),
        "nothing found": (np.zeros_like(inst), inst),
        "boxes": (first, second),
    }, affine


def boxes(seed: int) -> np.ndarray:
    """Seven boxes at random places, on each other where it happens."""
    rng, found = np.random.default_rng(seed), np.zeros((24, 30, 12), np.uint8)
    for label in range(1, 8):
        low = rng.integers(0, 4, 3) + np.array((3 * (label % 3), 4 * (label - 1), 0))
        found[low[0] : low[0] + 9, low[1] : low[1] + 5, low[2] : low[2] + 7] = label
    return found


def numbers(prediction: np.ndarray, reference: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """panoptica's counts and means over the matched pairs; without pairs the counts alone."""
    from panoptica import InputType, MaxBipartiteMatching, Panoptica_Evaluator
    from panoptica.metrics import Metric

    def evaluate(*wanted: Metric) -> Any:
        evaluator = Panoptica_Evaluator(
            InputType.UNMATCHED_INSTANCE, instance_matcher=MaxBipartiteMatching(), instance_metrics=list(wanted)
        )
        spacing = tuple(float(z) for z in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
        return evaluator.evaluate(prediction, reference, voxelspacing=spacing, verbose=False)["ungrouped"]

    counts = evaluate(Metric.IOU)
    if not counts.tp:  # without pairs panoptica 2.1 has no value for HD95 and raises
        return {key: int(getattr(counts, key)) for key in ("tp", "fp", "fn")}
    found = evaluate(Metric.DSC, Metric.IOU, Metric.ASSD, Metric.HD95)
    keys = ("tp", "fp", "fn", "rq", "sq", "pq", "sq_dsc", "sq_assd", "sq_hd95")
    return {key: float(getattr(found, key)) for key in keys}


if __name__ == "__main__":
    pairs, affine = cases()
    found = {name: numbers(*pair, affine) for name, pair in pairs.items()}
    text = json.dumps({"panoptica": version("panoptica"), "cases": found}, indent=1)
    RECORD.write_text(text + "\n", encoding="utf-8")
