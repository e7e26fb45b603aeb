"""What ``spineps dataset`` does once its options are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from spineps.cli.report import Reporter, print_json
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
    """Every scan that the named semantic model accepts; without a name, every MR and CT scan with the models for it.

    Args:
        folder: the data set.
        names: semantic, instance and labelling model; ``"auto"`` chooses the last for MR or CT.
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
    ct = [pair[0] == Modality.CT for _, pair in chosen]

    def each(get: Callable[..., Any], name: str | None, default: str, default_ct: str) -> list[Any]:
        wanted = [name or (default_ct if is_ct else default) for is_ct in ct]
        loaded = {one: get(one, **how) for one in dict.fromkeys(wanted)}
        return [loaded[one] for one in wanted]

    def progress(scan: Scan, number: int, count: int) -> Progress:
        reporter.next_scan()
        if not reporter.quiet:
            reporter.say(f"[{number}/{count}] {scan.path.name}")
        return reporter

    named = None if labeling.lower() == "auto" else labeling
    unnamed = labeling.lower() in ("none", "landmarks")
    return process_dataset(
        folder,
        model_instance=each(get_instance_model, instance, "instance", "ct_instance"),
        model_semantic=[model for model, _ in chosen],
        model_labeling=None if unnamed else each(get_labeling_model, named, "t2w_labeling", "ct_labeling"),
        landmarks=labeling.lower() == "landmarks",
        modalities=[pair for _, pair in chosen],
        progress=progress,
        **keywords,
    )


def tell_counts(answer: dict[str, Any], as_json: bool) -> None:
    """What a run came to: one line, or the whole answer as JSON."""
    answer["failures"] = [{"code": code.name, "input": str(path)} for code, path in answer["failures"]]
    if as_json:
        print_json(answer)
    else:
        typer.echo("{seen} scans: {processed} processed, {already_done} done already, {failed} failed".format(**answer))
