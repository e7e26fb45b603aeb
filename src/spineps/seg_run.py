"""The documented entry points: read, segment, write.  Exceptions become an ``ErrCode`` here, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spineps.dataset.compatibility import is_ct, modalities_of
from spineps.dataset.find import Pair, find_scans
from spineps.dataset.job import Job, Outcome, as_nii, in_memory, run_job
from spineps.dataset.logbook import clocked, log_file, talking
from spineps.errors import ErrCode, OptionError, SpinepsError
from spineps.models.enums import Acquisition, Modality
from spineps.options import options_from_keywords
from spineps.outputs.nifti import from_memory, read_image, read_labels
from spineps.outputs.paths import DERIVATIVE_NAME, Scan, output_paths, scan_from
from spineps.pipeline import Models, Progress

if TYPE_CHECKING:
    from spineps.models.model import InstanceModel, LabelingModel, SemanticModel

logger = logging.getLogger(__name__)

#: Keywords of the entry points that become :class:`~spineps.options.Options`.
OPTION_KEYWORDS = (
    "proc_pad_size", "proc_normalize_input", "proc_sem_crop_input", "proc_sem_n4_bias_correction",
    "proc_sem_remove_inferior_beyond_canal", "proc_sem_clean_beyond_largest_bounding_box",
    "proc_sem_clean_small_cc_artifacts", "proc_sem_step_size", "proc_inst_corpus_clean",
    "proc_inst_clean_small_cc_artifacts", "proc_inst_largest_k_cc", "proc_inst_detect_and_solve_merged_corpi",
    "proc_inst_batch_size", "proc_inst_amp", "proc_lab_force_no_tl_anomaly", "proc_fill_3d_holes",
    "proc_assign_missing_cc", "proc_assign_missing_cc_fast", "proc_clean_inst_by_sem", "proc_vertebra_inconsistency",
    "vertebra_instance_labeling_offset", "tta", "save_raw", "save_modelres_mask", "save_softmax_logits",
    "save_uncertainty", "save_debug_data",
)  # fmt: skip


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
    tta: bool | None = None,
    progress: Progress | None = None,
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
        proc_pad_size: voxels of padding at each side.
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
        proc_inst_amp: half precision on a GPU.
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
        tta: force mirrored passes on or off.
        progress: called with (phase, done, total).

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
        keywords = {key: given[key] for key in OPTION_KEYWORDS}
        job = Job(
            scan,
            Models(model_semantic, model_instance, model_labeling),
            options_from_keywords(**keywords),
            output_paths(scan, derivative_name, snapshot_copy_folder),
            keywords,
            _checked_crop(crop),
            _overrides(override_semantic, override_instance, override_postpair, override_ctd),
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
                _overrides(override_semantic, override_instance, override_postpair, override_ctd),
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


@dataclass(frozen=True)
class Result:
    """What :func:`segment` returns.

    Attributes:
        errcode: ``OK``, ``ALL_DONE`` or what went wrong.
        output_paths: files by name; empty for images in memory.
        warnings: what the user should know.
        error: what went wrong, with its cure.
        seconds: time taken.
    """

    errcode: ErrCode
    output_paths: dict[str, Path] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: SpinepsError | None = None
    seconds: float = 0.0
    _outcome: Outcome | None = field(default=None, repr=False)
    _job: Job | None = field(default=None, repr=False)

    @property
    def success(self) -> bool:
        """Did it work (now or earlier)?"""
        return self.errcode.exit_code == 0

    @cached_property
    def semantic(self) -> Any:
        """Structures on the input's grid, TPTBox ``NII``; raises what went wrong if nothing came out."""
        return self._parts[0]

    @cached_property
    def vertebrae(self) -> Any:
        """Vertebrae, discs and endplates on the input's grid, TPTBox ``NII``."""
        return self._parts[1]

    @cached_property
    def points(self) -> Any:
        """TPTBox ``POI``."""
        return self._parts[2]

    @property
    def vertebra(self) -> Any:
        """Name of ``vertebrae`` in SPINEPS 2."""
        return self.vertebrae

    @property
    def centroids(self) -> Any:
        """Name of ``points`` in SPINEPS 2."""
        return self.points

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        if self.error is not None:
            raise self.error
        assert self._outcome is not None and self._job is not None
        if self._outcome.segmentation is not None:
            return in_memory(self._outcome.segmentation, self._job)
        from TPTBox import POI

        masks = [as_nii(read_labels(self.output_paths[key])) for key in ("out_spine", "out_vert")]
        return masks[0], masks[1], POI.load(self.output_paths["out_ctd"])


SpinepsResult = Result


