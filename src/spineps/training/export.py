"""From a checkpoint to the files of a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spineps.anatomy import CLASS_IDS
from spineps.errors import InputNotFoundError, OptionError
from spineps.inference.engine import WEIGHTS_FILE
from spineps.inference.network import NetSpec, Triple, coarse_enough, load_weights, save_weights
from spineps.inference.torch_engine import TorchOps
from spineps.models.model import LOCATOR
from spineps.training.config import TrainingConfig, parse_config

#: Beside this file's folder, so that no import of the registry (and of nibabel) is needed.
BUNDLED = Path(__file__).parents[1] / "models" / "bundled"
CONFIG_FILE = "inference_config.json"
#: What a tile of a semantic model covers, mm along P, I, R.
PATCH_MM = (144, 192, 72)
#: What a patch covers in which the ranges of 8-bit numbers are measured.
RANGE_MM = (120, 140, 72)


def export(
    checkpoint: Path,
    folder: Path,
    bias: Mapping[int, float] | None = None,
    temperature: float = 1.0,
    others: Sequence[Path] = (),
) -> None:
    """Write averaged weights (float16) and, into a new folder, ``inference_config.json`` and a bundled locator.

    Args:
        checkpoint: ``checkpoint.pt`` of a run.
        folder: a model folder, new or old; its card is left to people.
        bias: of a semantic model: structure id -> what is added to its output bias (calibration).
        temperature: of a semantic model: its logits are divided by it; above 1 it claims less (calibration).
        others: checkpoints of more runs from the same initial weights: the mean of all is written (a "soup", Wortsman
            et al. 2022).

    Raises:
        OptionError: the runs trained different networks, or there is no such structure.
    """
    config, params = averaged_weights(checkpoint)
    for other in others:
        theirs, more = averaged_weights(other)
        if theirs.network != config.network:
            raise OptionError(f"{other} holds another network than {checkpoint}.", "Average runs of one network only.")
        params = {name: values + more[name] for name, values in params.items()}
    params = {name: values / (1 + len(others)) for name, values in params.items()}
    for structure, value in (bias or {}).items():
        if structure not in CLASS_IDS or "out.bias" not in params:
            raise OptionError(f"There is no output for structure {structure}.", f"Choose from {CLASS_IDS}.")
        params["out.bias"][CLASS_IDS.index(structure)] += value
    for name in ("out.bias", "out.weight") if temperature != 1 else ():
        params[name] = params[name] / temperature
    semantic, file = config.network.classes == len(CLASS_IDS), folder / CONFIG_FILE
    if not file.exists():
        settings = inference_config(config) if semantic else _bundled_config(config)
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if semantic:
            shutil.copytree(BUNDLED / "semantic" / LOCATOR, folder / LOCATOR, dirs_exist_ok=True)
    save_weights(folder / WEIGHTS_FILE, config.network, params)


def measure_ranges(folder: Path, count: int = 24, seed: int = 0) -> None:
    """Allow 8 bits to the semantic model in ``folder``: measures and stores what goes into its convolutions.

    Args:
        folder: a model folder of :func:`export`.
        count: patches of generated scans, of all regions and in random contrasts; the mean of their extremes counts.
        seed: of the first generated person.
    """
    from spineps.training.chance import Chance
    from spineps.training.intensity import standardise
    from spineps.training.phantoms import paint, phantom_arrays

    spec, params = load_weights(folder / WEIGHTS_FILE)
    zoom = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["resolution_range"]
    shape = [16 * round(mm / z / 16) for mm, z in zip(RANGE_MM, zoom, strict=True)]
    tensors = {name: torch.from_numpy(values) for name, values in params.items()}
    seen = []
    for k, (_, maps) in enumerate(phantom_arrays((*shape,), tuple(zoom), seed, count)):
        tissue, _, instance = torch.from_numpy(maps)
        image = standardise(paint(tissue, instance, tuple(zoom), Chance.of(torch.device("cpu"), seed, k)))
        ops = _Watched()
        with torch.inference_mode():
            spec.forward(ops, tensors, image[None, None])
        seen.append(ops.ranges)
    ranges = np.mean(seen, axis=0).round(4).tolist()
    save_weights(folder / WEIGHTS_FILE, replace(spec, ranges=ranges), params)


class _Watched(TorchOps):
    """Notes the extremes of what goes into the convolutions that 8 bits suffice for."""

    def __init__(self) -> None:
        self.ranges: list[tuple[float, float]] = []

    def conv(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple | None = None
    ) -> Tensor:
        if coarse_enough(tuple(weight.shape)):
            self.ranges.append((float(x.min()), float(x.max())))
        return super().conv(x, weight, bias, stride, padding)


def _bundled_config(config: TrainingConfig) -> dict[str, object]:
    """Settings of the bundled model whose network has the same inputs and answers, at the voxel size of ``config``."""
    for weights in sorted(BUNDLED.glob(f"*/{WEIGHTS_FILE}")):
        if replace(load_weights(weights)[0], **_shape(config.network)) == config.network:
            settings: dict[str, object] = json.loads(weights.with_name(CONFIG_FILE).read_text(encoding="utf-8"))
            # A classifier's cutouts have a voxel size of their own, made from label maps of any.
            return settings | ({} if config.network.heads else {"resolution_range": list(config.zoom)})
    raise OptionError("No bundled model has such a network.", f"Put a {CONFIG_FILE} into the folder and export again.")


def _shape(network: NetSpec) -> dict[str, Any]:
    """What may differ between networks that do the same."""
    return {
        n: getattr(network, n)
        for n in ("ranges", "widths", "strides", "kernels", "encoder_blocks", "decoder_blocks", "skip")
    }


def averaged_weights(checkpoint: Path) -> tuple[TrainingConfig, dict[str, np.ndarray]]:
    """Config and averaged weights of a run."""
    if not checkpoint.is_file():
        raise InputNotFoundError(f"Checkpoint {checkpoint} does not exist.", "Give the checkpoint.pt of a run.")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    params = {name: tensor.float().numpy() for name, tensor in state["average"].items()}
    return parse_config(json.loads(state["config"])), params


def initial_weights(init: str | None, kind: str) -> Mapping[str, np.ndarray] | None:
    """Weights to start from: None, ``"bundled"``, a ``weights.npz``, a model folder or a ``checkpoint.pt``."""
    if init is None:
        return None
    path = BUNDLED / kind if init == "bundled" else Path(init)
    if path.is_dir():
        path = path / WEIGHTS_FILE
    return averaged_weights(path)[1] if path.suffix == ".pt" else load_weights(path)[1]


def inference_config(config: TrainingConfig) -> dict[str, object]:
    """The ``inference_config.json`` of a semantic model trained with ``config``."""
    return {
        "log_name": f"spineps semantic, any contrast, {'x'.join(f'{z:g}' for z in config.zoom)} mm",
        "modality": ["T2w", "T1w", "Vibe", "MPR", "PD", "FLAIR", "CT"],
        "acquisition": ["sag", "cor", "ax", "iso"],
        "modeltype": "unet",
        "model_expected_orientation": "PIR",
        "available_folds": "all",
        "inference_augmentation": True,
        "resolution_range": list(config.zoom),
        "default_step_size": 0.7,
        "labels": {str(k): str(i) for k, i in enumerate(CLASS_IDS) if k},
        "patch_size": [16 * round(mm / z / 16) for mm, z in zip(PATCH_MM, config.zoom, strict=True)],
        "recipe": "spineps3",
        "mirror_axes": [2],
    }
