"""Metrics, matching and label systems of ``spineps evaluate``."""

from __future__ import annotations

import doctest
import importlib
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import panoptica_record
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, distance_transform_edt
from typer.testing import CliRunner

from spineps.anatomy import VERTEBRA_IDS, VERTEBRAE
from spineps.cli.main import app
from spineps.errors import GeometryError, InputNotFoundError, OptionError, UnreadableInputError, ValueRangeError
from spineps.evaluation.coarse import grouped, vertebrae_with_endplates
from spineps.evaluation.convert import color_table, converted
from spineps.evaluation.instances import KINDS, best_pairs, match
from spineps.evaluation.metrics import Compared, compare, iou_of
from spineps.evaluation.numbering import NUMBERINGS, name_of, renumbered
from spineps.evaluation.pairs import find_pairs
from spineps.evaluation.run import Settings, evaluate_pair, evaluate_pairs, read_mask
from spineps.evaluation.scan import as_labels, evaluate_instances, evaluate_structures, on_reference
from spineps.evaluation.summary import as_document, as_tsv, rows_of, summarise, worst_first
from spineps.outputs.writer import Writer
from spineps.volume import Volume

AFFINE = np.diag([0.7, 0.9, 3.3, 1.0])
SHAPE = (9, 12, 7)


def boxes(seed: int, shape: tuple[int, int, int] = SHAPE, labels: tuple[int, ...] = (20, 21, 22)) -> np.ndarray:
    """A few random boxes of labels."""
    rng = np.random.default_rng(seed)
    out = np.zeros(shape, np.uint8)
    for label in labels:
        low = [int(rng.integers(0, n - 2)) for n in shape]
        high = [int(rng.integers(a + 2, n + 1)) for a, n in zip(low, shape, strict=True)]
        out[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = label
    return out


def column(shape: tuple[int, int, int] = (20, 60, 10), first: int = 20, count: int = 4) -> np.ndarray:
    """Vertebrae with their discs and endplates, one below the other along axis 1."""
    inst = np.zeros(shape, np.uint8)
    for k in range(count):
        y = 3 + 14 * k
        inst[4:16, y : y + 8, 2:8] = first + k
        inst[4:16, y + 8 : y + 9, 2:8] = 200 + first + k
        inst[4:16, y + 9 : y + 12, 2:8] = 100 + first + k
    return inst


def structures_of(inst: np.ndarray) -> np.ndarray:
    sem = np.where(np.isin(inst, VERTEBRAE), 49, 0)
    return np.where(inst > 200, 62, np.where(inst > 100, 100, sem)).astype(np.uint8)


def volume(array: np.ndarray, affine: np.ndarray = AFFINE) -> Volume:
    return Volume(array, affine)


MODULES = ["metrics", "instances", "coarse", "numbering", "scan", "pairs", "summary"]


@pytest.mark.parametrize("module", MODULES)
def test_doctests(module: str) -> None:
    done = doctest.testmod(importlib.import_module(f"spineps.evaluation.{module}"))
    assert done.failed == 0
    assert done.attempted > 0


# --- laws -------------------------------------------------------------------------------------------------------------

seeds = st.integers(0, 2**31)


@settings(max_examples=25)
@given(seeds, seeds)
def test_scores_are_symmetric(a: int, b: int) -> None:
    first, second = boxes(a), boxes(b)
    there, back = compare(first, second, AFFINE), compare(second, first, AFFINE)
    for label in (20, 21, 22, 23):
        x, y = there.score(label), back.score(label)
        assert x.volume_error_mm3 == -y.volume_error_mm3
        np.testing.assert_allclose(
            [x.dice, x.iou, x.assd_mm, x.hd95_mm, x.centroid_mm],
            [y.dice, y.iou, y.assd_mm, y.hd95_mm, y.centroid_mm],
            equal_nan=True,
        )
    assert match(there).pq == pytest.approx(match(back).pq, nan_ok=True)


@settings(max_examples=15)
@given(seeds)
def test_a_mask_agrees_with_itself(a: int) -> None:
    mask = boxes(a)
    compared = compare(mask, mask, AFFINE)
    for label in compared.ids[1:].tolist():
        score = compared.score(label)
        assert (score.dice, score.iou, score.assd_mm, score.hd95_mm, score.centroid_mm) == (1, 1, 0, 0, 0)
    quality = match(compared)
    assert (quality.rq, quality.sq, quality.pq, quality.names_right, quality.verdict) == (1, 1, 1, 1, "")


@settings(max_examples=15)
@given(seeds, seeds, st.tuples(st.booleans(), st.booleans(), st.booleans()), st.permutations([0, 1, 2]))
def test_axis_order_and_direction_do_not_matter(
    a: int, b: int, flips: tuple[bool, bool, bool], order: list[int]
) -> None:
    first, second = boxes(a), boxes(b)
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    affine = AFFINE.copy()
    affine[:3, :3] = AFFINE[:3, :3][:, order]
    plain = compare(first, second, AFFINE)
    turned = compare(first[steps].transpose(order), second[steps].transpose(order), affine)
    for label in (20, 21, 22):
        x, y = plain.score(label), turned.score(label)
        np.testing.assert_allclose(
            [x.dice, x.assd_mm, x.hd95_mm, x.centroid_mm],
            [y.dice, y.assd_mm, y.hd95_mm, y.centroid_mm],
            atol=1e-9,
            equal_nan=True,
        )


@settings(max_examples=25)
@given(seeds, seeds)
def test_dice_follows_from_iou(a: int, b: int) -> None:
    score = compare(boxes(a), boxes(b), AFFINE).score(20)
    if not math.isnan(score.iou):
        assert score.dice == pytest.approx(2 * score.iou / (1 + score.iou))
        assert 0 <= score.iou <= score.dice <= 1


@settings(max_examples=15)
@given(seeds, seeds)
def test_distances_are_those_of_a_distance_transform(a: int, b: int) -> None:
    first, second = boxes(a), boxes(b)
    score = compare(first, second, AFFINE).score(20)
    if score.state != "both":
        assert math.isnan(score.assd_mm)
        return
    one, two = first == 20, second == 20
    edges = [m & ~binary_erosion(m) for m in (one, two)]
    far = [distance_transform_edt(~e, sampling=[0.7, 0.9, 3.3]) for e in edges]
    both = [far[1][edges[0]], far[0][edges[1]]]
    assert score.assd_mm == pytest.approx(np.mean([d.mean() for d in both]))
    assert score.hd95_mm == pytest.approx(np.percentile(np.concatenate(both), 95))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_pairs_have_the_largest_sum(seed: int, rows: int, columns: int) -> None:
    iou = np.random.default_rng(seed).random((rows, columns)).round(2)
    found = sum(iou[p] for p in best_pairs(iou, 0.3))
    allowed = np.where(iou >= 0.3, iou, 0)
    square = np.zeros((4, 4))
    square[:rows, :columns] = allowed
    best = max(sum(square[i, p[i]] for i in range(4)) for p in itertools.permutations(range(4)))
    assert found == pytest.approx(best)


# --- conventions ------------------------------------------------------------------------------------------------------


def test_absent_structures() -> None:
    one, none = boxes(1, labels=(20,)), np.zeros(SHAPE, np.uint8)
    missing, surplus = compare(none, one, AFFINE).score(20), compare(one, none, AFFINE).score(20)
    absent = compare(none, none, AFFINE).score(20)
    assert (missing.state, missing.dice, surplus.state, surplus.dice) == ("missing", 0, "surplus", 0)
    assert missing.volume_error_percent == -100
    assert absent.state == "absent"
    unknown = [absent.dice, absent.assd_mm, missing.assd_mm, surplus.hd95_mm, surplus.volume_error_percent]
    assert all(math.isnan(v) for v in unknown)
    quality = match(compare(none, one, AFFINE))
    assert (quality.rq, quality.pq, quality.missing) == (0, 0, (20,))
    assert math.isnan(quality.sq)
    assert math.isnan(match(compare(none, none, AFFINE)).pq)


def test_shear_counts_in_millimetres() -> None:
    affine = np.eye(4)
    affine[0, 1] = 1.0  # a step along axis 1 is (1, 1, 0) mm
    first, second = (np.zeros((2, 4, 2), np.uint8) for _ in range(2))
    first[0, 0, 0] = second[0, 1, 0] = 20
    assert compare(first, second, affine).score(20).hd95_mm == pytest.approx(math.sqrt(2))


def test_a_shifted_spine_is_reported_as_such() -> None:
    inst = column(first=18)  # T11, T12, L1, L2
    named = np.where(np.isin(inst, VERTEBRAE), inst + 1, inst)
    quality = match(compare(named, inst, AFFINE))
    assert (quality.pq, quality.names_right, quality.offsets, quality.shift) == (1, 0, {1: 4}, 1)
    assert "whole numbering is shifted" in quality.verdict
    one = np.where(inst == 21, 22, inst)
    assert match(compare(one, inst, AFFINE)).verdict == "1 of 4 names are off (1 by +1)"


def test_thirteenth_rib_vertebra_moves_those_below_by_one() -> None:
    inst = column(first=18)
    called = {18: 18, 19: 19, 20: 28, 21: 20}
    named = np.where(np.isin(inst, VERTEBRAE), np.vectorize(lambda v: called.get(v, v))(inst), inst).astype(np.uint8)
    assert match(compare(named, inst, AFFINE)).offsets == {-1: 2, 0: 2}


def test_missing_and_surplus_by_name() -> None:
    inst = column()
    pred = np.where(inst == 21, 0, inst)
    pred[18:20, 50:60, :] = 6
    quality = match(compare(pred, inst, AFFINE))
    assert (quality.missing, quality.surplus, len(quality.matched)) == ((21,), (6,), 3)
    assert quality.rq == pytest.approx(3 / 4)
    assert set(KINDS) == {"vertebra", "sacrum", "disc", "endplate"}
    assert len(match(compare(pred, inst, AFFINE), "disc").matched) == 4


def test_endplates_are_merged_unless_strict() -> None:
    sem = structures_of(column())
    other = sem.copy()
    other[(sem == 62) & (np.arange(60)[None, :, None] < 30)] = 53
    loose = evaluate_structures(volume(other), volume(sem))
    strict = evaluate_structures(volume(other), volume(sem), strict=True)
    assert loose["vertebral endplate"].dice == 1
    assert strict["vertebral endplate"].dice < 1
    assert strict["inferior endplate"].state == "surplus"


def test_coarse_reference() -> None:
    sem = structures_of(column())
    sem[17, :, 4], sem[18, :, 4], sem[0, 0, 0] = 60, 61, 26
    coarse = np.select([sem == 49, sem == 100, np.isin(sem, (60, 61))], [1, 2, 3]).astype(np.uint8)
    coarse[sem == 62] = 1  # one voxel thick, as near to bone as to disc
    scores = evaluate_structures(volume(sem), volume(coarse), "spider")
    assert {name: s.dice for name, s in scores.items()} == {
        "all vertebrae": 1,
        "all discs": 1,
        "canal with cord": 1,
    }
    assert (grouped(sem, AFFINE) == coarse).all()
    with pytest.raises(OptionError, match="no instances"):
        evaluate_instances(volume(sem), volume(coarse), "spider")


def test_reference_of_vertebrae_only() -> None:
    inst = column()
    verse = vertebrae_with_endplates(inst, AFFINE)
    verse = np.where(np.isin(verse, VERTEBRAE), verse, 0)
    found, _ = evaluate_instances(volume(inst), volume(verse), "verse")
    assert list(found) == ["vertebra"]
    assert (found["vertebra"].pq, found["vertebra"].surplus) == (1, ())
    groups = evaluate_structures(volume(structures_of(inst)), volume(verse), "verse")
    assert {name: s.dice for name, s in groups.items()} == {"all vertebrae": 1}


def test_reference_of_another_tool() -> None:
    inst = column()
    theirs, _ = converted(volume(inst), "spineps", "totalspineseg")
    found, _ = evaluate_instances(volume(inst), theirs, "totalspineseg")
    assert list(found) == ["vertebra", "disc"]
    assert found["disc"].pq == found["vertebra"].pq == 1
    with_foreign = theirs.with_array(np.where(theirs.array == 41, 7, theirs.array))
    assert evaluate_instances(volume(inst), with_foreign, "totalspineseg")[1] == [
        "not compared, of the reference: not of a spine: 7"
    ]


def test_grids() -> None:
    inst = volume(boxes(3))
    turned = inst.reoriented("PIR")
    assert (on_reference(turned, inst).array == inst.array).all()
    moved = Volume(inst.array, inst.affine + np.array([[0, 0, 0, 0.7], *[[0] * 4] * 3]))
    with pytest.raises(GeometryError, match="--resample"):
        on_reference(moved, inst)
    back = on_reference(moved, inst, resample=True)
    assert (back.array[1:] == inst.array[:-1]).all()
    finer = inst.rescaled((0.35, 0.45, 1.65))
    assert on_reference(finer, inst, resample=True).shape == inst.shape


@pytest.mark.parametrize("bad", [np.full(SHAPE, 0.5), np.full(SHAPE, -1), np.full(SHAPE, 70000)])
def test_what_is_no_mask(bad: np.ndarray) -> None:
    with pytest.raises(ValueRangeError):
        as_labels(volume(bad), "x")


# --- many scans -------------------------------------------------------------------------------------------------------


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    with Writer() as writer:
        writer.mask(path, Volume(array, affine))
    return path


def test_pairs_by_name(tmp_path: Path) -> None:
    names = {
        "p": [
            "sub-1/sub-1_acq-sag_mod-T2w_seg-spine_msk.nii.gz",
            "sub-1/sub-1_acq-sag_mod-T2w_seg-vert_msk.nii.gz",
            "sub-2_run-1_mod-T2w_seg-vert_msk.nii.gz",
            "sub-2_run-2_mod-T2w_seg-vert_msk.nii.gz",
            "sub-3_mod-T1w_seg-vert_msk.nii.gz",
            "sub-3_mod-T2w_seg-vert_msk.nii.gz",
            "sub-4_seg-vert_msk.nii.gz",
            "sub-1/sub-1_T2w.nii.gz",
        ],
        "r": [
            "sub-1_acq-sag_T2w_seg-spine_msk.nii.gz",
            "sub-1_acq-sag_seg-vert_msk.nii.gz",
            "sub-2_run-2_seg-vertebrae_dseg.nii.gz",
            "sub-3_seg-vert_msk.nii.gz",
        ],
    }
    for folder, files in names.items():
        for name in files:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    pairs, alone = find_pairs(tmp_path / "p", tmp_path / "r")
    assert [(p.scan, p.kind, p.reference.name.split("_")[0]) for p in pairs] == [
        ("sub-1_acq-sag_mod-T2w", "instance", "sub-1"),
        ("sub-1_acq-sag_mod-T2w", "semantic", "sub-1"),
        ("sub-2_run-2_mod-T2w", "instance", "sub-2"),
    ]
    # Two predictions fit sub-3's one reference: nobody can tell which, so all three are listed.
    assert [p.name.split("_seg")[0] for p in alone] == [
        "sub-2_run-1_mod-T2w",
        "sub-3_mod-T1w",
        "sub-3_mod-T2w",
        "sub-4",
        "sub-3",
    ]
    with pytest.raises(InputNotFoundError):
        find_pairs(tmp_path / "p", tmp_path / "nowhere")
    with pytest.raises(OptionError, match="the other kind"):
        find_pairs(tmp_path / "p" / names["p"][6], tmp_path / "r" / names["r"][0])


def test_command_over_folders(tmp_path: Path) -> None:
    inst = column()
    for k, array in enumerate((inst, np.roll(inst, 1, 0), np.where(np.isin(inst, (20, 21, 22)), 0, inst))):
        write(tmp_path / f"ref/sub-{k}_seg-vert_msk.nii.gz", inst)
        write(tmp_path / f"ref/sub-{k}_seg-spine_msk.nii.gz", structures_of(inst))
        write(tmp_path / f"pred/sub-{k}_seg-vert_msk.nii.gz", array)
        write(tmp_path / f"pred/sub-{k}_seg-spine_msk.nii.gz", structures_of(array))
    write(tmp_path / "pred/sub-9_seg-vert_msk.nii.gz", inst)
    table = tmp_path / "out/all.tsv"
    arguments = ["evaluate", str(tmp_path / "pred"), str(tmp_path / "ref")]
    done = CliRunner().invoke(app, [*arguments, "--tsv", str(table), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [s["scan"] for s in document["scans"]] == ["sub-2", "sub-1", "sub-0"]
    assert document["scans"][-1]["score"] == 1
    assert [Path(p).name for p in document["unmatched"]] == ["sub-9_seg-vert_msk.nii.gz"]
    vertebra = document["summary"]["each vertebra"]["pq"]
    assert vertebra["n"] == 3
    assert vertebra["low"] < vertebra["mean"] < vertebra["high"]
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert ["sub-2", "instance", "vertebra", "L1", "n/a", "missing"] in [line[:6] for line in lines]
    shown = CliRunner().invoke(app, [*arguments, "--worst", "1"])
    assert "sub-2: missing vertebra: L1" in shown.output
    assert "sub-1" not in shown.stdout


def test_one_scan_shows_both_masks(tmp_path: Path) -> None:
    inst = column()
    for folder, array in (("a", np.where(np.isin(inst, VERTEBRAE), inst - 1, inst)), ("b", inst)):
        write(tmp_path / folder / "x_seg-vert_msk.nii.gz", array)
        write(tmp_path / folder / "x_seg-spine_msk.nii.gz", structures_of(inst))
    paths = [str(tmp_path / f / "x_seg-spine_msk.nii.gz") for f in "ab"]
    done = CliRunner().invoke(app, ["evaluate", *paths])
    assert done.exit_code == 0, done.output
    assert "vertebral body" in done.output
    assert "too far cranially: the whole numbering is shifted" in done.output


def test_what_cannot_be_compared_does_not_stop_the_rest(tmp_path: Path) -> None:
    inst = column()
    for k in range(3):
        write(tmp_path / f"ref/sub-{k}_seg-vert_msk.nii.gz", inst)
        write(tmp_path / f"pred/sub-{k}_seg-vert_msk.nii.gz", inst[: 20 - k])
    (tmp_path / "pred/sub-2_seg-vert_msk.nii.gz").write_bytes(b"nothing")
    pairs, _ = find_pairs(tmp_path / "pred", tmp_path / "ref")
    results, failed = evaluate_pairs(pairs, Settings())
    assert [r.scan for r in results] == ["sub-0"]
    assert [type(error) for _, error in failed] == [GeometryError, UnreadableInputError]
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "pred"), str(tmp_path / "ref")])
    assert done.exit_code == failed[0][1].code.exit_code
    assert "not compared: sub-1" in done.output
    with pytest.raises(OptionError):
        Settings(reference_labels="other")


