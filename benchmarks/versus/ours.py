"""One measurement of this package, the same tasks and files as ``theirs.py``.

python ours.py TASK JOB.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from measure import Answers, Clock, finish, heads_of, read_job

TASK, JOB = read_job()
CLOCK = Clock()
#: Voxels that went through each network: what its answer cost, whatever was cut or batched.
VOXELS: dict[str, int] = {}


def model(name: str) -> Any:
    from spineps.models.registry import get_actual_model

    return get_actual_model(JOB["models"][name], use_cpu=True, threads=JOB["threads"])


def prefer_precision() -> None:
    """Ask for the arithmetic of the job wherever a network is loaded, the command line included."""
    from spineps.inference import engine

    inner = engine.load_network

    def load_network(*args: Any, **kwargs: Any) -> Any:
        # Positional: folder, engine, device, threads, fold, precision.
        return inner(*args[:5], **{**kwargs, "precision": JOB["precision"]})

    engine.load_network = load_network


def counted(loaded: Any, name: str) -> Any:
    """Count the voxels that reach the network of a model."""
    network = loaded.network

    class Counting:
        def __call__(self, x: np.ndarray) -> Any:
            VOXELS[name] = VOXELS.get(name, 0) + x.shape[0] * int(np.prod(x.shape[2:]))
            with CLOCK.phase(f"{name} network"):
                return network(x)

        def __getattr__(self, key: str) -> Any:
            return getattr(network, key)

    # ``network`` is a cached property: what is in the instance's dictionary is what its methods see.
    loaded.__dict__["network"] = Counting()
    return loaded


def image() -> Any:
    from spineps.outputs.nifti import read_image

    return read_image(Path(JOB["image"]))[0]


def labels(path: str) -> Any:
    from spineps.outputs.nifti import read_labels

    return read_labels(Path(path))


def save(volume: Any, path: str) -> None:
    import nibabel as nib

    nib.save(nib.Nifti1Image(volume.array.astype(np.uint16), volume.affine), path)


def options(**more: Any) -> Any:
    from spineps.options import options_from_keywords

    return options_from_keywords(**more)


def load() -> None:
    for name in ("semantic", "instance", "labeling"):
        with CLOCK.phase(name):
            model(name).load()
    finish(JOB, CLOCK)


def semantic() -> None:
    from spineps import pipeline
    from spineps.phases import preprocess
    from spineps.phases.semantic import predict_semantic

    CLOCK.wrap(preprocess, "preprocess", "preprocess")
    loaded = counted(model("semantic").load(), "semantic")
    wanted, scan = options(proc_sem_step_size=JOB["step"], tta=JOB["tta"]), image()
    if JOB.get("raw"):
        # The same prepared image as for the other side: what differs then is the network's part alone.
        ready = labels(JOB["ready"])
        with CLOCK.phase("semantic"):
            mask = predict_semantic(ready, loaded, wanted.semantic).mask
    else:
        with CLOCK.phase("both"):
            mask = pipeline.semantic_stage(scan, loaded, wanted, lambda phase, done, total: None).mask
        for kept in (CLOCK.seconds, CLOCK.cpu):
            kept["semantic"] = kept.pop("both") - kept["preprocess"]
    save(mask, JOB["mask_ours"])
    finish(JOB, CLOCK, shape=list(mask.shape), voxels=VOXELS)


def replay(compute: bool) -> Answers:
    """Make the instance network give the recorded answers."""
    from spineps.models.model import InstanceModel

    answers = Answers(Path(JOB["answers"]))
    kinds = [kind for kind in (InstanceModel, *InstanceModel.__subclasses__()) if "segment" in kind.__dict__]
    for kind in kinds:
        inner = kind.segment

        def segment(self: Any, cutouts: np.ndarray, batch_size: int = 4, inner: Any = inner) -> np.ndarray:
            with CLOCK.phase("network"):
                if compute:
                    inner(self, cutouts, batch_size)
            with CLOCK.paused():
                return np.stack([answers.to(cutout) for cutout in cutouts])

        kind.segment = segment  # type: ignore[method-assign]
    return answers


def rehead(names: list[int]) -> dict[str, list[list[float]]]:
    """Make the labelling network (which still runs) give known names; returns where its own answers will be."""
    from spineps.models.model import LabelingModel

    own: dict[str, list[list[float]]] = {}
    inner = LabelingModel.classify

    def classify(self: Any, x: np.ndarray, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        found = inner(self, x, *args, **kwargs)
        own.update({head: values.tolist() for head, values in found.items()})
        if len(x) != len(names):
            return found
        return heads_of(names, {head: values.shape[1] for head, values in found.items()}, JOB["seed"])

    LabelingModel.classify = classify  # type: ignore[method-assign]
    return own


def warm() -> None:
    """Import what the phases import when first used; the other side has done so when its clocks start."""
    import scipy.ndimage  # noqa: F401
    import SimpleITK  # noqa: F401


def instance() -> None:
    from spineps.phases.instance import predict_instances

    loaded = model("instance")
    if JOB["compute"]:
        loaded = counted(loaded.load(), "instance")
    answers, mask = replay(JOB["compute"]), labels(JOB["mask"])
    with CLOCK.phase("instance"):
        out = predict_instances(mask, loaded, options().instance)
    save(out, JOB["out_ours"])
    finish(JOB, CLOCK, cutouts=len(answers), unlike=answers.worst, voxels=VOXELS)


def post() -> None:
    from spineps.phases.postprocess import postprocess

    scan, seg, vert = image(), labels(JOB["mask"]), labels(JOB["instance"])
    with CLOCK.phase("to the image's grid"):
        seg, vert = seg.on(scan.grid), vert.on(scan.grid)
    with CLOCK.phase("post-processing"):
        seg, vert = postprocess(seg, vert, options().post)
    save(seg, JOB["out_ours"] + "_spine.nii.gz")
    save(vert, JOB["out_ours"] + "_vert.nii.gz")
    finish(JOB, CLOCK)


def labeling() -> None:
    from spineps.phases.labeling import name_instances

    loaded, scan = counted(model("labeling").load(), "labeling"), image()
    seg, vert = labels(JOB["spine"]), labels(JOB["vert"])
    vertebrae = vert.with_array(np.where((vert.array <= 25) | (vert.array == 28), vert.array, 0))
    own = rehead(JOB["names"])
    with CLOCK.phase("labelling"):
        naming = name_instances(scan, seg, vertebrae, loaded, options().labeling)
    finish(JOB, CLOCK, names={int(k): int(v) for k, v in naming.ids.items()}, voxels=VOXELS, heads=own)


def sample() -> None:
    """The whole ``spineps sample``, in this process so that clocks and answers can be put in."""
    from spineps import pipeline
    from spineps.cli.main import main
    from spineps.outputs import sink
    from spineps.phases import points, postprocess, preprocess

    answers = replay(JOB["compute"])
    rehead(answers.names)
    CLOCK.wrap(preprocess, "preprocess", "preprocess")
    CLOCK.wrap(pipeline, "semantic_stage", "semantic")
    CLOCK.wrap(pipeline, "instance_stage", "instance")
    CLOCK.wrap(postprocess, "postprocess", "post-processing")
    CLOCK.wrap(points, "compute_points", "points")
    CLOCK.wrap(sink, "snapshot_png", "snapshot")
    models, code = JOB["models"], 0
    arguments = [
        "sample", "-i", JOB["image"], "-ms", models["semantic"], "-mi", models["instance"], "-ml", models["labeling"],
        "--cpu", "--no-tta", "--step-size", str(JOB["step"]), "--threads", str(JOB["threads"]),
    ]  # fmt: skip
    with CLOCK.phase("whole"):
        try:
            main([*arguments, *JOB.get("more", [])])
        except SystemExit as ended:
            code = int(ended.code or 0)
    for kept in (CLOCK.seconds, CLOCK.cpu):
        kept["semantic"] = kept.get("semantic", 0.0) - kept.get("preprocess", 0.0)
    finish(JOB, CLOCK, code=code, unlike=answers.worst)


def gpu() -> None:
    """Seconds per scan on a GPU, and the share of them in which it computes."""
    import time

    import torch

    from spineps.models.registry import get_actual_model
    from spineps.pipeline import Models, segment_volume

    names = ("semantic", "instance", "labeling")
    chosen = Models(*(get_actual_model(JOB["models"][name], device=JOB["device"]) for name in names))
    scan, wanted = image(), options(proc_sem_step_size=JOB["step"], tta=JOB["tta"])
    answers = replay(compute=True)
    segment_volume(scan, chosen, wanted)
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        segment_volume(scan, chosen, wanted)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        segment_volume(scan, chosen, wanted)
        torch.cuda.synchronize()
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    seconds = float(np.median(times))
    finish(
        JOB, CLOCK, device=torch.cuda.get_device_name(), scan_seconds=seconds, kernel_seconds=busy,
        gpu_gb=torch.cuda.max_memory_allocated() / 1e9, unlike=answers.worst,
    )  # fmt: skip


def peak() -> None:
    """GFLOP/s of a large float32 matrix product."""
    a, best = np.ones((4096, 4096), np.float32), 1e9
    for turn in range(4):
        clock = Clock()
        with clock.phase("product"):
            a @ a
        best = min(best, clock.seconds["product"]) if turn else best
    finish(JOB, CLOCK, gflops={"f32": 2 * 4096**3 / best / 1e9})


def scans() -> None:
    """Write the phantom of one region with its truth."""
    import nibabel as nib

    from spineps.synth.phantom import make_phantom

    picture, seg, vert, *_ = make_phantom(
        JOB["seed"], JOB["region"], "T2", JOB["zoom"], JOB.get("shape"), pathology=0.3, thoracic=12, lumbar=5
    )
    folder = Path(JOB["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    # Scanners write integers, and the published program rounds to the type that it reads.
    nib.save(nib.Nifti1Image(np.rint(picture.array).astype(np.int16), picture.affine), JOB["image"])
    save(seg, str(folder / "truth_spine.nii.gz"))
    save(vert, str(folder / "truth_vert.nii.gz"))
    finish(JOB, CLOCK, shape=list(seg.shape))


if __name__ == "__main__":
    if JOB.get("precision"):
        prefer_precision()
    if TASK in ("semantic", "instance", "post", "labeling"):
        warm()
    tasks = {f.__name__: f for f in (load, semantic, instance, post, labeling, sample, gpu, peak, scans)}
    sys.exit(tasks[TASK]())
