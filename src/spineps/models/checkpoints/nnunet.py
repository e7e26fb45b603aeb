"""nnU-Net v2 folders: ``plans.json``, ``dataset.json``, ``fold_<k>/checkpoint_final.pth``.

Facts: nnU-Net 2.5 and dynamic-network-architectures 0.4 (how plans become a network), SPINEPS 2.1.3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spineps.errors import ModelError
from spineps.inference.network import NEGATIVE_SLOPE, NORM_EPSILON
from spineps.inference.published_graphs import NnUNetSpec
from spineps.models.checkpoints.fit import fitted, unwrapped
from spineps.models.checkpoints.unpickle import read_torch_file
from spineps.models.config import InferenceConfig

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
PLANS, DATASET = "plans.json", "dataset.json"
#: Network classes and whether their encoder is residual.
CLASSES = {"PlainConvUNet": False, "ResidualEncoderUNet": True}
#: What a network may be built from.  Dropout does nothing when a network is used.
KNOWN = {
    "conv_op": ("Conv3d",),
    "norm_op": ("InstanceNorm3d",),
    "dropout_op": (None, "Dropout", "Dropout3d"),
    "nonlin": ("LeakyReLU", "ReLU"),
}
#: Options of the network classes that change the graph; anything but these values is refused.
PLAIN_VALUES: dict[str, tuple[Any, ...]] = {
    "nonlin_first": (False,),
    "pool": ("conv",),
    "squeeze_excitation": (False,),
    "bottleneck_channels": (None,),
    "bottleneck_block_type": (None,),
}

Json = dict[str, Any]


def read_nnunet(
    folder: Path, config: InferenceConfig | None = None, fold: str | int | None = None
) -> tuple[NnUNetSpec, dict[str, np.ndarray]]:
    """Description and float32 parameters of one fold.

    Args:
        folder: holds ``plans.json``.
        config: tells the first fold when ``fold`` is None.
        fold: ``0``, ``"0"``, ``"all"`` or ``"fold_0"``.

    Raises:
        ModelError: a file is missing or damaged, or the network is of a kind that is not supported (named).
    """
    path = checkpoint_of(folder, config, fold)
    plans, dataset = settings(folder)
    content = read_torch_file(path)
    try:
        state = unwrapped(content["network_weights"])
        configuration = str(content["init_args"]["configuration"])
        axes = content.get("inference_allowed_mirroring_axes")
        own = inherited(plans["configurations"], configuration)
        n_in = len(dataset.get("channel_names") or dataset["modality"])
        spec = _spec(own, n_in, output_channels(dataset), configuration, tuple(axes or ()))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(f"The nnU-Net in {folder} cannot be understood: {error!r}.", "Install it again.") from error
    return spec, _parameters(state, spec, own, path)


def checkpoint_of(folder: Path, config: InferenceConfig | None = None, fold: str | int | None = None) -> Path:
    """The checkpoint file of a fold (None: the config's first, else the first there is).

    Raises:
        ModelError: there is none.
    """
    _refuse_version_1(folder)
    there = sorted(p.name.removeprefix("fold_") for p in folder.glob("fold_*") if p.is_dir())
    if fold is None:
        fold = config.folds[0] if config is not None and config.folds else there[0] if there else "0"
    name = str(fold).removeprefix("fold_")
    for file in CHECKPOINTS:
        if (path := folder / f"fold_{name}" / file).is_file():
            return path
    raise ModelError(
        f"{folder} has no fold {name} with a {' or '.join(CHECKPOINTS)} (folds there: {', '.join(there) or 'none'}).",
        "Install the model again, or correct available_folds in its inference_config.json.",
    )


def settings(folder: Path) -> tuple[Json, Json]:
    """Content of ``plans.json`` and ``dataset.json``.

    Raises:
        ModelError: one is missing or damaged, or the model is of nnU-Net version 1.
    """
    _refuse_version_1(folder)
    return _json(folder, PLANS), _json(folder, DATASET)


def output_channels(dataset: Mapping[str, Any]) -> int:
    """Channels of the answer: one per label and one for background, or one per region; ``ignore`` has none."""
    labels = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    if any(isinstance(value, (list, tuple)) and len(value) > 1 for value in labels.values()):
        return len([name for name in labels if name != "background"])
    return len(labels)


def inherited(configurations: Mapping[str, Any], name: str) -> Json:
    """A configuration with what it inherits; ValueError when there is none of that name."""
    if name not in configurations:
        raise ValueError(f"there is no configuration {name!r}, only {', '.join(configurations)}")
    own = dict(configurations[name])
    parent = own.pop("inherits_from", None)
    return {**inherited(configurations, parent), **own} if parent else own


def _refuse_version_1(folder: Path) -> None:
    if (folder / "plans.pkl").is_file() and not (folder / PLANS).is_file():
        raise ModelError(
            f"{folder} holds a model of nnU-Net version 1 (plans.pkl).",
            "Only version 2 runs here: take the release of the model for SPINEPS 1.0 or later, or retrain it.",
        )


def _spec(own: Json, n_in: int, n_out: int, configuration: str, axes: tuple[int, ...]) -> NnUNetSpec:
    if own.get("previous_stage"):
        raise ModelError(f"{configuration} is the second stage of a cascade.", "Use a 3d_fullres model.")
    if "architecture" in own:
        name, kwargs = own["architecture"]["network_class_name"], dict(own["architecture"]["arch_kwargs"])
    else:
        name, kwargs = own["UNet_class_name"], _old_plans(own)
    residual = _network_class(name)
    _check_parts(kwargs)
    n = int(kwargs["n_stages"])
    blocks = kwargs["n_blocks_per_stage"] if "n_blocks_per_stage" in kwargs else kwargs["n_conv_per_stage"]
    leaky = _last(kwargs.get("nonlin", "LeakyReLU")) == "LeakyReLU"
    slope = (kwargs.get("nonlin_kwargs") or {}).get("negative_slope", NEGATIVE_SLOPE) if leaky else 0.0
    return NnUNetSpec(
        in_channels=n_in,
        classes=n_out,
        widths=tuple(_per_stage(kwargs["features_per_stage"], n)),
        strides=tuple(_triple(v) for v in _per_stage(kwargs["strides"], n)),
        kernels=tuple(_triple(v) for v in _per_stage(kwargs["kernel_sizes"], n)),
        encoder_blocks=tuple(_per_stage(blocks, n)),
        decoder_blocks=tuple(_per_stage(kwargs["n_conv_per_stage_decoder"], n - 1)),
        residual=residual,
        stem=int(kwargs.get("stem_channels") or 0) if residual else 0,
        epsilon=float((kwargs.get("norm_op_kwargs") or {}).get("eps", NORM_EPSILON)),
        slope=float(slope),
        configuration=configuration,
        mirror_axes=axes,
    )


def _old_plans(own: Json) -> Json:
    """Plans before nnU-Net 2.4 name a few numbers; the rest was fixed in the code."""
    strides = own["pool_op_kernel_sizes"]
    base, most = own["UNet_base_num_features"], own["unet_max_num_features"]
    return {
        "n_stages": len(strides),
        "features_per_stage": [min(base * 2**k, most) for k in range(len(strides))],
        "strides": strides,
        "kernel_sizes": own["conv_kernel_sizes"],
        "n_conv_per_stage": own["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": own["n_conv_per_stage_decoder"],
    }


def _network_class(name: str) -> bool:
    if _last(name) not in CLASSES:
        raise ModelError(f"Networks of class {name} are not supported.", f"Supported: {', '.join(CLASSES)}.")
    return CLASSES[str(_last(name))]


def _check_parts(kwargs: Json) -> None:
    for key, known in KNOWN.items():
        if key in kwargs and _last(kwargs[key]) not in known:
            names = ", ".join(str(k) for k in known if k)
            raise ModelError(f"The network wants {key} {kwargs[key]}, which is not supported.", f"Supported: {names}.")
    for key, values in PLAIN_VALUES.items():
        if key in kwargs and kwargs[key] not in values:
            raise ModelError(f"The network wants {key} = {kwargs[key]}, which is not supported.", "Use another model.")


def _last(name: Any) -> str | None:
    return None if name is None else str(name).rpartition(".")[2]


def _per_stage(value: Any, n: int) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * n


def _triple(value: Any) -> tuple[int, int, int]:
    a, b, c = (int(v) for v in (value if isinstance(value, (list, tuple)) else [value] * 3))
    return a, b, c


def _parameters(state: Json, spec: NnUNetSpec, own: Json, path: Path) -> dict[str, np.ndarray]:
    shapes = spec.parameter_shapes()
    kwargs = own.get("architecture", {}).get("arch_kwargs", {})
    kept = {}
    for name, value in state.items():
        # Each convolution and norm is stored again as all_modules.<n>, and the encoder again inside the decoder.
        if ".all_modules." in name or name.startswith("decoder.encoder."):
            continue
        # A bias before an instance norm changes nothing, and the heads of deep supervision are for training.
        if name.endswith(".conv.bias") or (name.startswith("decoder.seg_layers.") and name not in shapes):
            continue
        kept[name] = value
    # Networks may do without scales of norms and biases of convolutions: 1 and 0 say the same.
    affine = (kwargs.get("norm_op_kwargs") or {"affine": True}).get("affine", False)
    biased = kwargs.get("conv_bias", True)
    for name, shape in shapes.items():
        if (".norm." in name and not affine) or (name.endswith(".bias") and ".transpconvs." in name and not biased):
            kept.setdefault(name, np.full(shape, float(name.endswith("norm.weight")), np.float32))
    return fitted(kept, shapes, path)


def _json(folder: Path, name: str) -> Json:
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder / name} does not exist.", "Install the model again.") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / name} cannot be read: {error}.", "Install the model again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{folder / name} holds no settings.", "Install the model again.")
    return values
