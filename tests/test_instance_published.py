"""Published instance models: masks as recorded from 2.1.3, voxel by voxel, and its two crashes cured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from oracle import Oracle, instance_config
from phantom_column import Column, build

from spineps.errors import EmptyError
from spineps.models.config import InferenceConfig, parse_config
from spineps.options import InstanceOptions
from spineps.phases.components import fill_holes
from spineps.phases.instance import predict_instances
from spineps.phases.published_bodies import published_centres
from spineps.volume import Volume

GOLDEN = Path(__file__).parent / "golden" / "instance"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


class Recorded:
    """Answers of a network in the order in which it was asked."""

    def __init__(self, answers: np.ndarray, config: InferenceConfig) -> None:
        self.config = config
        self.answers = list(answers)
        self.seen: list[np.ndarray] = []

    def segment(self, cutouts: np.ndarray, batch_size: int = 4) -> np.ndarray:
        self.seen.extend(cutouts)
        return np.stack([self.answers.pop(0) for _ in cutouts])


@pytest.mark.parametrize("name", ["unet_legacy", "unet_new"])
def test_masks_of_published_networks_are_the_recorded_ones(name: str) -> None:
    g = golden(name)
    model = Recorded(g["answers"], parse_config(json.loads(str(g["config"]))))
    found = predict_instances(Volume(g["sem"], g["affine"]), model, InstanceOptions())
    assert np.array_equal(found.array, g["out"])
    assert not model.answers and set(np.unique(model.seen)) == set(range(10))


@pytest.mark.parametrize("name", ["n12_fine", "n2", "n3_splitep_dens", "n4_noep", "n6", "n6_nosacrum"])
@pytest.mark.parametrize(("solve", "key"), [(True, "coms"), (False, "coms_unsplit")])
def test_centres_are_the_recorded_ones(name: str, solve: bool, key: str) -> None:
    g = golden(name)
    pitch = float(np.linalg.norm(g["affine"][:3, 1]))
    assert published_centres(g["sem"], 30, solve, pitch) == pytest.approx(g[key], abs=1e-9)


@pytest.mark.parametrize("name", ["merged_bodies_disc_kept", "merged_bodies_disc_gone", "merged_corpi_n7"])
@pytest.mark.parametrize(("solve", "key"), [(True, "coms_split"), (False, "coms_nosplit")])
def test_fused_bodies_are_cut_where_they_were(name: str, solve: bool, key: str) -> None:
    g = golden(name)
    assert published_centres(g["sem"], 43, solve, 0.75) == pytest.approx(g[key], abs=1e-9)


@pytest.mark.parametrize("name", ["threshold", "steep", "thrice"])
def test_centres_in_poor_masks_are_the_recorded_ones(name: str) -> None:
    """Phantoms with discs torn up and grown into bodies: neighbours 7.5 to 16.5 mm apart, a plane that leaves columns
    open, three cuts (recorded from 2.1.3)."""
    g = {key.removeprefix(f"{name}_"): value for key, value in golden("poor_masks").items() if key.startswith(name)}
    for solve, key in ((True, "coms"), (False, "unsplit")):
        found = published_centres(g["sem"], int(g["minimum"]), solve, float(g["pitch"]))
        assert found == pytest.approx(g[key], abs=1e-9)


def test_a_body_cut_by_the_image_is_lost_as_it_was() -> None:
    g = golden("sample_mri")
    assert published_centres(g["sem_in"], 30, True, 1.5) == pytest.approx(g["coms"], abs=1e-9)


def test_a_block_that_erosion_cannot_part_stays_whole() -> None:
    """Measured: 2.1.3 fails to cut it, says so and goes on."""
    sem = np.zeros((24, 150, 24), np.uint8)
    for top, height in ((4, 14), (26, 14), (48, 36), (92, 14), (114, 14)):
        sem[4:20, top : top + height, 4:20] = 49
        sem[4:20, top + height + 1 : top + height + 5, 4:20] = 100
    sem[20:23, 66:70, 11:13] = 100
    assert len(published_centres(sem, 10, True, 1.0)) == 5


@pytest.mark.parametrize("silent", [2, 0])
def test_a_silent_cutout_does_not_end_the_phase(silent: int) -> None:
    sem, truth = build(Column())
    config = instance_config(published=True)
    oracle = Oracle(sem, truth, config, lambda answer, number: answer * (number != silent))
    assert len(np.unique(predict_instances(sem, oracle, InstanceOptions()).array)) == 8


def test_a_network_that_finds_nothing_is_said_clearly() -> None:
    sem, truth = build(Column())
    oracle = Oracle(sem, truth, instance_config(published=True), lambda answer, _: np.zeros_like(answer))
    with pytest.raises(EmptyError, match="found no vertebra around 7 bodies"):
        predict_instances(sem, oracle, InstanceOptions())
    no_body = sem.with_array(np.where(sem.array == 49, 0, sem.array))
    with pytest.raises(EmptyError, match="No vertebral body"):
        predict_instances(no_body, oracle, InstanceOptions())


def test_a_notch_at_the_edge_of_the_box_is_no_hole() -> None:
    labels = np.ones((5, 6, 7), np.uint8)
    labels[0, 0, 3] = 0
    labels[2, 3, 3] = 0
    filled = fill_holes(labels)
    assert filled[0, 0, 3] == 0 and filled[2, 3, 3] == 1
