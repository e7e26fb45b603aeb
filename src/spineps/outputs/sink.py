"""Results to files and raw stages back from files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spineps.anatomy import BY_ID, instance_name
from spineps.options import Options, OutputOptions
from spineps.outputs.bids import SIDECARS
from spineps.outputs.nifti import read_labels
from spineps.outputs.poi import poi_document
from spineps.outputs.snapshot import snapshot_png
from spineps.outputs.stats import STATS, write_stats
from spineps.outputs.writer import Writer
from spineps.pipeline import Models, Segmentation, SemanticStage
from spineps.volume import Volume

if TYPE_CHECKING:
    from spineps.models.model import Model
    from spineps.phases.labeling import Naming

logger = logging.getLogger(__name__)

FINAL = ("out_spine", "out_vert", "out_ctd", "out_snap")


@dataclass(frozen=True)
class Wanted:
    """Which files each stage writes under the present options; ``extras`` belong to the semantic stage too."""

    semantic: tuple[Path, ...]
    extras: tuple[Path, ...]
    instance: tuple[Path, ...]
    final: tuple[Path, ...]


def wanted_files(paths: Mapping[str, Path], options: OutputOptions, scan_format: str) -> Wanted:
    """The files that must be there for a stage to count as done."""
    semantic = [paths["out_spine_raw"], paths["out_spine_native"]] if options.save_raw else []
    extras = [paths["out_logits"]] if options.save_softmax_logits else []
    extras += [paths["out_uncertainty"]] if options.save_uncertainty else []
    final = [paths[key] for key in FINAL]
    final += [paths["out_snap2"]] if paths["out_snap2"] != paths["out_snap"] else []
    final += [paths[key] for key in SIDECARS if key in paths]
    final += [paths[key] for key in STATS] if options.save_stats else []
    final += [paths["out_spine_modelres"], paths["out_vert_modelres"]] if options.save_modelres_mask else []
    if options.save_debug_data:
        extras += [debug_path(paths, name, scan_format) for name in ("image_preprocessed", "sem_raw", "sem_native")]
        final += [debug_path(paths, name, scan_format) for name in ("vert_arr_raw", "vert_arr_return_final")]
    instance = [paths["out_vert_raw"]] if options.save_raw else []
    return Wanted(tuple(semantic), tuple(extras), tuple(instance), tuple(final))


def debug_path(paths: Mapping[str, Path], name: str, scan_format: str) -> Path:
    """``debug_T2w/sem_raw_T2w.nii.gz``."""
    return paths["out_debug"] / f"{name}_{scan_format}.nii.gz"


def write_semantic(
    writer: Writer, stage: SemanticStage, paths: Mapping[str, Path], options: OutputOptions, scan_format: str
) -> None:
    """Files of the semantic stage."""
    if options.save_raw:
        writer.mask(paths["out_spine_raw"], stage.mask)
        writer.mask(paths["out_spine_native"], stage.native)
    if options.save_softmax_logits and stage.probabilities is not None:
        names = ["background", *(BY_ID[i].key if i in BY_ID else str(i) for i in stage.class_ids[1:])]
        writer.arrays(
            paths["out_logits"],
            probabilities=stage.probabilities,
            class_ids=np.array(stage.class_ids, np.int16),
            class_names=np.array(names),
            affine=stage.mask.affine,
        )
    if options.save_uncertainty and stage.uncertainty is not None:
        writer.image(paths["out_uncertainty"], stage.uncertainty)
    for name, volume in stage.debug.items():
        writer.image(debug_path(paths, name, scan_format), volume)


def read_semantic(paths: Mapping[str, Path]) -> SemanticStage:
    """The semantic stage from its raw files."""
    mask, native = (read_labels(paths[key]) for key in ("out_spine_raw", "out_spine_native"))
    return SemanticStage(mask.with_array(mask.array.astype(np.uint8)), native.with_array(native.array.astype(np.uint8)))


def write_final(
    writer: Writer,
    result: Segmentation,
    image: Volume,
    paths: Mapping[str, Path],
    options: Options,
    header: Mapping[str, Any],
    title: str,
    warnings: Sequence[str],
) -> None:
    """The four files and what else was asked for."""
    writer.mask(paths["out_spine"], result.semantic)
    writer.mask(paths["out_vert"], result.instance)
    writer.json(paths["out_ctd"], poi_document(result.points, image.grid, {**header, "warnings": list(warnings)}))
    if options.output.save_modelres_mask:
        grid = result.stage.mask.grid
        writer.mask(paths["out_spine_modelres"], result.semantic.on(grid))
        writer.mask(paths["out_vert_modelres"], result.instance.on(grid))
    if options.output.save_debug_data:
        form = paths["out_debug"].name.removeprefix("debug_")
        writer.mask(debug_path(paths, "vert_arr_raw", form), result.raw_instance)
        writer.mask(debug_path(paths, "vert_arr_return_final", form), result.instance)
    if options.output.save_stats:
        write_stats(writer, result.semantic, result.instance, result.naming is not None, paths)
    confidence = result.naming.confidence if result.naming is not None else None
    try:  # a picture that fails must not cost the masks
        png = snapshot_png(image, result.semantic, result.instance, title, warnings, confidence)
    except (
        ValueError,
        ArithmeticError,
        LookupError,
        RuntimeError,
        OSError,
    ) as error:  # a picture that fails must not cost the masks
        logger.warning("The picture could not be drawn: %s", error)
        return
    writer.write(paths["out_snap"], lambda stream: stream.write(png))
    if paths["out_snap2"] != paths["out_snap"]:
        writer.write(paths["out_snap2"], lambda stream: stream.write(png))


def points_header(models: Models, keywords: Mapping[str, Any], version: str, naming: Naming | None) -> dict[str, Any]:
    """Header of the centroid file: version, models, names, every ``proc_*`` argument as a string.

    No path and no time stamp, so that equal runs give equal files.
    """
    parts = (models.semantic, models.instance, models.labeling)
    return {
        "version": version,
        "models": {str(n): _about(model) for n, model in enumerate(parts)},
        "naming": naming_header(naming),
        **{key: str(value) for key, value in keywords.items() if key.startswith("proc_")},
    }


def naming_header(naming: Naming | None) -> dict[str, Any]:
    """How sure the names are; empty when the vertebrae were only numbered."""
    if naming is None:
        return {}
    return {
        "confidence": {instance_name(v): round(p, 4) for v, p in naming.confidence.items()},
        "alternatives": {
            instance_name(v): [instance_name(other), round(p, 4)] for v, (other, p) in naming.alternatives.items()
        },
        "ambiguous": naming.ambiguous,
        "notes": list(naming.notes),
    }


def _about(model: Model | None) -> dict[str, Any]:
    if model is None:
        return {"name": "No Model"}
    config = model.config
    return {
        "name": model.name,
        "log_name": config.log_name,
        "fingerprint": model.fingerprint,
        "modality": str(list(config.modalities)),
        "aquisition": str(config.acquisition),  # spelt as in the published system
        "resolution_range": str([list(config.zoom_min), list(config.zoom_max)]),
    }