def test_nothing_is_lost_from_a_folder_of_odd_masks(tmp_path: Path) -> None:
    """Every scan ends in the table, or with its reason on the list of what was not compared."""
    inst = column()
    turned = volume(inst).reoriented("LAS")
    flat = np.diag([0.0, 1.0, 1.0, 1.0])
    for name, array, affine in (
        ("good", inst, AFFINE),
        ("turned", turned.array, turned.affine),
        ("float", inst.astype(np.float32), AFFINE),
        ("nothing", np.zeros_like(inst), AFFINE),
        ("foreign", np.where(inst > 0, inst + 37, 0), AFFINE),
        ("half", inst + 0.5, AFFINE),
        ("missing", np.where(inst > 0, inst.astype(float), np.nan), AFFINE),
        ("flat", inst, flat),
        ("series", np.stack([inst] * 3, axis=-1), AFFINE),
        ("alone", inst, AFFINE),
    ):
        image = nib.Nifti1Image(array.astype(np.float32 if array.dtype.kind == "f" else np.uint16), None)
        image.header.set_sform(affine, 1)
        for folder in ("pred", "ref") if name != "alone" else ("pred",):
            (tmp_path / folder).mkdir(exist_ok=True)
            path = tmp_path / folder / f"sub-{name}_seg-vert_msk.nii.gz"
            if folder == "pred":
                nib.save(image, path)
            else:
                write(path, np.zeros_like(inst) if name == "nothing" else inst)
    table = tmp_path / "all.tsv"
    done = CliRunner().invoke(app, ["evaluate", *(str(tmp_path / f) for f in ("pred", "ref")), "--tsv", str(table)])
    assert {line.split("\t")[0] for line in table.read_text().splitlines()[1:]} == {
        f"sub-{name}" for name in ("good", "turned", "float", "nothing", "foreign")
    }
    reasons = dict(re.findall(r"not compared: sub-(\w+): (.*)", done.output))
    assert sorted(reasons) == ["flat", "half", "missing", "series"]
    assert "singular" in reasons["flat"] and "4 dimensions" in reasons["series"] and "labels" in reasons["half"]
    assert "without partner" in done.output and "sub-nothing: nothing in either mask" in done.output
    assert done.exit_code != 0 and "Traceback" not in done.output


