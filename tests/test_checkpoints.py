"""Published checkpoints: what the readers understand and refuse, and that the numbers are those of the originals."""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spineps.errors import ModelError
from spineps.inference.engine import Network, load_network
from spineps.inference.published_graphs import NnUNetSpec, spec_from_json
from spineps.models.checkpoints import sources
from spineps.models.checkpoints.densenet import read_densenet
from spineps.models.checkpoints.nnunet import checkpoint_of, output_channels, read_nnunet
from spineps.models.checkpoints.unet import read_unet
from spineps.models.config import read_config

GOLDEN = Path(__file__).parent / "golden" / "nnunet"
ENGINES = ["openvino", pytest.param("torch", marks=pytest.mark.torch)]
#: The recorded networks; old and new plans describe the same weights.
WEIGHTS = {"old_plain": "old_plain", "new_plain": "old_plain", "old_resenc": "new_resenc", "new_resenc": "new_resenc"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPINEPS_CACHE", str(tmp_path / "cache"))


def loaded(folder: Path, engine: str, fold: str | None = None) -> Network:
    if engine == "torch":
        pytest.importorskip("torch")
    return load_network(folder, engine, "cpu", threads=1, fold=fold)


def nnunet(tmp_path: Path, name: str = "old_plain", **changes: Any) -> Path:
    """A copy of a recorded folder, with changed architecture."""
    folder = tmp_path / name
    shutil.copytree(GOLDEN / name, folder)
    if WEIGHTS[name] != name:
        shutil.copytree(GOLDEN / WEIGHTS[name] / "fold_0", folder / "fold_0")
    if (packed := folder / "fold_1.pth.gz").exists():
        (folder / "fold_1").mkdir()
        (folder / "fold_1" / "checkpoint_final.pth").write_bytes(gzip.decompress(packed.read_bytes()))
    if changes:
        plans = json.loads((folder / "plans.json").read_text())
        own = plans["configurations"]["3d_fullres"]
        (own["architecture"]["arch_kwargs"] if "architecture" in own else own).update(changes)
        (folder / "plans.json").write_text(json.dumps(plans))
    return folder


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["old_plain", "new_resenc", "old_resenc"])
def test_nnunet_answers_as_recorded(tmp_path: Path, name: str, engine: str) -> None:
    golden = np.load(GOLDEN / "corner.npz")
    x = golden["tile"][None].astype(np.float32)
    folder = nnunet(tmp_path, name)
    networks = [loaded(folder, engine, fold) for fold in read_config(folder).folds]
    # The recorded residual networks averaged over all flips, the plain one used none.
    flips = [()] if name == "old_plain" else [axes for k in range(4) for axes in combinations((2, 3, 4), k)]
    answers = np.mean([np.flip(net(np.flip(x, axes)), axes) for net in networks for axes in flips], axis=0)[0]
    seen, wanted = answers[:, 0:11:2, 0:18:4, 0:14:4], golden[name].astype(np.float32)
    # 2.1.3 summed in float16.
    assert np.abs(seen - wanted).max() < 5e-3 * np.abs(wanted).max()
    assert (seen.argmax(0) == wanted.argmax(0)).mean() > 0.99


@pytest.mark.parametrize("old", ["old_plain", "old_resenc"])
def test_old_and_new_plans_mean_the_same_network(tmp_path: Path, old: str) -> None:
    one, p = read_nnunet(nnunet(tmp_path, old))
    two, q = read_nnunet(nnunet(tmp_path, old.replace("old", "new")))
    assert one == two == spec_from_json(one.to_json())
    assert one.mirror_axes == (0, 1, 2)
    assert one.configuration == "3d_fullres"
    assert all(np.array_equal(p[name], q[name]) for name in one.parameter_shapes())


def test_numbers_for_all_stages_may_be_given_once(tmp_path: Path) -> None:
    folder = nnunet(tmp_path, "new_plain", n_conv_per_stage=2, n_conv_per_stage_decoder=2, kernel_sizes=3)
    assert read_nnunet(folder)[0] == read_nnunet(nnunet(tmp_path, "old_plain"))[0]


