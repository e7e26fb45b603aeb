"""``process_img_nii``: one image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spineps.dataset.job import Job, in_memory, run_job
from spineps.dataset.logbook import clocked, talking
from spineps.errors import ErrCode, SpinepsError
from spineps.options import options_from_keywords
from spineps.outputs.paths import DERIVATIVE_NAME, output_paths, scan_from
from spineps.pipeline import Models, Progress
from spineps.seg_run.keywords import OPTION_KEYWORDS, checked_crop, overrides

if TYPE_CHECKING:
    from spineps.models.model import InstanceModel, LabelingModel, SemanticModel

logger = logging.getLogger(__name__)


def process_img_nii(
    img_ref: Any,
    model_semantic: SemanticModel,
    model_instance: InstanceModel,
    model_labeling: LabelingModel | None = None,
    derivative_name: str = DERIVATIVE_NAME,
    save_modelres_mask: bool = False,
    save_softmax_logits: bool = False,
    save_debug_data: bool = False,
    save_raw: bool = True,
    override_semantic: bool = False,
    override_instance: bool = False,
    override_postpair: bool = False,
    override_ctd: bool = False,
    proc_pad_size: int = 4,
    proc_normalize_input: bool = True,
    crop: Sequence[slice] | None = None,
    auto_crop_to_spine: bool | str = "auto",
    auto_crop_when_max_res_leq: float = 1.2,
    auto_crop_req_crop_min_dim: int = 200,
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
    proc_assign_missing_cc_fast: bool = False,
    proc_clean_inst_by_sem: bool = True,
    proc_vertebra_inconsistency: bool = True,
    lambda_semantic: Callable[[Any], Any] | None = None,
    snapshot_copy_folder: str | Path | None = None,
    ignore_bids_filter: bool = False,
    ignore_compatibility_issues: bool = False,
    log_inference_time: bool = True,
    return_output_instead_of_save: bool = False,
    timing: bool = False,
    verbose: bool = False,
    _nii: Any = None,
    _dataset_id_ct_crop: int = 100,
    *,
    save_uncertainty: bool = False,
    save_stats: bool = True,
    save_report: bool = False,
    tta: bool | None = None,
    progress: Progress | None = None,
    layout: str = "published",
) -> tuple[dict[str, Path], ErrCode] | tuple[Any, Any, Any, ErrCode]:
    """Segment one image; also called ``segment_image`` (its name in SPINEPS 2.1.3).

    A bad scan raises nothing: the reason and its cure are logged, and the ``ErrCode`` tells its kind.

    Args:
        img_ref: TPTBox ``BIDS_FILE`` or a path.
        model_semantic: see :func:`spineps.get_semantic_model`.
        model_instance: see :func:`spineps.get_instance_model`.
        model_labeling: see :func:`spineps.get_labeling_model`; None numbers the vertebrae from the top.
        derivative_name: folder of the outputs below the data set; may be a whole path.
        save_modelres_mask: also write both masks at the model's voxel size.
        save_softmax_logits: also write the class probabilities (npz, float16, model grid, with class names).
        save_debug_data: also write intermediate volumes.
        save_raw: keep the raw masks, from which a later run goes on.
        override_semantic: do not use an earlier semantic result again (nor what followed from it).
        override_instance: do not use an earlier instance result again.
        override_postpair: do the post-processing again.
        override_ctd: do points and picture again (with the post-processing that they come from).
        proc_pad_size: voxels of padding at each side, for models that were trained with it (not the bundled ones).
        proc_normalize_input: subtract the minimum, cap the maximum (never done for CT).
        crop: three slices in voxels of the input: look only there.  Results still cover the whole image.
        auto_crop_to_spine: accepted for old scripts; the sliding window needs no second network to find the spine.
        auto_crop_when_max_res_leq: as above.
        auto_crop_req_crop_min_dim: as above.
        proc_sem_crop_input: leave out the background around the body.
        proc_sem_n4_bias_correction: N4 (never for CT).
        proc_sem_remove_inferior_beyond_canal: delete everything far above and below the canal.
        proc_sem_clean_beyond_largest_bounding_box: delete parts far from the spine.
        proc_sem_clean_small_cc_artifacts: delete specks.
        proc_sem_step_size: tile step, fraction of the patch.
        proc_inst_corpus_clean: delete body fragments before centres are taken.
        proc_inst_clean_small_cc_artifacts: delete fragments of instances.
        proc_inst_largest_k_cc: keep so many components of every cutout's answer; 0 keeps all.
        proc_inst_detect_and_solve_merged_corpi: find and split fused bodies.
        proc_inst_batch_size: cutouts per network call.
        proc_inst_amp: bfloat16 arithmetic in the instance network.
        vertebra_instance_labeling_offset: without names the first vertebra is C2 (2) or C1 (1).
        proc_lab_force_no_tl_anomaly: exactly 12 thoracic and 5 lumbar vertebrae.
        proc_fill_3d_holes: fill holes.
        proc_assign_missing_cc: give vertebra voxels without an instance to a neighbour.
        proc_assign_missing_cc_fast: grow instances into them first.
        proc_clean_inst_by_sem: delete instance voxels outside the semantic mask.
        proc_vertebra_inconsistency: repair articular processes shared by two vertebrae.
        lambda_semantic: gets the semantic mask (TPTBox ``NII``, model grid) and returns the one to go on with.
        snapshot_copy_folder: also put the picture there.
        ignore_bids_filter: accept names that are not BIDS without a word.
        ignore_compatibility_issues: let the model look at scans that it was not made for.
        log_inference_time: log the seconds.
        return_output_instead_of_save: write nothing and return the results.
        timing: log the seconds of each phase.
        verbose: log to the terminal.
        _nii: this image (TPTBox ``NII`` or nibabel) instead of the file's content.
        _dataset_id_ct_crop: accepted for old scripts.
        save_uncertainty: also write the entropy (0..1) of the averaged probabilities.
        save_stats: also write the table of measurements (``out_stats``).
        save_report: also write a page to look through in a browser (``out_report``).
        tta: force mirrored passes on or off.
        progress: called with (phase, done, total).
        layout: names and folders: those of the published system, or ``"bids"`` for a BIDS derivative data set in
            ``derivatives/spineps`` unless ``derivative_name`` says otherwise.

    Returns:
        ``({name: path}, ErrCode)``; with ``return_output_instead_of_save`` and success
        ``(semantic NII, instance NII, POI, ErrCode.OK)``.

    Raises:
        OptionError: an option has an impossible value.
        TypeError: ``img_ref`` is neither a path nor a ``BIDS_FILE``.
    """
    given = dict(locals())
    with talking(verbose):
        try:
            scan = scan_from(img_ref)
        except SpinepsError as error:
            logger.error("%s", error)
            return {}, error.code
        if not (scan.bids or ignore_bids_filter):
            logger.warning("%s is not a BIDS name; outputs are named after %r.", scan.path.name, scan.entities["sub"])
        if auto_crop_to_spine is True:
            logger.info("auto_crop_to_spine: nothing is cropped, the network finds the spine in the whole scan.")
        keywords = {key: given[key] for key in OPTION_KEYWORDS}
        job = Job(
            scan,
            Models(model_semantic, model_instance, model_labeling),
            options_from_keywords(**keywords),
            output_paths(scan, derivative_name, snapshot_copy_folder, layout),
            keywords,
            checked_crop(crop),
            overrides(override_semantic, override_instance, override_postpair, override_ctd),
            ignore_compatibility_issues,
            not return_output_instead_of_save,
            _nii,
            clocked(progress) if timing else progress,
            lambda_semantic,
        )
        outcome = run_job(job)
        if log_inference_time and outcome.code == ErrCode.OK:
            logger.info("%s took %.1f s", scan.path.name, outcome.seconds)
    if return_output_instead_of_save and outcome.segmentation is not None:
        return (*in_memory(outcome.segmentation, job), ErrCode.OK)
    return dict(job.paths), outcome.code


segment_image = process_img_nii
