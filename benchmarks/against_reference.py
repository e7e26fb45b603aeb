"""This package against the published SPINEPS 2.1.3: same checkpoints, same phantoms, same options, one run, by turns.

    python benchmarks/against_reference.py [--json FILE] [--write docs/results.md] [--only LEG,LEG] [--quick]

The reference gets an environment of its own (made with pip at the first run, re-used later; about 2 GB), this package
runs in the interpreter that runs this script.  Every measurement is a process of its own; the two programs take turns;
medians are printed.  A run takes about 40 minutes on two quiet cores, ``--quick`` a few minutes (for rehearsal only:
smaller networks, one small scan).  ``--only`` takes some of: startup, load, random, semantic, merging, instance, post,
labeling, sample, exact, peak, gpu.

Checkpoints (see ``versus/checkpoints.py``): a random nnU-Net of the usual size at 0.75 x 0.75 x 1.65 mm; the bundled
semantic network embedded in an nnU-Net, so that all later phases get a real spine mask; random instance and labelling
networks.  The random instance network is run for its time and memory, but its answers are replaced, on both sides, by
the phantom's truth with noise, so that both merge the same vertebrae.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
from versus.tables import SIDES, section, write_into

HERE = Path(__file__).resolve().parent
REFERENCE, TORCH, VISION = "spineps==2.1.3", "torch==2.13.0", "torchvision<0.29"
SEED = 7
LEGS = (
    "startup",
    "load",
    "random",
    "semantic",
    "merging",
    "instance",
    "post",
    "labeling",
    "sample",
    "exact",
    "peak",
    "gpu",
)
STRIDES = [[1, 1, 1], *([2, 2, 2] for _ in range(4))]
#: Regions with the voxel size of a usual T2w sagittal scan of each.
REGIONS = {"lumbar": [0.75, 0.75, 3.3], "whole": [1.0, 1.0, 3.3]}
CHECKPOINTS: dict[str, Any] = {
    "random": {
        "zoom": [0.75, 0.75, 1.65], "patch": [128, 128, 64], "features": [32, 64, 128, 256, 320, 320],
        "strides": [*STRIDES, [1, 2, 2]], "encoder": [2] * 6, "decoder": [2] * 5,
    },
    # One convolution where our network has one: InstanceNorm after an identity would change its answer.  For the same
    # reason five levels, not six.
    "embedded": {
        "zoom": [1.5, 1.5, 1.5], "patch": [96, 128, 48], "features": [32, 64, 128, 256, 320],
        "strides": STRIDES, "encoder": [1, 2, 2, 2, 2], "decoder": [2, 2, 2, 1],
    },
    "instance": {"zoom": [0.75, 0.75, 1.65], "cutout": [248, 304, 64]},
    "labeling": {"zoom": [0.8571, 0.8571, 3.3], "size": [152, 168, 32]},
}  # fmt: skip
QUICK: dict[str, Any] = {
    "random": {"zoom": [1.5, 1.5, 1.65], "patch": [96, 128, 64], "features": [16, 32, 64, 128, 128, 128]},
    "instance": {"zoom": [1.5, 1.5, 1.65], "cutout": [128, 152, 64]},
    "labeling": {"size": [96, 96, 32]},
}


def python_of(environment: Path) -> Path:
    return environment / ("Scripts" if os.name == "nt" else "bin") / "python"


def make_reference(environment: Path, pip_options: list[str]) -> None:
    """The published program with CPU torch.  torchvision goes again: its wheel does not fit a CPU torch."""
    python, constraints = python_of(environment), environment / "constraints.txt"
    check = "import importlib.metadata as m; print(m.version('spineps'), m.version('torch'))"
    if python.exists():
        found = subprocess.run([str(python), "-c", check], capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.startswith(REFERENCE.split("==")[1]):
            print(f"reference: spineps, torch {found.stdout.strip()} in {environment}")
            return
    print(f"reference: installing {REFERENCE} into {environment} (2 GB) ...", flush=True)
    venv.create(environment, with_pip=True)
    constraints.write_text(f"{TORCH}\n{VISION}\n")
    pip = [str(python), "-m", "pip"]
    # torch first: found by spineps' own requirements, a newer one with CUDA would come along.
    subprocess.run([*pip, "install", "-q", *pip_options, TORCH], check=True)
    subprocess.run([*pip, "install", "-q", *pip_options, "-c", str(constraints), REFERENCE], check=True)
    subprocess.run([*pip, "uninstall", "-q", "-y", "torchvision"], check=True)
    subprocess.run([str(python), "-c", check], check=True)


class Bench:
    """Runs measurements and keeps what came out."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.regions = ["lumbar"] if args.quick else args.regions.split(",")
        self.results: dict[str, Any] = {"legs": {}, "agreement": {}, "failed": {}}
        threads = str(args.threads)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
        self.environment = {**os.environ, **dict.fromkeys(names, threads), "SPINEPS_NO_CITATION_REMINDER": "1"}
        self.environment |= {"SPINEPS_CACHE": str(self.work / "cache"), "MPLBACKEND": "Agg", "NO_COLOR": "1"}
        self.models = self.work / ("models-quick" if args.quick else "models")
        self._count = 0

    # -- processes -----------------------------------------------------------------------------------------------

    def child(self, side: str, task: str, **job: Any) -> dict[str, Any]:
        """One task in a fresh process; raises RuntimeError with the end of its output."""
        self._count += 1
        folder = self.work / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self._count:03d}-{side}-{task}"
        file, log = folder / f"{name}.json", folder / f"{name}.log"
        job = {"threads": self.args.threads, "seed": SEED, "step": 0.5, "tta": self.args.tta} | job
        job["precision"] = self.args.precision if side == "ours" else ""
        job["result"] = str(folder / f"{name}.out")
        file.write_text(json.dumps(job, default=str))
        script = "checkpoints.py" if task == "make" else f"{side}.py"
        python = python_of(self.args.reference_env) if side == "theirs" else Path(sys.executable)
        start = time.perf_counter()
        with log.open("w") as stream:
            done = subprocess.run(
                [str(python), str(HERE / "versus" / script), task, str(file)],
                stdout=stream, stderr=subprocess.STDOUT, env=self.environment,
            )  # fmt: skip
        wall = time.perf_counter() - start
        if done.returncode or not (task == "make" or Path(job["result"]).exists()):
            tail = log.read_text(errors="replace")[-1500:]
            raise RuntimeError(f"{name} ended with {done.returncode} after {wall:.0f} s:\n{tail}")
        return {"wall": wall} | (json.loads(Path(job["result"]).read_text()) if task != "make" else {})

    def turns(self, leg: str, task: str, repeats: int, sides: tuple[str, ...] = SIDES, **job: Any) -> None:
        """Both sides by turns; what one of them cannot do is noted and the rest goes on."""
        for turn in range(repeats):
            for side in sides:
                if f"{leg} {side}" in self.results["failed"]:
                    continue
                try:
                    found = self.child(side, task, **job)
                except RuntimeError as error:
                    self.results["failed"][f"{leg} {side}"] = str(error)
                    print(f"  {leg}: {side} FAILED\n{error}", flush=True)
                    continue
                self.results["legs"].setdefault(leg, {}).setdefault(side, []).append(found)
                spent = ", ".join(f"{k} {v:.2f} s" for k, v in found["seconds"].items())
                print(f"  {leg} {side} {turn + 1}/{repeats}: {spent}; peak {found['peak_gb']:.2f} GB", flush=True)
                self.save()

    def save(self) -> None:
        """What is known so far, so that a run that is cut short loses nothing."""
        if self.args.json:
            self.args.json.write_text(json.dumps(self.results, indent=1, default=str))

    # -- material ------------------------------------------------------------------------------------------------

    def folder(self, region: str) -> Path:
        return self.work / ("scans-quick" if self.args.quick else "scans") / region

    def image(self, region: str) -> Path:
        return self.folder(region) / f"sub-{region}_T2w.nii.gz"

    def paths(self, semantic: str = "embedded") -> dict[str, str]:
        names = {"semantic": f"{semantic}__nnUNetPlans__3d_fullres", "instance": "instance", "labeling": "labeling"}
        return {k: str(self.models / v) for k, v in names.items()}

    def prepare(self) -> None:
        """Phantoms and checkpoints, made once per work folder."""
        for region in self.regions:
            if not (self.folder(region) / "truth_vert.nii.gz").exists():
                print(f"phantom: {region}", flush=True)
                zoom = [1.5, 1.5, 4.4] if self.args.quick else REGIONS[region]
                where = {"folder": self.folder(region), "image": self.image(region)}
                self.child("ours", "scans", region=region, zoom=zoom, **where)
        if not (self.models / "labeling" / "version_0").exists():
            print("checkpoints", flush=True)
            wanted = {k: v | QUICK.get(k, {}) if self.args.quick else v for k, v in CHECKPOINTS.items()}
            import spineps

            weights = Path(spineps.__file__).parent / "models" / "bundled" / "semantic" / "weights.npz"
            self.child("theirs", "make", folder=self.models, weights=weights, **wanted)

    def mask(self, region: str) -> Path:
        """The reference's spine mask, input of both sides' later phases."""
        mask = self.folder(region) / "theirs_embedded.nii.gz"
        if not mask.exists():
            inputs = {"image": self.image(region), "ready": self.folder(region) / "ready.nii.gz"}
            self.child("theirs", "semantic", mask=mask, models=self.paths(), **inputs)
        return mask

    def answers(self, region: str) -> Path:
        """What the instance network is to say on this mask."""
        answers = self.folder(region) / "answers.npz"
        if not answers.exists():
            truth = self.folder(region) / "truth_vert.nii.gz"
            out = self.folder(region) / "recorded.nii.gz"
            mask = self.mask(region)
            self.child("theirs", "record", mask=mask, truth=truth, answers=answers, out=out, models=self.paths())
        return answers

    def merged(self, region: str) -> Path:
        """The reference's instances, input of both sides' post-processing."""
        self.answers(region)
        return self.folder(region) / "recorded.nii.gz"

    def compare(self, name: str, first: Path, second: Path) -> None:
        """Share of equal voxels, of all and of those that either side labels."""
        if not (first.exists() and second.exists()):
            return
        a, b = voxels(first), voxels(second)
        if a.shape != b.shape:
            self.results["agreement"][name] = {"shapes": [a.shape, b.shape]}
            return
        equal, used = a == b, (a > 0) | (b > 0)
        found = {"all": float(equal.mean()), "labelled": float(equal[used].mean()) if used.any() else 1.0}
        self.results["agreement"][name] = found
        print(f"  {name}: {found['all']:.5f} of all voxels equal, {found['labelled']:.5f} of labelled ones", flush=True)
        self.save()

    # -- legs ----------------------------------------------------------------------------------------------------

    def startup(self) -> None:
        script = Path(sys.executable).with_name("spineps")
        ours = [str(script)] if script.exists() else [sys.executable, "-m", "spineps"]
        commands = {"theirs": [str(python_of(self.args.reference_env).with_name("spineps"))], "ours": ours}
        for _ in range(2 if self.args.quick else 5):
            for side, command in commands.items():
                start = time.perf_counter()
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                child = subprocess.Popen([*command, "sample", "-h"], env=self.environment, **quiet)
                _, _, used = os.wait4(child.pid, 0)
                wall = time.perf_counter() - start
                kib = 1 if sys.platform == "darwin" else 1024
                found = {
                    "seconds": {"spineps sample -h": wall}, "cpu": {"spineps sample -h": used.ru_utime + used.ru_stime},
                    "peak_gb": used.ru_maxrss * kib / 1e9, "wall": wall,
                }  # fmt: skip
                self.results["legs"].setdefault("startup", {}).setdefault(side, []).append(found)
                print(f"  startup {side}: {wall:.2f} s", flush=True)
        self.save()

    def load(self) -> None:
        shutil.rmtree(self.work / "cache", ignore_errors=True)
        paths = self.paths()
        self.turns("load, first time", "load", 1, ("ours",), models=paths)
        self.turns("load", "load", 1 if self.args.quick else 3, models=paths)

    def random(self) -> None:
        folder, paths = self.folder("lumbar"), self.paths("random")
        masks = {"mask": folder / "theirs_random.nii.gz", "mask_ours": folder / "ours_random.nii.gz"}
        inputs = {"image": self.image("lumbar"), "ready": folder / "ready.nii.gz", "models": paths}
        self.turns("random", "semantic", 1, raw=True, **inputs, **masks)
        self.compare("random nnU-Net, same prepared image, lumbar", *masks.values())

    def semantic(self) -> None:
        for region in self.regions:
            folder, repeats = self.folder(region), 2 if region == "lumbar" and not self.args.quick else 1
            masks = {"mask": folder / "theirs_embedded.nii.gz", "mask_ours": folder / "ours_embedded.nii.gz"}
            inputs = {"image": self.image(region), "ready": folder / "ready.nii.gz", "models": self.paths()}
            self.turns(f"semantic {region}", "semantic", repeats, **inputs, **masks)
            self.compare(f"semantic mask, {region}", *masks.values())
        # What the network's part alone changes is seen on one prepared image, before cleaning.
        folder, leg = self.folder("lumbar"), "semantic, same prepared image"
        masks = {"mask": folder / "theirs_ready.nii.gz", "mask_ours": folder / "ours_ready.nii.gz"}
        inputs = {"image": self.image("lumbar"), "ready": folder / "ready.nii.gz", "models": self.paths()}
        self.turns(leg, "semantic", 1, raw=True, **inputs, **masks)
        self.compare(f"{leg}, lumbar", *masks.values())

    def _instance(self, leg: str, region: str, repeats: int, compute: bool) -> None:
        folder = self.folder(region)
        outs = {"out": folder / f"theirs_{leg}.nii.gz", "out_ours": folder / f"ours_{leg}.nii.gz"}
        inputs = {"mask": self.mask(region), "answers": self.answers(region), "models": self.paths()}
        self.turns(f"{leg} {region}", "instance", repeats, compute=compute, **inputs, **outs)
        self.compare(f"instances ({leg}), {region}", *outs.values())

    def merging(self) -> None:
        for region in self.regions:
            self._instance("merging", region, 1 if self.args.quick else 3, compute=False)

    def instance(self) -> None:
        for region in self.regions:
            self._instance("instance", region, 1, compute=True)

    def post(self) -> None:
        for region in self.regions:
            folder = self.folder(region)
            outs = {"out": folder / "theirs_post", "out_ours": folder / "ours_post"}
            inputs = {"image": self.image(region), "mask": self.mask(region), "instance": self.merged(region)}
            self.turns(f"post {region}", "post", 1 if self.args.quick else 3, **inputs, **outs)
            for kind in ("spine", "vert"):
                self.compare(f"post {kind}, {region}", *(folder / f"{s}_post_{kind}.nii.gz" for s in SIDES))

    def labeling(self) -> None:
        for region in self.regions:
            truth = {kind: self.folder(region) / f"truth_{kind}.nii.gz" for kind in ("spine", "vert")}
            seg, vert = (voxels(file) for file in truth.values())
            names = [int(v) for v in np.unique(vert[np.isin(seg, (49, 50))]) if 0 < v <= 25 or v == 28]
            inputs = {"image": self.image(region), "names": names, "models": self.paths()}
            self.turns(f"labeling {region}", "labeling", 1, **inputs, **truth)
            legs = self.results["legs"].get(f"labeling {region}", {})
            if len(legs) == len(SIDES):
                theirs, ours = (legs[side][-1]["heads"] for side in SIDES)
                if {k: np.shape(v) for k, v in theirs.items()} == {k: np.shape(v) for k, v in ours.items()}:
                    away = max(float(np.abs(np.array(theirs[k]) - np.array(ours[k])).max()) for k in theirs)
                    self.results["agreement"][f"class probabilities, {region}"] = {"away": away}
                    print(f"  class probabilities, {region}: differ by at most {away:.4f}", flush=True)
                theirs, ours = (legs[side][-1]["names"] for side in SIDES)
                shared = [v for v in ours if theirs.get(v)]
                same = sum(theirs[v] == ours[v] for v in shared)
                self.results["agreement"][f"names, {region}"] = {"same": same, "of": len(shared)}
                print(f"  names, {region}: {same} of {len(shared)} equal", flush=True)

    def _sample(self, leg: str, region: str, more: list[str]) -> None:
        answers, folders = self.answers(region), {}
        for side in SIDES:
            folders[side] = self.work / "whole" / leg / region / side
            shutil.rmtree(folders[side], ignore_errors=True)
            folders[side].mkdir(parents=True)
            scan = folders[side] / self.image(region).name
            shutil.copyfile(self.image(region), scan)
            inputs = {"image": scan, "answers": answers, "models": self.paths(), "more": more}
            inputs["compute"] = not self.args.agreement_only
            self.turns(f"{leg} {region}", "sample", 1, (side,), **inputs)
        for kind in ("spine", "vert"):
            name = f"derivatives_seg/sub-{region}_mod-T2w_seg-{kind}_msk.nii.gz"
            self.compare(f"{leg} {kind}, {region}", *(folders[side] / name for side in SIDES))

    def sample(self) -> None:
        for region in self.regions:
            self._sample("sample", region, [])

    def exact(self) -> None:
        """Without N4, whose last digits depend on the order of sums, all that differs is ours."""
        self._sample("sample --no-n4", "lumbar", ["--no-n4"])

    def peak(self) -> None:
        self.turns("peak", "peak", 1)
        patches = {k: CHECKPOINTS[k]["patch"][::-1] for k in ("random", "embedded")}
        inputs: dict[str, Any] = {k: (1, v) for k, v in patches.items()}
        inputs["instance"] = (11, CHECKPOINTS["instance"]["cutout"])
        inputs["labeling"] = (1, CHECKPOINTS["labeling"]["size"])
        paths = {k: self.paths(k)["semantic"] for k in patches} | {k: self.paths()[k] for k in ("instance", "labeling")}
        self.turns("flops", "flops", 1, ("theirs",), inputs=inputs, models=paths)

    def gpu(self) -> None:
        try:
            import torch
        except ImportError:
            return
        device = self.args.device or ("cuda" if torch.cuda.is_available() else "")
        if not device.startswith("cuda"):
            return
        for region in self.regions:
            inputs = {"image": self.image(region), "answers": self.answers(region), "models": self.paths()}
            self.turns(f"gpu {region}", "gpu", 1, ("ours",), device=device, **inputs)

    def run(self) -> None:
        self.results["about"] = {
            "cpu": cpu_name(), "threads": self.args.threads, "tta": self.args.tta, "precision": self.args.precision,
            "quick": self.args.quick, "agreement_only": self.args.agreement_only,
            "step": 0.5, "python": platform.python_version(),
            "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        }  # fmt: skip
        self.prepare()
        for leg in LEGS:
            if leg in self.args.only:
                print(leg, flush=True)
                start = time.perf_counter()
                getattr(self, leg)()
                print(f"  ({leg}: {time.perf_counter() - start:.0f} s)", flush=True)
        self.save()


def voxels(file: Path) -> np.ndarray:
    import nibabel as nib

    return np.asarray(nib.load(file).dataobj).astype(np.uint16)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    rows = info.read_text().splitlines() if info.exists() else []
    names = [row.split(":")[1].strip() for row in rows if row.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/against_reference"), help="all files, logs too")
    parser.add_argument("--reference-env", type=Path, help="environment of the reference (default: WORK/reference-env)")
    parser.add_argument("--pip", default="", help="pip options for making it, such as an index of CPU torch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tta", action="store_true", help="mirrored passes in the semantic legs (8 x slower)")
    parser.add_argument("--precision", default="", choices=["", "f32", "bf16"], help="arithmetic of our networks")
    parser.add_argument("--only", default=",".join(LEGS))
    parser.add_argument("--regions", default=",".join(REGIONS), help="scans: lumbar, whole")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--agreement-only", action="store_true",
        help="sample leg without the instance network, whose answers are replaced anyway: times mean nothing then",
    )  # fmt: skip
    parser.add_argument("--device", help="GPU of the gpu leg (default: cuda where torch finds one)")
    parser.add_argument("--json", type=Path, help="all numbers, written after every measurement")
    parser.add_argument("--write", type=Path, help="Markdown file whose section is replaced")
    parser.add_argument("--tables", type=Path, metavar="JSON", help="only print the tables of a run")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(LEGS):
        parser.error(f"--only: {', '.join(sorted(unknown))} unknown; choose from {', '.join(LEGS)}")
    if args.tables:
        results = json.loads(args.tables.read_text())
    else:
        args.work = args.work.resolve()
        args.reference_env = (args.reference_env or args.work / "reference-env").resolve()
        args.work.mkdir(parents=True, exist_ok=True)
        if hasattr(os, "sched_setaffinity"):
            # Both programs ask the machine how many cores there are; they get as many as they may have threads.
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
        make_reference(args.reference_env, args.pip.split())
        bench = Bench(args)
        bench.run()
        results = bench.results
    text = section(results)
    print(f"\n{text}")
    if args.write:
        write_into(args.write, text)


if __name__ == "__main__":
    main()
