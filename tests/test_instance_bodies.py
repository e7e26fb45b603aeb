"""Finding bodies: golden parity, merged and tall bodies, and scans that hold more than a spine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantom_column import Column, build

from spineps.phases import splitting
from spineps.phases.chain import spine_of
from spineps.phases.corpus import find_bodies
from spineps.phases.splitting import Shape, describe, expected, is_dens, pieces_in

GOLDEN = Path(__file__).parent / "golden" / "instance"
REFERENCE = (0.75, 0.75, 1.65)


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def bodies_of(recipe: Column, **options):
    sem, truth = build(recipe)
    return find_bodies(sem.array, sem.zoom, 50, **options), sem.array, truth.array


def owners(labels: np.ndarray, truth: np.ndarray, sem: np.ndarray) -> list[int]:
    """For every body from the top: the vertebra that holds most of it."""
    return [int(np.bincount(truth[(labels == k) & (sem == 49)]).argmax()) for k in range(int(labels.max()), 0, -1)]


@pytest.mark.parametrize("name", ["n12_fine", "n2", "n3_splitep_dens", "n4_noep", "n6", "n6_nosacrum"])
@pytest.mark.parametrize(("solve", "key"), [(True, "coms"), (False, "coms_unsplit")])
def test_centres_match_the_recording(name, solve, key):
    g = golden(name)
    zoom = np.sqrt((g["affine"][:3, :3] ** 2).sum(axis=0))
    assert find_bodies(g["sem"], zoom, 30, solve_merged=solve).centres == pytest.approx(g[key], abs=1e-9)


def test_bodies_beside_a_kept_disc_are_split_as_recorded():
    g = golden("merged_bodies_disc_kept")
    assert find_bodies(g["sem"], REFERENCE, 43).centres == pytest.approx(g["coms_split"], abs=1e-9)
    assert len(find_bodies(g["sem"], REFERENCE, 43, solve_merged=False).centres) == len(g["coms_nosplit"]) == 6


@pytest.mark.parametrize("name", ["merged_bodies_disc_gone", "merged_corpi_n7"])
def test_merged_bodies_are_found_without_their_disc(name):
    g = golden(name)
    found = find_bodies(g["sem"], REFERENCE, 43).centres
    assert len(g["coms_split"]) == 6  # recorded wrong: seven vertebrae
    assert found[:, 1] == pytest.approx(np.array([279.5, 239.5, 199.5, 159.5, 119.5, 79.5, 39.5]), abs=5)


def test_parting_plane_matches_the_recording():
    g = golden("separate_two_bodies")
    two = g["two"] > 0
    point, normal = splitting.parting_plane(two)
    assert np.array_equal(splitting.halves(two, point, normal), g["split"])
    assert np.array_equal(splitting.halves(np.ones_like(two), point, normal), g["plane"])


def test_a_body_cut_by_the_image_counts():
    g = golden("sample_mri")
    found = find_bodies(g["sem_in"], (1.5, 1.5, 1.5), 30).centres
    assert len(g["coms"]) == 2  # recorded: erosion at the image border loses the uppermost of three
    assert len(found) == 3
    assert found[:2] == pytest.approx(g["coms"], abs=1.0)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.integers(0, 17),
    st.integers(3, 8),
    st.data(),
    st.booleans(),
    st.sampled_from([(1.0, 1.0, 2.0), (0.8, 0.8, 3.3), (1.2, 1.2, 1.2)]),
)
def test_a_merged_pair_is_cut_wherever_it_is(first, count, data, disc_kept, zoom):
    gap = data.draw(st.integers(0, count - 1))
    recipe = Column([first + k * 0.9 for k in range(count + 1)], frozenset({gap}), disc_kept, zoom=zoom)
    found, sem, truth = bodies_of(recipe)
    assert owners(found.labels, truth, sem) == list(range(1, count + 2))
    merged = np.isin(truth, (gap + 1, gap + 2)) & (sem == 49)
    right = found.labels[merged] == count + 2 - truth[merged].astype(int)
    assert right.mean() > 0.9


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 17), st.integers(2, 8), st.data(), st.floats(0.6, 1.3))
def test_a_taller_or_flatter_body_stays_whole(first, count, data, factor):
    which = data.draw(st.integers(0, count - 1))
    found, sem, truth = bodies_of(Column([first + k * 0.9 for k in range(count)], stretch={which: factor}))
    assert owners(found.labels, truth, sem) == list(range(1, count + 1))


@pytest.mark.parametrize("gaps", [{2, 3}, {1, 4}, {0, 1, 2}])
def test_more_than_two_bodies_grown_together(gaps):
    found, sem, truth = bodies_of(Column(range(13, 22), frozenset(gaps)))
    assert owners(found.labels, truth, sem) == list(range(1, 10))


@pytest.mark.parametrize("gaps", [set(), {3}, {20}])
def test_whole_spine_from_c3_to_l5(gaps):
    found, sem, truth = bodies_of(Column(range(22), frozenset(gaps), sway=25.0, width=30.0))
    assert owners(found.labels, truth, sem) == list(range(1, 23))


def test_a_body_alone_that_the_front_of_the_image_cuts_is_one():
    sem = np.zeros((40, 60, 30), np.uint8)
    sem[:8, 20:34, 5:25] = 49  # 28 mm high, and of its depth 16 mm are in view
    zoom = (2.0, 2.0, 2.0)
    assert len(find_bodies(sem, zoom, 40).centres) == 1
    assert len(find_bodies(np.roll(sem, 10, axis=0), zoom, 40).centres) == 2
    sem[:8, 20:48, 5:25] = 49  # 56 mm: two, wherever the image ends
    assert len(find_bodies(sem, zoom, 40).centres) == 2


def test_two_bodies_alone_in_the_image_are_told_by_their_shape():
    found, sem, truth = bodies_of(Column([18, 19], frozenset({0})))
    assert owners(found.labels, truth, sem) == [1, 2]
    assert len(bodies_of(Column([18]))[0].centres) == 1


@pytest.mark.parametrize(("radius", "merged"), [(5.0, set()), (7.5, set()), (5.0, {0}), (5.0, {2}), (7.5, {2})])
def test_a_dens_is_no_second_body(radius, merged):
    recipe = Column(np.arange(7) * 0.9, frozenset(merged), dens=16.0, dens_radius=radius, stretch={0: 1.3})
    found, sem, truth = bodies_of(recipe)
    assert owners(found.labels, truth, sem) == list(range(1, 8))


def test_a_dens_is_no_second_body_where_the_others_come_out_tall():
    """Discs that bone bridges make bodies look taller: a head CT of 2.5 mm has cervical ones of 19 mm."""
    recipe = Column(np.arange(5) * 0.9, dens=24.0, dens_radius=7.0, stretch=dict.fromkeys(range(5), 1.5))
    found, sem, truth = bodies_of(recipe)
    assert owners(found.labels, truth, sem) == list(range(1, 6))


@pytest.mark.parametrize("top_of_labels", [False, True])
def test_a_dens_that_is_the_highest_of_all_that_is_labelled_is_no_second_body(top_of_labels):
    """A head whose canal ends below the tip: where labels end, the scan seemed to, and a body cut there has no dens."""
    tall = Shape(np.zeros(3), np.array([0.0, 1.0, 0.0]), 44, 13, 8600, top_of_labels, False, 0, taper=0.35)
    assert pieces_in(tall, (17.6, 3200.0), top=True) == 1
    assert pieces_in(replace(tall, taper=1.0), (17.6, 3200.0), top=True) == 2


def test_what_hangs_on_a_dens_below_a_head_is_no_second_body():
    """A head: fat above the dens was called body, so C2 did not taper; a localizer: no other whole body in view."""
    tall = Shape(np.zeros(3), np.array([0.0, 1.0, 0.0]), 48, 12, 9800, False, False, 0, taper=0.9, above=95.0)
    neck, loin = (23.8, 5300.0), (27.0, 5300.0)
    assert pieces_in(tall, neck, top=True) == pieces_in(tall, None, top=True) == 1
    assert (
        pieces_in(replace(tall, above=20.0), neck, top=True)
        == pieces_in(tall, neck)
        == pieces_in(tall, loin, top=True)
        == 2
    )
    assert pieces_in(replace(tall, above=20.0), None, top=True) == pieces_in(tall, None) == 4
    # C3 has grown to it: three bodies and a dens.
    assert pieces_in(replace(tall, height=80, volume=16000), neck, top=True) == 2


@pytest.mark.parametrize(
    ("changes", "second", "dens"),
    [
        ({}, 18.0, True),
        ({"above": 20.0}, 18.0, False),  # the scan ends above it: it may be a body that is cut
        ({"taper": 0.9}, 18.0, False),  # as wide above as below: a body
        ({"height": 36.0}, 18.0, False),  # a C2 with its dens
        ({"height": 15.0}, 36.0, False),  # something small above a C2 with its dens
        ({}, 30.0, False),  # no neck
        ({"depth": 27.0}, 18.0, False),  # a chest that leans, cut obliquely
    ],
)
def test_a_pointed_top_body_below_a_head_is_the_dens_of_the_next(changes, second, dens):
    """MyConnectome's head in axial slices of 3 mm: 26 mm of dens, 18 mm of C2."""
    top = Shape(np.zeros(3), np.array([0.0, 1.0, 0.0]), 26, 11, 4056, True, False, 0, taper=0.21, above=156.0)
    below = [replace(top, height=h, cut=False, taper=1.0, place=k) for k, h in enumerate((second, 19.0, 18.0), 1)]
    assert is_dens(replace(top, **changes), below) == dens