def test_kinds_are_told_by_the_codes_where_names_do_not_tell(tmp_path: Path) -> None:
    vert = write(tmp_path / "a.nii.gz", column())
    spine = write(tmp_path / "b.nii.gz", structures_of(column()))
    assert evaluate_pair(find_pairs(vert, vert)[0][0], Settings()).instances["vertebra"].pq == 1
    assert evaluate_pair(find_pairs(spine, spine)[0][0], Settings()).structures["vertebral body"].dice == 1
    with pytest.raises(OptionError, match="the other kind"):
        evaluate_pair(find_pairs(vert, spine)[0][0], Settings())


def test_summary_leaves_out_what_is_not_there() -> None:
    assert summarise([math.nan]).n == 0
    one = summarise([0.5, math.nan])
    assert (one.n, one.mean, one.median) == (1, 0.5, 0.5)
    assert math.isnan(one.low)
    assert summarise([0.1, 0.5, 0.9]) == summarise([0.1, 0.5, 0.9])


def test_document_has_no_nan(tmp_path: Path) -> None:
    write(tmp_path / "a/x_seg-vert_msk.nii.gz", column())
    write(tmp_path / "b/x_seg-vert_msk.nii.gz", np.zeros_like(column()))
    results, _ = evaluate_pairs(find_pairs(tmp_path / "a", tmp_path / "b")[0], Settings())
    json.dumps(as_document(results, {}, []), allow_nan=False)
    assert "nan" not in as_tsv(results)
    assert worst_first([replace(results[0], scan="y", instances={}), results[0]])[0].scan == "x"
    assert {row["state"] for row in rows_of(results[0]) if row["level"] == "instance"} == {"surplus"}


