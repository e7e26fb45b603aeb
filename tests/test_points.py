"""Points: the recorded body centres, and every point of a block spine whose truth is known, on any grid."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spineps.phases.points
from spineps.phases.labeling import Naming
from spineps.phases.points import Point, compute_points
from spineps.volume import Volume

GOLDEN = Path(__file__).parent / "golden" / "points.npz"
PIR = np.array([[0, 0, 2.0, -20], [-1.0, 0, 0, 60], [0, -1.0, 0, 250], [0, 0, 0, 1]])


def found(points: list[Point]) -> dict[tuple[int, int], Point]:
    return {(p.vertebra, p.subregion): p for p in points}


def spine() -> tuple[np.ndarray, np.ndarray]:
    """L4, L5 and sacrum as blocks (PIR), with discs, endplates, processes, cord and canal."""
    sem, inst = np.zeros((80, 130, 30), np.uint8), np.zeros((80, 130, 30), np.uint16)

    def put(box: tuple[slice, slice, slice], code: int, instance: int) -> None:
        sem[box], inst[box] = code, instance

    for vertebra, top in ((23, 10), (24, 50)):
        put(np.s_[10:40, top : top + 24, 5:25], 49, vertebra)
        put(np.s_[10:40, top - 1, 5:25], 52, 200 + vertebra - 1)
        put(np.s_[10:40, top + 24, 5:25], 53, 200 + vertebra)
        put(np.s_[10:40, top + 25 : top + 33, 5:25], 100, 100 + vertebra)
        put(np.s_[52:56, top + 4 : top + 20, 10:20], 41, vertebra)
        put(np.s_[56:76, top + 8 : top + 18, 13:17], 42, vertebra)
        for code, box in {
            43: np.s_[42:48, top + 4 : top + 8, 0:5],
            44: np.s_[42:48, top + 4 : top + 8, 25:30],
            45: np.s_[50:54, top : top + 4, 6:10],
            46: np.s_[50:54, top : top + 4, 20:24],
            47: np.s_[50:54, top + 20 : top + 24, 6:10],
            48: np.s_[50:54, top + 20 : top + 24, 20:24],
        }.items():
            put(box, code, vertebra)
    put(np.s_[10:40, 84, 5:25], 52, 224)
    put(np.s_[12:44, 90:125, 5:25], 26, 26)
    sem[41:52, :, 10:20] = 61
    sem[44:48, :60, 13:17] = 60
    inst[41:52, :, 10:20] = 0
    return sem, inst


def test_doctests() -> None:
    assert doctest.testmod(spineps.phases.points).failed == 0


@pytest.mark.parametrize("name", ["mri", "ct", "a"])
def test_body_centres_stay_what_they_were(name: str) -> None:
    golden = np.load(GOLDEN)
    sem, inst = (Volume(golden[f"{name}/{k}"], golden[f"{name}/affine"]) for k in ("semantic", "instance"))
    points = found(compute_points(sem, inst))
    recorded = json.loads(str(golden[f"{name}/poi"]))
    assert {v for v, _, _ in recorded} == {v for v, s in points if s == 50}
    for vertebra, subregion, index in recorded:
        assert np.allclose(sem.grid.to_index(np.array(points[vertebra, subregion].world)), index, atol=0.0051)


def test_every_part_gets_its_point_and_its_name() -> None:
    sem, inst = spine()
    points = found(compute_points(Volume(sem, PIR), Volume(inst, PIR)))
    parts = {41, 42, 43, 44, 45, 46, 47, 48, 50, 52, 53, 60, 61, 100}
    assert {k for k in points if k[0] != 26} == {(v, s) for v in (23, 24) for s in parts}
    assert {k[1] for k in points if k[0] == 26} == {50, 52}
    names = {points[k].name for k in ((23, 42), (24, 100), (23, 52), (24, 60), (26, 50), (26, 52))}
    assert names == {
        "L4 spinous process",
        "disc below L5",
        "L4 superior endplate",
        "spinal cord at L5",
        "sacrum",
        "S1 superior endplate",
    }
    grid = Volume(sem, PIR).grid

    def index(vertebra: int, part: int) -> list[float]:
        return grid.to_index(np.array(points[vertebra, part].world)).round(6).tolist()

    assert index(23, 50) == [24.5, 21.5, 14.5]
    assert index(23, 52) == [24.5, 9, 14.5] and index(23, 53) == [24.5, 34, 14.5]
    assert index(24, 52) == [24.5, 49, 14.5] and index(26, 52) == [24.5, 84, 14.5]
    assert index(24, 100) == [24.5, 78.5, 14.5]
    assert np.allclose(index(23, 61), [46, 21.5, 14.5], atol=0.5)
    assert [p.vertebra for p in compute_points(Volume(sem, PIR), Volume(inst, PIR))] == sorted(k[0] for k in points)


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.sampled_from(["PIR", "LAS", "RSP", "IRA"]))
@settings(max_examples=10, deadline=None)
def test_points_follow_sheared_and_turned_grids(tilt: float, skew: float, axcodes: str) -> None:
    """The published centres are up to 47 voxels off on a tilted CT gantry."""
    sem, inst = spine()
    affine = PIR @ np.array([[1, tilt, 0, 0], [0, 1, skew, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    tilted = [Volume(a, affine).reoriented(axcodes) for a in (sem, inst)]
    points = found(compute_points(*tilted))
    grid = Volume(sem, affine).grid
    assert np.allclose(grid.to_index(np.array(points[23, 50].world)), [24.5, 21.5, 14.5], atol=1e-6)
    assert np.allclose(grid.to_index(np.array(points[24, 42].world)), [65.5, 62.5, 14.5], atol=1e-6)


def test_confidence_is_that_of_the_name_and_of_the_size() -> None:
    sem, inst = spine()
    inst[(inst == 24) & (sem == 43)] = 0
    inst[42:43, 54:58, 0:5], sem[42:43, 54:58, 0:5] = 24, 43  # 20 voxels of 2 mm3
    naming = Naming({}, {23: 0.6, 24: 0.5})
    points = found(compute_points(Volume(sem, PIR), Volume(inst, PIR), naming))
    assert points[23, 50].confidence == pytest.approx(0.6)
    assert points[24, 43].confidence == pytest.approx(0.5 * 40 / 100)
    assert points[26, 50].confidence == 1


@pytest.mark.parametrize("empty", [True, False])
def test_nothing_gives_no_points_and_one_vertebra_gives_its_own(empty: bool) -> None:
    sem, inst = spine()
    if empty:
        assert compute_points(Volume(sem * 0, PIR), Volume(inst * 0, PIR)) == []
        return
    keep = np.isin(inst, (23, 123))
    points = found(compute_points(Volume(sem, PIR), Volume(np.where(keep, inst, 0), PIR)))
    assert {v for v, _ in points} == {23} and {50, 61, 100} <= {s for _, s in points}


def test_unseen_plates_are_inferred_from_the_body_unless_it_is_cut() -> None:
    semantic, instance = np.zeros((40, 60, 30), np.uint8), np.zeros((40, 60, 30), np.uint16)
    for vertebra, start in ((20, 0), (21, 20), (22, 40)):
        semantic[8:32, start : start + 14, 5:25] = 49
        instance[8:32, start : start + 14, 5:25] = vertebra
    affine = np.array([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    points = {(p.vertebra, p.subregion): p for p in compute_points(Volume(semantic, affine), Volume(instance, affine))}
    assert (20, 52) not in points, "the topmost body is cut by the image"
    for vertebra, top in ((21, 20), (22, 40)):
        upper, lower = points[vertebra, 52], points[vertebra, 53]
        assert upper.world == pytest.approx((14.5, -19.5, -(top - 0.5)), abs=0.3)
        assert lower.world == pytest.approx((14.5, -19.5, -(top + 13.5)), abs=0.3)
        assert upper.confidence == pytest.approx(0.5)
