"""Checkpoints of realistic size in the published formats, made from a seed (runs in the reference's environment).

Nothing here is trained except the one network that is our own: ``embedded`` is the bundled semantic network written as
an nnU-Net.  Its nearest upsampling after a 1 x 1 x 1 convolution is a transposed convolution with repeated weights, its
additive skip a concatenation whose next convolution holds its weights twice; the channels that nnU-Net has beyond ours
read from everything but feed nothing, so they cost time and change no answer.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from measure import read_job
from torch import nn

LABELS = (41, 42, 43, 44, 45, 46, 47, 48, 49, 60, 61, 62, 100, 26)
HEADS = {"VERT": 24, "VERTREL": 6, "REGION": 3, "VERTGRP": 12, "FULLYVISIBLE": 2}


def config(folder: Path, **values: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "log_name": folder.name,
        "modality": "T2w",
        "acquisition": "sag",
        "model_expected_orientation": ["P", "I", "R"],
        "available_folds": 1,
        "inference_augmentation": False,
        "default_step_size": 0.5,
        "labels": {str(k): str(v) for k, v in enumerate(LABELS, 1)},
    }
    (folder / "inference_config.json").write_text(json.dumps(common | values, indent=1))


def nnunet_folder(folder: Path, zoom: list[float], patch: list[int], shape: dict[str, list]) -> nn.Module:
    """Everything of an nnU-Net but its weights; returns the network to fill.  ``zoom`` and ``patch`` in PIR order."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    config(folder, modeltype="nnunet", resolution_range=zoom)
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    arch = {
        "n_stages": len(shape["features"]),
        "features_per_stage": shape["features"],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * len(shape["features"]),
        "strides": shape["strides"],
        "n_conv_per_stage": shape["encoder"],
        "n_conv_per_stage_decoder": shape["decoder"],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    plans = {
        "dataset_name": "Dataset001_benchmark",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": zoom[::-1],
        "original_median_shape_after_transp": patch[::-1],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "max": 1500.0, "mean": 400.0, "median": 350.0, "min": 0.0, "percentile_00_5": 5.0,
                "percentile_99_5": 1300.0, "std": 250.0,
            }
        },
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": patch[::-1],
                "median_image_size_in_voxels": [float(n) for n in patch[::-1]],
                "spacing": zoom[::-1],
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
                "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
                "batch_dice": False,
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": arch,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
        },
    }  # fmt: skip
    (folder / "plans.json").write_text(json.dumps(plans, indent=1))
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0} | {f"c{v}": k for k, v in enumerate(LABELS, 1)},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=1))
    net = PlainConvUNet(
        input_channels=1,
        num_classes=len(LABELS) + 1,
        **arch | {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU},
    )
    net.apply(net.initialize)
    return net


def save_nnunet(folder: Path, net: nn.Module) -> None:
    fold = folder / "fold_0"
    fold.mkdir(exist_ok=True)
    torch.save(
        {
            "network_weights": net.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        },
        fold / "checkpoint_final.pth",
    )


def embed(net: nn.Module, ours: dict[str, np.ndarray]) -> None:
    """Write our network into ``net`` (same levels and blocks, more channels).  nnU-Net's axes are ours reversed."""

    def tensor(name: str) -> torch.Tensor:
        value = torch.from_numpy(ours[name].astype(np.float32))
        return value.permute(0, 1, 4, 3, 2) if value.ndim == 5 else value

    def block(part: nn.Module, name: str, inputs: list[tuple[int, int]]) -> None:
        """``inputs``: (first channel of nnU-Net, channels) of every place where our input channels lie."""
        weight, (n, m) = part.conv.weight, ours[f"{name}.conv.weight"].shape[:2]
        weight[:n] = 0
        for first, width in inputs:
            assert width == m
            weight[:n, first : first + m] = tensor(f"{name}.conv.weight")
        part.conv.bias[:n] = 0
        part.norm.weight[:n], part.norm.bias[:n] = tensor(f"{name}.norm.weight"), tensor(f"{name}.norm.bias")

    widths = [ours[f"enc{level}.0.conv.weight"].shape[0] for level in range(len(net.encoder.stages))]
    for level, stage in enumerate(net.encoder.stages):
        for k, part in enumerate(stage[0].convs):
            block(part, f"enc{level}.{k}", [(0, ours[f"enc{level}.{k}.conv.weight"].shape[1])])
    for step, stage in enumerate(net.decoder.stages):
        level = len(widths) - 2 - step
        up, n, m = net.decoder.transpconvs[step], widths[level], widths[level + 1]
        up.weight[:, :n] = 0
        # One by one convolution, then every voxel repeated: the same weights at every place of the kernel.
        up.weight[:m, :n] = tensor(f"up{level}.weight").permute(1, 0, 2, 3, 4).expand(-1, -1, *up.weight.shape[2:])
        up.bias[:n] = tensor(f"up{level}.bias")
        for k, part in enumerate(stage.convs):
            # First half of the concatenation: from below; second half: the skip.
            places = [(0, n), (net.decoder.transpconvs[step].weight.shape[1], n)] if k == 0 else [(0, n)]
            block(part, f"dec{level}.{k}", places)
    last = net.decoder.seg_layers[-1]
    last.weight[:] = 0
    last.weight[:, : widths[0]], last.bias[:] = tensor("out.weight"), tensor("out.bias")