@pytest.mark.parametrize(
    "part",
    [
        {"conv_op": "torch.nn.modules.conv.Conv2d"},
        {"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"},
        {"nonlin": "torch.nn.GELU"},
        {"dropout_op": "my.Dropout9d"},
        {"nonlin_first": True},
        {"pool": "max"},
        {"squeeze_excitation": True},
    ],
    ids=lambda part: next(iter(part)),
)
def test_parts_that_are_not_supported_are_named(tmp_path: Path, part: dict[str, Any]) -> None:
    (key, value) = next(iter(part.items()))
    with pytest.raises(ModelError, match=f"{key}.*{value}"):
        read_nnunet(nnunet(tmp_path, "new_plain", **part))


def test_dropout_and_relu_are_supported(tmp_path: Path) -> None:
    folder = nnunet(tmp_path, "new_plain", dropout_op="torch.nn.Dropout3d", nonlin="torch.nn.ReLU", nonlin_kwargs={})
    assert read_nnunet(folder)[0].slope == 0


def test_other_network_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="SwinUNETR"):
        read_nnunet(nnunet(tmp_path, "old_plain", UNet_class_name="SwinUNETR"))


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"misfit: encoder\.stages\.0\.0\.convs\.0\.conv\.weight \(6, 1, 3, 3, 3\)"):
        read_nnunet(nnunet(tmp_path, "old_plain", UNet_base_num_features=8))
    with pytest.raises(ModelError, match=r"lacks encoder\.stages\.0\.0\.convs\.2.*and \d+ more"):
        read_nnunet(nnunet(tmp_path / "a", "old_plain", n_conv_per_stage_encoder=[4, 2, 2]))
    with pytest.raises(ModelError, match=r"unknown encoder\.stages\.0\.0\.convs\.1"):
        read_nnunet(nnunet(tmp_path / "b", "old_plain", n_conv_per_stage_encoder=[1, 2, 2]))


def test_plans_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="contradict"):
        read_nnunet(nnunet(tmp_path, "old_plain", conv_kernel_sizes=[[3, 3, 3]]))
    (folder := nnunet(tmp_path / "a")).joinpath("plans.json").write_text("{")
    with pytest.raises(ModelError, match=r"plans\.json"):
        read_nnunet(folder)


def test_folds_and_their_fallbacks(tmp_path: Path) -> None:
    folder = nnunet(tmp_path)
    shutil.copytree(folder / "fold_0", folder / "fold_all")
    (folder / "fold_all" / "checkpoint_final.pth").rename(folder / "fold_all" / "checkpoint_best.pth")
    config = read_config(folder)
    assert checkpoint_of(folder, config).parent.name == "fold_0"
    assert checkpoint_of(folder, config, "all").name == "checkpoint_best.pth"
    assert checkpoint_of(folder, config, 0) == checkpoint_of(folder, config, "fold_0")
    assert [p.name for p in sources(folder, config)] == ["plans.json", "dataset.json", "checkpoint_final.pth"]
    with pytest.raises(ModelError, match=r"no fold 3.*there: 0, all"):
        read_nnunet(folder, config, 3)


def test_nnunet_version_1_is_refused_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "plans.pkl").touch()
    with pytest.raises(ModelError, match="version 1"):
        read_nnunet(tmp_path)


@pytest.mark.parametrize(
    ("labels", "channels"),
    [
        ({"background": 0, "a": 1, "b": 2}, 3),
        ({"background": 0, "a": 1, "ignore": 2}, 2),
        ({"background": 0, "whole": [1, 2], "part": 2}, 2),
        ({"background": 0, "whole": [1, 2], "part": [2], "ignore": 3}, 2),
    ],
)
def test_channels_follow_from_the_labels(labels: dict[str, Any], channels: int) -> None:
    assert output_channels({"labels": labels}) == channels


@pytest.mark.torch
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrapped_networks_load(tmp_path: Path, prefix: str) -> None:
    torch = pytest.importorskip("torch")
    folder = nnunet(tmp_path)
    path = folder / "fold_0" / "checkpoint_final.pth"
    wanted = read_nnunet(folder)[1]
    content = torch.load(path, weights_only=True)
    content["network_weights"] = {prefix + k: v for k, v in content["network_weights"].items()}
    torch.save(content, path)
    assert all(np.array_equal(wanted[k], v) for k, v in read_nnunet(folder)[1].items())


