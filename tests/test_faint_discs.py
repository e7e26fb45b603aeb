"""Discs that no voxel is called, drawn from what the network thinks of whole cross-sections."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spineps.phases.components import label_components
from spineps.phases.faint_discs import draw_faint_discs
from spineps.phases.semantic import SemanticPrediction, certainty, doubts, most_probable
from spineps.volume import Volume

AFFINE = np.array([[0, 0, 1.5, 0], [-1.5, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 0, 1]])
IDS = (0, 49, 62, 100)
EVERY = 15


def column(
    faint: float,
    seen: frozenset[int] = frozenset(),
    bend: float = 0.0,
    every: int = EVERY,
    count: int = 8,
    start: int = 0,
) -> tuple[SemanticPrediction, list[np.ndarray]]:
    """A column of ``count`` bodies of which disc k is sure when in ``seen``; and the voxels of each disc."""
    shape = (50, count * every + 8, 24)
    x, y, z = np.indices(shape)
    middle = 25 + bend * np.sin(np.pi * y / shape[1]) * 15
    inside = (((x - middle) / 9) ** 2 + ((z - 11.5) / 9) ** 2 < 1) & (y >= start) & (y < shape[1] - 4)
    disc = np.zeros(shape)
    where = []
    for k in range(1, count):
        far = np.abs(y - (4 + k * every))
        disc = np.maximum(disc, (0.95 if k in seen else faint) * np.exp(-0.5 * (far / 1.3) ** 2))
        where.append(inside & (far <= 1))
    disc = np.clip(disc + 0.01, 0, 0.97) * inside
    body = np.where(inside, 0.99 - disc, 0)
    plate = np.where(inside, 0.01, 0)
    likely = np.stack([np.where(inside, 0, 1), body, plate, disc]).astype(np.float32)
    return SemanticPrediction(Volume(most_probable(likely, IDS), AFFINE), likely, IDS), where


def drawn(prediction: SemanticPrediction, slices: float = 5.0) -> tuple[Volume, int]:
    """What is made of a prediction from slices that thick along the spine."""
    scan = Volume(np.zeros((2, 2, 2)), np.diag([1, 1, slices, 1]))
    return draw_faint_discs(prediction, scan)


def bodies(mask: Volume) -> int:
    return label_components(mask.array == 49, 26)[1]


@pytest.mark.parametrize("axes", ["PIR", "LAS", "SRP"])
@pytest.mark.parametrize("bend", [0.0, 0.8])
def test_a_column_without_a_single_disc_voxel_comes_apart_at_its_discs(bend: float, axes: str) -> None:
    prediction, where = column(0.25, bend=bend)
    assert bodies(prediction.mask) == 1
    turned = prediction.mask.reoriented(axes)
    likely = np.stack([prediction.mask.with_array(p).reoriented(axes).array for p in prediction.probabilities])
    found, count = drawn(SemanticPrediction(turned, likely, IDS))
    mask = found.reoriented("PIR")
    assert bodies(mask) == 8 and count == 7
    for disc in where:
        assert (mask.array[disc] == 100).mean() > 0.6
    assert (mask.array == 100).sum() < 1.6 * sum(d.sum() for d in where)
    assert ((mask.array > 0) == (prediction.mask.array > 0)).all()


@settings(deadline=None, max_examples=25)
@given(seen=st.frozensets(st.integers(1, 7)), faint=st.sampled_from([0.0, 0.03]))
def test_what_is_drawn_already_or_not_seen_at_all_stays_as_it_is(seen: frozenset[int], faint: float) -> None:
    prediction, _ = column(faint, seen)
    assert (drawn(prediction)[0].array == prediction.mask.array).all()


def test_a_disc_that_bone_bridges_is_closed_and_its_endplates_stay() -> None:
    prediction, where = column(0.25, frozenset(range(1, 8)))
    bridge = where[3] & (np.indices(where[3].shape)[0] > 27)
    array = prediction.mask.array.copy()
    array[where[3]] = 62
    array[bridge] = array[np.roll(bridge, 2, 1)] = array[np.roll(bridge, -2, 1)] = 49
    for slices in (1.0, 5.0):
        mask, count = drawn(
            SemanticPrediction(prediction.mask.with_array(array), prediction.probabilities, IDS), slices
        )
        assert count == 0
        assert bodies(prediction.mask.with_array(array)) == 7 and bodies(mask) == 8
        assert (mask.array[array == 62] == 62).all()


def test_a_cleft_in_the_middle_of_a_body_is_no_disc() -> None:
    prediction, _ = column(0.25, frozenset(range(1, 8)))
    likely = prediction.probabilities.copy()
    y = np.indices(likely.shape[1:])[1]
    cleft = (likely[1] > 0.5) & (np.abs(y - (4 + 3 * EVERY + EVERY // 2)) <= 1)
    likely[1][cleft], likely[3][cleft] = 0.7, 0.3
    assert (drawn(SemanticPrediction(prediction.mask, likely, IDS))[0].array == prediction.mask.array).all()


def test_a_dens_is_not_cut_off() -> None:
    prediction, _ = column(0.25, frozenset(range(1, 8)))
    likely, array = prediction.probabilities.copy(), prediction.mask.array.copy()
    x, y, z = np.indices(array.shape)
    slim = ((x - 25) / 4) ** 2 + ((z - 11.5) / 4) ** 2 < 1
    # The first body is the dens now, and between it and C2's body the network sees something.
    likely[:, (y < 4 + EVERY) & ~slim] = np.array([1, 0, 0, 0])[:, None]
    join = (np.abs(y - EVERY) <= 1) & slim
    likely[:, join] = np.array([0, 0.7, 0, 0.3])[:, None]
    array = most_probable(likely, IDS)
    mask = prediction.mask.with_array(array)
    assert (drawn(SemanticPrediction(mask, likely, IDS))[0].array == array).all()


def test_thin_slices_show_every_disc() -> None:
    prediction, _ = column(0.25)
    assert drawn(prediction, 2.5)[1] == 0 and drawn(prediction, 3.0)[1] == 7


@pytest.mark.parametrize("axes", ["PIR", "LAS"])
def test_a_column_that_ends_in_the_image_may_end_in_a_dens(axes: str) -> None:
    prediction, where = column(0.25, start=4)
    turned = prediction.mask.reoriented(axes)
    likely = np.stack([prediction.mask.with_array(p).reoriented(axes).array for p in prediction.probabilities])
    mask, count = drawn(SemanticPrediction(turned, likely, IDS))
    assert count == 6 and not (mask.reoriented("PIR").array[where[0]] == 100).any()


def test_what_lies_below_a_dens_is_no_disc() -> None:
    """The join of two scans runs through C2, as wide as its body there."""
    prediction, _ = column(0.25, frozenset(range(2, 8)))
    likely, array = prediction.probabilities.copy(), prediction.mask.array.copy()
    x, y, z = np.indices(array.shape)
    wide = (y < 2 + EVERY) & (((x - 25) / 4) ** 2 + ((z - 11.5) / 4) ** 2 >= 1)
    likely[:, wide] = np.array([1, 0, 0, 0])[:, None]
    array = most_probable(likely, IDS)
    mask = prediction.mask.with_array(array)
    assert (drawn(SemanticPrediction(mask, likely, IDS))[0].array == array).all()
    # The same line between two bodies of one width is a disc.
    assert bodies(drawn(column(0.25, frozenset(range(2, 8)))[0])[0]) == 8


def test_nothing_to_look_at_is_no_error() -> None:
    prediction, _ = column(0.25, every=9, count=2)
    empty = prediction.mask.with_array(np.zeros_like(prediction.mask.array))
    for mask, likely in (
        (empty, prediction.probabilities),
        (prediction.mask, None),
        (prediction.mask, prediction.probabilities),
    ):
        assert (drawn(SemanticPrediction(mask, likely, IDS))[0].array == mask.array).all()
    flat = Volume(prediction.mask.array[:, :1], AFFINE)
    answer = drawn(SemanticPrediction(flat, prediction.probabilities[:, :, :1], IDS))
    assert (answer[0].array == flat.array).all()


def test_certainty_counts_what_was_found_and_doubts_say_why() -> None:
    prediction, _ = column(0.0)
    assert certainty(prediction, prediction.mask) == pytest.approx(0.97, abs=0.02)
    weak = SemanticPrediction(prediction.mask, prediction.probabilities * 0.6, IDS)
    assert certainty(weak, prediction.mask) == pytest.approx(0.58, abs=0.02)
    assert certainty(SemanticPrediction(prediction.mask, None, IDS), prediction.mask) is None
    nothing = prediction.mask.with_array(np.zeros_like(prediction.mask.array))
    assert certainty(prediction, nothing) is None
    assert doubts(None, 0) == doubts(0.8, 2) == ()
    assert len(doubts(0.6, 0)) == len(doubts(0.8, 3)) == 1 and len(doubts(0.6, 3)) == 2