def segment(
    image: Any,
    *,
    model_semantic: str | SemanticModel | None = None,
    model_instance: str | InstanceModel | None = None,
    model_labeling: str | LabelingModel | None = "auto",
    use_cpu: bool = False,
    threads: int | None = None,
    output_in_memory: bool = False,
    derivative_name: str = DERIVATIVE_NAME,
    override: bool | Collection[str] = False,
    snapshot_copy_folder: str | Path | None = None,
    ignore_compatibility_issues: bool = False,
    crop: Sequence[slice] | None = None,
    verbose: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Segment one scan, for people in a hurry.

    Args:
        image: path or TPTBox ``BIDS_FILE`` (results are written beside it), or an image in memory: nibabel, TPTBox
            ``NII`` or :class:`~spineps.volume.Volume` (nothing is written).
        model_semantic: name, folder or model; None chooses by the file's name and its grey values.
        model_instance: likewise.
        model_labeling: likewise; ``None`` or ``"none"`` numbers the vertebrae from the top.
        use_cpu: never use a GPU.
        threads: CPU threads; None takes all.
        output_in_memory: write nothing.
        derivative_name: see :func:`process_img_nii`.
        override: do everything again, or only the named stages ("semantic", "instance", "final").
        snapshot_copy_folder: see :func:`process_img_nii`.
        ignore_compatibility_issues: see :func:`process_img_nii`.
        crop: see :func:`process_img_nii`.
        verbose: log to the terminal.
        progress: called with (phase, done, total).
        **options: ``proc_*``, ``save_*`` and ``tta`` keywords of :func:`process_img_nii`.

    Raises:
        OptionError: an option is unknown or has an impossible value.
        TypeError: ``image`` is nothing that can be segmented.
    """
    settings = options_from_keywords(**options)
    box = _checked_crop(crop)
    on_disk = isinstance(image, (str, PathLike, Scan)) or hasattr(image, "dataset")
    job = None
    with talking(verbose):
        try:
            scan = scan_from(image if on_disk else "image.nii.gz")
            chosen = (model_semantic, model_instance, model_labeling)
            models = choose_models(scan, *chosen, image=None if on_disk else image, use_cpu=use_cpu, threads=threads)
            save = on_disk and not output_in_memory
            job = Job(
                scan,
                models,
                settings,
                output_paths(scan, derivative_name, snapshot_copy_folder),
                options,
                box,
                frozenset(override if isinstance(override, Collection) else {"semantic"} if override else ()),
                ignore_compatibility_issues,
                save,
                None if on_disk else image,
                progress,
            )
            outcome = run_job(job)
        except SpinepsError as error:
            if isinstance(error, OptionError):
                raise
            logger.error("%s", error)
            outcome = Outcome(error.code, error=error)
    paths = dict(job.paths) if job is not None and job.save else {}
    return Result(outcome.code, paths, outcome.warnings, outcome.error, outcome.seconds, outcome, job)


def choose_models(
    scan: Scan,
    semantic: str | SemanticModel | None = None,
    instance: str | InstanceModel | None = None,
    labeling: str | LabelingModel | None = "auto",
    *,
    image: Any = None,
    use_cpu: bool = False,
    threads: int | None = None,
) -> Models:
    """Models by name; what is not named is chosen for MR or CT by the scan's name, else by its grey values."""
    from spineps.models.registry import get_instance_model, get_labeling_model, get_semantic_model

    how: dict[str, Any] = {"use_cpu": use_cpu, "threads": threads}
    if isinstance(labeling, str) and labeling.lower() == "none":
        labeling = None
    ct = False
    if semantic is None or instance is None or labeling == "auto":
        volume = None
        if image is not None:
            volume = from_memory(image)[0]
        elif not modalities_of(scan.format):
            volume = read_image(scan.path)[0]
        ct = is_ct(scan, volume)
    semantic = semantic or ("ct" if ct else "t2w")
    instance = instance or ("ct_instance" if ct else "instance")
    labeling = ("ct_labeling" if ct else "t2w_labeling") if labeling == "auto" else labeling
    return Models(
        get_semantic_model(semantic, **how) if isinstance(semantic, (str, Path)) else semantic,
        get_instance_model(instance, **how) if isinstance(instance, (str, Path)) else instance,
        get_labeling_model(labeling, **how) if isinstance(labeling, (str, Path)) else labeling,
    )


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


def _overrides(semantic: bool, instance: bool, postpair: bool, ctd: bool) -> frozenset[str]:
    """Stages that must be done again; whatever follows from a stage is done again with it."""
    chosen = {"semantic": semantic, "instance": instance, "final": postpair or ctd}
    return frozenset(stage for stage, flag in chosen.items() if flag)


def _checked_crop(crop: Any) -> tuple[slice, slice, slice] | None:
    if crop is None:
        return None
    parts = tuple(crop) if isinstance(crop, Sequence) else ()
    if len(parts) != 3 or not all(isinstance(s, slice) and s.step in (None, 1) for s in parts):
        raise OptionError(f"crop is {crop!r}.", "Give three slices without steps, in voxels of the input.")
    return parts
