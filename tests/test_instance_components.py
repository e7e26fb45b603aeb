"""The mask operations against plain, slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage as ndi

from spineps.phases import components as c

labels = arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 3), elements=st.integers(0, 3))
few = settings(max_examples=40, deadline=None, derandomize=True)
STRUCTURE = {6: 1, 18: 2, 26: 3}


def structure(connectivity: int) -> np.ndarray:
    return ndi.generate_binary_structure(3, STRUCTURE[connectivity])


@few
@given(labels, st.sampled_from([6, 18, 26]), st.integers(1, 6))
def test_remove_small_keeps_exactly_the_large_regions(array, connectivity, minimum):
    wanted = array.copy()
    for value in (1, 2, 3):
        parts, count = ndi.label(array == value, structure(connectivity))
        for k in range(1, count + 1):
            if (parts == k).sum() < minimum:
                wanted[parts == k] = 0
    assert np.array_equal(c.remove_small(array, minimum, connectivity=connectivity), wanted)


@few
@given(labels, st.integers(1, 3))
def test_keep_largest_never_leaves_more_than_k_regions(array, k):
    kept = c.keep_largest(array, k)
    for value in (1, 2, 3):
        sizes = np.sort(np.bincount(ndi.label(array == value, structure(26))[0].ravel())[1:])[::-1]
        assert (kept == value).sum() == sizes[:k].sum()
    assert np.array_equal(kept[kept > 0], array[kept > 0])


@few
@given(labels)
def test_fill_holes_fills_enclosed_background_only(array):
    filled = c.fill_holes(array)
    wanted = array.copy()
    for value in (1, 2, 3):
        wanted[ndi.binary_fill_holes(array == value) & (wanted == 0)] = value
    assert np.array_equal(filled, wanted)


@few
@given(labels, labels, st.integers(0, 3), st.sampled_from([6, 18, 26]))
def test_one_label_grows_like_a_dilation(array, other, rounds, connectivity):
    shape = np.minimum(array.shape, other.shape)
    one = (array[tuple(slice(n) for n in shape)] == 1).astype(np.uint8)
    within = other[tuple(slice(n) for n in shape)] > 0
    grown = c.grow(one, within, rounds, connectivity)
    mask = within | (one > 0)
    wanted = ndi.binary_dilation(one > 0, structure(connectivity), iterations=rounds, mask=mask) if rounds else one > 0
    assert np.array_equal(grown > 0, wanted)


@few
@given(labels, st.integers(1, 4))
def test_nearest_label_is_the_nearest_by_chessboard_distance(array, reach):
    where = array == 0
    found = c.nearest_label(array, where, reach)
    places = np.argwhere(array > 0)
    for voxel, label in zip(np.argwhere(where), found, strict=True):
        distance = np.abs(places - voxel).max(axis=1) if len(places) else np.array([])
        near = distance <= reach
        if not near.any():
            assert label == 0
        else:
            assert label == min(array[tuple(p)] for p in places[distance == distance.min()])


@few
@given(labels, st.sampled_from([6, 18, 26]))
def test_touching_counts_every_neighbouring_voxel_once(array, connectivity):
    parts = np.where(array == 1, 1, 0).astype(np.uint8)
    others = np.where(array > 1, array, 0)
    ring = ndi.binary_dilation(parts > 0, structure(connectivity)) & (parts == 0)
    wanted = {v: int(((others == v) & ring).sum()) for v in (2, 3) if ((others == v) & ring).any()}
    assert c.touching(parts, others, connectivity).get(1, {}) == wanted


@few
@given(labels)
def test_centres_and_overlaps(array):
    found = c.centres(array)
    assert set(found) == set(np.unique(array).tolist()) - {0}
    for value, centre in found.items():
        assert centre == pytest.approx(np.argwhere(array == value).mean(axis=0))
    table = c.overlap_counts(array, array)
    assert np.array_equal(np.diag(table), c.counts(array))
    assert table.sum() == array.size
