"""Published folders as models: found, fingerprinted, run, and refused with a reason."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from spineps.errors import ModelError
from spineps.models.config import read_config
from spineps.models.enums import InputType
from spineps.models.model import InstanceModel
from spineps.models.published import PublishedSemanticModel
from spineps.models.registry import available_models, get_actual_model, get_semantic_model
from spineps.volume import Volume

GOLDEN = Path(__file__).parent / "golden" / "nnunet"
AFFINE = np.array([[0, 0, 1.65, 0], [-0.75, 0, 0, 0], [0, -0.75, 0, 0], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("SPINEPS_SEGMENTOR_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("SPINEPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "models"


def folder(tmp_path: Path, folds: int = 1, plans: dict | None = None, **config: object) -> Path:
    """A recorded nnU-Net folder with other folds, plans and config."""
    target = tmp_path / "copy__nnUNetPlans__3d_fullres"
    shutil.copytree(GOLDEN / "old_plain", target)
    for k in range(1, folds):
        shutil.copytree(target / "fold_0", target / f"fold_{k}")
    for name, changes in (("inference_config.json", {"available_folds": folds, **config}), ("plans.json", plans or {})):
        values = json.loads((target / name).read_text())
        values.update(changes if name != "plans.json" else {})
        if name == "plans.json":
            values["configurations"]["3d_fullres"].update(changes)
        (target / name).write_text(json.dumps(values))
    return target


class Threshold:
    """Class 1 where the image is bright, 2 where it is very bright; every voxel by itself."""

    def __init__(self, mirror: tuple[int, ...] = (0, 1, 2)) -> None:
        self.spec = SimpleNamespace(stride=(1, 1, 1), in_channels=1, mirror_axes=mirror, configuration="3d_fullres")
        self.device_name = "stub"
        self.calls = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.calls += 1
        x = x[:, :1]
        low = np.full_like(x, -99.0)
        return np.concatenate([0.2 - x, x - 0.2, 3 * x - 1.5, *[low] * 12], axis=1)


class Stubbed(PublishedSemanticModel):
    """Every fold is a :class:`Threshold`."""

    def _fold(self, fold: str):
        return self.__dict__.setdefault("folds", {}).setdefault(fold, Threshold())


def stubbed(path: Path, **config: object) -> Stubbed:
    return Stubbed("stub", replace(read_config(path), **config), path, "installed")


def scan(shape: tuple[int, int, int] = (20, 30, 16)) -> Volume:
    return Volume(np.random.default_rng(0).random(shape).astype(np.float32), AFFINE)


def expected(image: np.ndarray) -> np.ndarray:
    return np.select([image > 0.65, image > 0.2], [2, 1], 0)


PLAIN = {"normalization_schemes": ["NoNormalization"]}


def test_installed_published_model_takes_over_and_runs(own_folders, caplog) -> None:
    shutil.copytree(GOLDEN / "old_plain", own_folders / "T2w_semantic_v1.0.9" / "x__nnUNetPlans__3d_fullres")
    assert next(e for e in available_models() if e.name == "t2w").runnable
    with caplog.at_level("INFO", "spineps"):
        model = get_semantic_model("t2w", use_cpu=True, threads=1)
        labels = model.labels(scan())
    assert isinstance(model, PublishedSemanticModel) and labels.shape == (20, 30, 16) and labels.dtype == np.uint8
    assert "runs on CPU (OpenVINO" in caplog.text


def test_folder_around_a_model_will_do_but_not_around_two(tmp_path) -> None:
    outer = tmp_path / "outer"
    shutil.copytree(GOLDEN / "old_plain", outer / "a")
    assert get_actual_model(outer).folder == outer / "a"
    assert get_actual_model(outer / "a" / "inference_config.json").folder == outer / "a"
    shutil.copytree(GOLDEN / "old_plain", outer / "b")
    with pytest.raises(ModelError, match="several models: a, b"):
        get_actual_model(outer)
    with pytest.raises(ModelError, match="does not exist"):
        get_actual_model(tmp_path / "nowhere")


def test_missing_files_are_named(tmp_path) -> None:
    path = folder(tmp_path, folds=2)
    shutil.rmtree(path / "fold_1")
    with pytest.raises(ModelError, match="has no fold 1"):
        get_actual_model(path)
    shutil.copytree(path / "fold_0", path / "fold_1")
    (path / "plans.json").unlink()
    with pytest.raises(ModelError, match=r"plans\.json does not exist"):
        get_actual_model(path)


@pytest.mark.parametrize("count", [0, 2])
def test_instance_model_wants_exactly_one_checkpoint(tmp_path, count: int) -> None:
    config = json.loads((GOLDEN / "old_plain" / "inference_config.json").read_text())
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "inference_config.json").write_text(
        json.dumps({**config, "modality": "SEG", "modeltype": "unet"})
    )
    for k in range(count):
        (tmp_path / "i" / f"{k}-weights.ckpt").touch()
    with pytest.raises(ModelError, match=r"weights.*ckpt"):
        get_actual_model(tmp_path / "i")


def test_semantic_models_of_other_kinds_are_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="semantic unet"):
        get_actual_model(folder(tmp_path, modeltype="unet"))


@pytest.mark.parametrize(
    "name",
    [
        "inference_config.json",
        "plans.json",
        "dataset.json",
        "fold_0/checkpoint_final.pth",
        "fold_1/checkpoint_final.pth",
    ],
)
def test_fingerprint_sees_every_file_whatever_its_size_and_date(tmp_path, name: str) -> None:
    path = folder(tmp_path, folds=2)
    before = get_actual_model(path).fingerprint
    stat, content = (path / name).stat(), (path / name).read_bytes()
    # Same length, same date: another digit, or a bit.
    changed = content.replace(b"1", b"2", 1) if name.endswith("json") else content[:-1] + bytes([content[-1] ^ 1])
    (path / name).write_bytes(changed)
    os.utime(path / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changed != content and get_actual_model(path).fingerprint != before


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("limit", [0, 2**30])
def test_labels_lie_where_the_image_does(tmp_path, monkeypatch, folds: int, limit: int) -> None:
    monkeypatch.setattr("spineps.models.published.SUMS_LIMIT", limit)
    path = folder(tmp_path, folds, {**PLAIN, "patch_size": [8, 12, 10], "spacing": [0.75, 1.65, 0.75]})
    plans = json.loads((path / "plans.json").read_text())
    (path / "plans.json").write_text(json.dumps({**plans, "transpose_forward": [1, 0, 2]}))
    image = scan()
    image.array[:4] = 0
    model = stubbed(path)
    labels = model.labels(image)
    clear = np.abs(image.array[..., None] - [0.2, 0.65]).min(axis=-1) > 1e-3
    np.testing.assert_array_equal(labels[clear], expected(image.array)[clear])
    p = model.probabilities(image)
    assert p.shape == (15, *image.shape) and p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=0), 1, atol=1e-5)
    assert (p.argmax(axis=0) == labels)[clear].all() and (p[0, :4] == 1).all()


def test_other_voxel_size_goes_there_and_back(tmp_path) -> None:
    path = folder(tmp_path, plans={**PLAIN, "spacing": [3.3, 1.5, 1.5], "patch_size": [8, 12, 10]})
    smooth = np.zeros((20, 30, 16), np.float32)
    smooth[6:16, 8:22, 4:12] = 0.9
    image = Volume(smooth + 0.01, AFFINE)
    labels = stubbed(path).labels(image)
    assert labels.shape == image.shape and (labels == expected(image.array)).mean() > 0.9
    assert (stubbed(path).probabilities(image).argmax(axis=0) == labels).mean() > 0.99


def test_flips_and_step_follow_config_and_caller(tmp_path) -> None:
    path = folder(tmp_path, plans={**PLAIN, "patch_size": [16, 15, 20]})

    def calls(**asked: object) -> int:
        model = stubbed(path, tta=bool(asked.pop("config_tta", False)))
        model.labels(scan(), **asked)
        return model.network.calls

    tiles = calls()
    assert calls(tta=True) == calls(config_tta=True) == 8 * tiles and calls(config_tta=True, tta=False) == tiles
    assert calls(step_size=0.2) > tiles


def test_several_inputs(tmp_path) -> None:
    plans = {"normalization_schemes": ["NoNormalization"] * 2, "use_mask_for_norm": [False] * 2}
    model = stubbed(folder(tmp_path, plans=plans), inputs=(InputType.ip, InputType.oop))
    first, second = scan(), scan()
    both = Volume(np.stack([first.array, 1 - second.array]), AFFINE)
    assert (model.labels(both) == expected(first.array)).mean() > 0.99
    with pytest.raises(ModelError, match="ip, oop"):
        model.labels(first)


def test_models_that_want_a_crop_say_so(tmp_path, caplog) -> None:
    stubbed(folder(tmp_path, needs_corp=True)).labels(scan())
    assert "Nothing is cropped here by itself" in caplog.text


def test_one_channel_instance_network_sees_its_labels() -> None:
    class Bright:
        spec = SimpleNamespace(in_channels=1, stride=(2, 2, 2))

        def __call__(self, x: np.ndarray) -> np.ndarray:
            self.seen = x
            return np.concatenate([0.5 - x, x, 0 * x, 0 * x], axis=1)

    class OneChannel(InstanceModel):
        network = Bright()

    config = replace(read_config(GOLDEN / "old_plain"), labels={1: 1, 2: 2, 3: 3})
    cutouts = np.random.default_rng(0).integers(0, 10, (2, 3, 4, 5)).astype(np.uint8)
    model = OneChannel("one", config, GOLDEN)
    np.testing.assert_array_equal(model.segment(cutouts), cutouts / 9 > 0.25)
    np.testing.assert_allclose(model.network.seen[:, 0, :3, :4, :5], cutouts / 9, rtol=1e-6)
