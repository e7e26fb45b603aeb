"""A generated person, whose every voxel is known, through the whole chain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from stubs import ByHeight, Oracle, config, spine

from spineps.anatomy import CORPUS, DISC, ENDPLATE, SACRUM, VERTEBRAE
from spineps.models.enums import Modality
from spineps.models.registry import get_semantic_model
from spineps.options import Options, OutputOptions, PostOptions, PreprocessOptions, options_from_keywords
from spineps.phases.components import relabel
from spineps.pipeline import Models, Segmentation, segment_volume, semantic_stage
from spineps.synth.image import random_image_spec, synthesise
from spineps.synth.labelmap import Phantom, field_of_view, render
from spineps.synth.spec import random_spec
from spineps.volume import Grid, Volume

GOLDEN = Path(__file__).parent / "golden"
ZOOM = (2.0, 2.0, 2.0)
OPTIONS = Options(preprocess=PreprocessOptions(n4=False), output=OutputOptions(save_uncertainty=True))


@dataclass
class ByBody(ByHeight):
    """In a cutout every voxel belongs to the nearest body; bodies are told apart by the discs between them."""

    def segment(self, cutouts: np.ndarray, batch_size: int = 4) -> np.ndarray:
        return np.stack([self._answer(cutout) for cutout in cutouts])

    def _answer(self, cutout: np.ndarray) -> np.ndarray:
        import cc3d
        from scipy.ndimage import distance_transform_edt

        bodies = cc3d.connected_components(cutout == 9, connectivity=6)
        height = {n: np.nonzero(bodies == n)[1].mean() for n in range(1, bodies.max() + 1) if (bodies == n).sum() > 100}
        order = sorted(height, key=lambda n: height[n])
        centre = min(range(len(order)), key=lambda k: abs(height[order[k]] - cutout.shape[1] // 2))
        rank = np.zeros(bodies.max() + 1, np.uint8)
        for step, label in ((-1, 1), (0, 2), (1, 3)):
            if 0 <= centre + step < len(order):
                rank[order[centre + step]] = label
        where = distance_transform_edt(~np.isin(bodies, order), return_distances=False, return_indices=True)
        return np.where(cutout > 0, rank[bodies[tuple(where)]], 0).astype(np.uint8)


@pytest.fixture(scope="module")
def person() -> tuple[Phantom, Volume]:
    rng = np.random.default_rng(4)
    spec = random_spec(rng, "lumbar", thoracic=12, lumbar=5, pathology=0.0)
    spec = replace(spec, view=replace(spec.view, key=22.5, offset=(15.0, 0.0, 0.0)))
    phantom = render(spec, field_of_view((80, 130, 36), ZOOM))
    image = synthesise(phantom, random_image_spec(rng, "T2", degrade=0.3))
    return phantom, phantom.volume(np.asarray(image))


def models(phantom: Phantom) -> Models:
    same = {"zoom_min": ZOOM, "zoom_max": ZOOM, "cutout_size": (80, 64, 36)}
    semantic = Oracle(phantom.volume(phantom.semantic), config(**same))
    instance = ByBody(replace(ByHeight().config, modalities=(Modality.SEG,), **same))
    return Models(semantic, instance)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result(person: tuple[Phantom, Volume]) -> Segmentation:
    phantom, image = person
    return segment_volume(image, models(phantom), OPTIONS)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def pairs(phantom: Phantom, result: Segmentation) -> dict[int, int]:
    """Number given to each vertebra of which much is in view, by where its body lies."""
    found = {}
    for vertebra in VERTEBRAE:
        body = (phantom.instance == vertebra) & (phantom.semantic == CORPUS)
        if body.sum() > 1000:
            found[vertebra] = int(np.bincount(result.instance.array[body].astype(int)).argmax())
    return found


def test_structures_are_those_of_the_person(person: tuple[Phantom, Volume], result: Segmentation) -> None:
    phantom, _ = person
    found = result.semantic.array
    plates = np.isin(found, (52, 53, 62))
    assert dice(plates, phantom.semantic == ENDPLATE) > 0.9
    for label in (41, 42, CORPUS, 60, 61, DISC, SACRUM):
        assert dice(found == label, phantom.semantic == label) > 0.95, label


def test_every_vertebra_is_one_instance_in_order(person: tuple[Phantom, Volume], result: Segmentation) -> None:
    phantom, _ = person
    numbers = pairs(phantom, result)
    assert len(numbers) >= 5 and list(numbers.values()) == sorted(set(numbers.values()))
    for vertebra, number in numbers.items():
        body = phantom.semantic == CORPUS
        assert dice((result.instance.array == number) & body, (phantom.instance == vertebra) & body) > 0.97
        assert dice(result.instance.array == number, phantom.instance == vertebra) > 0.8


def test_discs_belong_to_the_vertebra_above(person: tuple[Phantom, Volume], result: Segmentation) -> None:
    phantom, _ = person
    for vertebra, number in pairs(phantom, result).items():
        disc = phantom.instance == 100 + vertebra
        if disc.sum() > 200:
            assert dice(result.instance.array == 100 + number, disc) > 0.95


def test_points_lie_in_their_structures(result: Segmentation) -> None:
    grid = result.semantic.grid
    for point in result.points:
        if point.subregion == 50 and point.vertebra != SACRUM:
            x, y, z = np.rint(grid.to_index(np.array(point.world))).astype(int)
            assert result.instance.array[x, y, z] == point.vertebra


def test_uncertainty_is_highest_at_borders(result: Segmentation) -> None:
    uncertainty = result.stage.uncertainty
    assert uncertainty is not None and uncertainty.shape == result.semantic.shape
    assert uncertainty.array.min() >= 0 and uncertainty.array.max() <= 1


def test_the_same_run_gives_the_same_arrays(person: tuple[Phantom, Volume], result: Segmentation) -> None:
    phantom, image = person
    again = segment_volume(image, models(phantom), OPTIONS)
    np.testing.assert_array_equal(again.semantic.array, result.semantic.array)
    np.testing.assert_array_equal(again.instance.array, result.instance.array)
    assert again.points == result.points


@pytest.mark.parametrize("value", [0.0, -1000.0])
def test_a_frame_of_one_value_changes_nothing(
    person: tuple[Phantom, Volume], result: Segmentation, value: float
) -> None:
    phantom, image = person
    before, after = np.array([9, 4, 11]), np.array([2, 17, 30])
    affine = image.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    array = np.pad(image.array, list(zip(before, after, strict=True)), constant_values=value)
    framed = segment_volume(Volume(array, affine), models(phantom), OPTIONS)
    inner = tuple(slice(b, b + n) for b, n in zip(before, image.shape, strict=True))
    assert framed.stage.mask.shape == result.stage.mask.shape
    np.testing.assert_array_equal(framed.semantic.array[inner], result.semantic.array)
    np.testing.assert_array_equal(framed.instance.array[inner], result.instance.array)
    assert (framed.semantic.array > 0).sum() == (result.semantic.array > 0).sum()


def test_going_on_from_stages(person: tuple[Phantom, Volume], result: Segmentation) -> None:
    phantom, image = person
    options = replace(OPTIONS, post=PostOptions(labeling_offset=0))
    later = segment_volume(image, models(phantom), options, semantic=result.stage, instance=result.raw_instance)
    first = min(pairs(phantom, result).values())
    assert min(pairs(phantom, later).values()) == first - 1


def test_naming_by_landmarks_and_a_model_for_the_names(person: tuple[Phantom, Volume], result: Segmentation) -> None:
    phantom, image = person
    assert result.naming is None  # numbers only
    seen: list[str] = []
    found = segment_volume(
        image, replace(models(phantom), landmarks=True), OPTIONS, lambda phase, done, total: seen.append(phase)
    )
    # The sacrum in view says which vertebra is L5.
    assert found.naming is not None and not found.naming.ambiguous
    for vertebra, number in pairs(phantom, found).items():
        assert vertebra == number
    assert set(seen) >= {"preprocess", "semantic", "postprocess", "labeling", "points"}


def test_what_hardly_looks_like_a_spine_has_no_sure_name(person: tuple[Phantom, Volume]) -> None:
    phantom, image = person
    known = replace(models(phantom), landmarks=True)
    for sure in (0.8, 0.6):
        known.semantic.sure = sure  # type: ignore[attr-defined]
        found = segment_volume(image, known, OPTIONS)
        assert found.naming is not None and found.naming.ambiguous == (sure < 0.7)
        assert any("hardly a spine" in note for note in found.naming.notes) == (sure < 0.7)


def test_only_models_that_were_trained_with_a_frame_get_one() -> None:
    scan, truth = spine()
    scan.array[[0, -1], [0, -1], [0, -1]] = 1  # its zeros are no frame
    shapes = {}
    for pads in (True, False):
        model = Recorded(truth, config=config(recipe="published" if pads else "spineps3"))
        stage = semantic_stage(scan, model, options_from_keywords(proc_pad_size=4), lambda *_: None)
        shapes[pads] = stage.mask.shape
        assert stage.native.grid.same_as(scan.grid)
    assert shapes[False] == scan.grid.reoriented("PIR").covering((1.5, 1.5, 2.5)).shape
    assert all(padded > plain for padded, plain in zip(shapes[True], shapes[False], strict=True))
    assert not get_semantic_model().config.published


@dataclass
class Recorded(Oracle):
    """Published semantic model: class indices of a recorded mask, nothing else."""

    asked: int = 0
    image: np.ndarray | None = None

    def labels(self, image: Volume, step_size=None, tta=None, progress=None) -> np.ndarray:
        self.asked += 1
        self.seen, self.image = image.shape, image.array
        truth = self.truth.on(Grid(image.shape, image.affine)).array
        return relabel(truth, {label: k for k, label in self.config.labels.items()}).astype(np.uint8)


def test_published_models_give_the_masks_of_a_recorded_run() -> None:
    with np.load(GOLDEN / "sample_run.npz") as golden:
        g = dict(golden)
    zoom = (0.9, 0.9, 2.2)
    raw, instance = (Volume(g[k], g["raw_affine"]) for k in ("raw_semantic", "raw_instance"))
    labels = {k: int(v) for k, v in enumerate(np.unique(raw.array)[1:], 1)}
    model = Recorded(raw, config(recipe="published", zoom_min=zoom, zoom_max=zoom, labels=labels))
    # Whole numbers, as the reader gives them: the network must see them rounded, as they were.
    scan = Volume(np.random.default_rng(0).integers(1, 900, g["semantic"].shape).astype(np.float32), g["affine"])
    options = options_from_keywords(proc_sem_n4_bias_correction=False)
    published = Models(model, ByHeight(config(recipe="published", modalities=(Modality.SEG,))))
    found = segment_volume(scan, published, options, instance=instance)
    assert (model.asked, model.calls, model.seen) == (1, 0, raw.shape)
    assert model.image is not None and model.image.dtype == np.int16
    assert np.array_equal(found.stage.mask.array, raw.array) and found.stage.probabilities is None
    assert np.allclose(found.stage.mask.affine, raw.affine, atol=1e-4)
    assert np.array_equal(found.semantic.array, g["semantic"])
    # The sacrum's own upper plate is 226 here (docs/differences.md).
    differs = found.instance.array != g["instance"]
    assert differs.sum() == 484 and set(found.instance.array[differs]) == {226}

    for stored, lowest in (("uint16", 0), ("float32", -1)):  # only what is unsigned in the file cannot undershoot 0
        semantic_stage(scan, model, options, lambda *_: None, stored=stored)
        assert model.image is not None and model.image.dtype == stored
        assert model.image.min() == 0 if lowest == 0 else model.image.min() < lowest

    soft = replace(options, output=replace(options.output, save_softmax_logits=True, save_uncertainty=True))
    stage = semantic_stage(scan, model, soft, lambda *_: None)
    assert model.calls == 1 and stage.probabilities is not None and stage.uncertainty is not None


def test_nothing_is_written_outside_the_crop_of_a_published_model() -> None:
    scan, truth = spine()
    model = Recorded(truth, config(recipe="published"))
    box = (slice(0, scan.shape[0]), slice(20, 60), slice(0, scan.shape[2]))
    native = semantic_stage(scan, model, options_from_keywords(), lambda *_: None, box).native.array
    inside = np.zeros(scan.shape, bool)
    inside[box] = True
    assert native[inside].any() and not native[~inside].any()
