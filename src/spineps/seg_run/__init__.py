"""The documented entry points: read, segment, write.  Exceptions become an ``ErrCode`` here, and nowhere else."""

from spineps.seg_run.dataset import process_dataset
from spineps.seg_run.image import process_img_nii, segment_image
from spineps.seg_run.quick import Result, SpinepsResult, choose_models, segment

__all__ = [
    "Result",
    "SpinepsResult",
    "choose_models",
    "process_dataset",
    "process_img_nii",
    "segment",
    "segment_image",
]
