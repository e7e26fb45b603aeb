"""``inference_config.json``: what a model expects and what its answers mean.

The keys are those of the published system (2.1.3), so that its folders can be read; bundled models add a few of their
own (last block of :class:`InferenceConfig`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spineps.anatomy import METAL, SACRUM, VERTEBRA_IDS
from spineps.errors import ModelError
from spineps.models.enums import Acquisition, InputType, Modality, ModelType, NamedEnum, SpinepsPhase

logger = logging.getLogger(__name__)

CONFIG_FILE = "inference_config.json"
DEFAULT_MAPPING: dict[int, int] = {41: 1, 42: 2, 43: 3, 44: 4, 45: 5, 46: 6, 47: 7, 48: 8, 49: 9, 50: 9, 51: 9, 26: 0}
#: "published" (the default: folders of 2.1.3 hold no such key): all around the network is as there, so that its models
#: answer as they did.  "spineps3": as the bundled models were trained.
RECIPES = ("published", "spineps3")

Zoom = tuple[float, float, float]


@dataclass(frozen=True)
class InferenceConfig:
    """One model's contract.

    Attributes:
        log_name: name for people.
        modalities: images that it accepts.
        acquisitions: slice planes that it accepts, the main one first.
        modeltype: family of the network.
        orientation: axis codes of its input, such as ``"PIR"``.
        zoom_min: smallest voxel size in mm along the axes of ``orientation``.
        zoom_max: largest voxel size; equal to ``zoom_min`` for a fixed size.
        folds: names of the trained folds.
        tta: average over mirrored passes by default.
        step_size: tile step as a fraction of the patch.
        labels: network class -> id in the output mask.
        inputs: images that it wants, in channel order.
        has_c1: can name C1.
        needs_crop: wants the image cropped to the spine first.
        sacrum_ids: ids that mean sacrum.
        metal: id that means metal.
        cutout_size: voxels of one cutout (instance models) or one vertebra (labelling models).
        corpus_size_cleaning: mm3 per voxel of ``zoom_min`` below which a body fragment is noise.
        corpus_border_threshold: kept for completeness; the published system never uses it.
        vert_size_threshold: as ``corpus_size_cleaning`` for a whole vertebra.
        mapping: semantic id -> input label of an instance model; ids left out become 0.
        patch_size: largest tile in voxels.
        recipe: how the phases treat the model's inputs and answers (see :data:`RECIPES`).
        mirror_axes: array axes that may be flipped for averaging.
    """

    log_name: str
    modalities: tuple[Modality, ...]
    acquisitions: tuple[Acquisition, ...]
    modeltype: ModelType
    orientation: str
    zoom_min: Zoom
    zoom_max: Zoom
    folds: tuple[str, ...]
    tta: bool
    step_size: float
    labels: Mapping[int, int]
    inputs: tuple[InputType, ...] = (InputType.img,)
    has_c1: bool = False
    needs_crop: bool = False
    sacrum_ids: tuple[int, ...] = (SACRUM,)
    metal: int = METAL
    cutout_size: tuple[int, int, int] = (248, 304, 64)
    corpus_size_cleaning: float = 100
    corpus_border_threshold: float = 10
    vert_size_threshold: float = 250
    mapping: Mapping[int, int] = field(default_factory=lambda: dict(DEFAULT_MAPPING))
    patch_size: tuple[int, int, int] = (96, 128, 48)
    recipe: str = "published"
    mirror_axes: tuple[int, ...] = (2,)

    @property
    def published(self) -> bool:
        """Treat this model exactly as 2.1.3 does."""
        return self.recipe == "published"

    @property
    def acquisition(self) -> Acquisition:
        """The main slice plane."""
        return self.acquisitions[0]

    @property
    def phase(self) -> SpinepsPhase:
        """Classifiers label, models that read masks make instances, all others are semantic."""
        if self.modeltype is ModelType.classifier:
            return SpinepsPhase.LABELING
        return SpinepsPhase.INSTANCE if Modality.SEG in self.modalities else SpinepsPhase.SEMANTIC

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Mask id of every network class in order, background (0) first."""
        return (0, *(self.labels[k] for k in sorted(self.labels) if k > 0))

    def target_zoom(self, zoom: Sequence[float]) -> Zoom:
        """Voxel size in mm at which an image of this ``zoom`` (axes of ``orientation``) is processed."""
        x, y, z = (min(max(v, lo), hi) for v, lo, hi in zip(zoom, self.zoom_min, self.zoom_max, strict=True))
        return float(x), float(y), float(z)


