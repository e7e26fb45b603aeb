"""The semantic phase: the right grid for the network, the right voxels afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spineps.errors import EmptyError
from spineps.options import SemanticOptions
from spineps.phases.components import fill_holes, remove_small
from spineps.phases.semantic import (
    HOLE_LABELS,
    SPECK_LABELS,
    body_on_sacrum,
    clean_semantic,
    keep_main_part,
    keep_near_column,
    keep_one_sacrum,
    most_probable,
    predict_semantic,
    remove_beyond_canal,
)
from spineps.volume import Volume

GOLDEN = Path(__file__).parent / "golden" / "semantic_cleaning.npz"
STEPS: dict[str, Callable[[Volume], np.ndarray]] = {
    "clean_cc_only_delete_5": lambda v: remove_small(v.array, 5, SPECK_LABELS, 6),
    "clean_cc_only_delete_25": lambda v: remove_small(v.array, 25, SPECK_LABELS, 6),
    "bbox_clean": keep_main_part,
    "beyond_canal": remove_beyond_canal,
    "fill_holes": lambda v: fill_holes(v.array, HOLE_LABELS),
}
PIR = np.array([[0, 0, 2.0, 0], [-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]])


@dataclass
class Config:
    orientation: str = "PIR"
    zoom: tuple[float, float, float] = (2.0, 2.0, 2.0)
    published: bool = False
    class_ids: tuple[int, ...] = (0, 49, 100)

    def target_zoom(self, zoom: object) -> tuple[float, float, float]:
        return self.zoom


@dataclass
class Model:
    """Calls bright voxels body and middling ones disc, and remembers what it was asked."""

    config: Config = field(default_factory=Config)
    asked: dict[str, Any] = field(default_factory=dict)

    def probabilities(self, image: Volume, step_size: Any = None, tta: Any = None, progress: Any = None) -> np.ndarray:
        self.asked = {"image": image, "step_size": step_size, "tta": tta}
        if progress:
            progress(1, 1)
        x = image.array.astype(np.float32)
        return np.stack([x < 50, x > 150, (x >= 50) & (x <= 150)]).astype(np.float32)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["n2", "n3_splitep_dens", "n6"])
def test_cleaning_steps_are_voxel_exact_with_the_published_ones(name: str, step: str) -> None:
    golden = np.load(GOLDEN)
    dirty = golden[f"{name}/dirty"]
    expected = dirty.copy()
    expected.ravel()[golden[f"{name}/{step}/where"]] = golden[f"{name}/{step}/value"]
    given_array = dirty.copy()
    assert np.array_equal(STEPS[step](Volume(dirty, golden[f"{name}/affine"])), expected)
    assert np.array_equal(dirty, given_array)


def block(shape: tuple[int, int, int] = (30, 120, 20)) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[5:15, 10:100, 5:15] = 49
    array[16:20, 10:100, 8:12] = 61
    array[12:18, 12:98, 8:12] = 41
    return array


def test_holes_specks_and_far_parts_go() -> None:
    clean = block()
    dirty = clean.copy()
    dirty[8:10, 50:52, 9:11] = 0  # a hole in the body
    dirty[25, 60, 3] = 41  # a speck
    dirty[22:29, 112:119, 15:19] = 100  # far away: too large for a speck
    out = clean_semantic(Volume(dirty, PIR), SemanticOptions())
    assert np.array_equal(out.array, clean)
    none = SemanticOptions(clean_beyond_largest_bounding_box=False, clean_small_cc_artifacts=False, fill_3d_holes=False)
    assert np.array_equal(clean_semantic(Volume(dirty, PIR), none).array, dirty)


def test_what_lies_far_beyond_the_canal_goes_but_the_sacrum_stays() -> None:
    array = np.zeros((20, 300, 10), np.uint8)
    array[5:15, 10:290, 2:8] = 49
    array[5:15, 290:299, 2:8] = 26
    array[16:19, 100:150, 4:6] = 61
    options = SemanticOptions(remove_inferior_beyond_canal=True, clean_beyond_largest_bounding_box=False)
    for axcodes in ("PIR", "RAS", "SLP"):
        out = clean_semantic(Volume(array, PIR).reoriented(axcodes), options).reoriented("PIR").array
        rows = np.flatnonzero((out == 49).any(axis=(0, 2)))
        assert (rows[0], rows[-1]) == (100 - 64, 149 + 64)
        assert (out == 26).sum() == (array == 26).sum()


@pytest.mark.parametrize(("wide", "kept"), [(6, True), (2, False)])
@pytest.mark.parametrize("place", [slice(2, 8), slice(70, 76)])
def test_a_little_sacrum_above_the_bodies_is_none(wide: int, kept: bool, place: slice) -> None:
    array = np.zeros((40, 80, 20), np.uint8)
    array[10:26, 12:66, 4:14] = 49
    array[10 : 10 + wide, place, 4 : 4 + wide] = 26
    found = np.any(keep_one_sacrum(Volume(array, PIR)) == 26)
    assert found == (kept or place.start > 60)


def test_there_is_one_sacrum() -> None:
    array = np.zeros((40, 200, 20), np.uint8)
    array[5:25, 10:150, 5:15] = 49
    array[10:25, 150:180, 5:15] = 26
    array[15:30, 188:196, 5:15] = 26  # S2, below a disc that is not labelled
    array[25:30, 20:40, 5:15] = 26  # stray
    out = clean_semantic(Volume(array, PIR), SemanticOptions()).array
    assert not (out[:, :100] == 26).any()
    assert (out[:, 150:] == 26).sum() == (array[:, 150:] == 26).sum()


@given(st.sampled_from(["RAS", "LPI", "SAL", "ARI"]))
@settings(max_examples=4, deadline=None)
def test_orientation_does_not_matter(axcodes: str) -> None:
    golden = np.load(GOLDEN)
    volume = Volume(golden["n2/dirty"], golden["n2/affine"])
    straight = clean_semantic(volume, SemanticOptions())
    turned = clean_semantic(volume.reoriented(axcodes), SemanticOptions()).reoriented("PIR")
    assert np.array_equal(straight.array, turned.array)
    assert np.array_equal(clean_semantic(straight, SemanticOptions()).array, straight.array)  # clean stays clean


@pytest.mark.parametrize("speck", [False, True])
def test_no_spine_is_an_error_with_a_cure(speck: bool) -> None:
    array = np.zeros((9, 9, 9), np.uint8)
    array[4, 4, 4] = 49 * speck
    with pytest.raises(EmptyError) as error:
        clean_semantic(Volume(array, PIR), SemanticOptions())
    assert error.value.cure


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("axcodes", ["PIR", "RAS", "LPI"])
def test_the_network_sees_its_own_orientation_and_voxel_size(axcodes: str, published: bool) -> None:
    image = np.zeros((40, 60, 12), np.int16)
    image[10:30, 10:50, 3:9] = 200
    image[10:30, 28:32, 3:9] = 100
    volume = Volume(image, PIR).reoriented(axcodes)
    model = Model(Config(published=published))
    ticks: list[tuple[int, int]] = []
    options = SemanticOptions(step_size=0.25, tta=True)
    result = predict_semantic(volume, model, options, lambda *a: ticks.append(a))  # type: ignore[arg-type]
    seen = model.asked["image"]
    assert (seen.axcodes, seen.shape) == ("PIR", (20, 30, 12))
    assert np.allclose(seen.zoom, 2)
    assert (model.asked["step_size"], model.asked["tta"], ticks) == (0.25, True, [(1, 1)])
    assert result.mask.array.dtype == np.uint8 and set(np.unique(result.mask.array)) <= {0, 49, 100}
    assert result.probabilities.shape == (3, *result.mask.shape) and result.class_ids == (0, 49, 100)
    back = result.mask.on(volume.grid).reoriented("PIR").array
    assert (back[12:28, 12:26, 4:8] == 49).all() and (back[:8] == 0).all()


@given(st.integers(2, 6), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_most_probable_is_argmax(classes: int, seed: int) -> None:
    p = np.random.default_rng(seed).integers(0, 4, (classes, 4, 3, 2)).astype(np.float32)
    ids = tuple(range(0, 40 * classes, 40))
    assert np.array_equal(most_probable(p, ids), np.array(ids)[p.argmax(axis=0)])


@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.03, 0.1]), st.sampled_from([1.0, 1.4, 2.5]))
def test_the_main_part_is_whatever_chains_of_near_boxes_reach(seed, share, zoom):
    from spineps.phases.components import counts, label_components

    rng = np.random.default_rng(seed)
    array = np.where(rng.random(rng.integers(3, 15, 3)) < share, np.uint8(49), np.uint8(0))
    mask = Volume(array, PIR @ np.diag([zoom / 2, zoom, zoom, 1]))
    components, n = label_components(array > 0, 26)
    gap = 3.0 / min(mask.zoom)
    along = np.array([0, round(gap), 0])
    found = [np.argwhere(components == k + 1) for k in range(n)]
    low = np.array([np.maximum(f.min(0) - int(gap), 0) for f in found])
    high = np.array([np.minimum(f.max(0) + 1 + int(gap), array.shape) for f in found])
    near = np.array(
        [[np.all((low[i] - along <= high[j]) & (low[j] <= high[i] + along)) for i in range(n)] for j in range(n)]
    )
    kept = np.arange(n) == int(np.argmax(counts(components)[1:])) if n else np.zeros(0, bool)
    while n and (near[kept].any(0) & ~kept).any():
        kept = kept | near[kept].any(0)
    assert np.array_equal(keep_main_part(mask) > 0, np.concatenate([[False], kept])[components])


def test_a_mask_full_of_specks_is_cleaned_in_no_time():
    array = np.zeros((300, 300, 100), np.uint8)
    array[np.random.default_rng(0).random(array.shape) < 0.003] = 62
    array[100:150, 100:200, 40:60] = 49
    start = time.process_time()
    keep_main_part(Volume(array, PIR))
    # 0.3 s; when every box was compared with every other it was 15 s.
    assert time.process_time() - start < 5


def test_pieces_far_from_the_column_go_and_a_spine_in_two_parts_stays():
    array = np.zeros((80, 120, 20), np.uint8)
    for top in (5, 25, 85):
        array[10:35, top : top + 18, 2:18] = 49
    array[40:44, 5:40, 8:12] = 42
    array[60:70, 30:60, 5:15] = 47
    mask = Volume(array, np.array([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]))
    kept = keep_near_column(mask)
    assert not (kept == 47).any()
    assert ((kept == array) | (array == 47)).all()


def test_a_femoral_head_and_a_stent_called_body_go() -> None:
    array = np.zeros((40, 120, 140), np.uint8)
    array[:, 10:30, 62:80] = 49  # beside, at the same height
    array[5:35, 10:60, 5:35] = 49
    array[5:35, 75:100, 15:40] = 49  # goes on below, bent to the side
    array[5:35, 85:115, 95:125] = 49  # as far down, but beside
    array[10:14, 85:115, 128:132] = 26
    kept = keep_near_column(Volume(array, PIR))
    assert (kept[:, :, :40] == array[:, :, :40]).all() and not kept[:, :, 40:].any()


def test_published_cleaning_is_that_of_the_published_system_and_no_more() -> None:
    array = np.zeros((60, 60, 12), np.uint8)
    array[10:40, 5:55, 2:10] = 49
    array[20:24, 20:24, 4:6] = 0
    array[2:4, 2:4, 2:5] = 61  # out of reach
    array[45:50, 20:40, 2:10] = 26
    array[53:56, 40:50, 2:10] = 26  # a second sacrum within reach of the boxes
    mask = Volume(array, PIR)
    published = clean_semantic(mask, SemanticOptions(), published=True).array
    assert (published[53:56, 40:50, 2:10] == 26).all() and (published[20:24, 20:24, 4:6] == 49).all()
    assert not published[2:4, 2:4, 2:5].any()
    off = SemanticOptions(False, False, False, False)
    assert np.array_equal(clean_semantic(mask, off, published=True).array, array)


def test_what_the_boxes_drop_cannot_keep_labels_near_the_canal() -> None:
    """Canal far away goes with its part, and then the ends that only it had kept."""
    array = np.zeros((12, 200, 12), np.uint8)
    array[2:10, 10:25, 2:10] = 61
    array[2:10, 26:150, 2:10] = 49
    array[2:10, 175:180, 2:6] = 61
    options = SemanticOptions(remove_inferior_beyond_canal=True)
    out = clean_semantic(Volume(array, PIR), options, published=True).array
    assert not out[:, 25 + 64 :].any() and (out[2:10, 26 : 25 + 64, 2:10] == 49).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_body_that_touches_the_sacrum_is_measured_in_square_millimetres(order: tuple[int, int, int]) -> None:
    mask = np.zeros((20, 40, 12), np.uint8)
    mask[2:18, 5:20, 1:11], mask[2:18, 22:36, 1:11] = 49, 26
    volume = Volume(mask, PIR)
    turned = Volume(mask.transpose(order), PIR[:, [*order, 3]])
    assert body_on_sacrum(volume) == body_on_sacrum(turned) == 0
    mask[2:18, 20:22, 1:11] = 26  # the disc is called sacrum
    assert body_on_sacrum(volume) == body_on_sacrum(turned) == 16 * 10 * 2.0
    mask[mask == 26] = 0
    assert body_on_sacrum(volume) == 0
