"""Segment and name every vertebra of a human spine scan.

``spineps.segment(scan)`` for people in a hurry; ``process_img_nii`` and ``process_dataset`` are the documented entry
points.  Everything is imported at its first use, so that ``import spineps`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spineps.errors import ErrCode, SpinepsError
    from spineps.models.enums import Acquisition, Modality
    from spineps.models.registry import available_models, get_instance_model, get_labeling_model, get_semantic_model
    from spineps.options import Options
    from spineps.pipeline import Segmentation, segment_volume
    from spineps.seg_run import Result, SpinepsResult, process_dataset, process_img_nii, segment, segment_image
    from spineps.volume import Volume

    __version__: str

_HOME = {
    "Acquisition": "spineps.models.enums",
    "ErrCode": "spineps.errors",
    "Modality": "spineps.models.enums",
    "Options": "spineps.options",
    "Result": "spineps.seg_run",
    "Segmentation": "spineps.pipeline",
    "SpinepsError": "spineps.errors",
    "SpinepsResult": "spineps.seg_run",
    "Volume": "spineps.volume",
    "available_models": "spineps.models.registry",
    "get_instance_model": "spineps.models.registry",
    "get_labeling_model": "spineps.models.registry",
    "get_semantic_model": "spineps.models.registry",
    "process_dataset": "spineps.seg_run",
    "process_img_nii": "spineps.seg_run",
    "segment": "spineps.seg_run",
    "segment_image": "spineps.seg_run",
    "segment_volume": "spineps.pipeline",
}
__all__ = [
    "Acquisition",
    "ErrCode",
    "Modality",
    "Options",
    "Result",
    "Segmentation",
    "SpinepsError",
    "SpinepsResult",
    "Volume",
    "__version__",
    "available_models",
    "get_instance_model",
    "get_labeling_model",
    "get_semantic_model",
    "process_dataset",
    "process_img_nii",
    "segment",
    "segment_image",
    "segment_volume",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("spineps")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
