"""Training of the instance and the labelling network: what they are shown and told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spineps.anatomy import SACRUM, T13  # noqa: E402
from spineps.errors import OptionError  # noqa: E402
from spineps.inference.network import NetSpec  # noqa: E402
from spineps.models.config import read_config  # noqa: E402
from spineps.models.registry import get_instance_model  # noqa: E402
from spineps.training import labeling  # noqa: E402
from spineps.training.__main__ import main  # noqa: E402
from spineps.training.cache import Cache, write_cache  # noqa: E402
from spineps.training.chance import Chance  # noqa: E402
from spineps.training.config import TrainingConfig, Warp, read_training_config  # noqa: E402
from spineps.training.export import BUNDLED, CONFIG_FILE, export  # noqa: E402
from spineps.training.instance import (  # noqa: E402
    BODY,
    CHANNELS,
    MAPPING,
    PARTS,
    InstanceFeed,
    imitate_mistakes,
    instance_objective,
)
from spineps.training.loop import Trainer  # noqa: E402
from spineps.training.phantoms import phantom_arrays  # noqa: E402

CPU = torch.device("cpu")
ZOOM = (3.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "maps.npz"
    write_cache(path, {"kind": "synthetic", "zoom": ZOOM}, phantom_arrays((56, 80, 32), ZOOM, 1, 3))
    return path


def tiny(**changes: object) -> TrainingConfig:
    network = NetSpec(in_channels=CHANNELS, classes=4, widths=(4, 8))
    config = TrainingConfig(network, ZOOM, patches=((48, 48, 32),), warp=Warp((0, 0, 0), 1.0, 1.0, 0.0))
    return replace(config, **changes)


def test_each_cutout_shows_the_vertebra_above_in_the_centre_and_below(cache: Path) -> None:
    feed = InstanceFeed([Cache(cache)], tiny(synthetic_per_step=4), CPU)
    seen = 0
    for step in range(3):
        batch = feed.batch(step)
        assert batch.images.shape == (4, CHANNELS, 48, 48, 32)
        assert torch.equal(batch.images.sum(1), torch.ones(4, 48, 48, 32))
        for shown, answer in zip(batch.images, batch.labels, strict=True):
            label = shown.argmax(0)
            assert bool((answer[(label == 0) | (label > PARTS)] == 0).all()), "only parts of vertebrae have an answer"
            body = (label == BODY).numpy()
            where = {k: np.argwhere(body & (answer == k).numpy()) for k in (1, 2, 3)}
            assert len(where[2]), "the centre is always in view"
            heights = [w[:, 1].mean() for k, w in where.items() if len(w) > 20]
            assert heights == sorted(heights)
            seen += len(heights) == 3
    assert seen >= 3


def test_batches_follow_from_seed_and_step(cache: Path) -> None:
    feeds = [InstanceFeed([Cache(cache)], tiny(warp=Warp()), CPU) for _ in range(2)]
    assert torch.equal(feeds[0].batch(7).images, feeds[1].batch(7).images)
    assert not torch.equal(feeds[0].batch(7).images, feeds[0].batch(8).images)


def test_mistakes_change_little_and_keep_the_classes(cache: Path) -> None:
    semantic = torch.from_numpy(Cache(cache)[Cache(cache).names[0]][1]).long()
    table = torch.zeros(256, dtype=torch.long)
    table[list(MAPPING)] = torch.tensor(list(MAPPING.values()))
    labels = table[semantic]
    changed = [imitate_mistakes(labels, Chance.of(CPU, 0, k), CHANNELS) for k in range(12)]
    assert all(int(c.min()) >= 0 and int(c.max()) < CHANNELS for c in changed)
    body = labels == BODY
    kept = [float((c[body] == BODY).float().mean()) for c in changed]
    assert min(kept) > 0.4
    assert any(not torch.equal(c, labels) for c in changed)


def test_the_mapping_of_the_bundled_model_is_the_one_trained_with() -> None:
    assert dict(read_config(BUNDLED / "instance" / CONFIG_FILE).mapping) == MAPPING


def test_instance_training_learns(cache: Path) -> None:
    config = tiny(learning_rate=1e-2, warmup=1, patches=((32, 40, 24),))
    trainer = Trainer(config, instance_objective(config, CPU, [cache]), CPU)
    losses = [trainer.one_step(0.0)["loss"] for _ in range(8)]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])


def test_export_of_an_instance_network_takes_the_settings_of_the_bundled_one(cache: Path, tmp_path: Path) -> None:
    config = read_training_config("instance")
    Trainer(config, instance_objective(config, CPU, [cache]), CPU).save(tmp_path / "checkpoint.pt")
    export(tmp_path / "checkpoint.pt", tmp_path / "model")
    assert get_instance_model(tmp_path / "model").config == read_config(BUNDLED / "instance" / CONFIG_FILE)
    other = tiny(network=NetSpec(kind="unet", in_channels=2, classes=3, widths=(4, 8)))
    Trainer(other, instance_objective(config, CPU, [cache]), CPU).save(tmp_path / "checkpoint.pt")
    with pytest.raises(OptionError, match="No bundled model"):
        export(tmp_path / "checkpoint.pt", tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


@pytest.mark.parametrize(
    ("vertebra", "chain", "level", "relation", "t13"),
    [
        (7, [6, 7, 8], 6, 1, 0),
        (8, [7, 8, 9], 7, 2, 0),
        (19, [18, 19, 20], 18, 3, 0),
        (19, [18, 19, T13, 20], 18, 0, 0),
        (T13, [19, T13, 20], 18, 3, 1),
        (18, [17, 18, 20], 17, 3, 0),
        (19, [18, 19], 18, labeling.IGNORED, 0),
        (20, [19, 20, 21], 19, 4, 0),
        (24, [23, 24, SACRUM], 23, 5, 0),
        (24, [23, 24, 25, SACRUM], 23, 0, 0),
        (25, [24, 25, SACRUM], 23, 5, 0),
        (23, [22, 23, SACRUM], 22, 5, 0),
        (24, [23, 24], 23, labeling.IGNORED, 0),
    ],
)
def test_truth_of_the_heads(vertebra: int, chain: list[int], level: int, relation: int, t13: int) -> None:
    answers = labeling._answers(vertebra, chain, whole=True)
    assert (answers["VERT"], answers["VERTREL"], answers["VT13"]) == (level, relation, t13)
    assert answers["FULLYVISIBLE"] == 1


def test_labelling_training_sees_what_inference_shows(cache: Path) -> None:
    config = replace(read_training_config("labeling"), zoom=ZOOM, patches=((56, 80, 32),), synthetic_per_step=1)
    objective = labeling.labeling_objective(config, CPU, [cache])
    model = read_config(BUNDLED / "labeling" / CONFIG_FILE)
    batch = objective._feed.batch(0)
    assert batch.inputs.shape[1:] == (config.network.in_channels, *model.cutout_size)
    assert set(batch.answers) == set(config.network.heads)
    assert all(len(truth) == len(batch.inputs) for truth in batch.answers.values())
    # Bodies are shown where the own vertebra is.
    own, body = batch.inputs[:, -1] > 0, batch.inputs[:, 1] > 0
    assert bool(((own & body).sum((1, 2, 3)) > 0).all())
    trainer = Trainer(config, objective, CPU)
    assert np.isfinite(trainer.one_step(0.5)["loss"])


def test_the_command_line_trains_resumes_and_says_what_is_missing(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.json"
    file.write_text(tiny().to_json(), encoding="utf-8")
    command = ["instance", "--config", str(file), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(command) == OptionError("").code.exit_code
    assert main([*command, "--synthetic", str(cache), "--steps", "2", "--leg", "0.0001"]) == 0
    assert main([*command, "--synthetic", str(cache), "--steps", "2"]) == 0
    assert main(["export", str(tmp_path / "run" / "checkpoint.pt"), str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "weights.npz").stat().st_size < 10e6
