"""What the entry points share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spineps.errors import OptionError

#: Keywords of the entry points that become :class:`~spineps.options.Options`.
OPTION_KEYWORDS = (
    "proc_pad_size", "proc_normalize_input", "proc_sem_crop_input", "proc_sem_n4_bias_correction",
    "proc_sem_remove_inferior_beyond_canal", "proc_sem_clean_beyond_largest_bounding_box",
    "proc_sem_clean_small_cc_artifacts", "proc_sem_step_size", "proc_inst_corpus_clean",
    "proc_inst_clean_small_cc_artifacts", "proc_inst_largest_k_cc", "proc_inst_detect_and_solve_merged_corpi",
    "proc_inst_batch_size", "proc_inst_amp", "proc_lab_force_no_tl_anomaly", "proc_fill_3d_holes",
    "proc_assign_missing_cc", "proc_assign_missing_cc_fast", "proc_clean_inst_by_sem", "proc_vertebra_inconsistency",
    "vertebra_instance_labeling_offset", "tta", "save_raw", "save_modelres_mask", "save_softmax_logits",
    "save_uncertainty", "save_debug_data", "save_stats", "save_report", "layout",
)  # fmt: skip


def overrides(semantic: bool, instance: bool, postpair: bool, ctd: bool) -> frozenset[str]:
    """Stages that must be done again; whatever follows from a stage is done again with it."""
    chosen = {"semantic": semantic, "instance": instance, "final": postpair or ctd}
    return frozenset(stage for stage, flag in chosen.items() if flag)


def checked_crop(crop: Any) -> tuple[slice, slice, slice] | None:
    if crop is None:
        return None
    parts = tuple(crop) if isinstance(crop, Sequence) else ()
    if len(parts) != 3 or not all(isinstance(s, slice) and s.step in (None, 1) for s in parts):
        raise OptionError(f"crop is {crop!r}.", "Give three slices without steps, in voxels of the input.")
    return parts