# --- other tools' numbers ---------------------------------------------------------------------------------------------


def test_numbers_looked_up() -> None:
    """Spot values of the tables of TotalSpineSeg's README and TotalSegmentator's map_to_binary.py."""
    mine = {name: {name_of(ours): theirs for ours, theirs in n.ids.items()} for name, n in NUMBERINGS.items()}
    spine = {
        **{"spinal cord": 1, "spinal canal": 2, "C1": 11, "C7": 17, "T1": 21, "T12": 32, "L1": 41, "L5": 45, "S1": 50},
        **{"disc below C2": 63, "disc below C6": 67, "disc below C7": 71, "disc below T1": 72, "disc below T11": 82},
        **{"disc below T12": 91, "disc below L1": 92, "disc below L4": 95, "disc below L5": 100, "L6": 46},
    }
    total = {"spinal cord": 79, "S1": 25, "L5": 27, "L1": 31, "T12": 32, "T1": 43, "C7": 44, "C1": 50}
    assert spine.items() <= mine["totalspineseg"].items()
    assert len(mine["totalspineseg"]) == 51
    assert total.items() <= mine["totalsegmentator"].items()
    assert len(mine["totalsegmentator"]) == 26
    assert (mine["totalsegmentator-v3"]["L6"], "L6" in mine["totalsegmentator"]) == (26, False)