def test_a_short_c2_above_small_bodies_is_no_dens_though_those_of_the_chest_are_tall():
    """A generated whole spine: C3 was joined to C2."""
    c2 = Shape(np.zeros(3), np.array([0.0, 1.0, 0.0]), 30.3, 11, 4640, False, False, 0, taper=0.29, above=140.0)
    heights = (12.6, 11.4, 17.5, 10.2, 16.5, 18, 19, 20, 21, 22, 23)
    assert not is_dens(c2, [replace(c2, height=h, taper=1.0, place=k) for k, h in enumerate(heights, 1)])


@pytest.mark.parametrize("above", [0, 40])
def test_a_dens_with_a_line_at_its_root_is_one_body_with_c2(above):
    sem = np.zeros((40, 90, 40), np.uint8)
    for depth in (26, 44, 62):
        sem[10:24, depth : depth + 14, 10:26] = 49
        sem[10:24, depth + 14 : depth + 18, 10:26] = 100
    for row in range(20):  # the dens, pointed
        half = 1 + row // 4
        sem[17 - half : 17 + half, 4 + row, 18 - half : 18 + half] = 49
    sem[10:24, 24:26, 10:26] = 100
    sem[10:24, 80:90, 10:26] = 49
    found = find_bodies(sem, (1.25, 1.25, 1.25), 20, above=above)
    assert len(found.centres) == (4 if above else 5)
    if above:
        assert len(np.unique(found.labels[17, [12, 30], 18])) == 1