def lightning(path: Path, state: dict[str, Any], opt: dict[str, Any], **settings: Any) -> Path:
    """A checkpoint as Lightning writes it, in a model folder."""
    torch = pytest.importorskip("torch")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "classifier" if "val_f1" in path.name else "unet"
    values = json.loads((GOLDEN / "old_plain" / "inference_config.json").read_text()) | {"modeltype": kind}
    (path.parent / "inference_config.json").write_text(json.dumps(values))
    state = {k: torch.as_tensor(v) for k, v in state.items()}
    torch.save(
        {"epoch": 1, "state_dict": state, "hyper_parameters": {"opt": argparse.Namespace(**opt), **settings}}, path
    )
    return path.parent


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in shapes.items():
        spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.2
        centre = 1.0 if "norm" in name and name.endswith(("weight", "running_var")) else 0.0
        params[name] = (centre + rng.normal(0, spread, shape)).astype(np.float32)
    return params


def unet_shapes(channels: int, dim: int) -> dict[str, tuple[int, ...]]:
    """The published U-Net, written out."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, a: int, b: int, k: int) -> None:
        shapes[f"network.{name}.weight"], shapes[f"network.{name}.bias"] = (b, a, k, k, k), (b,)

    def block(name: str, a: int, b: int) -> None:
        for half, n in (("block1", a), ("block2", b)):
            conv(f"{name}.{half}.proj", n, b, 3)
            shapes[f"network.{name}.{half}.norm.weight"] = shapes[f"network.{name}.{half}.norm.bias"] = (b,)
        if a != b:
            conv(f"{name}.res_conv", a, b, 1)

    conv("init_conv", channels, dim, 7)
    w = [dim, dim, 2 * dim, 4 * dim, 8 * dim]
    for k in range(4):
        block(f"downs.{k}.0", w[k], w[k + 1])
        block(f"downs.{k}.1", w[k + 1], w[k + 1])
        block(f"ups.{k}.0", w[4 - k], w[3 - k])
        block(f"ups.{k}.1", w[3 - k], w[3 - k])
        if k < 3:
            conv(f"downs.{k}.2", w[k + 1], w[k + 1], 4)
            conv(f"ups.{k}.2", w[3 - k], w[3 - k], 4)
    block("mid_block1", w[4], w[4])
    block("mid_block2", w[4], w[4])
    block("final_res_block", 2 * dim, dim)
    conv("final_conv", dim, 4, 1)
    return shapes


def unet_answer(state: dict[str, Any], x: Any) -> Any:
    """The published U-Net's forward pass with torch's own functions."""
    import torch
    from torch.nn import functional as F

    def p(name: str) -> tuple[Any, Any]:
        return state[f"network.{name}.weight"], state[f"network.{name}.bias"]

    def block(name: str, x: Any) -> Any:
        y = x
        for half in ("block1", "block2"):
            y = F.conv3d(y, *p(f"{name}.{half}.proj"), padding=1)
            y = F.leaky_relu(F.group_norm(y, 8, *p(f"{name}.{half}.norm")))
        return y + (F.conv3d(x, *p(f"{name}.res_conv")) if f"network.{name}.res_conv.weight" in state else x)

    r = x = F.conv3d(x, *p("init_conv"), padding=3)
    skips = []
    for k in range(4):
        x = block(f"downs.{k}.1", block(f"downs.{k}.0", x))
        skips.append(x)
        x = F.conv3d(x, *p(f"downs.{k}.2"), stride=2, padding=1) if k < 3 else x
    x = block("mid_block2", block("mid_block1", x))
    for k in range(4):
        x = block(f"ups.{k}.1", block(f"ups.{k}.0", 0.5 * (x + skips[3 - k])))
        x = F.conv_transpose3d(x, *p(f"ups.{k}.2"), stride=2, padding=1) if k < 3 else x
    return F.conv3d(block("final_res_block", torch.cat([x, r], 1)), *p("final_conv"))


@pytest.mark.torch
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("channels", "dim"), [(11, 8), (1, 8), (10, 16)])
def test_unet_answers_as_its_torch_twin(tmp_path: Path, channels: int, dim: int, engine: str) -> None:
    torch = pytest.importorskip("torch")
    state = drawn(unet_shapes(channels, dim))
    folder = lightning(tmp_path / "a-weights.ckpt", state, {"n_epoch": 7}, do2D=False)
    labels = np.random.default_rng(1).integers(0, channels, (2, 16, 24, 8))
    x = np.moveaxis(np.eye(channels, dtype=np.float32)[labels], -1, 1)
    wanted = unet_answer({k: torch.from_numpy(v) for k, v in state.items()}, torch.from_numpy(x)).numpy()
    network = loaded(folder, engine)
    assert (network.spec.in_channels, network.spec.classes, network.spec.stride) == (channels, 4, (8, 8, 8))
    assert np.abs(network(x) - wanted).max() < 1e-4 * max(np.abs(wanted).max(), 1)


@pytest.mark.torch
def test_unet_folders_that_are_not_complete(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="exactly one"):
        read_unet(tmp_path)
    state = drawn(unet_shapes(1, 8))
    lightning(tmp_path / "a-weights.ckpt", {**state, "loss.weight": np.zeros(3)}, {})
    read_unet(tmp_path)
    del state["network.ups.1.0.block1.proj.weight"]
    lightning(tmp_path / "a-weights.ckpt", state, {})
    with pytest.raises(ModelError, match=r"lacks ups\.1\.0\.block1\.proj\.weight"):
        read_unet(tmp_path)
    state["network.ups.1.0.block1.proj.weight"] = np.full((16, 32, 3, 3, 3), np.nan, np.float32)
    lightning(tmp_path / "a-weights.ckpt", state, {})
    with pytest.raises(ModelError, match="no numbers"):
        read_unet(tmp_path)
    lightning(tmp_path / "b-weights.ckpt", state, {})
    with pytest.raises(ModelError, match="exactly one"):
        read_unet(tmp_path)


BLOCKS, HEADS = (2, 3, 2, 1), {"VERT": 24, "FULLYVISIBLE": 2}
CLASSIFIER = "epoch=01-step=2-val_f1=0.9876_valf1-weights.ckpt"


def densenet_shapes(blocks: tuple[int, ...] = BLOCKS) -> dict[str, tuple[int, ...]]:
    """A small DenseNet with the names of MONAI's."""
    shapes: dict[str, tuple[int, ...]] = {"net.features.conv0.weight": (16, 1, 7, 7, 7)}

    def norm(name: str, n: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"net.features.{name}.{part}"] = (n,)

    n = 16
    norm("norm0", n)
    for b, count in enumerate(blocks, 1):
        for k in range(1, count + 1):
            layer = f"denseblock{b}.denselayer{k}.layers"
            norm(f"{layer}.norm1", n)
            shapes[f"net.features.{layer}.conv1.weight"] = (32, n, 1, 1, 1)
            norm(f"{layer}.norm2", 32)
            shapes[f"net.features.{layer}.conv2.weight"] = (8, 32, 3, 3, 3)
            n += 8
        if b < len(blocks):
            norm(f"transition{b}.norm", n)
            shapes[f"net.features.transition{b}.conv.weight"] = (n // 2, n, 1, 1, 1)
            n //= 2
    norm("norm5", n)
    for head, k in HEADS.items():
        for layer, (a, b) in ((0, (n, n // 2)), (2, (n // 2, k))):
            name = f"classification_heads.{head}.{layer}"
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (b, a), (b,)
    return shapes


def densenet_answer(state: dict[str, Any], x: Any) -> dict[str, Any]:
    """MONAI's DenseNet with torch's own functions and unfolded batch norms."""
    import torch
    from torch.nn import functional as F

    def norm(name: str, x: Any) -> Any:
        mean, var, weight, bias = (
            state[f"net.features.{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, var, weight, bias))

    def conv(name: str, x: Any, **how: Any) -> Any:
        return F.conv3d(x, state[f"net.features.{name}.weight"], **how)

    x = F.max_pool3d(norm("norm0", conv("conv0", x, stride=2, padding=3)), 3, 2, 1)
    for b, count in enumerate(BLOCKS, 1):
        for k in range(1, count + 1):
            layer = f"denseblock{b}.denselayer{k}.layers"
            y = norm(f"{layer}.norm2", conv(f"{layer}.conv1", norm(f"{layer}.norm1", x)))
            x = torch.cat([x, conv(f"{layer}.conv2", y, padding=1)], 1)
        if b < len(BLOCKS):
            x = F.avg_pool3d(conv(f"transition{b}.conv", norm(f"transition{b}.norm", x)), 2)
    x = norm("norm5", x).mean((2, 3, 4))
    answers = {}
    for head in HEADS:
        name = f"classification_heads.{head}"
        y = F.relu(F.linear(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"]))
        answers[head] = F.linear(y, state[f"{name}.2.weight"], state[f"{name}.2.bias"])
    return answers


@pytest.mark.torch
@pytest.mark.parametrize("engine", ENGINES)
def test_densenet_answers_as_its_torch_twin(tmp_path: Path, engine: str) -> None:
    torch = pytest.importorskip("torch")
    state = drawn(densenet_shapes())
    counts = {"net.features.norm0.num_batches_tracked": np.array(7)}
    opt = {"backbone": "DENSENET169", "final_size": (70, 66, 32), "ds_name": "v4corpus"}
    folder = lightning(tmp_path / CLASSIFIER, {**state, **counts}, opt)
    # Sizes that no stage divides evenly.
    x = np.random.default_rng(1).standard_normal((2, 1, 70, 66, 34)).astype(np.float32)
    wanted = densenet_answer({k: torch.from_numpy(v) for k, v in state.items()}, torch.from_numpy(x))
    network = loaded(folder, engine)
    answers = network(x)
    assert isinstance(answers, dict)
    assert {head: v.shape for head, v in answers.items()} == {head: (2, k) for head, k in HEADS.items()}
    assert max(np.abs(answers[head] - wanted[head].numpy()).max() for head in HEADS) < 1e-4
    spec: Any = network.spec
    assert (spec.final_size, spec.ds_name, spec.backbone) == ((70, 66, 32), "v4corpus", "DENSENET169")
    assert spec_from_json(spec.to_json()) == spec


@pytest.mark.torch
def test_classifiers_that_are_not_supported_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="valf1"):
        read_densenet(tmp_path)
    state = drawn(densenet_shapes())
    with pytest.raises(ModelError, match="RESNET50"):
        read_densenet(lightning(tmp_path / CLASSIFIER, state, {"backbone": "RESNET50"}))
    with pytest.raises(ModelError, match="convolutions"):
        read_densenet(lightning(tmp_path / CLASSIFIER, state, {"classification_conv": True}))
    del state["net.features.norm5.running_var"]
    with pytest.raises(ModelError, match=r"lacks net\.features\.norm5\.running_var"):
        read_densenet(lightning(tmp_path / CLASSIFIER, state, {}))


@pytest.mark.torch
def test_heads_may_be_one_layer(tmp_path: Path) -> None:
    state = {k: v for k, v in drawn(densenet_shapes()).items() if "heads" not in k}
    n = len(state["net.features.norm5.weight"])
    state |= {"classification_heads.VERT.weight": np.ones((24, n)), "classification_heads.VERT.bias": np.zeros(24)}
    spec, params = read_densenet(lightning(tmp_path / CLASSIFIER, state, {}))
    assert spec.heads == {"VERT": 24}
    assert params["classification_heads.VERT.weight"].shape == (24, n)


def small_nnunets() -> dict[str, NnUNetSpec]:
    plain = NnUNetSpec(
        in_channels=2,
        classes=3,
        widths=(4, 6, 6),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        encoder_blocks=(1, 2, 2),
        decoder_blocks=(1, 2),
    )
    return {
        "plain": plain,
        "residual": replace(plain, residual=True),
        "residual, wide stem": replace(plain, residual=True, stem=5, slope=0.0),
        "strided first stage": replace(plain, residual=True, strides=((1, 1, 2), (1, 2, 2), (2, 2, 2))),
    }


@pytest.mark.torch
@pytest.mark.parametrize("make", [lambda s=s: s for s in small_nnunets().values()], ids=small_nnunets())
def test_engines_agree_on_all_graphs(tmp_path: Path, make: Callable[[], NnUNetSpec]) -> None:
    pytest.importorskip("torch")
    from spineps.inference.openvino_engine import OpenVinoNetwork, save_graph
    from spineps.inference.torch_engine import TorchNetwork

    spec = make()
    params = drawn(spec.parameter_shapes())
    x = np.random.default_rng(1).standard_normal((2, 2, *(2 * s for s in spec.stride))).astype(np.float32)
    wanted = TorchNetwork(spec, params, "cpu")(x)
    save_graph(spec, params, tmp_path / "network.xml")
    for source in (params, tmp_path / "network.xml"):
        answer = OpenVinoNetwork(spec, source, threads=1)(x)
        assert answer.shape == wanted.shape
        assert np.abs(answer - wanted).max() < 1e-4 * np.abs(wanted).max()
