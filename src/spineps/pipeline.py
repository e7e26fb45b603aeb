"""The chain: a scan goes in, two masks and points come out.  No file, no network, no global, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spineps.anatomy import CORPUS, CORPUS_INNER, SACRUM
from spineps.options import Options
from spineps.volume import Box, Grid, Volume

if TYPE_CHECKING:
    from spineps.models.model import InstanceModel, LabelingModel, Model, SemanticModel
    from spineps.phases.labeling import Naming
    from spineps.phases.points import Point

#: Called with (phase, done, total); ``total`` is 1 for phases that cannot tell how far they are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Models:
    """The networks of one run.

    Attributes:
        semantic: finds structures.
        instance: tells vertebrae apart.
        labeling: names them; without it they are numbered from the top.
        landmarks: without ``labeling``, name them by sacrum, C2, ribs and sizes in the masks.
    """

    semantic: SemanticModel
    instance: InstanceModel
    labeling: LabelingModel | None = None
    landmarks: bool = False

    def by_phase(self) -> dict[str, Model]:
        """The models that there are, by the name of their phase."""
        parts = {"semantic": self.semantic, "instance": self.instance, "labeling": self.labeling}
        return {part: model for part, model in parts.items() if model is not None}


@dataclass(frozen=True, eq=False)
class SemanticStage:
    """Result of the semantic phase.

    Attributes:
        mask: cleaned structures, uint8, on the model's grid (padding included).
        native: the same on the scan's own grid, from upsampled probabilities; with published models the mask itself,
            nearest voxel.  Of a scan that leans it is on the upright grid (:mod:`spineps.phases.upright`).
        class_ids: structure of each class of ``probabilities``.
        probabilities: (classes, X, Y, Z) float16 on the model's grid, when asked for.
        uncertainty: entropy 0..1 on the scan's grid, float32, when asked for.
        debug: intermediate volumes, when asked for.
        doubts: why no name can be sure.
    """

    mask: Volume
    native: Volume
    class_ids: tuple[int, ...] = ()
    probabilities: np.ndarray | None = None
    uncertainty: Volume | None = None
    debug: Mapping[str, Volume] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Everything that is known about one scan.

    Attributes:
        semantic: structures on the scan's grid.
        instance: vertebrae, discs and endplates on the scan's grid, uint16.
        points: in RAS mm.
        naming: how the vertebrae got their names; None without a labelling model.
        stage: the semantic phase's result.
        raw_instance: vertebrae 1..n on the model's grid.
    """

    semantic: Volume
    instance: Volume
    points: list[Point]
    naming: Naming | None
    stage: SemanticStage
    raw_instance: Volume


def segment_volume(
    volume: Volume,
    models: Models,
    options: Options | None = None,
    progress: Progress | None = None,
    *,
    crop: Box | None = None,
    semantic: SemanticStage | None = None,
    instance: Volume | None = None,
    done: Callable[[str, Any], None] | None = None,
    mend: Callable[[Volume], Volume] | None = None,
    stored: str | None = None,
) -> Segmentation:
    """Segment one scan.

    Args:
        volume: the scan; any orientation, voxel size, scale and finite dtype.
        models: the networks.
        options: what to do; defaults are those of the documented keywords.
        progress: called as the phases proceed.
        crop: look only at this box of the scan; results still cover the whole of it.
        semantic: result of an earlier semantic phase of the same scan, models and options, to go on from.
        instance: likewise for the instance phase.
        done: called with ("semantic" | "instance", result) as soon as that phase is over.
        mend: changes the cleaned semantic mask (model grid) before anything is made of it.
        stored: type of the grey values in the file, for published models (see :func:`.preprocess.as_stored`).

    Raises:
        EmptyError: the image is constant or shows no spine.
    """
    from spineps.phases.preprocess import tamed
    from spineps.phases.upright import turned_upright, upright_grid

    options = options or Options()
    volume = volume if models.semantic.config.published else tamed(volume)
    tell = progress or (lambda phase, done, total: None)
    done = done or (lambda stage, result: None)
    upright = upright_grid(volume.grid) if crop is None and not models.semantic.config.published else None
    scan, volume = volume, turned_upright(volume, upright) if upright is not None else volume
    if semantic is None:
        semantic = semantic_stage(volume, models.semantic, options, tell, crop, mend, stored)
        done("semantic", semantic)
    if instance is None:
        instance = instance_stage(semantic, models.instance, options, tell)
        done("instance", instance)
    result = final_stage(volume, semantic, instance, models, options, tell, stored)
    return result if upright is None else on_scan(result, scan.grid)


def on_scan(result: Segmentation, grid: Grid) -> Segmentation:
    """What was found on an upright grid, on the scan's own."""
    unsure = result.stage.uncertainty
    stage = replace(result.stage, uncertainty=unsure.on(grid, order=1) if unsure is not None else None)
    return replace(result, semantic=result.semantic.on(grid), instance=result.instance.on(grid), stage=stage)


