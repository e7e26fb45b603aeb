"""The picture: cuts along the spine, outlines, brightness, names and layout."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stubs import spine

from spineps.outputs import snapshot
from spineps.outputs.curved import Cut, curved_cuts, spine_course
from spineps.outputs.snapshot import snapshot_png
from spineps.volume import Volume

PIR = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def grid(zoom: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = PIR * zoom
    return affine


def named_spine(count: int = 3) -> tuple[Volume, Volume, Volume]:
    """The block spine with L1, L2 ... and their discs."""
    image, labels = spine(count)
    vertebrae = np.zeros(labels.shape, np.uint16)
    for k in range(count):
        rows = slice(10 + 30 * k, 40 + 30 * k)
        part = labels.array[:, rows]
        vertebrae[:, rows] = np.where(part == 100, 120 + k, np.where(np.isin(part, (49, 41, 42)), 20 + k, 0))
    vertebrae[labels.array == 26] = 26
    return image, labels, labels.with_array(vertebrae)


def read(png: bytes) -> tuple[np.ndarray, tuple[int, ...]]:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB")), tuple(int(v) for v in picture.info["spineps-sagittal"].split(","))


def ellipse(zoom: tuple[float, float, float]) -> tuple[Volume, Volume]:
    """A body of 30 x 24 x 44 mm (P, I, R) above a second one, as slices see it."""
    shape = [round(length / z) for length, z in zip((60, 80, 64), zoom, strict=True)]
    p, i, r = np.meshgrid(*(np.arange(n) * z for n, z in zip(shape, zoom, strict=True)), indexing="ij")
    labels = np.zeros(shape, np.uint8)
    for middle in (24, 56):
        labels[((p - 30) / 15) ** 2 + ((i - middle) / 12) ** 2 + ((r - 32) / 22) ** 2 < 1] = 49
    return Volume(np.float32(100) + labels, grid(zoom)), Volume(labels, grid(zoom))


def test_the_same_arguments_give_the_same_bytes_from_any_storage_order() -> None:
    volumes = named_spine()
    first, again = (snapshot_png(*volumes, "t", ["w"], {20: 0.3}) for _ in range(2))
    assert first == again
    turned = [v.reoriented("LAS") for v in volumes]
    assert snapshot_png(*turned, "t", ["w"], {20: 0.3}) == first


def test_cuts_follow_bodies_and_sacrum_and_name_the_sides() -> None:
    image, labels, vertebrae = named_spine()
    course = spine_course(labels)
    np.testing.assert_allclose(course[60], [35.5, 7.5], atol=0.6)
    np.testing.assert_allclose(course[-20], [38.5, 7.5], atol=1)
    array = image.array.copy()
    array[:, :, 12:] = 5000  # towards the right
    sagittal, coronal = curved_cuts(image.with_array(array), labels, vertebrae)
    assert {49, 100, 61, 42, 26} <= set(np.unique(sagittal.structures))
    assert (sagittal.left, sagittal.right, coronal.left, coronal.right) == ("A", "P", "R", "L")
    assert coronal.grey[:, :3].min() > 4000 > 1000 > coronal.grey[:, 4:].max()


@pytest.mark.parametrize("turn", [0.4, -0.4])
def test_a_turned_spine_keeps_body_and_canal_in_view(turn: float) -> None:
    """Scoliosis: the spine sways and its vertebrae are rotated; a flat cut through the bodies would miss the canal."""
    p, i, r = np.indices((90, 160, 80))
    middle = 40 + 12 * np.sin(i / 25)
    across, back = r - middle, p - 35
    along, aside = back * np.cos(turn) + across * np.sin(turn), across * np.cos(turn) - back * np.sin(turn)
    labels = np.where((abs(along) < 16) & (abs(aside) < 18) & (i % 32 < 26), 49, 0)
    labels[(along - 28) ** 2 + aside**2 < 7**2] = 61
    mask = Volume(labels.astype(np.uint8), grid((1, 1, 1)))
    sagittal, _ = curved_cuts(mask.with_array(labels.astype(np.float32)), mask, mask)
    inner = sagittal.structures[20:-20]
    assert (inner == 61).sum(axis=1).min() >= 9
    assert np.median((inner == 49).sum(axis=1)) >= 25


def test_thick_slices_leave_no_stairs_in_the_outline() -> None:
    """4 mm slices, seen from the front: against the true outline at least half of the wrong area is gone."""

    def wrong(shown: np.ndarray) -> float:
        return float((shown != truth).mean())

    image, mask = ellipse((0.6, 0.6, 4.0))
    assert mask.axcodes == "PIR"
    _, coronal = curved_cuts(image, mask, mask)
    height, width = (round(mm / 0.25) for mm in coronal.size_mm)
    rows, columns = (np.indices((height, width)) + 0.5) * 0.25
    truth = np.zeros((height, width), int)
    for middle in (24, 56):  # the first row is that of the scan, the first column its last slice
        truth[((rows - 0.3 - middle) / 12) ** 2 + ((60 + 2 - columns - 32) / 22) ** 2 < 1] = 49
    smooth = coronal.labels(coronal.semantic, height, width)
    places = [
        (np.arange(n) * m // n).astype(int) for n, m in zip((height, width), coronal.structures.shape, strict=True)
    ]
    steps = coronal.structures[np.ix_(*places)]
    assert wrong(smooth) < 0.5 * wrong(steps)


def test_between_two_slices_the_outline_lies_between() -> None:
    """Sagittal cut halfway between a slice with a wide and one with a narrow body."""
    labels = np.zeros((60, 60, 2), np.uint8)
    labels[20:40, 20:40, 0] = 49
    labels[20:32, 20:40, 1] = 49
    mask = Volume(labels, grid((1, 1, 5)))
    sagittal, _ = curved_cuts(mask.with_array(labels.astype(np.float32)), mask, mask)
    depths = np.ptp(np.nonzero(sagittal.labels(sagittal.semantic, *sagittal.grey.shape) == 49)[1]) + 1
    assert depths in range(14, 19)


def test_a_plate_one_voxel_thick_is_drawn() -> None:
    labels = np.zeros((60, 60, 12), np.uint8)
    labels[15:45, 10:50] = 49
    labels[15:45, 30] = 62
    mask = Volume(labels, grid((1, 1, 3)))
    for cut in curved_cuts(mask.with_array(labels.astype(np.float32)), mask, mask):
        height = 3 * cut.grey.shape[0]
        shown = cut.labels(cut.semantic, height, 3 * cut.grey.shape[1])
        inside = (shown[:, (shown == 49).any(axis=0)] == 62).sum(axis=0)
        assert np.median(inside) in (2, 3, 4)


def test_a_huge_field_of_view_is_cut_down_to_the_spine() -> None:
    image, labels, vertebrae = named_spine()
    wide = [Volume(np.pad(v.array, ((80, 90), (300, 200), (40, 50))), v.affine) for v in (image, labels, vertebrae)]
    sagittal, coronal = curved_cuts(*wide)
    assert sagittal.size_mm[0] <= 145 + 2 * 20 and sagittal.size_mm[1] <= 61 + 2 * 20
    assert coronal.size_mm[1] <= 3 + 2 * 50


@pytest.mark.parametrize("fat", [1, 20])
def test_bright_fat_does_not_darken_the_bodies(fat: float) -> None:
    image, labels, vertebrae = named_spine()
    array = image.array.astype(np.float32)
    array[84:] = 400 * fat
    cuts = curved_cuts(image.with_array(array), labels, vertebrae)
    shown = snapshot._shown(cuts[0].grey, *snapshot._window(*cuts))[..., 0]
    assert 0.3 < np.median(shown[cuts[0].structures == 49]) / 255 < 0.7
    assert np.ptp(shown[np.isin(cuts[0].structures, (49, 100, 61))]) > 90


def test_a_ct_is_shown_in_its_window() -> None:
    image, labels, vertebrae = named_spine()
    array = image.array.astype(np.float32) - 1000
    array[labels.array > 0] = 250
    low, high, _ = snapshot._window(*curved_cuts(image.with_array(array), labels, vertebrae))
    assert (low, high) == snapshot.CT_WINDOW


def test_a_narrow_slab_has_room_for_letters_and_names() -> None:
    slab = [Volume(v.array[:, :, 6:10], v.affine) for v in named_spine()]
    picture, (_, top, right, bottom) = read(snapshot_png(*slab))
    panel = picture[top:bottom, right + snapshot.GAP : right + snapshot.GAP + snapshot.NARROWEST]
    # Two letters with the slab between them, none over the other.
    bright = (panel[:20] > 200).all(axis=2).any(axis=0)
    assert bright[:20].any() and bright[-20:].any()


def test_a_whole_spine_is_not_tiny_and_few_vertebrae_are_not_blown_up() -> None:
    image, labels = spine(22)
    whole = snapshot_png(image, labels, labels.with_array((labels.array == 49).astype(np.uint8)))
    picture, (_, top, _, bottom) = read(whole)
    assert bottom - top >= 1.5 * 700 and picture.shape[1] <= snapshot.WIDTH + 1
    few = [Volume(v.array[:, :50], v.affine) for v in named_spine()]
    picture, (_, top, _, bottom) = read(snapshot_png(*few))
    assert bottom - top <= 50 * snapshot.FINEST and picture.shape[1] <= snapshot.WIDTH + 1


def test_without_any_label_the_scan_alone_is_shown() -> None:
    image, labels = spine(2)
    empty = labels.with_array(np.zeros_like(labels.array))
    picture, (left, top, right, bottom) = read(snapshot_png(image, empty, empty, "t"))
    assert picture[top:bottom, left:right].std() > 20
    noted = picture[bottom + 5 :]
    assert (np.abs(noted.astype(int) - (255, 176, 0)).sum(axis=2) < 60).any(), "it says so"


def test_long_names_and_warnings_stay_inside() -> None:
    name = "sub-" + "verylongname" * 40 + "_T2w.nii.gz"
    short = snapshot._shortened(name, 700)
    assert short.startswith("sub-very") and short.endswith("_T2w.nii.gz") and "…" in short
    assert snapshot._font(snapshot.TITLE).getlength(short) <= 700
    lines = snapshot._wrapped(["word " * 90, "x" * 400, "a", "b"], 700)
    assert len(lines) == snapshot.NOTE_LINES and lines[-1].endswith("…")
    assert all(snapshot._font(snapshot.TEXT).getlength(line) <= 740 for line in lines)
    picture, _ = read(snapshot_png(*named_spine(), name, ["word " * 90]))
    assert (picture[:, -2:] == picture[0, 0]).all()


@settings(deadline=None)
@given(st.lists(st.floats(0, 400), min_size=1, max_size=25).map(sorted))
def test_names_never_lie_over_one_another(places: list[float]) -> None:
    gap = snapshot.NAME + 1
    ys = snapshot._spread(places, 0, 400)
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(ys))
    assert min(ys) >= 0 and max(ys) <= 400
    if all(b - a >= gap for a, b in itertools.pairwise(places)):
        assert ys == places


def test_unsure_names_are_marked_and_numbers_shown_without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(snapshot, "_write", lambda draw, x, y, text, *rest: written.append(text))
    snapshot_png(*named_spine(), confidence={20: 0.3})
    assert {"L1?", "L2", "L3", "S1"} <= set(written)
    written.clear()
    snapshot_png(*named_spine())
    assert {"# 20", "# 21", "S1"} <= set(written) and "L1" not in written


def test_the_atlas_is_named_beside_its_anterior_arch(monkeypatch: pytest.MonkeyPatch) -> None:
    structures, vertebrae = np.zeros((2, 60, 80), int)
    vertebrae[20:26, 20:26] = vertebrae[18:28, 60:70] = 1
    structures[vertebrae == 1] = 41
    vertebrae[10:50, 30:45], structures[10:50, 30:45] = 2, 49
    cut = Cut(np.zeros((60, 80), np.float32), {}, {}, structures, vertebrae, (1, 1), "A", "P")
    places = {}
    monkeypatch.setattr(snapshot, "_write", lambda draw, x, y, text, *rest: places.update({text: (x, y)}))
    snapshot._names(None, cut, (0, 0, 320, 240), 0, {})  # type: ignore[arg-type]
    assert places["C1"] == pytest.approx((75, 92), abs=8) and places["C2"][0] == pytest.approx(115, abs=3)


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 40, 2), (2, 3, 50)])
@pytest.mark.parametrize("label", [0, 49, 61, 200])
def test_any_scan_gets_a_picture(shape: tuple[int, int, int], label: int) -> None:
    labels = np.zeros(shape, np.uint16)
    labels[-1] = label
    mask = Volume(labels, grid((4, 0.3, 12)))
    constant = mask.with_array(np.zeros(shape, np.float32))
    assert snapshot_png(constant, mask, mask, "日本\nü", [""]).startswith(b"\x89PNG")
