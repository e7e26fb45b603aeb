"""The instance phase: vote parity with 2.1.3, and one instance per vertebra whatever the network says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracle import Oracle, instance_config
from phantom_column import Column, build

from spineps.errors import EmptyError
from spineps.options import InstanceOptions
from spineps.phases.components import overlap_counts, relabel, remove_small
from spineps.phases.instance import predict_instances, upsample_instances
from spineps.phases.territory import divide
from spineps.phases.vote import Answer, find_couples, vote
from spineps.volume import Grid, Volume

GOLDEN = Path(__file__).parent / "golden" / "instance"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def scores(truth: np.ndarray, found: np.ndarray) -> tuple[int, float]:
    """Number of instances found, and the worst Dice of a true vertebra with its best instance."""
    table = overlap_counts(truth, found)
    dice = [
        2 * table[t, 1:].max() / (table[t].sum() + table[:, 1 + table[t, 1:].argmax()].sum())
        for t in range(1, len(table))
        if table[t].any()
    ]
    return len(np.unique(found[found > 0])), float(min(dice))


def recorded_answers(g: dict[str, np.ndarray]) -> list[Answer]:
    answers: dict[int, Answer] = {}
    for (cutout, kind), box in json.loads(str(g["keys"])):
        place = tuple(slice(*pair) for pair in box)
        shape = [s.stop - s.start for s in place]
        answer = answers.setdefault(cutout, Answer(place, np.zeros(shape, np.uint8)))
        bits = np.unpackbits(g[f"mask_{cutout}_{kind}"])[: int(np.prod(shape))]
        answer.array[bits.reshape(shape) > 0] = kind + 1
    return [answers[k] for k in sorted(answers)]


@pytest.mark.parametrize("name", ["perfect", "noisy", "swapped", "missing"])
def test_vote_matches_the_recording(name):
    g = golden(f"merge_{name}")
    answers = recorded_answers(g)
    couples = find_couples(answers)
    wanted = json.loads(str(g["couples"]))
    assert [[list(m) for m in c.members] for c in couples] == [members for members, _ in wanted]
    assert [c.agreement for c in couples] == pytest.approx([agreement for _, agreement in wanted])
    assert np.array_equal(remove_small(vote(answers, g["out"].shape), 100), g["out"])


def test_partners_four_cutouts_apart_are_compared():
    """The one two above and the one two below a vertebra agree with each other too, so all three are a couple."""
    empty, seen = np.zeros((4, 4, 4), np.uint8), np.pad(np.ones((2, 2, 2), np.uint8), 1)
    box = (slice(0, 4), slice(0, 4), slice(0, 4))
    couples = find_couples([Answer(box, array) for array in (3 * seen, empty, 2 * seen, empty, seen)])
    assert couples[0].members == ((0, 2), (2, 1), (4, 0)) and couples[0].agreement == 1


def random_classes(seed: int, share: float):
    def disturb(answer: np.ndarray, number: int) -> np.ndarray:
        rng = np.random.default_rng([seed, number])
        wrong = (rng.random(answer.shape) < share) & (answer > 0)
        return np.where(wrong, rng.integers(0, 4, answer.shape), answer).astype(np.uint8)

    return disturb


def swapped(answer: np.ndarray, number: int) -> np.ndarray:
    return np.array([0, 3, 2, 1], np.uint8)[answer] if number % 2 else answer


DISTURBANCES = {
    "perfect": lambda a, _: a,
    "nothing": lambda a, _: np.zeros_like(a),
    "everything": lambda a, _: np.full_like(a, 2),
    "noise": random_classes(1, 0.3),
    "pure noise": random_classes(2, 1.0),
    "swapped": swapped,
    "two as one": lambda a, _: np.where(a == 1, 2, a).astype(np.uint8),
    "one cutout silent": lambda a, n: a * (n != 2),
    "half of the cutouts silent": lambda a, n: a * (n % 2 == 0),
    "only the centre": lambda a, _: np.where(a == 2, 2, 0).astype(np.uint8),
}


@pytest.mark.parametrize("how", DISTURBANCES)
def test_every_vertebra_is_one_instance(how):
    sem, truth = build(Column())
    oracle = Oracle(sem, truth, instance_config(cutout_size=(120, 80, 48)), DISTURBANCES[how])
    found = predict_instances(sem, oracle, InstanceOptions())
    on_input = upsample_instances(found, sem)
    number, dice = scores(truth.array, on_input.array)
    assert number == 7
    assert dice > 0.97
    assert oracle.calls == 7
    # Hardly anything of a vertebra is left out, nothing else is taken.
    vertebra = np.isin(sem.array, range(41, 52))
    assert not on_input.array[~vertebra].any()
    assert (on_input.array[vertebra] > 0).mean() > 0.999


@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.integers(0, 15), st.integers(3, 7), st.integers(0, 2**31), st.floats(0, 1))
def test_count_is_right_under_any_noise(first, count, seed, share):
    sem, truth = build(Column([first + 0.9 * k for k in range(count)], frozenset({count - 2})))
    oracle = Oracle(sem, truth, disturb=random_classes(seed, share))
    found = upsample_instances(predict_instances(sem, oracle, InstanceOptions()), sem)
    number, dice = scores(truth.array, found.array)
    assert number == count
    assert dice > 0.7


def test_recorded_phantoms_are_separated():
    for name in ("n6", "n12_fine", "n2"):
        g = golden(name)
        sem, truth = Volume(g["sem"], g["affine"]), Volume(g["inst"], g["affine"])
        found = upsample_instances(predict_instances(sem, Oracle(sem, truth), InstanceOptions()), sem)
        assert scores(g["inst"], found.array) == (int(g["inst"].max()), 1.0)


@pytest.mark.parametrize("orientation", ["PIR", "LPS", "RIA"])
def test_any_orientation_of_scan_and_model(orientation):
    sem, truth = build(Column(range(17, 22)))
    grid = Grid((120, 80, 48), sem.affine).reoriented(orientation)
    zoom = {"PIR": (1.5, 1.5, 3.0), "LPS": (3.0, 1.5, 1.5), "RIA": (3.0, 1.5, 1.5)}[orientation]
    config = instance_config(orientation=orientation, cutout_size=grid.shape, zoom=zoom)
    for axcodes in ("PIR", "LAS"):
        turned = sem.reoriented(axcodes)
        found = predict_instances(turned, Oracle(turned, truth.reoriented(axcodes), config), InstanceOptions())
        assert found.axcodes == "PIR"
        assert found.zoom == pytest.approx((1.5, 1.5, 3.0))
        assert found.array.dtype == np.uint16
        number, dice = scores(truth.array, upsample_instances(found, sem).array)
        assert number == 5
        assert dice > 0.95


def test_ids_go_from_caudal_to_cranial_and_progress_is_told():
    sem, truth = build(Column())
    steps = []
    found = predict_instances(
        sem, Oracle(sem, truth), InstanceOptions(batch_size=3), progress=lambda done, n: steps.append((done, n))
    )
    heights = [np.argwhere(found.array == k)[:, 1].mean() for k in range(1, 8)]
    assert heights == sorted(heights, reverse=True)
    assert steps == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("codes", [{}, {61: 61}, {41: 41, 26: 26}])
def test_no_body_is_said_clearly(codes):
    sem, truth = build(Column())
    only = sem.with_array(relabel(sem.array, codes, keep_others=False))
    with pytest.raises(EmptyError):
        predict_instances(only, Oracle(only, truth), InstanceOptions())


def test_an_arch_without_its_body_stays_at_the_end_only():
    sem, truth = build(Column())
    body = (truth.array == 1) & (sem.array == 49)
    top = int(np.argwhere(truth.array == 2)[:, 1].min())
    headless = sem.with_array(np.where(body, 0, sem.array))
    shape = headless.shape
    cropped = headless.cropped((slice(0, shape[0]), slice(max(top - 40, 0), shape[1]), slice(0, shape[2])))
    part = truth.with_array(np.where(body, 0, truth.array)).on(cropped.grid)
    found = upsample_instances(predict_instances(cropped, Oracle(cropped, part), InstanceOptions()), cropped)
    number, dice = scores(part.array, found.array)
    assert number == 7
    assert dice > 0.99


def test_body_labels_of_the_pelvis_belong_to_no_vertebra():
    sem, truth = build(Column())
    array = np.pad(sem.array, ((0, 0), (0, 80), (0, 0)))
    array[70:90, -50:-20, 4:18] = 49
    longer = Volume(array, sem.affine)
    known = Volume(np.pad(truth.array, ((0, 0), (0, 80), (0, 0))), truth.affine)
    for how in ("perfect", "nothing"):
        found = predict_instances(longer, Oracle(longer, known, disturb=DISTURBANCES[how]), InstanceOptions())
        out = upsample_instances(found, longer).array
        assert scores(known.array, out)[0] == 7
        assert not out[70:90, -50:-20, 4:18].any()


def test_ways_inside_the_mask_decide_not_distances():
    # A hook hangs on seed 1 and ends beside seed 2.
    mask = np.zeros((9, 9, 1), bool)
    mask[1, 1:8, 0], mask[1:8, 1, 0], mask[3:8, 3, 0] = True, True, True
    seeds = np.zeros(mask.shape, np.uint16)
    seeds[1, 7, 0], seeds[7, 3, 0] = 1, 2
    labels = divide(mask, seeds, (1, 1, 1))
    assert (labels[3:8, 3] == 2).all()
    assert (labels[mask] > 0).all()
    assert labels[7, 1, 0] == 1
    assert not labels[~mask].any()


affines = st.builds(
    lambda z, t, flip: np.array([[z[0] * flip, 0, 0, t[0]], [0, z[1], 0.2, t[1]], [0, 0, z[2], t[2]], [0, 0, 0, 1]]),
    st.tuples(*[st.floats(0.4, 1.6)] * 3),
    st.tuples(*[st.floats(-2, 2)] * 3),
    st.sampled_from([1, -1]),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), affines)
def test_upsampling_takes_the_nearest_instance_inside_the_frame(seed, affine):
    rng = np.random.default_rng(seed)
    coarse = Volume((rng.integers(0, 3, (5, 6, 4)) * (rng.random((5, 6, 4)) < 0.3)).astype(np.uint16), np.eye(4))
    fine = Volume(rng.choice([0, 41, 49, 100], (7, 6, 5)).astype(np.uint8), affine)
    ours = upsample_instances(coarse, fine).array
    places = np.argwhere(coarse.array > 0)
    for voxel in np.argwhere(np.ones(fine.shape, bool)):
        at = affine[:3, :3] @ voxel + affine[:3, 3]
        inside = (at >= -0.5).all() and (at <= np.array(coarse.shape) - 0.5).all()
        distance = np.linalg.norm(places - at, axis=1) if len(places) else np.array([np.inf])
        label = ours[tuple(voxel)]
        if fine.array[tuple(voxel)] not in (41, 49) or not inside or distance.min() > 1.5:
            assert label == 0
        else:
            assert label in {coarse.array[tuple(p)] for p in places[distance <= distance.min() + 1e-9]}


def test_no_label_is_smeared_beyond_the_frame_of_the_model():
    sem, truth = build(Column())
    half = truth.cropped((slice(0, truth.shape[0]), slice(0, 100), slice(0, truth.shape[2]))).rescaled((1.5, 1.5, 3.0))
    out = upsample_instances(half, sem).array
    frame_end = int(np.ceil((half.shape[1] - 0.5) * 1.5))
    assert not out[:, frame_end + 1 :].any()
    assert out[:, :99].any()


def test_the_border_of_the_scan_keeps_its_vertebra():
    sem, truth = build(Column())
    low = int(np.argwhere((truth.array > 0) & (sem.array == 49)).max(axis=0)[1]) - 8
    for rows in range(low - 6, low):
        scan, known = (v.cropped((slice(0, v.shape[0]), slice(0, rows), slice(0, v.shape[2]))) for v in (sem, truth))
        oracle = Oracle(scan, known, instance_config(zoom=(2.0, 2.6, 3.0)))
        found = upsample_instances(predict_instances(scan, oracle, InstanceOptions()), scan).array
        cut = (scan.array[:, -1] == 49) & (known.array[:, -1] > 0)
        assert cut.any() and np.all(found[:, -1][cut]), rows


@pytest.mark.parametrize("label", [45, 49])
def test_labels_below_the_last_body_are_no_vertebra(label):
    sem, truth = build(Column())
    bodies = [np.argwhere((truth.array == i) & (sem.array == 49))[:, 1].mean() for i in np.unique(truth.array)[1:]]
    last, before = sorted(bodies)[-1:-3:-1]
    low = round(last + 1.1 * (last - before))
    array = np.pad(sem.array, ((0, 0), (0, 60), (0, 0)))
    array[:, low - 6 :] = 0
    known = Volume(np.where(array > 0, np.pad(truth.array, ((0, 0), (0, 60), (0, 0))), 0), truth.affine)
    array[30:50, low : low + (12 if label == 45 else 3), 6:12] = label
    known.array[30:50, low : low + 12, 6:12] = 30
    scan = Volume(array, sem.affine)
    found = predict_instances(scan, Oracle(scan, known), InstanceOptions()).on(scan.grid)
    assert len(np.unique(found.array[found.array > 0])) == len(bodies)