@pytest.mark.parametrize("tool", NUMBERINGS)
def test_there_and_back(tool: str) -> None:
    ids = NUMBERINGS[tool].ids
    assert len(set(ids.values())) == len(ids)
    ours = np.array([0, *ids])
    there, lost = renumbered(ours, "spineps", tool)
    assert (renumbered(there, tool, "spineps")[0] == ours).all()
    assert not lost


def test_conversion_adds_cord_and_canal_and_tells_what_is_lost(tmp_path: Path) -> None:
    inst = column(first=19)
    inst[inst == 20] = VERTEBRA_IDS["T13"]
    inst[inst == 120] = 128
    sem = structures_of(inst)
    sem[18, :, 4] = 60
    paths = [write(tmp_path / f"x_seg-{k}_msk.nii.gz", a) for k, a in (("vert", inst), ("spine", sem))]
    out, snap = tmp_path / "out.nii.gz", tmp_path / "labels.txt"
    arguments = ["convert-labels", str(paths[0]), str(out), "--to", "totalspineseg", "--structures", str(paths[1])]
    done = CliRunner().invoke(app, [*arguments, "--itksnap", str(snap)])
    assert done.exit_code == 0, done.output
    assert "left out: T13 (28), disc below T13 (128)" in done.output
    written = read_mask(out).array
    assert set(np.unique(written)) == {0, 1, 32, 42, 43, 91, 93, 94}
    assert (written == 42).sum() == ((inst == 21) | (inst == 221)).sum()
    names = [line.split('"')[1] for line in snap.read_text().splitlines() if line.endswith('"')]
    assert names[:3] == ["Clear Label", "spinal cord", "T12"]
    assert color_table(written, "totalspineseg") == snap.read_text()


