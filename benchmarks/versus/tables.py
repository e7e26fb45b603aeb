"""Tables of ``against_reference.py`` from its numbers."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

SIDES = ("theirs", "ours")
HEADING = "## Against SPINEPS 2.1.3"
REGIONS = ("lumbar", "whole")


def median(runs: list[dict[str, Any]], kind: str, phases: tuple[str, ...]) -> float | None:
    """Median over runs of the sum of phases; phases with a minus in front are taken off."""
    values = []
    for run in runs:
        if phases[0] not in run[kind]:
            return None
        signed = [(-1, p[1:]) if p.startswith("-") else (1, p) for p in phases]
        values.append(sum(sign * run[kind].get(phase, 0.0) for sign, phase in signed))
    return statistics.median(values) if values else None


#: Rows: text, leg, phases that are added up, wanted ratio.
ROWS: list[tuple[str, str, tuple[str, ...], str]] = [
    ("`spineps sample -h`", "startup", ("spineps sample -h",), "20"),
    ("loading three models", "load", ("semantic", "instance", "labeling"), ""),
    ("pre-processing with N4, lumbar", "semantic lumbar", ("preprocess",), ""),
    ("pre-processing with N4, whole spine", "semantic whole", ("preprocess",), ""),
    ("semantic, random nnU-Net 0.75 mm, lumbar", "random", ("semantic",), ""),
    ("semantic, embedded nnU-Net 1.5 mm, lumbar", "semantic lumbar", ("semantic",), ""),
    ("semantic, embedded nnU-Net 1.5 mm, whole spine", "semantic whole", ("semantic",), ""),
    ("instance network, lumbar", "instance lumbar", ("network",), ""),
    ("instance network, whole spine", "instance whole", ("network",), ""),
    ("merging, lumbar", "merging lumbar", ("instance", "-network"), "10"),
    ("merging, whole spine", "merging whole", ("instance", "-network"), "10"),
    ("post-processing, lumbar", "post lumbar", ("post-processing",), "10"),
    ("post-processing, whole spine", "post whole", ("post-processing",), "10"),
    ("labelling, lumbar", "labeling lumbar", ("labelling",), ""),
    ("labelling, whole spine", "labeling whole", ("labelling",), ""),
    ("**whole `spineps sample`, lumbar**", "sample lumbar", (), "5"),
    ("**whole `spineps sample`, whole spine**", "sample whole", (), "5"),
]
#: Phases inside the whole call.
INSIDE = ("preprocess", "semantic", "instance", "network", "post-processing", "points", "snapshot")


def table(results: dict[str, Any]) -> list[str]:
    lines = [
        "| | 2.1.3, s | here, s | **faster** | wanted | 2.1.3, CPU s | here, CPU s | 2.1.3, GB | here, GB | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for text, leg, phases, wanted in ROWS:
        found = results["legs"].get(leg, {})
        cells: dict[str, list[float | None]] = {}
        for side in SIDES:
            runs = found.get(side, [])
            wall = median(runs, "seconds", phases) if phases else None
            if runs and not phases:
                wall = statistics.median(run["wall"] for run in runs)
            cpu = median(runs, "cpu", phases or ("whole",)) if runs else None
            cells[side] = [wall, cpu, statistics.median(r["peak_gb"] for r in runs) if runs else None]
        if all(v is None for side in SIDES for v in cells[side]):
            continue
        (a, ac, am), (b, bc, bm) = cells["theirs"], cells["ours"]
        faster = f"**{a / b:.1f} x**" if a and b else ""
        less = f"{bm / am:.2f}" if am and bm else ""
        values = [number(a), number(b), faster, wanted, number(ac), number(bc), number(am), number(bm), less]
        lines.append(f"| {text} | " + " | ".join(values) + " |")
    return lines


def inside(results: dict[str, Any]) -> list[str]:
    lines = ["| inside `spineps sample`, s | 2.1.3 | here | 2.1.3, whole spine | here, whole spine |"]
    lines.append("|---|---|---|---|---|")
    runs = [results["legs"].get(f"sample {r}", {}).get(side, []) for r in REGIONS for side in SIDES]
    if not any(runs):
        return []
    for phase in INSIDE:
        cells = []
        for run in runs:
            name = "of which its network" if phase == "network" else phase
            cells.append(number(run[-1]["seconds"].get(phase)) if run else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    rest = []
    for run in runs:
        if not run:
            rest.append("")
            continue
        spent = run[-1]["seconds"]
        rest.append(number(run[-1]["wall"] - sum(spent.get(p, 0.0) for p in INSIDE if p != "network")))
    return [*lines, "| start, models, reading, writing | " + " | ".join(rest) + " |"]


def agreement(results: dict[str, Any]) -> list[str]:
    lines = ["| same answer | of all voxels | of labelled voxels |", "|---|---|---|"]
    for name, found in results["agreement"].items():
        if "same" in found:
            lines.append(f"| {name} | {found['same']} of {found['of']} | |")
        elif "away" in found:
            lines.append(f"| {name} | differ by at most {found['away']:.4f} | |")
        elif "shapes" in found:
            lines.append(f"| {name} | other shape: {found['shapes']} | |")
        else:
            lines.append(f"| {name} | {found['all']:.5f} | {found['labelled']:.5f} |")
    return lines if len(lines) > 2 else []


def roofline(results: dict[str, Any]) -> list[str]:
    """What the convolutions of the voxels that went through a network must cost at the machine's peak."""
    legs = results["legs"]
    if "peak" not in legs or "flops" not in legs:
        return []
    per_voxel = legs["flops"]["theirs"][-1]["flops"]
    peaks: dict[str, float] = {}
    for side in legs["peak"]:
        for kind, value in legs["peak"][side][-1]["gflops"].items():
            peaks[kind] = max(value, peaks.get(kind, 0.0))
    both = " and ".join(f"{v:.0f} GFLOP/s in {k}" for k, v in peaks.items())
    lines = [
        f"Peak of the machine (4096 x 4096 matrix product): {both}.", "",
        "| network | side | TFLOP | s | of that at f32 peak | at bf16 peak |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for leg, network, key in (
        ("random", "random", "semantic"),
        ("semantic lumbar", "embedded", "semantic"),
        ("semantic whole", "embedded", "semantic"),
        ("instance lumbar", "instance", "instance"),
        ("instance whole", "instance", "instance"),
        ("labeling lumbar", "labeling", "labeling"),
        ("labeling whole", "labeling", "labeling"),
    ):
        for side, runs in legs.get(leg, {}).items():
            voxels, seconds = runs[-1].get("voxels", {}).get(key), median(runs, "seconds", (f"{key} network",))
            if not voxels or not seconds:
                continue
            work = voxels * per_voxel[network]
            shares = [f"{work / 1e9 / peaks[k] / seconds:.0%}" if k in peaks else "" for k in ("f32", "bf16")]
            name = "2.1.3" if side == "theirs" else "here"
            lines.append(f"| {leg} | {name} | {work / 1e12:.2f} | {number(seconds)} | " + " | ".join(shares) + " |")
    return lines


