"""What is said where a scan goes on beyond the first or the last vertebra that was found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spineps.phases.ends import leaves_sideways, unseen_ends
from spineps.phases.landmarks import Body
from spineps.volume import Volume

#: PIR, 2 mm, 300 mm from top to bottom.
GRID = np.array([[0, 0, 2.0, -40], [-2.0, 0, 0, 80], [0, -2.0, 0, 300], [0, 0, 0, 1]])
SHAPE = (80, 150, 40)


def row(first: float, count: int, sideways: float = 0.0) -> list[Body]:
    """Bodies 30 mm apart, the first ``first`` mm below the upper end; each one ``sideways`` mm further to the side."""
    return [
        Body(k + 1, np.array([sideways * k, 0.0, 300 - first - 30 * k]), 22.0, 20000.0, 0.0, 0.0) for k in range(count)
    ]


def image(air_from: float = 300.0, air_to: float = 300.0) -> Volume:
    """Tissue with some noise, and air between two depths (mm from the upper end)."""
    array = 100 + np.random.default_rng(0).normal(0, 5, SHAPE)
    array[:, int(air_from / 2) : int(air_to / 2)] = np.abs(
        np.random.default_rng(1).normal(0, 1, SHAPE)[:, int(air_from / 2) : int(air_to / 2)]
    )
    array[:8] = 0  # around the patient
    return Volume(array.astype(np.float32), GRID)


def ends(bodies: list[Body], scan: Volume, first: int = 15, sacrum: bool = False) -> list[str]:
    told = unseen_ends(scan, bodies, [first + k for k in range(len(bodies))], sacrum)
    return [sentence.split(" the scan")[0] for sentence in told]


def test_half_a_spine_in_the_dark_is_told() -> None:
    assert ends(row(20, 4), image()) == ["below T11"]
    assert ends(row(150, 5), image()) == ["above T8"]
    assert ends(row(100, 3), image()) == ["above T8", "below T10"]


@pytest.mark.parametrize("axcodes", ["LAS", "RPI", "ASR"])
def test_in_any_orientation(axcodes: str) -> None:
    assert ends(row(100, 3), image().reoriented(axcodes)) == ["above T8", "below T10"]


def test_a_row_that_fills_the_scan_has_nothing_to_tell() -> None:
    assert ends(row(25, 9), image()) == []


def test_beyond_the_sacrum_and_above_c2_there_is_no_spine() -> None:
    assert ends(row(20, 5), image(), sacrum=True) == []
    assert ends(row(150, 5), image(), first=2) == []


def test_air_and_padding_are_no_scan() -> None:
    assert ends(row(20, 4), image(air_from=126)) == []
    padded = image()
    padded.array[:, 63:] = 40
    assert ends(row(20, 4), padded) == []


def test_a_spine_that_leaves_the_slab_has_no_next_place_in_view() -> None:
    assert ends(row(20, 4, sideways=11), image()) == []


def test_one_vertebra_shows_no_direction() -> None:
    assert ends(row(100, 1), image()) == []


@pytest.mark.parametrize(
    ("sideways", "start", "leaves"),
    [
        (0, 0, (False, False)),
        (12, 0, (False, True)),
        (-12, 0, (False, True)),
        (12, -36, (True, False)),
        (1, 20, (False, False)),
    ],
)
def test_a_row_that_runs_out_of_the_slab(sideways: float, start: float, leaves: tuple[bool, bool]) -> None:
    bodies = [replace(body, centre=body.centre + np.array([start, 0, 0])) for body in row(60, 4, sideways)]
    grid = image().grid
    for axcodes in ("PIR", "PIL"):
        assert leaves_sideways(grid.reoriented(axcodes), bodies) == leaves
    assert leaves_sideways(grid, bodies[:1]) == (False, False)