def test_only_vertebra_masks_can_be_converted() -> None:
    sem = volume(structures_of(column()))
    with pytest.raises(OptionError, match="--structures"):
        converted(sem, "spineps", "totalspineseg")
    with pytest.raises(OptionError, match="unknown"):
        converted(sem, "spineps", "simpleware")
    with pytest.raises(GeometryError, match="two masks"):
        converted(volume(column()), "spineps", "totalspineseg", sem.cropped((slice(0, 9),) * 3))


# --- an independent implementation ------------------------------------------------------------------------------------


def _agrees(theirs: dict[str, float], prediction: np.ndarray, reference: np.ndarray, affine: np.ndarray) -> None:
    ours = match(compare(prediction, reference, affine))
    scores = [s for _, _, s in ours.matched]
    assert [theirs[key] for key in ("tp", "fp", "fn")] == [len(scores), len(ours.surplus), len(ours.missing)]
    if not scores:
        assert ours.pq == 0
        return
    means = {"sq_dsc": "dice", "sq_assd": "assd_mm", "sq_hd95": "hd95_mm"}
    mine = {"rq": ours.rq, "sq": ours.sq, "pq": ours.pq}
    mine |= {key: float(np.mean([getattr(s, name) for s in scores])) for key, name in means.items()}
    assert {key: theirs[key] for key in mine} == pytest.approx(mine, abs=1e-6)