def lightning(file: Path, state: dict[str, torch.Tensor], hyper: dict[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.0.0", "state_dict": state, "loops": {},
            "callbacks": {}, "optimizer_states": [], "lr_schedulers": [], "hparams_name": "kwargs",
            "hyper_parameters": hyper,
        },
        file,
    )  # fmt: skip


def instance(folder: Path, zoom: list[float], cutout: list[int]) -> None:
    from spineps.architectures_new.pl_unet import PLNet

    opt = Namespace(channelwise=True, n_epoch=1, lr=1e-4, lr_end_factor=0.01, l2_reg_w=1e-6, dsc_loss_w=0.5)
    config(
        folder,
        modality="SEG",
        modeltype="unet",
        expected_inputs=["seg"],
        resolution_range=zoom,
        cutout_size=cutout,
        labels={"1": "1", "2": "2", "3": "3"},
    )
    net = PLNet(opt=opt, do2D=False, num_channels=11, dim=8)
    hyper = {"opt": opt, "do2D": False, "num_channels": 11, "dim": 8}
    lightning(folder / "benchmark-weights.ckpt", net.state_dict(), hyper)


def labeling(folder: Path, zoom: list[float], size: list[int]) -> None:
    from spineps.architectures.pl_densenet import PLClassifier

    opt = Namespace(
        backbone="DENSENET169", classification_conv=False, classification_linear=True, in_channel=1,
        not_pretrained=True, num_classes=sum(HEADS.values()), n_channel_p_group=None, mse_weighting=0.0, dropout=0.05,
        l2_regularization_w=1e-6, weight_decay=0, final_size=tuple(size), ds_name="sagittal_v3corpus",
    )  # fmt: skip
    config(folder, modeltype="classifier", resolution_range=zoom, cutout_size=size, labels={"1": "C1"})
    net = PLClassifier(opt, HEADS)
    # Running statistics of noise, and wide last layers: untouched, all answers of a random network are alike.
    net.train()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = 0.5
        for _ in range(4):
            net.net(torch.randn(1, 1, 96, 96, 32))
        for head in net.classification_heads.values():
            head[-1].weight *= 10
    file = folder / "version_0" / "checkpoints" / "epoch=01-step=2-val_f1=0.9000_valf1-weights.ckpt"
    lightning(file, net.state_dict(), {"opt": opt, "group_2_n_channel": HEADS})


def main() -> None:
    _, job = read_job()
    torch.manual_seed(job["seed"])
    folder = Path(job["folder"])
    with torch.no_grad():
        for name in ("random", "embedded"):
            shape = job[name]
            target = folder / f"{name}__nnUNetPlans__3d_fullres"
            net = nnunet_folder(target, shape["zoom"], shape["patch"], shape)
            if name == "embedded":
                with np.load(job["weights"]) as stored:
                    embed(net, {k: stored[k] for k in stored.files if not k.startswith("__")})
            save_nnunet(target, net)
    instance(folder / "instance", job["instance"]["zoom"], job["instance"]["cutout"])
    labeling(folder / "labeling", job["labeling"]["zoom"], job["labeling"]["size"])


if __name__ == "__main__":
    main()
