"""``segment``: one call for people in a hurry."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spineps.dataset.compatibility import is_ct, modalities_of
from spineps.dataset.job import Job, Outcome, as_nii, in_memory, run_job
from spineps.dataset.logbook import talking
from spineps.errors import ErrCode, ModelError, OptionError, SpinepsError
from spineps.options import options_from_keywords
from spineps.outputs.dicom.convert import dicom_scan
from spineps.outputs.dicom.seg import seg_paths, write_segs
from spineps.outputs.dicom.series import is_dicom
from spineps.outputs.nifti import from_memory, read_image, read_labels
from spineps.outputs.paths import DERIVATIVE_NAME, Scan, output_paths, scan_from
from spineps.pipeline import Models, Progress
from spineps.seg_run.keywords import checked_crop

if TYPE_CHECKING:
    from spineps.models.model import InstanceModel, LabelingModel, SemanticModel

logger = logging.getLogger(__name__)


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
    precision: str | None = None,
    output_in_memory: bool = False,
    derivative_name: str = DERIVATIVE_NAME,
    override: bool | Collection[str] = False,
    snapshot_copy_folder: str | Path | None = None,
    ignore_compatibility_issues: bool = False,
    crop: Sequence[slice] | None = None,
    verbose: bool = False,
    progress: Progress | None = None,
    layout: str = "published",
    series: str | None = None,
    dicom_seg: bool = False,
    **options: Any,
) -> Result:
    """Segment one scan, for people in a hurry.

    Args:
        image: path of a NIfTI file, a DICOM folder or file, or a TPTBox ``BIDS_FILE`` (results are written beside it);
            or an image in memory: nibabel, TPTBox ``NII`` or :class:`~spineps.volume.Volume` (nothing is written).
        model_semantic: name, folder or model; None chooses by the file's name and its grey values.
        model_instance: likewise.
        model_labeling: likewise; ``None`` or ``"none"`` numbers the vertebrae from the top, ``"landmarks"`` names them
            by what the masks show, without a network.
        use_cpu: never use a GPU.
        threads: CPU threads; None takes all.
        precision: of the networks, ``"f32"`` or ``"bf16"``; None: see :func:`spineps.inference.engine.load_network`.
        output_in_memory: write nothing.
        derivative_name: see :func:`process_img_nii`.
        override: do everything again, or only the named stages ("semantic", "instance", "final").
        snapshot_copy_folder: see :func:`process_img_nii`.
        ignore_compatibility_issues: see :func:`process_img_nii`.
        crop: see :func:`process_img_nii`.
        verbose: log to the terminal.
        progress: called with (phase, done, total).
        layout: see :func:`process_img_nii`.
        series: which series of a DICOM folder: number, UID or part of its description.
        dicom_seg: also write both masks as DICOM segmentation objects (input must be DICOM).
        **options: ``proc_*``, ``save_*`` and ``tta`` keywords of :func:`process_img_nii`.

    Raises:
        OptionError: an option is unknown or has an impossible value.
        TypeError: ``image`` is nothing that can be segmented.
    """
    settings = options_from_keywords(layout=layout, **options)
    box = checked_crop(crop)
    on_disk = isinstance(image, (str, PathLike, Scan)) or hasattr(image, "dataset")
    job = None
    with talking(verbose):
        try:
            memory, picked = None if on_disk else image, None
            if isinstance(image, (str, PathLike)) and is_dicom(image):
                scan, picked, volume = dicom_scan(Path(image), series, derivative_name, layout, not output_in_memory)
                memory = volume if output_in_memory else None
            elif series is not None or dicom_seg:
                raise OptionError("series and dicom_seg are for DICOM input.", "For a NIfTI scan: spineps dicom-seg.")
            else:
                scan = scan_from(image if on_disk else "image.nii.gz")
            chosen = (model_semantic, model_instance, model_labeling)
            models = choose_models(scan, *chosen, image=memory, use_cpu=use_cpu, threads=threads, precision=precision)
            save = on_disk and not output_in_memory
            job = Job(
                scan,
                models,
                settings,
                output_paths(scan, derivative_name, snapshot_copy_folder, layout),
                options,
                box,
                frozenset(override if isinstance(override, Collection) else {"semantic"} if override else ()),
                ignore_compatibility_issues,
                save,
                memory,
                progress,
            )
            outcome = run_job(job)
            if dicom_seg and picked is not None and save and outcome.error is None:
                outcome = replace(outcome, warnings=(*outcome.warnings, *write_segs(job.paths, picked)))
        except SpinepsError as error:
            if isinstance(error, OptionError):
                raise
            logger.error("%s", error)
            outcome = Outcome(error.code, error=error)
    paths = dict(job.paths) if job is not None and job.save else {}
    if paths and dicom_seg:
        paths |= seg_paths(paths)
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
    precision: str | None = None,
) -> Models:
    """Models by name; what is not named is chosen for MR or CT by the scan's name, else by its grey values.

    ``labeling`` may also be ``"none"`` (number the vertebrae) or ``"landmarks"`` (name them without a network).
    """
    from spineps.models.registry import get_instance_model, get_labeling_model, get_semantic_model

    how: dict[str, Any] = {"use_cpu": use_cpu, "threads": threads, "precision": precision}
    landmarks = labeling == "landmarks"
    if landmarks or (isinstance(labeling, str) and labeling.lower() == "none"):
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
    if labeling == "auto":
        try:
            labeling = get_labeling_model("ct_labeling" if ct else "t2w_labeling", **how)
        except ModelError as error:
            logger.warning("%s Until then the names rest on landmarks alone.", error)
            labeling, landmarks = None, True
    return Models(
        get_semantic_model(semantic, **how) if isinstance(semantic, (str, Path)) else semantic,
        get_instance_model(instance, **how) if isinstance(instance, (str, Path)) else instance,
        get_labeling_model(labeling, **how) if isinstance(labeling, (str, Path)) else labeling,
        landmarks,
    )