def test_agrees_with_the_record_of_panoptica() -> None:
    """Numbers that panoptica gave for masks beside them; ``panoptica_record.py`` writes them anew."""
    record = json.loads(panoptica_record.RECORD.read_text(encoding="utf-8"))
    pairs, affine = panoptica_record.cases()
    assert record["cases"].keys() == pairs.keys() and record["panoptica"] == "2.1.7"
    assert sum(found["tp"] for found in record["cases"].values()) > 30
    for name, pair in pairs.items():
        _agrees(record["cases"][name], *pair, affine)


def test_agrees_with_panoptica_itself() -> None:
    pytest.importorskip("panoptica", reason="panoptica is not installed (extra: crosscheck); its record is tested")
    pairs, affine = panoptica_record.cases()
    for pair in pairs.values():
        _agrees(panoptica_record.numbers(*pair, affine), *pair, affine)


def test_matrix_of_overlaps_is_that_of_a_loop() -> None:
    first, second = boxes(8), boxes(9)
    compared: Compared = compare(first, second, AFFINE)
    for i, j in itertools.product((20, 21, 22), repeat=2):
        both = int(((first == i) & (second == j)).sum())
        assert compared.score(i, j).iou == pytest.approx(iou_of(both, (first == i).sum(), (second == j).sum()))
