"""A last vertebra that is called body in one half and sacrum in the other."""

import numpy as np
import pytest

from spineps.options import SemanticOptions
from spineps.phases.landmarks import RUDIMENT
from spineps.phases.semantic import clean_semantic
from spineps.phases.transition import complete_last_body, disc_in_sacrum
from spineps.volume import Volume

AFFINE = np.array([[0, 0, 2.0, 0], [-2.0, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])


def column(called_body: float, disc_below: bool = True) -> tuple[Volume, np.ndarray]:
    """Two bodies over a sacrum of 2 mm voxels, PIR; of the lower body the front is body; and where that body lies."""
    array = np.zeros((40, 60, 30), np.uint8)
    array[22:28, 2:58, 11:19] = 61
    array[6:20, 4:17, 4:26] = 49
    array[6:20, 17:18, 4:26] = array[6:20, 21:22, 4:26] = 62
    array[6:20, 18:21, 4:26] = 100
    whole = np.zeros(array.shape, bool)
    whole[6:20, 22:35, 4:26] = True
    array[whole] = 26
    array[6 : 6 + round(14 * called_body), 22:35, 4:26] = 49
    # The wing of the sacrum stays sacrum, and so does all below the last disc.
    array[8:20, 24:50, 26:29] = 26
    array[6:20, 35:50, 4:26] = 26
    if disc_below:
        array[6:20, 35:37, 4:26] = 100
    return Volume(array, AFFINE), whole


@pytest.mark.parametrize("axes", ["PIR", "LAS", "SRP"])
@pytest.mark.parametrize("called_body", [0.3, 0.6])
def test_a_body_between_two_discs_is_made_whole(called_body: float, axes: str) -> None:
    mask, whole = column(called_body)
    answer = complete_last_body(mask.reoriented(axes))
    found = mask.reoriented(axes).with_array(answer).reoriented("PIR").array
    # The corners of the box lie outside of the rounded room of a body.
    assert (found[whole] == 49).mean() > 0.85 and (mask.array[whole] == 49).mean() < 0.65
    assert (found[~whole] == mask.array[~whole]).mean() > 0.999
    assert (found[:, 37:] == mask.array[:, 37:]).all() and (found[..., 27:] == mask.array[..., 27:]).all()


@pytest.mark.parametrize(
    ("called_body", "disc_below"),
    [(0.0, True), (0.1, True), (0.9, True), (1.0, True), (0.4, False), (1.0, False)],
)
def test_nothing_changes_without_a_half_or_without_a_disc_below(called_body: float, disc_below: bool) -> None:
    mask, _ = column(called_body, disc_below)
    assert (complete_last_body(mask) == mask.array).all()


@pytest.mark.parametrize("corner", [False, True])
@pytest.mark.parametrize(("width", "made"), [(22, True), (12, True), (5, False), (0, False)])
def test_a_vertebra_called_sacrum_altogether_is_told_by_the_disc_below_it(width: int, made: bool, corner: bool) -> None:
    array = np.zeros((40, 90, 30), np.uint8)
    array[22:28, 2:88, 11:19] = 61
    whole = np.zeros(array.shape, bool)
    for k, label in enumerate((49, 49, 26)):
        top = 4 + 18 * k
        array[6:20, top : top + 13, 4:26] = label
        array[6:20, top + 13 : top + 18, 4:26] = 100
    whole[6:20, 40:53, 4:26] = True
    array[6:20, 53:58, 4:26] = 26
    # A thin rudimentary disc, as wide as it may be.
    array[6:20, 54:57, 4 : 4 + width] = 62
    array[6:20, 58:80, 4:26] = 26
    if corner:
        # A corner of it is body: a seventh of the body above, and more of smaller ones.
        array[6:20, 4:17, 4:8] = 0
        array[6:15, 44:53, 4:11] = 49
    mask = Volume(array, AFFINE)
    found = complete_last_body(mask)
    # The corners of the box lie outside of the rounded room of a body.
    assert (found[whole] == 49).mean() > 0.75 if made else (found == array).all()
    assert (found[~whole & (array == 26)] == 26).mean() > 0.9
    # A disc too narrow to prove a body still speaks for one.
    assert (disc_in_sacrum(mask) > RUDIMENT) == (width > 0) and (width > 0 or disc_in_sacrum(mask) == 0)


def test_the_published_cleaning_leaves_it_alone() -> None:
    mask, whole = column(0.5)
    ours = clean_semantic(mask, SemanticOptions()).array
    published = clean_semantic(mask, SemanticOptions(), published=True).array
    assert (ours[whole] == 49).mean() > (published[whole] == 49).mean() + 0.25


def test_one_slice_is_enough() -> None:
    mask, whole = column(0.4)
    slab = mask.cropped((slice(0, 40), slice(0, 60), slice(14, 15)))
    answer = complete_last_body(Volume(slab.array, AFFINE @ np.diag([1, 1, 4, 1])))
    assert (answer[whole[:, :, 14:15]] == 49).mean() > 0.85


def test_masks_without_spine_or_sacrum_pass() -> None:
    mask, _ = column(0.5)
    for kept in ((), (49,), (26,), (49, 100), (100, 26)):
        array = np.where(np.isin(mask.array, kept), mask.array, 0).astype(np.uint8)
        assert (complete_last_body(mask.with_array(array)) == array).all()