def test_a_c2_where_the_labels_end_is_a_neighbour_if_the_scan_goes_on():
    """A head in view to C4: C2 at the top of the labels, C4 cut by the scan, and C3 stood alone and was cut in two."""
    c2 = Shape(np.zeros(3), np.array([0.0, 1.0, 0.0]), 48, 13, 8100, True, False, 0, taper=0.4, above=150.0)
    c3, c4 = (replace(c2, height=h, volume=v, place=k, above=200.0) for h, v, k in ((20, 3500, 1), (12, 2800, 2)))
    assert expected(replace(c3, cut=False), [c2, c4]) == pytest.approx((48, 8100))
    assert expected(replace(c3, cut=False), [replace(c2, above=0.0), c4]) is None
    assert pieces_in(replace(c3, cut=False), (48, 8100)) == 1 < pieces_in(replace(c3, cut=False), None)


def test_the_space_above_a_body_is_counted_from_the_top_of_the_scan():
    whole = np.zeros((10, 40, 10), np.uint16)
    whole[2:8, 10:20, 2:8] = 1
    assert describe(whole, (1.0, 2.0, 1.0), (0, 40))[1].above == 20.0
    assert describe(whole, (1.0, 2.0, 1.0), (0, 40), above=25)[1].above == 70.0


def test_a_row_of_three_is_not_taken_down_to_what_may_be_several_bodies():
    """A head: C2 with the fat above its dens, C3, and the rest of C4 at the lower end of the scan."""
    whole = np.zeros((30, 60, 30), np.uint16)
    whole[5:15, 2:34, 8:22], whole[5:15, 38:50, 8:20], whole[5:15, 55:60, 8:20] = 1, 2, 3
    discs = [np.array([10.0, 36.0, 14.0]), np.array([10.0, 52.5, 14.0])]
    assert spine_of(whole, (2.0, 2.0, 2.0), (0, 60), discs) == {1: 1, 2: 2, 3: 3}


