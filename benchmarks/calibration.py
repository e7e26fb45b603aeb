"""Do probabilities of the semantic model mean what they say?  Reliability on scans that were never trained on.

    python benchmarks/calibration.py DATA/real/spider [--phantoms 8] [--model FOLDER] [--plot FILE.png]

Real scans: the held-out ones of the training config that lie in the folder, with coarse labels (vertebra, disc, canal,
rest; probabilities of what a label covers are summed, endplates are left out because SPIDER splits them).  Generated
scans: every structure.  Voxels that are certainly background (p > 0.99, and are) do not count: with them any model
looks calibrated.  Prints the expected calibration error and the temperature that makes the answers most likely; export
with ``--temperature`` divides the network's last layer by it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from phantoms import scans
from scipy.optimize import minimize_scalar
from semantic_dice import read

from spineps.anatomy import CANAL_PARTS, CLASS_IDS, DISC, ENDPLATE, VERTEBRA_PARTS
from spineps.inference.resample import to_model_grid
from spineps.models.model import SemanticModel
from spineps.models.registry import BUNDLED, get_actual_model
from spineps.training.config import read_training_config

GROUPS = ((0, 26), VERTEBRA_PARTS, (DISC,), CANAL_PARTS)
BINS = 10


def real(model: SemanticModel, folder: Path, held_out: tuple[str, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(voxels, groups) probabilities and true groups of each scan."""
    zoom = model.config.zoom_min
    index = [[CLASS_IDS.index(i) for i in group if i in CLASS_IDS] for group in GROUPS]
    for file in sorted(folder.glob("*_T2w.nii.gz")):
        if not any(name in file.name for name in held_out):
            continue
        image = read(file).reoriented("PIR")
        labels = read(file.with_name(file.name.replace("_T2w", "_seg-coarse_msk"))).reoriented("PIR")
        p = model.probabilities(to_model_grid(image, zoom))
        shares = np.stack([to_model_grid(labels.with_array(labels.array == k), zoom).array for k in range(4)])
        sums = np.stack([p[i].sum(axis=0) for i in index])
        plates = p[CLASS_IDS.index(ENDPLATE)]
        # On the border of two labels the truth is not known to the voxel.
        clear = (shares.max(axis=0) > 0.9) & (plates < 0.2)
        print(f"{file.name}: {clear.mean():.2f} of the voxels have one label")
        yield (sums / sums.sum(axis=0))[:, clear].T, shares.argmax(axis=0)[clear]


def generated(model: SemanticModel, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(voxels, classes) probabilities and true classes of each phantom."""
    table = np.zeros(256, np.int64)
    table[list(CLASS_IDS)] = range(len(CLASS_IDS))
    for _, image, semantic, *_ in scans(910_000, count):
        p = model.probabilities(image)
        yield p.reshape(len(p), -1).T, table[semantic.array.astype(np.int64)].ravel()


def counted(p: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels that are not trivially background."""
    keep = (p[:, 0] < 0.99) | (truth != 0)
    return p[keep], truth[keep]


def tempered(p: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of logits divided by a temperature."""
    q = np.maximum(p, 1e-7) ** (1 / temperature)
    return q / q.sum(axis=1, keepdims=True)


def reliability(p: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, float]:
    """(bins, 3): mean claimed, mean right, share of the voxels; and the expected calibration error."""
    claimed, right = p.max(axis=1), p.argmax(axis=1) == truth
    which = np.minimum((claimed * BINS).astype(int), BINS - 1)
    n = np.bincount(which, minlength=BINS)
    mean = [np.bincount(which, weights=w, minlength=BINS) / np.maximum(n, 1) for w in (claimed, right.astype(float))]
    rows = np.stack([*mean, n / n.sum()], axis=1)
    return rows, float(np.sum(rows[:, 2] * abs(rows[:, 0] - rows[:, 1])))


def best_temperature(p: np.ndarray, truth: np.ndarray) -> float:
    """The temperature with the least surprise."""
    rng = np.random.default_rng(0)
    some = rng.choice(len(p), min(len(p), 300_000), replace=False)
    p, truth = p[some], truth[some]

    def surprise(log_t: float) -> float:
        q = tempered(p, np.exp(log_t))
        return float(-np.log(np.maximum(q[np.arange(len(q)), truth], 1e-7)).mean())

    return float(np.exp(minimize_scalar(surprise, bounds=(-1, 1.2), method="bounded").x))


def draw(file: Path, sets: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Claimed against right, a panel per set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(sets), 4.2), layout="constrained", dpi=90)
    for axes, (name, (p, truth)) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        rows, error = reliability(p, truth)
        rows = rows[rows[:, 2] > 1e-4]
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--")
        axes.plot(rows[:, 0], rows[:, 1], "o-", color="#4a80ff", label=f"ECE {error:.3f}")
        axes.bar(rows[:, 0], rows[:, 2], width=0.05, color="0.85", label="share of voxels")
        axes.set(title=name, xlabel="claimed probability", ylabel="right", xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left")
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--phantoms", type=int, default=8)
    parser.add_argument("--model", type=Path, default=BUNDLED / "semantic")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    model = get_actual_model(args.model)
    assert isinstance(model, SemanticModel)
    held_out = read_training_config("semantic").held_out
    sets = {}
    for name, found in (
        ("real, coarse labels", real(model, args.folder, held_out)),
        ("generated, 15 classes", generated(model, args.phantoms)),
    ):
        parts = [counted(*pair) for pair in found]
        if parts:
            sets[name] = (np.concatenate([p for p, _ in parts]), np.concatenate([t for _, t in parts]))
    for name, (p, truth) in sets.items():
        temperature = best_temperature(p, truth)
        before, after = reliability(p, truth)[1], reliability(tempered(p, temperature), truth)[1]
        print(f"{name}: {len(p)} voxels, ECE {before:.3f}, best temperature {temperature:.2f} (ECE {after:.3f})")
    if args.plot:
        draw(args.plot, sets)


if __name__ == "__main__":
    main()