_REQUIRED = (
    "log_name",
    "modality",
    "acquisition",
    "modeltype",
    "model_expected_orientation",
    "available_folds",
    "inference_augmentation",
    "resolution_range",
    "default_step_size",
    "labels",
)
_KEYS = {
    *_REQUIRED,
    "expected_inputs",
    "has_c1",
    "needs_corp",
    "sacrum_ids",
    "cutout_size",
    "corpus_size_cleaning",
    "corpus_border_threshold",
    "vert_size_threshold",
    "metal",
    "mapping",
    "patch_size",
    "recipe",
    "mirror_axes",
}


def read_config(path: Path) -> InferenceConfig:
    """The config in a file, or in the folder ``path``.

    Raises:
        ModelError: missing, not JSON, or a key is missing or wrong.
    """
    file = path / CONFIG_FILE if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return parse_config(values)
    except FileNotFoundError as error:
        raise ModelError(f"{file} does not exist.", "Give the folder of a model.") from error
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{file} cannot be used: {error}", "Install the model again.") from error


def parse_config(values: dict[str, Any]) -> InferenceConfig:
    """Config from the decoded JSON; ValueError names the key that is missing or wrong."""
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
    if unknown := sorted(set(values) - _KEYS):
        logger.info("%s: unknown keys ignored: %s", values["log_name"], ", ".join(unknown))
    low, high = _zoom_range(values["resolution_range"])
    optional: dict[str, Any] = {
        name: values[name]
        for name in (
            "has_c1",
            "corpus_size_cleaning",
            "corpus_border_threshold",
            "vert_size_threshold",
            "metal",
            "recipe",
        )
        if name in values
    }
    if (recipe := values.get("recipe", RECIPES[0])) not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is not one of {', '.join(RECIPES)}")
    for name in ("sacrum_ids", "cutout_size", "patch_size", "mirror_axes"):
        if name in values:
            optional[name] = tuple(int(v) for v in _listed(values[name]))
    if "mapping" in values:
        optional["mapping"] = {int(k): int(v) for k, v in values["mapping"].items()}
    return InferenceConfig(
        log_name=str(values["log_name"]),
        modalities=tuple(_member(Modality, v) for v in _listed(values["modality"])),
        acquisitions=tuple(_member(Acquisition, v) for v in _listed(values["acquisition"])),
        modeltype=_member(ModelType, values["modeltype"]),
        orientation="".join(values["model_expected_orientation"]),
        zoom_min=low,
        zoom_max=high,
        folds=_folds(values["available_folds"]),
        tta=bool(values["inference_augmentation"]),
        step_size=float(values["default_step_size"]),
        labels={int(k): label_id(v) for k, v in values["labels"].items()},
        inputs=tuple(_member(InputType, v) for v in _listed(values.get("expected_inputs", ["img"]))),
        needs_crop=bool(values.get("needs_corp", False)),
        **optional,
    )


def label_id(value: str | int) -> int:
    """Mask id of a label: an integer, a vertebra name (``"L1"``) or a TPTBox location name (``"Arcus_Vertebrae"``)."""
    text = str(value)
    if text.lstrip("-").isdigit():
        return int(text)
    if text in VERTEBRA_IDS:
        return VERTEBRA_IDS[text]
    from TPTBox.core.vert_constants import Location

    if text in Location.__members__:
        return int(Location[text].value)
    raise ValueError(f"label {text!r} is neither a number, a vertebra nor a location name")


def _member(kind: type[NamedEnum], name: str) -> Any:
    # 2.1.3 writes enum names with or without the class in front.
    short = str(name).rsplit(".", 1)[-1]
    if short not in kind.__members__:
        raise ValueError(f"{name!r} is not one of {', '.join(kind.__members__)}")
    return kind[short]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _folds(value: int | str | list[Any]) -> tuple[str, ...]:
    if isinstance(value, int):
        return tuple(str(k) for k in range(value))
    return tuple(str(v) for v in _listed(value))


def _zoom_range(value: Any) -> tuple[Zoom, Zoom]:
    rows = [value, value] if len(value) == 3 else list(value)
    if len(rows) != 2 or any(len(row) != 3 for row in rows):
        raise ValueError("resolution_range must be [x, y, z] or [[x, y, z], [x, y, z]]")
    low, high = (tuple(float(v) for v in row) for row in rows)
    if any(a <= 0 or a > b for a, b in zip(low, high, strict=True)):
        raise ValueError("resolution_range must be positive and ascending")
    return low, high  # type: ignore[return-value]
