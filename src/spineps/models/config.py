"""``inference_config.json``: what a model expects and what its answers mean.

The keys are those of the published system (2.1.3), so that its folders can be read; bundled models add a few of their
own (last block of :class:`InferenceConfig`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
        metal: ids that mean metal.
        cutout_size: voxels of one cutout (instance models) or one vertebra (labelling models).
        corpus_size_cleaning: mm3 per voxel of ``zoom_min`` below which a body fragment is noise.
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
    metal: tuple[int, ...] = (METAL,)
    cutout_size: tuple[int, int, int] = (248, 304, 64)
    corpus_size_cleaning: float = 100
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
    read = {name: reader(values[key]) for key, (name, reader) in _READ.items() if key in values}
    if (recipe := read.get("recipe", RECIPES[0])) not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is not one of {', '.join(RECIPES)}")
    return InferenceConfig(zoom_min=low, zoom_max=high, **read)


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


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _integers(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in _listed(value))


def _members(kind: type[NamedEnum], value: Any) -> tuple[Any, ...]:
    # 2.1.3 writes enum names with or without the class in front.
    names = [str(name).rsplit(".", 1)[-1] for name in _listed(value)]
    if unknown := [name for name in names if name not in kind.__members__]:
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(kind.__members__)}")
    return tuple(kind[name] for name in names)


def _folds(value: int | str | list[Any]) -> tuple[str, ...]:
    return tuple(str(v) for v in (range(value) if isinstance(value, int) else _listed(value)))


def _zoom_range(value: Any) -> tuple[Zoom, Zoom]:
    rows = [value, value] if len(value) == 3 else list(value)
    if len(rows) != 2 or any(len(row) != 3 for row in rows):
        raise ValueError("resolution_range must be [x, y, z] or [[x, y, z], [x, y, z]]")
    low, high = (tuple(float(v) for v in row) for row in rows)
    if any(a <= 0 or a > b for a, b in zip(low, high, strict=True)):
        raise ValueError("resolution_range must be positive and ascending")
    return low, high  # type: ignore[return-value]


#: Key in the file -> attribute, and how its value is read; ``resolution_range`` gives two attributes.
_READ: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "log_name": ("log_name", str),
    "modality": ("modalities", partial(_members, Modality)),
    "acquisition": ("acquisitions", partial(_members, Acquisition)),
    "modeltype": ("modeltype", lambda value: _members(ModelType, value)[0]),
    "model_expected_orientation": ("orientation", "".join),
    "available_folds": ("folds", _folds),
    "inference_augmentation": ("tta", bool),
    "default_step_size": ("step_size", float),
    "labels": ("labels", lambda value: {int(k): label_id(v) for k, v in value.items()}),
    "expected_inputs": ("inputs", partial(_members, InputType)),
    "has_c1": ("has_c1", bool),
    "needs_corp": ("needs_crop", bool),
    "sacrum_ids": ("sacrum_ids", _integers),
    "metal": ("metal", _integers),
    "cutout_size": ("cutout_size", _integers),
    "corpus_size_cleaning": ("corpus_size_cleaning", float),
    "vert_size_threshold": ("vert_size_threshold", float),
    "mapping": ("mapping", lambda value: {int(k): int(v) for k, v in value.items()}),
    "patch_size": ("patch_size", _integers),
    "recipe": ("recipe", str),
    "mirror_axes": ("mirror_axes", _integers),
}
#: The first nine, up to ``labels``, and the voxel sizes.
_REQUIRED = (*list(_READ)[:9], "resolution_range")
#: The published system reads ``corpus_border_threshold`` too, and never uses it.
_KEYS = {*_READ, "resolution_range", "corpus_border_threshold"}
