"""``process_dataset``: every scan of a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spineps.dataset.find import Pair, find_scans
from spineps.dataset.job import Job, Outcome, run_job
from spineps.dataset.logbook import log_file, talking
from spineps.errors import ErrCode, SpinepsError
from spineps.models.enums import Acquisition, Modality
from spineps.options import options_from_keywords
from spineps.outputs.paths import DERIVATIVE_NAME, Scan, output_paths
from spineps.pipeline import Models, Progress
from spineps.seg_run.keywords import OPTION_KEYWORDS, overrides

if TYPE_CHECKING:
    from spineps.models.model import InstanceModel, LabelingModel, SemanticModel

logger = logging.getLogger(__name__)


def process_dataset(
    dataset_path: str | Path,
    model_instance: InstanceModel | None = None,
    model_semantic: SemanticModel | Sequence[SemanticModel] | None = None,
    model_labeling: LabelingModel | None = None,
    rawdata_name: str = "rawdata",
    derivative_name: str = DERIVATIVE_NAME,
    modalities: Sequence[tuple[Modality, Acquisition]] | tuple[Modality, Acquisition] = (
        (Modality.T2w, Acquisition.sag),
    ),
    save_debug_data: bool = False,
    save_modelres_mask: bool = False,
    save_softmax_logits: bool = False,
    save_log_data: bool = True,
    override_semantic: bool = False,
    override_instance: bool = False,
    override_postpair: bool = False,
    override_ctd: bool = False,
    snapshot_copy_folder: str | Path | bool | None = None,
    pad_size: int = 4,
    proc_sem_crop_input: bool = True,
    proc_sem_n4_bias_correction: bool = True,
    proc_sem_remove_inferior_beyond_canal: bool = False,
    proc_sem_clean_beyond_largest_bounding_box: bool = True,
    proc_sem_clean_small_cc_artifacts: bool = True,
    proc_sem_step_size: float | None = None,
    proc_inst_corpus_clean: bool = True,
    proc_inst_clean_small_cc_artifacts: bool = True,
    proc_inst_largest_k_cc: int = 0,
    proc_inst_detect_and_solve_merged_corpi: bool = True,
    proc_inst_batch_size: int = 4,
    proc_inst_amp: bool = False,
    vertebra_instance_labeling_offset: int = 2,
    proc_lab_force_no_tl_anomaly: bool = False,
    proc_fill_3d_holes: bool = True,
    proc_assign_missing_cc: bool = True,
    proc_clean_inst_by_sem: bool = True,
    proc_vertebra_inconsistency: bool = True,
    ignore_model_compatibility: bool = False,
    ignore_inference_compatibility: bool = False,
    ignore_bids_filter: bool = False,
    tta: bool | None = None,
    log_inference_time: bool = True,
    verbose: bool = False,
    *,
    save_raw: bool = True,
    save_uncertainty: bool = False,
    progress: Callable[[Scan, int, int], Progress | None] | None = None,
) -> dict[str, Any]:
    """Segment every scan of a data set, one after the other; a scan that fails never ends the run.

    Arguments that are not listed mean the same as in :func:`process_img_nii`.

    Args:
        dataset_path: its folder.
        model_instance: None takes ``instance``.
        model_semantic: one for all pairs, or one per pair; None takes the bundled one for each modality.
        model_labeling: None numbers the vertebrae from the top.
        rawdata_name: folder of the scans below ``dataset_path``; ``"."`` for itself.
        modalities: (modality, plane) pairs to process.
        save_log_data: write ``<dataset>/logs/...log``.
        snapshot_copy_folder: also put pictures there; True means ``<dataset>/snaps_seg``.
        pad_size: voxels of padding at each side.
        ignore_model_compatibility: use models for pairs that they were not made for.
        ignore_inference_compatibility: likewise for single scans.
        ignore_bids_filter: take every NIfTI file.
        progress: called with (scan, number from 1, count); returns the ``progress`` for that scan.

    Returns:
        ``{"seen", "processed", "already_done", "failed", "failures": [(ErrCode, path)]}``.

    Raises:
        ValueError: models and pairs do not fit.
        InputNotFoundError: no such folder.
        OptionError: an option has an impossible value.
    """
    given = dict(locals())
    from spineps.models.registry import get_instance_model

    dataset = Path(dataset_path)
    pairs: list[Pair] = [modalities] if isinstance(modalities[0], Modality) else list(modalities)  # type: ignore
    semantic = _one_per_pair(model_semantic, pairs, ignore_model_compatibility)
    keywords = {"proc_pad_size": pad_size} | {key: given[key] for key in OPTION_KEYWORDS if key in given}
    options = options_from_keywords(**keywords)
    snapshots = dataset / "snaps_seg" if snapshot_copy_folder is True else snapshot_copy_folder or None
    scans = find_scans(dataset, pairs, rawdata_name, ignore_bids_filter)
    instance = model_instance or get_instance_model()
    outcomes: list[tuple[ErrCode, Path]] = []
    with talking(verbose), log_file(dataset if save_log_data else None):
        logger.info("%d scans found in %s", len(scans), dataset)
        for number, (scan, pair) in enumerate(scans, 1):
            job = Job(
                scan,
                Models(semantic[pairs.index(pair)], instance, model_labeling),
                options,
                output_paths(scan, derivative_name, snapshots),
                keywords,
                None,
                overrides(override_semantic, override_instance, override_postpair, override_ctd),
                ignore_inference_compatibility,
                progress=progress(scan, number, len(scans)) if progress else None,
            )
            outcome = _survive(job)
            outcomes.append((outcome.code, scan.path))
            logger.info("%d/%d %s: %s, %.1f s", number, len(scans), scan.path.name, outcome.code.name, outcome.seconds)
    codes = [code for code, _ in outcomes]
    return {
        "seen": len(scans),
        "processed": codes.count(ErrCode.OK),
        "already_done": codes.count(ErrCode.ALL_DONE),
        "failed": sum(code.exit_code != 0 for code in codes),
        "failures": [(code, path) for code, path in outcomes if code.exit_code],
    }


def _survive(job: Job) -> Outcome:
    """``run_job`` that turns even a programming error into an outcome: the other scans must not pay for it."""
    try:
        return run_job(job)
    except Exception as error:
        logger.exception("%s: unexpected error; please report it.", job.scan.path.name)
        return Outcome(ErrCode.UNKNOWN, error=SpinepsError(f"{type(error).__name__}: {error}", "Please report it."))


def _one_per_pair(
    models: SemanticModel | Sequence[SemanticModel] | None,
    pairs: Sequence[Pair],
    ignore_compatibility: bool,
) -> list[SemanticModel]:
    from spineps.models.registry import get_semantic_model

    if models is None:
        names = {Modality.CT: "ct", Modality.T1w: "t1w", Modality.Vibe: "vibe"}
        return [get_semantic_model(names.get(modality, "t2w")) for modality, _ in pairs]
    chosen: list[Any] = list(models) if isinstance(models, (list, tuple)) else [models] * len(pairs)
    if len(chosen) != len(pairs):
        raise ValueError(f"{len(chosen)} semantic models for {len(pairs)} pairs: give one, or one for each pair.")
    for model, (modality, plane) in zip(chosen, pairs, strict=True):
        fits = modality in model.modalities and plane in (*model.config.acquisitions, Acquisition.iso)
        if not (fits or ignore_compatibility):
            raise ValueError(
                f"Model {model.name!r} was not made for {modality.name} {plane.name}; choose another model, or set "
                "ignore_model_compatibility=True."
            )
    return chosen
