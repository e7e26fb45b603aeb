"""``spineps dataset``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spineps.cli.report import Reporter
from spineps.models.enums import Modality
from spineps.models.model import SemanticModel
from spineps.models.registry import get_instance_model, get_labeling_model, get_semantic_model
from spineps.outputs.paths import Scan
from spineps.pipeline import Progress
from spineps.seg_run import process_dataset


def run_dataset(
    folder: Path,
    names: tuple[str | None, str | None, str],
    how: dict[str, Any],
    reporter: Reporter,
    **keywords: Any,
) -> dict[str, Any]:
    """Every scan that the named semantic model accepts; without a name, every MR and CT scan with the bundled ones.

    Args:
        folder: the data set.
        names: semantic, instance and labelling model.
        how: keywords for loading models.
        reporter: shows progress.
        **keywords: of :func:`spineps.seg_run.process_dataset`.
    """
    semantic, instance, labeling = names
    # Each modality goes to the first model that accepts it.
    taken: dict[Modality, SemanticModel] = {}
    for name in [semantic] if semantic is not None else ["t2w", "t1w", "vibe", "ct"]:
        model = get_semantic_model(name, **how)
        taken = dict.fromkeys(model.modalities, model) | taken
    chosen = [(m, (modality, plane)) for modality, m in taken.items() for plane in m.config.acquisitions]

    def progress(scan: Scan, number: int, count: int) -> Progress:
        reporter.next_scan()
        if not reporter.quiet:
            reporter.say(f"[{number}/{count}] {scan.path.name}")
        return reporter

    return process_dataset(
        folder,
        model_instance=get_instance_model(instance or "instance", **how),
        model_semantic=[model for model, _ in chosen],
        model_labeling=None if labeling.lower() == "none" else get_labeling_model(labeling, **how),
        modalities=[pair for _, pair in chosen],
        progress=progress,
        **keywords,
    )