def semantic_stage(
    volume: Volume,
    model: SemanticModel,
    options: Options,
    progress: Progress,
    crop: Box | None = None,
    mend: Callable[[Volume], Volume] | None = None,
    stored: str | None = None,
) -> SemanticStage:
    """Pre-processing and semantic phase."""
    from spineps.inference.resample import argmax_on_grid, entropy_on_grid, without_mixtures
    from spineps.phases.components import relabel
    from spineps.phases.faint_discs import draw_faint_discs
    from spineps.phases.preprocess import as_stored, inside_frame, preprocess
    from spineps.phases.semantic import certainty, clean_semantic, doubts, predict_semantic

    if crop is None and not model.config.published:
        crop = inside_frame(volume.array)
    seen = volume.cropped(crop) if crop is not None else volume
    seen = as_stored(seen, stored) if model.config.published else seen
    progress("preprocess", 0, 1)
    padding = options.preprocess.pad if model.config.published else 0
    image = preprocess(seen, replace(options.preprocess, pad=padding), model.config.published)
    progress("preprocess", 1, 1)
    progress("semantic", 0, 1)
    wanted, published = options.output, model.config.published
    prediction = predict_semantic(
        image,
        model,
        options.semantic,
        lambda done, n: progress("semantic", done, n),
        need_probabilities=wanted.save_softmax_logits or wanted.save_uncertainty,
    )
    found, faint = (prediction.mask, 0) if published else draw_faint_discs(prediction, seen)
    mask = clean_semantic(found, options.semantic, published)
    mask = mend(mask) if mend is not None else mask

    grid, likely = prediction.mask.grid, prediction.probabilities
    why = () if published else doubts(certainty(prediction, mask), faint)
    probabilities = likely.astype(np.float16) if likely is not None and wanted.save_softmax_logits else None
    uncertainty = None
    if likely is not None and wanted.save_uncertainty:
        uncertainty = seen.with_array(entropy_on_grid(likely, grid, seen.grid)).on(volume.grid)
    if published or likely is None:
        on_scan = mask.on(seen.grid).array
    else:
        # What cleaning decided at the model's voxel size must hold after upsampling too.
        one_hot(likely, mask.array, prediction.mask.array, prediction.class_ids)
        on_scan = np.array(prediction.class_ids, np.uint8)[argmax_on_grid(likely, grid, seen.grid)]
        # Ten voxels of sacrum in a neck are a vertebra S1 with a disc of its own.
        on_scan = without_mixtures(on_scan, SACRUM, mask, seen.grid)
    native = seen.with_array(relabel(on_scan, {CORPUS_INNER: CORPUS})).on(volume.grid)
    debug = {"image_preprocessed": image, "sem_raw": prediction.mask, "sem_native": native}
    return SemanticStage(
        mask, native, prediction.class_ids, probabilities, uncertainty, debug if wanted.save_debug_data else {}, why
    )


def instance_stage(semantic: SemanticStage, model: InstanceModel, options: Options, progress: Progress) -> Volume:
    """Instance phase; vertebrae 1..n on the model's grid."""
    from spineps.phases.instance import predict_instances

    progress("instance", 0, 1)
    model = model.amp if options.instance.amp else model
    return predict_instances(semantic.mask, model, options.instance, lambda done, n: progress("instance", done, n))


def final_stage(
    volume: Volume,
    semantic: SemanticStage,
    instance: Volume,
    models: Models,
    options: Options,
    progress: Progress,
    stored: str | None = None,
) -> Segmentation:
    """Both masks on the scan's grid, cleaned against each other, named, with points."""
    from spineps.phases.instance import upsample_instances
    from spineps.phases.points import compute_points
    from spineps.phases.postprocess import postprocess
    from spineps.phases.upright import TURNED, looks_turned

    config, labeling = models.semantic.config, models.labeling
    naming: Naming | None = None

    def names(instances: np.ndarray) -> Mapping[int, int]:
        from spineps.phases.labeling import name_instances

        nonlocal naming
        progress("labeling", 0, 1)
        vertebrae = volume.with_array(instances)
        c1 = config.published and config.has_c1
        naming = name_instances(volume, semantic.native, vertebrae, labeling, options.labeling, c1=c1, stored=stored)
        if semantic.doubts:
            naming = replace(naming, ambiguous=True, notes=(*semantic.doubts, *naming.notes))
        if naming.ambiguous and not config.published and looks_turned(semantic.mask):
            naming = replace(naming, notes=(*naming.notes, TURNED))
        progress("labeling", 1, 1)
        return naming.ids

    progress("postprocess", 0, 1)
    nearest = models.instance.config.published
    sem, inst = postprocess(
        semantic.native,
        instance.on(volume.grid) if nearest else upsample_instances(instance, semantic.native),
        options.post,
        sacrum_ids=config.sacrum_ids,
        metal=config.metal,
        names=names if labeling is not None or models.landmarks else None,
    )
    progress("postprocess", 1, 1)
    progress("points", 0, 1)
    points = compute_points(sem, inst, naming)
    progress("points", 1, 1)
    return Segmentation(sem, inst, points, naming, semantic, instance)


def one_hot(probabilities: np.ndarray, wanted: np.ndarray, found: np.ndarray, class_ids: tuple[int, ...]) -> None:
    """Make ``wanted`` certain, in place, in the voxels where it is not what was ``found``.

    Args:
        probabilities: (classes, X, Y, Z).
        wanted: (X, Y, Z) structure ids.
        found: (X, Y, Z) structure ids.
        class_ids: structure of each class.
    """
    changed = np.nonzero(wanted != found)
    if not changed[0].size:
        return
    labels = wanted[changed]
    for k, label in enumerate(class_ids):
        probabilities[k][changed] = labels == label
