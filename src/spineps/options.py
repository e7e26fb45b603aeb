"""What can be switched, one frozen dataclass per phase, built once from the documented ``proc_*`` keywords."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from spineps.errors import OptionError

#: Names and folders of the outputs: those of the published system, or a BIDS derivative data set.
LAYOUTS = ("published", "bids")


@dataclass(frozen=True)
class PreprocessOptions:
    """Before the first network.

    Attributes:
        normalize: subtract the minimum and cap the maximum (MR only; CT keeps Hounsfield units).
        n4: N4 bias field correction (MR only).
        crop: work only on the box of non-background voxels.
        pad: voxels added at each side.
    """

    normalize: bool = True
    n4: bool = True
    crop: bool = True
    pad: int = 4


@dataclass(frozen=True)
class SemanticOptions:
    """The semantic phase.

    Attributes:
        remove_inferior_beyond_canal: delete everything far above and below the canal.
        clean_beyond_largest_bounding_box: delete components far from the main one.
        clean_small_cc_artifacts: delete specks.
        fill_3d_holes: fill holes inside structures.
        step_size: tile step as a fraction of the patch (0..1]; None takes the model's.
        tta: average over mirrored passes; None takes the model's setting.
    """

    remove_inferior_beyond_canal: bool = False
    clean_beyond_largest_bounding_box: bool = True
    clean_small_cc_artifacts: bool = True
    fill_3d_holes: bool = True
    step_size: float | None = None
    tta: bool | None = None


@dataclass(frozen=True)
class InstanceOptions:
    """The instance phase.

    Attributes:
        corpus_clean: delete small body fragments before centres are taken.
        clean_small_cc_artifacts: delete small fragments of instances.
        largest_k_cc: keep only this many components of each cutout answer; 0 keeps all.
        detect_and_solve_merged_corpi: find bodies that are fused and split them.
        fill_3d_holes: fill holes inside instances.
        batch_size: cutouts per network call.
        amp: bfloat16 arithmetic.
    """

    corpus_clean: bool = True
    clean_small_cc_artifacts: bool = True
    largest_k_cc: int = 0
    detect_and_solve_merged_corpi: bool = True
    fill_3d_holes: bool = True
    batch_size: int = 4
    amp: bool = False


@dataclass(frozen=True)
class PostOptions:
    """Cleaning both masks against each other.

    Attributes:
        assign_missing_cc: give vertebra voxels without an instance to a neighbour.
        assign_missing_cc_fast: first grow instances along 6-neighbours.
        clean_inst_by_sem: delete instance voxels outside the semantic mask.
        vertebra_inconsistency: repair articular processes shared by two vertebrae.
        labeling_offset: ids start at 1 + this (1: the first vertebra is called C2, 0: C1) when no names are known.
    """

    assign_missing_cc: bool = True
    assign_missing_cc_fast: bool = False
    clean_inst_by_sem: bool = True
    vertebra_inconsistency: bool = True
    labeling_offset: int = 1


@dataclass(frozen=True)
class LabelingOptions:
    """Naming.

    Attributes:
        force_no_tl_anomaly: exactly 12 thoracic and, before the sacrum, 5 lumbar vertebrae (no T11 or T13).
    """

    force_no_tl_anomaly: bool = False


@dataclass(frozen=True)
class OutputOptions:
    """Which extras are written beside the four files, and under which names (``published`` or ``bids``)."""

    save_raw: bool = True
    save_modelres_mask: bool = False
    save_softmax_logits: bool = False
    save_uncertainty: bool = False
    save_debug_data: bool = False
    save_stats: bool = True
    save_report: bool = False
    layout: str = "published"


@dataclass(frozen=True)
class Options:
    """Everything that changes a result, in one object that every output folder records."""

    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    semantic: SemanticOptions = field(default_factory=SemanticOptions)
    instance: InstanceOptions = field(default_factory=InstanceOptions)
    post: PostOptions = field(default_factory=PostOptions)
    labeling: LabelingOptions = field(default_factory=LabelingOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain values, ready for JSON."""
        return asdict(self)


