"""Measurements against solids and synthetic people whose sizes are known exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_truth import coronal_angle, placed, sagittal_angle, true_heights, true_slip
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from spineps.anatomy import SACRUM, instance_name
from spineps.cli.main import app
from spineps.errors import InputNotFoundError, ValueRangeError
from spineps.outputs.stats import stats_tsv, write_stats_of
from spineps.outputs.writer import Writer
from spineps.phases.measure import measure
from spineps.phases.measures import COLUMNS, TEXTS, Row, genant_grade
from spineps.phases.solids import spread
from spineps.synth.labelmap import field_of_view, render
from spineps.synth.person import Level, SpineSpec, View
from spineps.synth.spec import random_spec
from spineps.volume import Grid, Volume

# --- solids


def tower(
    zoom: tuple[float, float, float] = (1.0, 1.0, 1.0),
    turn: float = 0.0,
    bodies: int = 3,
    wedge: float = 0.0,
    slip: float = 0.0,
    shift: float = 0.0,
    lateral: float = 0.0,
    round_bodies: bool = False,
) -> tuple[Volume, Volume]:
    """Boxes of 30 (P) x 20 (I) x 40 (R) mm with discs of 8 mm and a round canal of 16 mm with a cord of 8 mm, from L1.

    Args:
        zoom: mm along (P, I, R).
        turn: degrees by which everything is turned in the sagittal plane.
        bodies: how many.
        wedge: mm by which the front of the middle body is lower, half at either face.
        slip: mm by which the last body stands behind the others.
        shift, lateral: mm by which everything lies off the lattice along I and R.
        round_bodies: cylinders of 30 mm instead of boxes.
    """
    length = bodies * 28 - 8
    shape = [int(n / z) for n, z in zip((106, length + 40, 52), zoom, strict=True)]
    at = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * z for n, z in zip(shape, zoom, strict=True)), indexing="ij")
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    p, i, r = c * (at[0] + 12) + s * at[1], -s * (at[0] + 12) + c * at[1] + shift, at[2] + lateral
    semantic, instance = np.zeros(shape, np.uint8), np.zeros(shape, np.uint16)
    for k in range(bodies):
        back = slip if k == bodies - 1 else 0.0
        low = wedge / 2 * np.clip((15 - p) / 30, 0, 1) if k == 1 else 0.0
        middle = -length / 2 + 10 + 28 * k
        across = (p - back) ** 2 + r**2 < 225 if round_bodies else (np.abs(p - back) < 15) & (np.abs(r) < 20)
        body = (np.abs(i - middle) < 10 - low) & across
        semantic[body], instance[body] = 49, 20 + k
        arch = (np.abs(i - middle) < 4) & (p > 39) & (p < 45) & (np.abs(r) < 8)
        semantic[arch], instance[arch] = 41, 20 + k
        if k < bodies - 1:
            disc = (np.abs(i - middle - 14) < 4) & (np.abs(p) < 15) & (np.abs(r) < 20)
            semantic[disc], instance[disc] = 100, 120 + k
    tube = (p - 30) ** 2 + r**2
    semantic[tube < 64], semantic[tube < 16] = 61, 60
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -zoom[0], -zoom[1], zoom[2], 1
    return Volume(semantic, affine), Volume(instance, affine)


def by_label(rows: tuple[Row, ...]) -> dict[int, Row]:
    return {row.label: row for row in rows}


def numbers(rows: tuple[Row, ...], without: tuple[str, ...] = ()) -> dict[tuple[int, str], float]:
    return {(r.label, k): m.value for r in rows for k, m in r.values.items() if k not in without}


def test_boxes_are_exact() -> None:
    rows = by_label(measure(*tower()))
    assert list(rows) == [20, 120, 21, 121, 22, 0]
    body, disc = rows[21].values, rows[120].values
    for key, true in {
        "height_anterior": 20,
        "height_middle": 20,
        "height_posterior": 20,
        "depth": 30,
        "width": 40,
    }.items():
        assert body[key].value == pytest.approx(true, abs=0.02), key
    assert body["volume_corpus"].value == 30 * 20 * 40
    assert body["volume"].value == 30 * 20 * 40 + 8 * 6 * 16
    assert body["wedge_ratio"].value == pytest.approx(1, abs=1e-3)
    assert body["crush_ratio"].value == pytest.approx(1, abs=1e-3)
    assert body["genant_grade"].value == 0
    for key, true in {
        "height_anterior": 8,
        "height_middle": 8,
        "height_posterior": 8,
        "depth": 30,
        "width": 40,
    }.items():
        assert disc[key].value == pytest.approx(true, abs=0.02), key
    assert disc["disc_height_index"].value == pytest.approx(8 / 30, abs=1e-3)
    assert disc["bulge"].value == pytest.approx(0, abs=0.05)
    assert disc["listhesis"].value == pytest.approx(0, abs=0.05)
    assert rows[0].values["cobb_angle"].value == pytest.approx(0, abs=0.05)


def test_canal_is_round() -> None:
    body = by_label(measure(*tower((0.5, 1, 0.5))))[21].values
    assert body["canal_area"].value == pytest.approx(np.pi * 64, rel=0.02)
    assert body["cord_area"].value == pytest.approx(np.pi * 16, rel=0.05)
    assert body["canal_ap"].value == pytest.approx(16, abs=0.3)
    assert body["canal_transverse"].value == pytest.approx(16, abs=0.3)
    assert body["cord_compression_ratio"].value == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("turn", [-35.0, 17.0, 45.0])
@pytest.mark.parametrize("zoom", [(1.0, 1.0, 1.0), (0.6, 0.6, 3.5)])
def test_tilted_boxes(turn: float, zoom: tuple[float, float, float]) -> None:
    rows = by_label(measure(*tower(zoom, turn)))
    for row, height in ((rows[21], 20), (rows[120], 8)):
        for key in ("height_anterior", "height_middle", "height_posterior"):
            # Rows of a lattice turned by 45 degrees lie in phase: nothing averages out.
            assert row.values[key].value == pytest.approx(height, abs=2 * row.values[key].uncertainty), key
        assert row.values["depth"].value == pytest.approx(30, abs=3 * row.values["depth"].uncertainty)
    assert rows[120].values["listhesis"].value == pytest.approx(0, abs=0.4)
    # Cut perpendicular to the canal, not to the scanner.
    assert rows[21].values["canal_ap"].value == pytest.approx(16, abs=0.6)


def test_cylinders() -> None:
    body = by_label(measure(*tower(round_bodies=True)))[21].values
    # Along chords within the middle third, a circle of 30 mm measures a little less than its diameter.
    assert body["height_middle"].value == pytest.approx(20, abs=0.05)
    assert 28.8 < body["depth"].value < 30.2
    assert 28.8 < body["width"].value < 30.2
    assert body["volume_corpus"].value == pytest.approx(np.pi * 225 * 20, rel=0.02)


@pytest.mark.parametrize(("loss", "grade"), [(3.0, 0), (4.5, 1), (6.5, 2), (10.0, 3)])
def test_wedges_are_graded(loss: float, grade: int) -> None:
    values = by_label(measure(*tower((0.5, 0.5, 2.0), turn=8.0, wedge=loss)))[21].values
    assert values["height_anterior"].value == pytest.approx(20 - loss, abs=0.4)
    assert values["genant_grade"].value == grade


def test_slips_are_signed() -> None:
    rows = by_label(measure(*tower(slip=5.0)))
    assert rows[121].values["listhesis"].value == pytest.approx(5, abs=0.2)  # the upper one stands in front
    assert rows[120].values["listhesis"].value == pytest.approx(0, abs=0.2)
    assert by_label(measure(*tower(slip=-5.0)))[121].values["listhesis"].value == pytest.approx(-5, abs=0.2)


@settings(max_examples=8, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(-20, 20), st.sampled_from([0.8, 1.0, 1.5]))
def test_errors_stay_within_their_uncertainty(shift: float, turn: float, size: float) -> None:
    rows = by_label(measure(*tower((size, size, 2.0), turn, shift=shift)))
    for row, key, true in (
        *((rows[21], f"height_{where}", 20) for where in ("anterior", "middle", "posterior")),
        (rows[120], "height_middle", 8),
        (rows[21], "depth", 30),
        (rows[120], "listhesis", 0),
        (rows[0], "cobb_angle", 0),
    ):
        measured = row.values[key]
        assert abs(measured.value - true) < 2.5 * measured.uncertainty + 0.05, key


# --- laws


@lru_cache(maxsize=1)
def small() -> tuple[Volume, Volume]:
    """A turned tower in few voxels, no two axes alike."""
    return tower((2.0, 1.75, 2.5), turn=12.0, bodies=2, slip=3.0)


SCANNER = ("x", "y", "z", "sacral_slope")


def test_orientation_of_the_array_does_not_matter() -> None:
    semantic, instance = small()
    reference = numbers(measure(semantic, instance))
    codes = ["".join(c) for order in permutations(("LR", "AP", "SI")) for c in product(*order)]
    assert len(codes) == 48
    for code in codes:
        turned = numbers(measure(semantic.reoriented(code), instance.reoriented(code)))
        assert turned.keys() == reference.keys()
        assert_allclose(list(turned.values()), list(reference.values()), atol=2e-3, rtol=1e-4, err_msg=code)


def moved(volume: Volume, matrix: np.ndarray) -> Volume:
    return Volume(volume.array, matrix @ volume.affine)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.lists(st.floats(-200, 200), min_size=3, max_size=3))
def test_rigid_motion_does_not_matter(angles: list[float], offset: list[float]) -> None:
    from scipy.spatial.transform import Rotation

    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = Rotation.from_rotvec(angles).as_matrix(), offset
    semantic, instance = small()
    reference = numbers(measure(semantic, instance), SCANNER)
    turned = numbers(measure(moved(semantic, motion), moved(instance, motion)), SCANNER)
    assert turned.keys() == reference.keys()
    assert_allclose(list(turned.values()), list(reference.values()), atol=2e-3, rtol=1e-4)


@settings(max_examples=5, deadline=None)
@given(st.floats(0.7, 1.4))
def test_lengths_scale(factor: float) -> None:
    semantic, instance = small()
    scaling = np.diag([factor, factor, factor, 1])
    reference = numbers(measure(semantic, instance), SCANNER)
    rows = by_label(measure(moved(semantic, scaling), moved(instance, scaling)))
    power = {"mm": 1, "mm^2": 2, "mm^3": 3}
    assert numbers(tuple(rows.values()), SCANNER).keys() == reference.keys()
    for (label, key), value in reference.items():
        # Lattices of fixed steps in mm sample a scaled solid elsewhere: equal to a part of the uncertainty.
        found, unit = rows[label].values[key], COLUMNS[key].unit
        slack = 1e-6 * abs(value) if unit == "mm^3" else 0.7 * found.uncertainty + 1e-6
        assert found.value == pytest.approx(value * factor ** power.get(unit, 0), abs=slack), (label, key)


# --- what is not in the field of view


def test_cut_structures_are_flagged_and_left_out() -> None:
    semantic, instance = tower()
    box = (slice(0, 106), slice(28, 116), slice(0, 52))  # through the first body
    rows = by_label(measure(semantic.cropped(box), instance.cropped(box)))
    assert rows[20].cut == "S"
    assert not {"volume", "height_anterior", "depth", "z", "wedge_ratio"} & rows[20].values.keys()
    assert "listhesis" not in rows[120].values
    assert rows[21].cut == "" and "crush_ratio" not in rows[21].values
    assert rows[21].values["height_middle"].value == pytest.approx(20, abs=0.05)


def test_a_narrow_slab_still_gives_heights() -> None:
    semantic, instance = tower((1.0, 1.0, 3.3))
    box = (slice(0, 106), slice(0, 116), slice(4, 11))
    row = by_label(measure(semantic.cropped(box), instance.cropped(box)))[21]
    assert row.cut == "RL"
    assert not {"volume", "width", "volume_corpus", "x"} & row.values.keys()
    assert row.values["height_anterior"].value == pytest.approx(20, abs=0.05)
    assert row.values["depth"].value == pytest.approx(30, abs=0.05)
    assert "volume_arcus" in row.values


def test_missing_parts_cost_only_their_measures() -> None:
    semantic, instance = tower()
    without_canal = semantic.with_array(
        np.where(semantic.array > 59, np.where(semantic.array == 100, 100, 0), semantic.array)
    )
    rows = by_label(measure(without_canal, instance))
    assert rows[21].values["height_middle"].value == pytest.approx(20, abs=0.05)
    assert "canal_area" not in rows[21].values
    empty = semantic.with_array(np.zeros_like(semantic.array))
    assert measure(empty, instance.with_array(np.zeros_like(instance.array))) == ()
    alone = by_label(measure(semantic, instance.with_array(np.where(instance.array == 21, 21, 0).astype(np.uint16))))
    assert alone[21].values["height_middle"].value == pytest.approx(20, abs=0.05)


def test_numbers_alone_give_no_angles_between_names() -> None:
    semantic, instance, _ = person("healthy")
    rows = measure(semantic, instance, named=False)
    assert set(rows[-1].values) == {"sacral_slope", "cobb_angle"}


def test_masks_must_match() -> None:
    semantic, instance = tower()
    with pytest.raises(ValueError, match="one grid"):
        measure(semantic, instance.cropped((slice(1, 106), slice(0, 116), slice(0, 52))))


def test_shared_spread_of_a_voxel() -> None:
    grid = Grid((5, 5, 5), np.diag([1.0, 2.0, 3.0, 1.0]))
    assert spread(grid, np.array([0, 1.0, 0])) == pytest.approx(2 / np.sqrt(12))
    assert [genant_grade(x) for x in (0.0, 22.0, 30.0, 50.0)] == [0, 1, 2, 3]


# --- synthetic people


def _curved(level: Level) -> Level:
    if level.id == SACRUM:
        return level
    phase = (level.key - 22) / 2.2
    return replace(level, lean=float(18 * np.sin(phase)), turn=float(6 * np.cos(phase)))


def _wedged(level: Level) -> Level:
    sizes = dict(level.sizes)
    if level.id == 21:
        loss = 0.35 * sizes["height"]
        sizes["wedge"] -= loss
        sizes["height"] -= loss / 2
    return replace(level, sizes=sizes)


def _slipped(level: Level) -> Level:
    return replace(level, slip_p=6.0) if level.id == 24 else level


PEOPLE = {
    "healthy": (3, lambda level: level, {}),
    "scoliosis": (5, _curved, {}),
    "fracture": (7, _wedged, {}),
    "listhesis": (8, _slipped, {"pitch": 8.0, "yaw": 5.0, "roll": -6.0}),
}


@lru_cache(maxsize=4)
def person(name: str) -> tuple[Volume, Volume, SpineSpec]:
    """Lumbar spine of a person at 1 mm, without a warp, so that the numbers of the spec are the truth."""
    seed, change, view = PEOPLE[name]
    spec = random_spec(np.random.default_rng(seed), "lumbar", thoracic=12, lumbar=5, pathology=0)
    levels = tuple(change(level) for level in spec.levels)
    spec = replace(spec, levels=levels, warp=0.0, view=View(22.3, (8.0, 0.0, 0.0), **view))
    truth = render(spec, field_of_view((108, 232, 84), (1, 1, 1)))
    return truth.volume(truth.semantic), truth.volume(truth.instance), spec


@pytest.mark.parametrize("name", PEOPLE)
def test_people_are_measured_truly(name: str) -> None:
    """Heights within 0.5 mm, angles within 2 degrees, slips within 1.2 mm (three sigma)."""
    semantic, instance, spec = person(name)
    rows, known = measure(semantic, instance), placed(spec)
    measured = [row for row in rows if row.kind == "vertebra" and "height_middle" in row.values]
    assert len(measured) >= 5
    for row in measured:
        keys = ("height_anterior", "height_middle", "height_posterior", "depth")
        for key, true in zip(keys, true_heights(known[row.label]), strict=True):
            assert row.values[key].value == pytest.approx(true, abs=0.5), (instance_name(row.label), key)
    slips = [row for row in rows if "listhesis" in row.values]
    for row in slips:
        true = true_slip(known, row.label - 100)
        assert row.values["listhesis"].value == pytest.approx(true, abs=1.2), instance_name(row.label)
    angles = rows[-1].values
    assert angles["lordosis_L1_S1"].value == pytest.approx(sagittal_angle(spec, 20, True, 26, True), abs=2)
    assert angles["cobb_angle"].value == pytest.approx(coronal_angle(spec, [row.label for row in measured]), abs=2)


def test_what_is_wrong_with_them_shows() -> None:
    curve = measure(*person("scoliosis")[:2])[-1]
    assert curve.values["cobb_angle"].value > 25 and curve.texts["cobb_convex"] == "left"
    fracture = by_label(measure(*person("fracture")[:2]))
    assert fracture[21].values["genant_grade"].value == 2  # lost 35 % in front
    assert all(fracture[v].values["genant_grade"].value == 0 for v in (20, 22, 23, 24))
    slip = by_label(measure(*person("listhesis")[:2]))
    assert slip[123].values["listhesis"].value > 4 and abs(slip[122].values["listhesis"].value) < 1.5


def test_thick_slices_measure_alike() -> None:
    semantic, instance, _ = person("scoliosis")
    fine = by_label(measure(semantic, instance))
    middle = (slice(None), slice(None), slice(2, 82, 5))
    affine = semantic.affine @ np.diag([1, 1, 5, 1])
    affine[:3, 3] = semantic.affine[:3, 3] + 2 * semantic.affine[:3, 2]
    thick = by_label(measure(*(Volume(np.ascontiguousarray(v.array[middle]), affine) for v in (semantic, instance))))
    assert semantic.array[middle].shape[2] == 16
    for label in (20, 21, 22, 23):
        for key in ("height_anterior", "height_middle", "height_posterior"):
            assert thick[label].values[key].value == pytest.approx(fine[label].values[key].value, abs=1.0), (label, key)
    assert thick[0].values["lordosis_L1_S1"].value == pytest.approx(fine[0].values["lordosis_L1_S1"].value, abs=2)


def test_every_measure_is_explained() -> None:
    rows = measure(*person("healthy")[:2])
    assert {key for row in rows for key in row.values} <= COLUMNS.keys()
    assert {key for row in rows for key in row.texts} <= TEXTS.keys()
    assert all(row.kind in COLUMNS[key].of for row in rows for key in row.values)
    assert all(
        np.isfinite((m.value, m.uncertainty)).all() and m.uncertainty >= 0 for r in rows for m in r.values.values()
    )


# --- files


def test_table_and_sidecar(tmp_path: Path) -> None:
    semantic, instance, _ = person("listhesis")
    with Writer() as writer:
        for name, volume in (("a_seg-spine_msk.nii.gz", semantic), ("a_seg-vert_msk.nii.gz", instance)):
            writer.mask(tmp_path / name, volume)
    answer = CliRunner().invoke(app, ["measure", *(str(tmp_path / f"a_seg-{k}_msk.nii.gz") for k in ("spine", "vert"))])
    assert answer.exit_code == 0, answer.output
    table = (tmp_path / "a_seg-vert_stats.tsv").read_text(encoding="utf-8").splitlines()
    about = json.loads((tmp_path / "a_seg-vert_stats.json").read_text(encoding="utf-8"))
    header, *lines = [line.split("\t") for line in table]
    assert list(about) != [] and set(about) == set(header)
    assert all(len(line) == len(header) for line in lines)
    rows = {line[2]: dict(zip(header, line, strict=True)) for line in lines}
    assert float(rows["disc below L4"]["listhesis"]) > 4 and float(rows["disc below L4"]["listhesis_u"]) < 1
    assert rows["spine"]["label"] == "0" and float(rows["spine"]["lordosis_L1_S1"]) > 20
    assert rows["L3"]["listhesis"] == "n/a"
    assert about["genant_grade"]["CutOffs"] == [20, 25, 40]
    assert about["height_anterior"]["Units"] == "mm" and "Eastell" in about["height_anterior"]["Source"]
    assert "disc below #23" in stats_tsv(measure(semantic, instance, False), False)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_masks_of_bytes_are_read(tmp_path: Path) -> None:
    semantic, instance = small()
    for name, volume in (("s", semantic), ("v", instance)):
        nib.save(nib.Nifti1Image(volume.array.astype(np.uint8), volume.affine), tmp_path / f"{name}.nii.gz")
    assert write_stats_of(tmp_path / "s.nii.gz", tmp_path / "v.nii.gz")[1] == 3


def test_masks_that_cannot_be_measured_say_why(tmp_path: Path) -> None:
    semantic, instance = tower()
    with Writer() as writer:
        writer.mask(tmp_path / "s.nii.gz", semantic)
        writer.mask(tmp_path / "v.nii.gz", instance.reoriented("RAS"))
        writer.image(tmp_path / "i.nii.gz", semantic.with_array(semantic.array * np.float32(0.37)))
    with pytest.raises(ValueRangeError, match="one grid"):
        write_stats_of(tmp_path / "s.nii.gz", tmp_path / "v.nii.gz")
    with pytest.raises(ValueRangeError, match="no mask"):
        write_stats_of(tmp_path / "s.nii.gz", tmp_path / "i.nii.gz")
    with pytest.raises(InputNotFoundError):
        write_stats_of(tmp_path / "s.nii.gz", tmp_path / "none.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    with pytest.raises(ValueRangeError, match="cannot be read"):
        write_stats_of(tmp_path / "s.nii.gz", tmp_path / "bad.nii.gz")


@pytest.mark.parametrize("deep", [1, 2])
def test_a_sheet_is_left_out_and_costs_neither_memory_nor_the_table(deep: int) -> None:
    semantic, instance = tower(bodies=4)
    first, last = (
        np.argwhere(instance.array == 121)[:, 0].max() - deep,
        np.argwhere(instance.array == 121)[:, 0].max(),
    )
    away = instance.array == 121
    away[first + 1 : last + 1] = False
    semantic.array[away], instance.array[away] = 0, 0
    rows = by_label(measure(semantic, instance))
    assert "height_anterior" not in rows[121].values if 121 in rows else True
    assert rows[120].values and rows[20].values


def test_a_ratio_of_nothing_is_nothing() -> None:
    from spineps.phases.measure import _ratio
    from spineps.phases.measures import Measured

    assert _ratio(Measured(0.0, 0.5), Measured(10.0, 1.0)) == Measured(0.0, 0.05)
    whole = _ratio(Measured(8.0, 0.4), Measured(10.0, 1.0))
    assert whole.value == 0.8 and abs(whole.uncertainty - 0.8 * np.hypot(0.05, 0.1)) < 1e-12
