"""One measurement of the published program (runs in its own environment; started by ``against_reference.py``).

    python theirs.py TASK JOB.json

The published functions are called as ``spineps sample`` calls them.  Two things are put around them: clocks, and for
the instance network the recorded answers (its weights are random here; with ``compute`` the network still runs and its
answer is dropped, so that its time and memory count).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from measure import Answers, Clock, describe, finish, heads_of, read_job

TASK, JOB = read_job()
# The published program takes all cores whatever it is told; both sides must get the same number.
os.cpu_count = lambda: JOB["threads"]  # type: ignore[assignment]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from spineps.get_models import get_actual_model  # noqa: E402
from spineps.phase_instance import predict_instance_mask  # noqa: E402
from spineps.phase_labeling import perform_labeling_step  # noqa: E402
from spineps.phase_post import phase_postprocess_combined  # noqa: E402
from spineps.phase_pre import preprocess_input  # noqa: E402
from spineps.phase_semantic import predict_semantic_mask  # noqa: E402
from spineps.seg_enums import OutputType  # noqa: E402
from spineps.seg_model import SegmentationModelUnet3D  # noqa: E402
from TPTBox import NII, to_nii  # noqa: E402

torch.set_num_threads(JOB["threads"])
CLOCK = Clock()
#: Voxels that went through each network.
VOXELS: dict[str, int] = {}


def count(kind: Any, name: str) -> None:
    """Count the voxels that reach a kind of network."""
    inner = kind.forward

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        VOXELS[name] = VOXELS.get(name, 0) + x.shape[0] * int(np.prod(x.shape[2:]))
        with CLOCK.phase(f"{name} network"):
            return inner(self, x, *args, **kwargs)

    kind.forward = forward


def count_all() -> None:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from spineps.architectures.pl_densenet import PLClassifier
    from spineps.architectures_new.pl_unet import PLNet

    count(PlainConvUNet, "semantic")
    count(PLNet, "instance")
    count(PLClassifier, "labeling")


def model(name: str) -> Any:
    return get_actual_model(JOB["models"][name], use_cpu=True).load()


def image() -> NII:
    return to_nii(JOB["image"], seg=False)


def load() -> None:
    for name in ("semantic", "instance", "labeling"):
        with CLOCK.phase(name):
            model(name)
    finish(JOB, CLOCK)


def semantic() -> None:
    """Pre-processing, network, cleaning."""
    count_all()
    loaded, scan = model("semantic"), image()
    loaded.set_test_time_augmentation(JOB["tta"])
    with CLOCK.phase("preprocess"):
        ready, _ = preprocess_input(scan, pad_size=4, debug_data={})
    ready.save(JOB["ready"], verbose=False)
    if JOB.get("raw"):
        with CLOCK.phase("semantic"):
            mask = loaded.segment_scan(
                ready, step_size=JOB["step"], resample_to_recommended=True, resample_output_to_input_space=False
            )[OutputType.seg]
    else:
        with CLOCK.phase("semantic"):
            mask, _, _ = predict_semantic_mask(ready, loaded, debug_data={}, step_size=JOB["step"])
    mask.save(JOB["mask"], verbose=False)
    finish(JOB, CLOCK, shape=list(mask.shape), voxels=VOXELS)


def replay(compute: bool) -> Answers:
    """Make the instance network give the recorded answers."""
    answers, inner = Answers(Path(JOB["answers"])), SegmentationModelUnet3D.run_batch

    def run_batch(self: Any, input_nii: list[NII], *args: Any, **kwargs: Any) -> list[dict[OutputType, NII]]:
        with CLOCK.phase("network"):
            if compute:
                inner(self, input_nii, *args, **kwargs)
        with CLOCK.paused():
            # The network's own answers are int64, as torch's argmax gives them.
            said = [answers.to(nii.get_seg_array()).astype(np.int64) for nii in input_nii]
        return [{OutputType.seg: nii.set_array(a)} for nii, a in zip(input_nii, said, strict=True)]

    SegmentationModelUnet3D.run_batch = run_batch
    return answers


def rehead(names: list[int]) -> dict[str, list[list[float]]]:
    """Make the labelling network (which still runs) give known names; returns where its own answers will be."""
    from spineps.lab_model import VertLabelingClassifier

    own: dict[str, list[list[float]]] = {}
    inner = VertLabelingClassifier.run_all_seg_instances

    def run(self: Any, img: NII, seg: NII) -> dict[int, dict[str, dict[str, Any]]]:
        found = inner(self, img, seg)
        order = sorted(found)
        with CLOCK.paused():
            sizes = {head: np.size(value) for head, value in found[order[0]]["soft"].items()}
            for head in sizes:
                own[head] = [np.ravel(found[v]["soft"][head]).tolist() for v in order]
            if len(order) == len(names):
                said = heads_of(names, sizes, JOB["seed"])
                for row, v in enumerate(order):
                    for head in sizes:
                        old = found[v]["soft"][head]
                        found[v]["soft"][head] = said[head][row].reshape(old.shape).astype(old.dtype)
                        found[v]["pred"][head] = said[head][row].argmax()
        return found

    VertLabelingClassifier.run_all_seg_instances = run
    return own


def instance() -> None:
    """Instance phase: cutouts, network (or not, see ``compute``), merging."""
    count_all()
    loaded = model("instance")
    answers = replay(JOB["compute"])
    mask = NII.load(JOB["mask"], seg=True)
    with CLOCK.phase("instance"):
        out, code = predict_instance_mask(mask.copy(), loaded, debug_data={})
    out.save(JOB["out"], verbose=False)
    finish(JOB, CLOCK, cutouts=len(answers), unlike=answers.worst, code=str(code), voxels=VOXELS)


def post() -> None:
    """Combined post-processing on the grid of the image, without labelling."""
    scan, seg, vert = image(), NII.load(JOB["mask"], seg=True), NII.load(JOB["instance"], seg=True)
    with CLOCK.phase("to the image's grid"):
        seg, vert = seg.resample_from_to(scan), vert.resample_from_to(scan)
    with CLOCK.phase("post-processing"):
        seg, vert = phase_postprocess_combined(scan, seg, vert, None, {}, labeling_offset=1)
    seg.save(JOB["out"] + "_spine.nii.gz", verbose=False)
    vert.save(JOB["out"] + "_vert.nii.gz", verbose=False)
    finish(JOB, CLOCK)


def labeling() -> None:
    count_all()
    loaded, scan = model("labeling"), image()
    seg, vert = NII.load(JOB["spine"], seg=True), NII.load(JOB["vert"], seg=True)
    own = rehead(JOB["names"])
    with CLOCK.phase("labelling"):
        named = perform_labeling_step(loaded, scan, vert.copy(), seg, disable_c1=True)
    before, after = vert.get_seg_array(), named.get_seg_array()
    names = {int(v): int(np.bincount(after[before == v]).argmax()) for v in np.unique(before) if v}
    finish(JOB, CLOCK, names=names, voxels=VOXELS, heads=own)


def sample() -> None:
    """The whole ``spineps sample``, in this process so that clocks and answers can be put in."""
    from spineps import entrypoint, seg_run

    count_all()
    answers = replay(JOB["compute"])
    rehead(answers.names)
    for name, phase in {
        "preprocess_input": "preprocess",
        "predict_semantic_mask": "semantic",
        "predict_instance_mask": "instance",
        "phase_postprocess_combined": "post-processing",
        "predict_centroids_from_both": "points",
        "mri_snapshot": "snapshot",
    }.items():
        CLOCK.wrap(seg_run, name, phase)
    models = JOB["models"]
    sys.argv = [
        "spineps", "sample", "-i", JOB["image"], "-ms", models["semantic"], "-mi", models["instance"],
        "-ml", models["labeling"], "--cpu", "--no-tta", "--step-size", str(JOB["step"]),
    ]  # fmt: skip
    sys.argv += JOB.get("more", [])
    with CLOCK.phase("whole"):
        code = entrypoint.entry_point()
    finish(JOB, CLOCK, code=str(code), unlike=answers.worst, voxels=VOXELS)


def record() -> None:
    """What the instance network is to say about every cutout of a mask: the phantom's truth with noise."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

    truth_nii = NII.load(JOB["truth"], seg=True).reorient()
    truth = truth_nii.get_seg_array()
    truth[(truth > 25) & (truth != 28)] = 0
    # A vertebra of the mask may reach beyond the true one: every voxel belongs to the nearest.
    _, owners = distance_transform_edt(truth == 0, truth_nii.zoom, return_indices=True)
    nearest = truth[tuple(owners)]
    heights = {int(v): float(np.nonzero(truth == v)[1].mean()) for v in np.unique(truth) if v}
    order = sorted(heights, key=heights.__getitem__)
    to_truth, rng = np.linalg.inv(truth_nii.affine), np.random.default_rng(JOB["seed"])
    stored: dict[str, np.ndarray] = {}
    looks, boxes = [], []

    def run_batch(self: Any, input_nii: list[NII], *args: Any, **kwargs: Any) -> list[dict[OutputType, NII]]:
        results = []
        for k, nii in enumerate(input_nii):
            shown = nii.get_seg_array()
            step = to_truth @ nii.affine
            place = np.indices(shown.shape, np.float32).reshape(3, -1)
            place = (step[:3, :3] @ place + step[:3, 3:]).reshape(3, *shown.shape)
            # Borders between vertebrae wander by a millimetre or two, in every cutout differently.
            for axis in range(3):
                wander = gaussian_filter(rng.standard_normal([n // 4 + 1 for n in shown.shape]).astype(np.float32), 2)
                wander = np.kron(wander / wander.std(), np.ones((4, 4, 4), np.float32))
                place[axis] += wander[tuple(slice(n) for n in shown.shape)] * (1.0 / truth_nii.zoom[axis])
            owner = map_coordinates(nearest, place, order=0, mode="nearest")
            middle = [n // 2 for n in shown.shape]
            rank = order.index(int(owner[tuple(middle)]))
            said = np.zeros(shown.shape, np.uint8)
            for label, neighbour in ((1, rank - 1), (2, rank), (3, rank + 1)):
                if 0 <= neighbour < len(order):
                    said[(owner == order[neighbour]) & (shown > 0)] = label
            look, box = describe(shown)
            looks.append(look)
            boxes.append(box)
            stored[f"answer{k}"] = said
            results.append({OutputType.seg: nii.set_array(said.astype(np.int64))})
        return results

    SegmentationModelUnet3D.run_batch = run_batch
    out, _ = predict_instance_mask(NII.load(JOB["mask"], seg=True), model("instance"), debug_data={})
    out.save(JOB["out"], verbose=False)
    # Which true vertebra every instance is, from the top.
    instances, step = out.get_seg_array(), to_truth @ out.affine
    tops = []
    for v in np.unique(instances)[1:]:
        index = np.argwhere(instances == v)
        place = np.rint(index @ step[:3, :3].T + step[:3, 3]).astype(int)
        owners = nearest[tuple(np.clip(place, 0, np.array(nearest.shape) - 1).T)]
        tops.append((float(index[:, 1].mean()), int(np.bincount(owners).argmax())))
    names = np.array([name for _, name in sorted(tops)])
    np.savez_compressed(JOB["answers"], looks=np.array(looks), boxes=np.array(boxes), names=names, **stored)
    finish(JOB, CLOCK, cutouts=len(looks), names=names.tolist())


def flops() -> None:
    """Floating-point operations per voxel of every network, counted by torch on shapes alone."""
    from torch.utils.flop_counter import FlopCounterMode

    found = {}
    for name, (channels, shape) in JOB["inputs"].items():
        loaded = model(name).predictor
        network = (loaded.network if name not in ("instance", "labeling") else loaded).to("meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, channels, *shape, device="meta"))
        found[name] = counter.get_total_flops() / float(np.prod(shape))
    finish(JOB, CLOCK, flops=found)


def peak() -> None:
    """GFLOP/s of a large matrix product."""
    found = {}
    for name, kind in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(4096, 4096).to(kind)
        best = 1e9
        for turn in range(4):
            clock = Clock()
            with clock.phase("product"):
                a @ a
            best = min(best, clock.seconds["product"]) if turn else best
        found[name] = 2 * 4096**3 / best / 1e9
    finish(JOB, CLOCK, gflops=found)


if __name__ == "__main__":
    {f.__name__: f for f in (load, semantic, instance, post, labeling, sample, record, flops, peak)}[TASK]()