def test_a_body_between_two_discs_stays_below_larger_ones():
    """A head whose brain stem was called body: with it and C2, C4 above the end of the scan looked small."""
    whole = np.zeros((30, 80, 30), np.uint16)
    whole[4:16, 2:20, 6:24], whole[4:16, 22:42, 6:24] = 1, 2
    whole[5:14, 45:52, 8:20], whole[5:14, 55:61, 8:20], whole[5:14, 64:72, 8:20] = 3, 4, 5
    discs = [np.array([9.0, y, 14.0]) for y in (43.5, 53.5, 62.5)]
    assert set(spine_of(whole, (2.0, 2.0, 2.0), (0, 72), discs)) == {1, 2, 3, 4, 5}


def test_a_brain_stem_above_a_c2_is_no_vertebra():
    """A head: the pons hung 13 mm above C2 with its dens, which was taken for two bodies below a third."""
    whole = np.zeros((30, 80, 30), np.uint16)
    whole[6:14, 2:18, 6:22], whole[8:14, 25:43, 8:20] = 1, 2
    whole[7:14, 46:53, 8:20], whole[7:14, 56:63, 8:20] = 3, 4
    discs = [np.array([10.0, y, 14.0]) for y in (44.5, 54.5)]
    zoom, extent = (2.0, 2.0, 2.0), (0, 66)
    assert set(spine_of(whole, zoom, extent, discs)) == {2, 3, 4}
    assert set(spine_of(whole, zoom, extent, [*discs, np.array([10.0, 21.0, 14.0])])) == {1, 2, 3, 4}
    # Nearer to a C2, only what is not as tall as one is not of the spine.
    near = whole.copy()
    near[6:14, 18:22, 6:22] = 1
    assert set(spine_of(near, zoom, extent, discs)) == {1, 2, 3, 4}
    near[:, :12][near[:, :12] == 1] = 0
    assert set(spine_of(near, zoom, extent, discs)) == {2, 3, 4}
    # Bodies of a loin are taller: there the second is two that have grown together.
    assert set(spine_of(whole, (4.0, 4.0, 4.0), extent, discs)) == {1, 2, 3, 4}


@pytest.mark.parametrize("width", [3.3, 6.6, 9.9])
def test_few_slices(width):
    found, sem, truth = bodies_of(Column(width=width, zoom=(0.8, 0.8, 3.3)))
    assert owners(found.labels, truth, sem) == list(range(1, 8))


