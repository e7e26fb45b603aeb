"""Names, configs and the three kinds of model."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import pytest

from spineps.anatomy import CLASS_IDS
from spineps.errors import ModelError
from spineps.inference.network import NetSpec, initial_parameters, save_weights
from spineps.models.config import parse_config, read_config
from spineps.models.enums import Acquisition, InputType, Modality, ModelType, SpinepsPhase
from spineps.models.model import one_hot
from spineps.models.registry import (
    BUNDLED,
    available_models,
    get_actual_model,
    get_instance_model,
    get_labeling_model,
    get_semantic_model,
    models_folder,
)
from spineps.models.scaling import spread, standardise
from spineps.volume import Volume

PUBLISHED = {
    "log_name": "T2w",
    "modality": ["T2w"],
    "acquisition": "sag",
    "modeltype": "nnunet",
    "model_expected_orientation": ["P", "I", "R"],
    "available_folds": 3,
    "inference_augmentation": True,
    "resolution_range": [[0.75, 0.75, 1.65], [1.0, 1.0, 3.3]],
    "default_step_size": 0.5,
    "labels": {"1": "26", "2": "Arcus_Vertebrae", "3": "L1"},
}


@pytest.fixture(autouse=True)
def no_user_models(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("SPINEPS_SEGMENTOR_MODELS", str(folder))
    return folder


def install(folder, spec: NetSpec | None = None, **changes):
    folder.mkdir(parents=True)
    (folder / "inference_config.json").write_text(json.dumps(PUBLISHED | changes))
    if spec is not None:
        save_weights(folder / "weights.npz", spec, initial_parameters(spec, 0))
    return folder


def test_enums_compare_with_strings() -> None:
    assert Modality.CT == "CT" and "T2w" in (Modality.T2w,) and Modality.T2w != ModelType.nnunet
    assert str(Modality.CT) == "Modality.CT" and pickle.loads(pickle.dumps(Modality.CT)) is Modality.CT
    assert [m.value for m in Modality] == list(range(1, 9))
    assert "mr" in Modality.T2w.format_keys and "axial" in Acquisition.ax.format_keys


def test_published_config_is_understood() -> None:
    config = parse_config(PUBLISHED)
    assert config.orientation == "PIR" and config.folds == ("0", "1", "2") and config.inputs == (InputType.img,)
    assert dict(config.labels) == {1: 26, 2: 41, 3: 20} and config.class_ids == (0, 26, 41, 20)
    assert config.target_zoom((0.5, 0.9, 5)) == (0.75, 0.9, 3.3)
    assert parse_config(PUBLISHED | {"resolution_range": [1, 1, 2]}).target_zoom((5, 5, 5)) == (1, 1, 2)
    assert parse_config(PUBLISHED | {"available_folds": "all"}).folds == ("all",)
    assert config.mapping[50] == 9 and config.cutout_size == (248, 304, 64)
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.published and not parse_config(PUBLISHED | {"recipe": "spineps3"}).published


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modality", "XRay"),
        ("labels", {"1": "nose"}),
        ("resolution_range", [1, 2]),
        ("resolution_range", [0, 1, 1]),
        ("recipe", "new"),
    ],
)
def test_wrong_configs_name_the_fault(tmp_path, key: str, value: object) -> None:
    folder = install(tmp_path / "x", **{key: value})
    with pytest.raises(ModelError, match=r"inference_config\.json"):
        read_config(folder)


def test_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match="labels"):
        parse_config({k: v for k, v in PUBLISHED.items() if k != "labels"})


@pytest.mark.parametrize("name", ["t2w", "T1w", "vibe", "semantic"])
def test_bundled_semantic_model_answers_offline(name: str, caplog) -> None:
    with caplog.at_level(logging.INFO, "spineps"):
        model = get_semantic_model(name)
    assert model.origin == "bundled" and "bundled" in caplog.text and not model.config.published
    assert Modality.T1w in model.modalities and model.config.class_ids == CLASS_IDS
    assert (Modality.CT in model.modalities) == (name == "semantic")
    assert len(model.fingerprint) == 64 and model.phase is SpinepsPhase.SEMANTIC


def test_ct_asks_for_ct() -> None:
    assert get_semantic_model("ct").modalities == (Modality.CT,)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(KeyError, match="t2w"):
        get_semantic_model("t3w")
    with pytest.raises(ModelError, match="ct_instance"):
        get_instance_model("t2w")


def test_users_incomplete_model_takes_over_and_says_what_is_missing(no_user_models) -> None:
    install(no_user_models / "T2w_semantic_v1.0.9" / "X__nnUNetPlans__3d_fullres")
    with pytest.raises(ModelError, match="has no fold 0"):
        get_semantic_model("t2w")
    assert get_semantic_model("semantic").origin == "bundled"
    entry = next(e for e in available_models() if e.name == "t2w")
    assert entry.origin == "installed" and not entry.runnable


def test_users_own_model_runs_by_name_and_path(no_user_models) -> None:
    spec = NetSpec(kind="unet", classes=4, widths=(2, 3))
    folder = install(no_user_models / "Mine", spec, modeltype="unet")
    install(no_user_models / "broken", modality="XRay")
    for model in (get_semantic_model("mine"), get_semantic_model(folder), get_actual_model(folder)):
        assert model.origin == "installed" and model.config.class_ids == (0, 26, 41, 20)
    assert get_actual_model(folder / "inference_config.json").folder == folder
    assert "mine" in [e.name for e in available_models()]
    with pytest.raises(ModelError, match="semantic"):
        get_instance_model(folder)
    install(folder / "locator", spec, modeltype="unet")  # belongs to the model around it
    assert "locator" not in [e.name for e in available_models()]
    assert get_actual_model(folder.parent / "Mine").folder == folder


def test_a_folder_in_the_present_directory_is_a_name_too(no_user_models, monkeypatch, tmp_path) -> None:
    folder = install(tmp_path / "my-model", NetSpec(kind="unet", classes=4, widths=(2, 3)), modeltype="unet")
    monkeypatch.chdir(tmp_path)
    assert get_semantic_model("my-model").folder.resolve() == folder
    install(tmp_path / "t2w", NetSpec(kind="unet", classes=4, widths=(2, 3)), modeltype="unet")
    assert get_semantic_model("t2w").origin == "bundled"


def test_environment_must_name_a_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SPINEPS_SEGMENTOR_MODELS", str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="nowhere"):
        get_semantic_model("t2w")
    monkeypatch.delenv("SPINEPS_SEGMENTOR_MODELS")
    assert models_folder().name == "models"


def test_probabilities_do_not_care_about_grey_scale() -> None:
    model = replace(get_semantic_model("t2w", use_cpu=True, threads=1), engine="openvino", precision="f32")
    rng = np.random.default_rng(0)
    array = rng.random((20, 30, 10)).astype(np.float32)
    affine = np.array([[0, 0, 1.5, 0], [-1.5, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 0, 1]])
    p = model.probabilities(Volume(array, affine), tta=False)
    assert p.shape == (15, 20, 30, 10) and p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=0), 1, atol=1e-4)
    scaled = model.probabilities(Volume((array * 900 + 40).astype(np.float64), affine), tta=False)
    np.testing.assert_allclose(scaled, p, atol=1e-3)


def test_instance_and_labelling_models(tmp_path) -> None:
    labels = {"1": "1", "2": "2", "3": "3"}
    spec = NetSpec(kind="unet", in_channels=10, classes=4, widths=(2, 3))
    model = get_instance_model(install(tmp_path / "i", spec, modality="SEG", modeltype="unet", labels=labels))
    cutouts = np.random.default_rng(0).integers(0, 12, (3, 5, 6, 7)).astype(np.uint8)
    answer = model.segment(cutouts, batch_size=2)
    assert answer.shape == cutouts.shape and answer.dtype == np.uint8 and answer.max() <= 3

    heads = NetSpec(kind="classifier", heads={"VERT": 24, "REGION": 3}, widths=(2, 3))
    labeller = get_labeling_model(install(tmp_path / "l", heads, modeltype="classifier"))
    x = np.random.default_rng(0).random((3, 1, 9, 8, 4)).astype(np.float32)
    found = labeller.classify(x, batch_size=2)
    assert found["VERT"].shape == (3, 24) and found["REGION"].shape == (3, 3)
    np.testing.assert_allclose(found["VERT"].sum(axis=1), 1, atol=1e-5)
    assert labeller.classify(x[:0])["REGION"].shape == (0, 3)


def test_one_hot_drops_unknown_labels() -> None:
    hot = one_hot(np.array([[[[0, 2, 9]]]]), 3)
    assert hot.shape == (1, 3, 1, 1, 3) and hot[0, :, 0, 0].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_scaling_ignores_outliers_and_windows_ct() -> None:
    rng = np.random.default_rng(0)
    mr = rng.random(10_000) * 100
    mr[0] = 1e6
    assert spread(mr).max() == np.float32(1.2) and 0.4 < np.median(spread(mr)) < 0.6
    ct = np.concatenate([np.full(5000, -1000.0), rng.random(5000) * 1000])
    assert np.median(spread(ct)[5000:]) == pytest.approx(0.5, abs=0.15)
    s = standardise(mr[1:].astype(np.float32))
    assert abs(s.mean()) < 1e-4 and abs(s.std() - 1) < 1e-3
    assert np.isfinite(standardise(np.zeros(5, np.float32))).all()


def test_every_bundled_model_is_complete() -> None:
    for folder in sorted(p for p in BUNDLED.iterdir() if p.is_dir()):
        assert get_actual_model(folder).load().network is not None
        assert len((folder / "CARD.md").read_text(encoding="utf-8")) > 200
        assert (folder / "weights.npz").stat().st_size < 16 * 2**20


def test_the_semantic_model_brings_a_locator_that_counts_in_its_fingerprint(tmp_path: Path) -> None:
    model = get_semantic_model()
    assert model.locator is not None and model.locator.config.zoom_min == (4.5, 4.5, 4.5)
    assert model.locator.locator is None and len((model.locator.folder / "CARD.md").read_text(encoding="utf-8")) > 200
    copytree(model.folder, tmp_path / "copy")
    assert get_semantic_model(tmp_path / "copy").fingerprint == model.fingerprint
    (tmp_path / "copy" / "locator" / "weights.npz").unlink()
    with pytest.raises(ModelError, match="locator has no weights"):
        get_semantic_model(tmp_path / "copy")
    rmtree(tmp_path / "copy" / "locator")
    alone = get_semantic_model(tmp_path / "copy")
    assert alone.locator is None and alone.fingerprint != model.fingerprint


def test_amp_runs_the_same_instance_model_in_bfloat16() -> None:
    model = get_instance_model()
    assert model.amp.precision == "bf16" and model.amp is model.amp and model.precision is None
    assert model.amp.fingerprint == model.fingerprint