def options_from_keywords(**kw: Any) -> Options:
    """Options from the documented keywords of ``process_img_nii`` (SPINEPS manual and 2.1.3).

    Unknown keywords raise :class:`~spineps.errors.OptionError`, so that a typing slip is never silently ignored.
    """
    fill = bool(kw.pop("proc_fill_3d_holes", True))
    clean = bool(kw.pop("proc_inst_clean_small_cc_artifacts", True))
    offset = int(kw.pop("vertebra_instance_labeling_offset", 2))
    pad = int(kw.pop("proc_pad_size", 4))
    step = kw.pop("proc_sem_step_size", None)
    batch = int(kw.pop("proc_inst_batch_size", 4))
    layout = str(kw.pop("layout", "published"))
    if layout not in LAYOUTS:
        raise OptionError(f"layout is {layout!r}.", f"Give one of {', '.join(LAYOUTS)}.")
    if pad < 0:
        raise OptionError(f"proc_pad_size is {pad}.", "Give 0 or more voxels.")
    if step is not None and not 0 < float(step) <= 1:
        raise OptionError(f"proc_sem_step_size is {step}.", "Give a fraction of the patch in (0, 1].")
    if batch < 1:
        raise OptionError(f"proc_inst_batch_size is {batch}.", "Give 1 or more.")
    if offset not in (1, 2):
        raise OptionError(f"vertebra_instance_labeling_offset is {offset}.", "Give 1 (first is C1) or 2 (first is C2).")
    options = Options(
        preprocess=PreprocessOptions(
            normalize=bool(kw.pop("proc_normalize_input", True)),
            n4=bool(kw.pop("proc_sem_n4_bias_correction", True)),
            crop=bool(kw.pop("proc_sem_crop_input", True)),
            pad=pad,
        ),
        semantic=SemanticOptions(
            remove_inferior_beyond_canal=bool(kw.pop("proc_sem_remove_inferior_beyond_canal", False)),
            clean_beyond_largest_bounding_box=bool(kw.pop("proc_sem_clean_beyond_largest_bounding_box", True)),
            clean_small_cc_artifacts=bool(kw.pop("proc_sem_clean_small_cc_artifacts", True)),
            fill_3d_holes=fill,
            step_size=None if step is None else float(step),
            tta=kw.pop("tta", None),
        ),
        instance=InstanceOptions(
            corpus_clean=bool(kw.pop("proc_inst_corpus_clean", True)),
            clean_small_cc_artifacts=clean,
            largest_k_cc=int(kw.pop("proc_inst_largest_k_cc", 0)),
            detect_and_solve_merged_corpi=bool(kw.pop("proc_inst_detect_and_solve_merged_corpi", True)),
            fill_3d_holes=fill,
            batch_size=batch,
            amp=bool(kw.pop("proc_inst_amp", False)),
        ),
        post=PostOptions(
            assign_missing_cc=bool(kw.pop("proc_assign_missing_cc", True)),
            assign_missing_cc_fast=bool(kw.pop("proc_assign_missing_cc_fast", False)),
            clean_inst_by_sem=bool(kw.pop("proc_clean_inst_by_sem", True)),
            vertebra_inconsistency=bool(kw.pop("proc_vertebra_inconsistency", True)),
            labeling_offset=offset - 1,
        ),
        labeling=LabelingOptions(force_no_tl_anomaly=bool(kw.pop("proc_lab_force_no_tl_anomaly", False))),
        output=OutputOptions(
            save_raw=bool(kw.pop("save_raw", True)),
            save_modelres_mask=bool(kw.pop("save_modelres_mask", False)),
            save_softmax_logits=bool(kw.pop("save_softmax_logits", False)),
            save_uncertainty=bool(kw.pop("save_uncertainty", False)),
            save_debug_data=bool(kw.pop("save_debug_data", False)),
            save_stats=bool(kw.pop("save_stats", True)),
            save_report=bool(kw.pop("save_report", False)),
            layout=layout,
        ),
    )
    if kw:
        raise OptionError(f"unknown option(s): {', '.join(sorted(kw))}.", "See the docstring of process_img_nii.")
    return options
