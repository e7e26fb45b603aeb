"""A training run is a file: what is trained, on what, how long."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spineps.errors import OptionError
from spineps.inference.network import NetSpec, Triple

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Warp:
    """How far shapes are changed on the device.

    Attributes:
        rotation: largest angle in degrees about the axes of the array (the last one turns in the sagittal plane).
        scale: largest factor of size, up or down.
        stretch: largest further factor of each axis.
        bend: largest local displacement, in voxels.
    """

    rotation: tuple[float, float, float] = (8.0, 8.0, 20.0)
    scale: float = 1.2
    stretch: float = 1.08
    bend: float = 3.0


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    Attributes:
        network: description of the network.
        zoom: voxel size in mm of the network's grid, axes P, I, R.
        seed: the whole run follows from it.
        canvas: voxels of a generated label map, of which patches are cut.
        patches: sizes of synthetic patches, one drawn per step (tiles of any size must work later).
        synthetic_per_step: synthetic patches in a step.
        real_patches: sizes of patches of real scans.
        real_per_step: real patches in a step.
        deep_patches: sizes of patches of real scans that are no slabs; a step takes one of them instead.
        deep_share: share of the steps that do so.
        anatomy_share: share of the steps whose real patch is a painted one of real shapes, where there is such a cache.
        real_weight: weight of the real patches' loss.
        held_out: scans that must never be trained on.
        class_weights: weight of every class in the cross-entropy.
        optimiser: "adamw" or "muon" (see :mod:`spineps.training.muon`).
        learning_rate: peak of the cosine schedule.
        warmup: steps until the peak.
        weight_decay: of AdamW.
        clip: largest gradient norm.
        ema: decay of the averaged weights.
        warp: changes of shape.
    """

    network: NetSpec
    zoom: tuple[float, float, float]
    seed: int = 0
    canvas: Triple = (104, 136, 64)
    patches: tuple[Triple, ...] = ((80, 96, 48),)
    synthetic_per_step: int = 1
    real_patches: tuple[Triple, ...] = ((80, 96, 16),)
    real_per_step: int = 3
    deep_patches: tuple[Triple, ...] = ()
    deep_share: float = 0.3
    anatomy_share: float = 0.0
    real_weight: float = 1.0
    held_out: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()
    optimiser: str = "adamw"
    learning_rate: float = 8e-4
    warmup: int = 50
    weight_decay: float = 1e-3
    clip: float = 3.0
    ema: float = 0.998
    warp: Warp = field(default_factory=Warp)

    def to_json(self) -> str:
        """Text from which :func:`parse_config` makes an equal config."""
        return json.dumps(asdict(self), indent=2)


def read_training_config(path: str | Path) -> TrainingConfig:
    """The config in a file, or the one that ships under this name (``semantic``)."""
    file = Path(path)
    if not file.suffix:
        file = CONFIGS / f"{path}.json"
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.json")))
        raise OptionError(f"There is no training config {path}.", f"Give a file or one of: {known}.")
    try:
        return parse_config(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise OptionError(f"Training config {file} cannot be used: {error}.", "Correct the file.") from error


def parse_config(values: dict[str, Any]) -> TrainingConfig:
    """Config from decoded JSON; unknown keys raise TypeError."""
    values = dict(values)
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    values["network"] = NetSpec(**values["network"])
    if "warp" in values:
        warp = dict(values["warp"])
        if "rotation" in warp:
            warp["rotation"] = tuple(warp["rotation"])
        values["warp"] = Warp(**warp)
    return TrainingConfig(**values)