def gpu(results: dict[str, Any]) -> list[str]:
    found = {leg: legs for leg, legs in results["legs"].items() if leg.startswith("gpu ") and "ours" in legs}
    rows = [(leg, legs["ours"][-1]) for leg, legs in found.items()]
    if not rows:
        return []
    lines = [f"On {rows[0][1]['device']}, models loaded, this package:", ""]
    lines += ["| | s per scan | in kernels | GPU GB |", "|---|---|---|---|"]
    for leg, run in rows:
        share = f"{run['kernel_seconds'] / run['scan_seconds']:.0%}"
        lines.append(f"| {leg[4:]} | {run['scan_seconds']:.2f} | {share} | {run['gpu_gb']:.1f} |")
    return lines


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def section(results: dict[str, Any]) -> str:
    about = results["about"]
    rehearsal = "**Rehearsal with `--quick`: not to be quoted.** " if about["quick"] else ""
    if about.get("agreement_only"):
        rehearsal += "**Whole calls without the instance network: for agreement, their times are not to be quoted.** "
    mirroring = "on" if about["tta"] else "off"
    text = [
        f"{rehearsal}`python benchmarks/against_reference.py` on {about['cpu']}, {about['threads']} threads for both "
        f"programs, step {about['step']}, one fold, mirroring {mirroring}; {about['started']}. Both read the same "
        "checkpoints; every number is the median over processes of their own, taken by turns. "
        "Loading is without imports; the whole call goes from starting Python to its end, with a warm model cache. "
        "The instance network has random weights: it runs, and both programs then go on with the same answers, made "
        "from the phantom's truth with noise."
    ]
    if about.get("precision"):
        text.append(f"Our networks compute in {about['precision']}, the reference's in f32.")
    if first := results["legs"].get("load, first time", {}).get("ours"):
        spent = sum(first[-1]["seconds"].values())
        text.append(f"Turning the three checkpoints into the OpenVINO form, once: {spent:.1f} s.")
    if results["failed"]:
        text.append("Failed: " + ", ".join(results["failed"]) + ".")
    blocks = [" ".join(text)]
    parts = (part(results) for part in (table, inside, roofline, agreement, gpu))
    blocks += ["\n".join(lines) for lines in parts if lines]
    return "\n\n".join(blocks) + "\n"


def write_into(file: Path, text: str) -> None:
    """Replace (or add) the section of this benchmark in a Markdown file."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    start = next((k for k, line in enumerate(lines) if line.strip() == HEADING), None)
    if start is None:
        start = end = next((k for k, line in enumerate(lines) if line.startswith("## Pictures")), len(lines))
    else:
        end = next((k for k in range(start + 1, len(lines)) if lines[k].startswith("## ")), len(lines))
    file.write_text("".join([*lines[:start], f"{HEADING}\n{text}\n", *lines[end:]]), encoding="utf-8")
