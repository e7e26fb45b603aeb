"""The DenseNet classifier (VERIDAH) of published labelling models, its batch norms turned into scales and shifts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spineps.errors import ModelError
from spineps.inference.network import NORM_EPSILON
from spineps.inference.published_graphs import DenseNetSpec
from spineps.models.checkpoints.fit import fitted
from spineps.models.checkpoints.lightning import read_lightning

FEATURES, HEADS = "net.features.", "classification_heads."
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
#: Voxels that a vertebra is cropped to when the checkpoint does not say (SPINEPS 2.1.3).
FINAL_SIZE = (152, 168, 32)


def read_densenet(folder: Path) -> tuple[DenseNetSpec, dict[str, np.ndarray]]:
    """Description and float32 parameters of the classifier in ``folder``.

    Raises:
        ModelError: no checkpoint, another backbone, or heads that work on volumes.
    """
    path = checkpoint_of(folder)
    state, opt = read_lightning(path)
    backbone = str(opt.get("backbone", "DENSENET169"))
    if not backbone.upper().startswith("DENSENET"):
        raise ModelError(
            f"The labelling model in {folder} has the backbone {backbone}, which is not supported.",
            "Use a model with a DenseNet backbone, such as the released t2w_labeling and ct_labeling.",
        )
    if opt.get("classification_conv"):
        raise ModelError(f"The heads of {path} are convolutions, which is not supported.", "Use another model.")
    try:
        spec = _spec(state, opt, backbone)
    except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"{path} holds no DenseNet classifier ({error!r}).", "Install the model again.") from error
    ignored = [name for name in state if name.endswith("num_batches_tracked")]
    kept = {n: v for n, v in state.items() if n.startswith((FEATURES, HEADS)) and n not in ignored}
    return spec, _folded(spec, fitted(kept, _stored_shapes(spec), path))


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint file (the last by name, as in SPINEPS 2.1.3); ModelError when there is none."""
    files = sorted(folder.rglob("*val_f1=*valf1-weights.ckpt"))
    if not files:
        raise ModelError(f"{folder} holds no *val_f1=*valf1-weights.ckpt.", "Install the model again.")
    return files[-1]


def _spec(state: dict[str, Any], opt: dict[str, Any], backbone: str) -> DenseNetSpec:
    layers: dict[int, int] = {}
    for name in state:
        if name.startswith(f"{FEATURES}denseblock") and name.endswith("layers.conv1.weight"):
            block = int(name.removeprefix(f"{FEATURES}denseblock").partition(".")[0])
            layers[block] = layers.get(block, 0) + 1
    first = state[f"{FEATURES}conv0.weight"].shape
    dense = f"{FEATURES}denseblock1.denselayer1.layers"
    heads: dict[str, dict[int, int]] = {}
    for name, value in state.items():
        if name.startswith(HEADS) and name.endswith(".weight"):
            head, *index = name.removeprefix(HEADS).removesuffix(".weight").rsplit(".", 1)
            heads.setdefault(head, {})[int(index[0]) if index else -1] = len(value)
    return DenseNetSpec(
        in_channels=first[1],
        init_features=first[0],
        growth=len(state[f"{dense}.conv2.weight"]),
        bottleneck=len(state[f"{dense}.conv1.weight"]),
        blocks=tuple(layers[k] for k in sorted(layers)),
        heads={head: sizes[max(sizes)] for head, sizes in heads.items()},
        layers={head: tuple(sorted(sizes)) for head, sizes in heads.items()},
        hidden={head: tuple(sizes[k] for k in sorted(sizes)[:-1]) for head, sizes in heads.items()},
        final_size=tuple(opt.get("final_size") or FINAL_SIZE),
        ds_name=str(opt.get("ds_name", "")),
        backbone=backbone,
    )


def _stored_shapes(spec: DenseNetSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the checkpoint of what the graph needs."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in spec.parameter_shapes().items():
        if norm := _norm_of(name):
            shapes |= {f"{FEATURES}{norm}.{part}": shape for part in NORM_PARTS}
        else:
            shapes[name if name.startswith(HEADS) else FEATURES + name] = shape
    return shapes


def _norm_of(name: str) -> str:
    """The batch norm that a parameter is made of: a scale or shift, or the bias of the convolution before the norm."""
    stem, _, part = name.rpartition(".")
    if part in ("scale", "shift"):
        return stem
    return {"conv0": "norm0", "conv1": f"{stem[:-5]}norm2"}.get(stem[-5:], "") if part == "bias" else ""


def _folded(spec: DenseNetSpec, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    def affine(norm: str) -> tuple[np.ndarray, np.ndarray]:
        weight, bias, mean, var = (stored[f"{FEATURES}{norm}.{part}"].astype(np.float64) for part in NORM_PARTS)
        scale = weight / np.sqrt(var + NORM_EPSILON)
        return scale, bias - mean * scale

    params: dict[str, np.ndarray] = {}
    for name in spec.parameter_shapes():
        stem, _, part = name.rpartition(".")
        if part in ("scale", "shift"):
            params[name] = affine(stem)[part == "shift"]
        elif norm := _norm_of(name):
            # The norm after a convolution is a scale of its weights and a bias.
            scale, params[name] = affine(norm)
            params[f"{stem}.weight"] = stored[f"{FEATURES}{stem}.weight"] * scale.reshape(-1, 1, 1, 1, 1)
        elif name not in params:
            params[name] = stored[name if name.startswith(HEADS) else FEATURES + name]
    return {name: np.ascontiguousarray(params[name], np.float32) for name in spec.parameter_shapes()}