@pytest.mark.parametrize("pad", [0, 4])
def test_a_body_of_which_a_third_is_seen(pad):
    sem, truth = build(Column(top_cut=17.0))
    sem, truth = sem.padded(pad), truth.padded(pad)
    found = find_bodies(sem.array, sem.zoom, 50)
    assert owners(found.labels, truth.array, sem.array) == list(range(1, 8))


def test_body_labels_outside_the_spine_do_not_count():
    sem, truth = build(Column())
    array = sem.array.copy()
    end = int(np.flatnonzero((truth.array == 7).any(axis=(0, 2)))[-1])
    array = np.pad(array, ((0, 0), (0, 90), (0, 0)))
    array[70:85, end + 15 : end + 30, 5:15] = 49  # a piece of the sacrum
    array[95:108, 60:90, 2:20] = 49  # something behind the spine
    array[25:40, end + 75 : end + 88, 5:15] = 49  # the bladder
    found = find_bodies(array, sem.zoom, 50)
    assert len(found.centres) == 7
    assert set(np.unique(truth.array[found.labels[:, : truth.shape[1]] > 0])) <= set(range(8))


def test_nothing_below_the_middle_of_the_sacrum_counts():
    sem, truth = build(Column())
    end = int(np.flatnonzero((truth.array == 7).any(axis=(0, 2)))[-1])
    array = np.pad(sem.array, ((0, 0), (0, 120), (0, 0)))
    array[40:75, end + 10 : end + 60, 4:18] = 26
    for start in (45, 80):  # as large as a body, and in line with the spine
        array[12:40, end + start : end + start + 26, 2:20] = 49
    assert len(find_bodies(array, sem.zoom, 50).centres) == 7
    array[array == 26] = 0
    assert len(find_bodies(array, sem.zoom, 50).centres) > 7


def test_a_broken_body_between_two_discs_counts():
    sem, truth = build(Column())
    array = sem.array
    body = (truth.array == 4) & (array == 49)
    i = np.arange(array.shape[1])[None, :, None]
    middle = int(np.argwhere(body)[:, 1].mean())
    array[body & (np.abs(i - middle) > 5)] = 0
    found = find_bodies(array, sem.zoom, 50)
    assert owners(found.labels, truth.array, array) == list(range(1, 8))


@pytest.mark.parametrize("axis", ["height", "side"])
def test_a_body_in_pieces_counts_once(axis):
    sem, truth = build(Column())
    array = sem.array
    body = np.argwhere((truth.array == 4) & (array == 49))
    p, i, r = ((body[:, k].min() + body[:, k].max()) // 2 for k in range(3))
    cut = (slice(None), slice(i - 3, i + 3), slice(None)) if axis == "height" else (slice(None), slice(None), r)
    array[cut] = np.where((truth.array == 4)[cut], 0, array[cut])
    found = find_bodies(array, sem.zoom, 50)
    assert owners(found.labels, truth.array, array) == list(range(1, 8))
    assert p > 0


def test_nothing_to_find():
    found = find_bodies(np.zeros((5, 5, 5), np.uint8), (1, 1, 1))
    assert found.centres.shape == (0, 3)
    assert not found.labels.any()


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 17), st.integers(2, 7), st.booleans())
def test_the_mirror_image_has_the_mirrored_bodies(first, count, merged):
    gaps = frozenset({0}) if merged else frozenset()
    sem, _ = build(Column([first + 0.9 * k for k in range(count)], gaps))
    plain, mirrored = find_bodies(sem.array, sem.zoom, 50), find_bodies(sem.array[..., ::-1], sem.zoom, 50)
    assert np.array_equal(plain.labels > 0, mirrored.labels[..., ::-1] > 0)
    assert (plain.labels == mirrored.labels[..., ::-1]).mean() > 0.999
