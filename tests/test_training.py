"""Training: replayable, resumable, and it learns."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from spineps.anatomy import CLASS_IDS
from spineps.errors import OptionError, SpinepsError
from spineps.inference.network import NetSpec, load_weights, parameter_shapes
from spineps.training.config import CONFIGS, parse_config, read_training_config
from spineps.volume import Volume

torch = pytest.importorskip("torch")

from spineps.inference.engine import load_network  # noqa: E402
from spineps.training.cache import FULL, Cache, write_cache  # noqa: E402
from spineps.training.chance import Chance  # noqa: E402
from spineps.training.config import TrainingConfig, Warp  # noqa: E402
from spineps.training.export import averaged_weights, export, initial_weights, measure_ranges  # noqa: E402
from spineps.training.feed import RealFeed, SyntheticFeed, class_lookup, with_plates  # noqa: E402
from spineps.training.intensity import coarser, random_look, thick_slices  # noqa: E402
from spineps.training.loop import Trainer, widened  # noqa: E402
from spineps.training.loss import coarse_loss, full_loss, group_matrix  # noqa: E402
from spineps.training.muon import orthogonal  # noqa: E402
from spineps.training.pictures import write_png  # noqa: E402
from spineps.training.real import mark_cord, mark_plates, own_arrays, real_arrays, whole_arrays  # noqa: E402
from spineps.training.semantic import SemanticObjective  # noqa: E402
from spineps.training.warp import inside, sample, sampling_points  # noqa: E402

CPU = torch.device("cpu")
STILL = Warp(rotation=(0, 0, 0), scale=1, stretch=1, bend=0)
TINY = TrainingConfig(
    network=NetSpec(kind="unet", classes=15, widths=(4, 8)),
    zoom=(1.5, 1.5, 1.5),
    patches=((12, 16, 8),),
    real_patches=((12, 16, 4), (16, 12, 4)),
    real_per_step=1,
    held_out=("spider022",),
    learning_rate=2e-2,
    warmup=5,
)


def toy_maps(seed: int = 0) -> np.ndarray:
    """Body, disc and a left and a right process; the tissue is the class index."""
    semantic = np.zeros((20, 20, 12), np.uint8)
    semantic[4:10, 3:9], semantic[4:10, 10:13] = 49, 100
    semantic[12:16, 4:14, 1:5], semantic[12:16, 4:14, 7:11] = 43, 44
    semantic = np.roll(semantic, seed % 3, axis=1)
    return np.stack([class_lookup(CPU).numpy()[semantic].astype(np.uint8), semantic, semantic])


def toy_painter(tissue, instance, zoom, chance):
    return torch.where(tissue > 0, 1.0 + tissue.float() % 5, 0.0) + 0.05 * chance.normal(*tissue.shape)


@pytest.fixture
def caches(tmp_path):
    write_cache(tmp_path / "maps.npz", {"kind": "synthetic"}, ((f"{k:05d}", toy_maps(k)) for k in range(3)))
    rng = np.random.default_rng(0)
    scans = []
    for k in range(2):
        labels = np.zeros((20, 24, 6), np.uint8)
        labels[4:10, 3:9], labels[4:10, 10:13], labels[12:16] = 1, 2, 3
        grey = (labels * 50 + rng.integers(0, 20, labels.shape)).astype(np.uint8)
        scans.append((f"sub-spider00{k}", np.stack([grey, labels])))
    write_cache(tmp_path / "real.npz", {"kind": "real"}, scans)
    return tmp_path


def toy_trainer(caches, config: TrainingConfig = TINY) -> Trainer:
    synthetic = SyntheticFeed([Cache(caches / "maps.npz")], config, CPU, toy_painter)
    real = RealFeed(Cache(caches / "real.npz", keep=True), config, CPU)
    return Trainer(config, SemanticObjective(config, CPU, synthetic, real), CPU)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_it_learns_and_the_weights_run_in_the_default_engine(caches, optimiser) -> None:
    trainer = toy_trainer(caches, replace(TINY, optimiser=optimiser))
    first = [trainer.one_step(0.0)["loss"] for _ in range(5)]
    for _ in range(20):
        last = trainer.one_step(0.0)
    assert last["loss"] < 0.8 * np.mean(first)
    trainer.objective.draw(trainer, caches / "run")
    assert (caches / "run" / "pictures" / f"{trainer.step:06d}.png").is_file()
    trainer.save(caches / "run" / "checkpoint.pt")
    export(caches / "run" / "checkpoint.pt", caches / "model")
    x = np.random.default_rng(0).standard_normal((1, 1, 16, 16, 8)).astype(np.float32)
    answer = load_network(caches / "model", "openvino", threads=1, precision="f32")(x)
    trainer.params = trainer.average
    expected = trainer.network(torch.from_numpy(x)).detach().numpy()
    assert np.abs(answer - expected).max() < 0.05
    assert json.loads((caches / "model" / "inference_config.json").read_text())["labels"]["14"] == "26"


def test_ranges_for_eight_bits_are_measured_and_change_no_weight(caches) -> None:
    toy_trainer(caches).save(caches / "run" / "checkpoint.pt")
    export(caches / "run" / "checkpoint.pt", caches / "model8")
    file, x = caches / "model8" / "weights.npz", torch.randn(1, 1, 16, 16, 8).numpy()
    spec, before = load_weights(file)
    assert spec.ranges == ()
    measure_ranges(caches / "model8", count=2)
    measured, after = load_weights(file)
    assert replace(measured, ranges=()) == spec
    assert all((after[name] == values).all() for name, values in before.items())
    shapes = [shape for name, shape in parameter_shapes(spec).items() if name.endswith("conv.weight")]
    assert len(measured.ranges) == sum(shape[1] > 1 for shape in shapes)
    assert all(low < 0 < high for low, high in measured.ranges)
    exact, coarse = (load_network(caches / "model8", "openvino", precision=p)(x) for p in ("f32", "int8"))
    assert 0 < np.abs(exact - coarse).max() < 0.3 * np.abs(exact).max()


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uncut_one(caches, optimiser) -> None:
    config = replace(TINY, optimiser=optimiser)
    whole = toy_trainer(caches, config)
    assert whole.run(steps=8, minutes=None, leg=None, out=caches / "whole")
    cut = toy_trainer(caches, config)
    cut.run(steps=8, minutes=None, leg=1e-9, out=caches / "cut")
    assert cut.step < 8
    while cut.step < 4:
        cut.one_step(cut.step / 8)
    cut.save(caches / "cut" / "checkpoint.pt")
    again = toy_trainer(caches, config)
    again.resume(caches / "cut" / "checkpoint.pt")
    assert again.step == 4
    assert again.run(steps=8, minutes=None, leg=None, out=caches / "cut")
    for name, p in whole.params.items():
        torch.testing.assert_close(again.params[name], p, rtol=0, atol=0)
        torch.testing.assert_close(again.average[name], whole.average[name], rtol=0, atol=0)
    assert averaged_weights(caches / "cut" / "checkpoint.pt")[0] == config


def test_another_optimiser_is_told_from_a_run_and_from_nonsense(caches) -> None:
    toy_trainer(caches).save(caches / "checkpoint.pt")
    with pytest.raises(OptionError, match="made with adamw"):
        toy_trainer(caches, replace(TINY, optimiser="muon")).resume(caches / "checkpoint.pt")
    with pytest.raises(OptionError, match="no optimiser"):
        toy_trainer(caches, replace(TINY, optimiser="sgd"))


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (5, 5)])
def test_orthogonal_keeps_directions_and_evens_out_lengths(shape) -> None:
    matrix = torch.from_numpy(np.random.default_rng(1).standard_normal(shape)).float()
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonal(matrix) @ v.T
    lengths = torch.diagonal(turned)
    assert lengths.min() > 0.6 and lengths.max() < 1.3
    assert (turned - torch.diag(lengths)).abs().max() < 1e-3


def test_held_out_scans_are_refused(caches, tmp_path) -> None:
    write_cache(tmp_path / "leak.npz", {}, [("sub-spider022", toy_maps()[:2])])
    with pytest.raises(OptionError, match="spider022"):
        RealFeed(Cache(tmp_path / "leak.npz"), TINY, CPU)


def test_label_maps_of_one_region(tmp_path) -> None:
    from spineps.training.__main__ import main

    command = ["cache", str(tmp_path / "necks.npz"), "--config", "instance", "--count", "1", "--first", "7"]
    assert main([*command, "--region", "cervical"]) == 0
    cache = Cache(tmp_path / "necks.npz")
    assert cache.meta["region"] == "cervical"
    instances = cache["000007"][2]
    assert 4 in instances and 24 not in instances and 26 not in instances
    assert main([*command, "--region", "knee"]) == OptionError("", "").code.exit_code


def test_real_cache_leaves_held_out_scans_alone(tmp_path) -> None:
    import nibabel as nib

    affine = np.array([[0, 0, 0.9, 0], [0.75, 0, 0, 0], [0, 0.75, 0, 0], [0, 0, 0, 1]])
    labels = np.zeros((24, 32, 10), np.uint8)
    labels[8:16, 8:16] = 1
    for name in ("sub-spider005", "sub-spider022"):
        nib.save(nib.Nifti1Image(labels * 100.0, affine), tmp_path / f"{name}_acq-sag_T2w.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), tmp_path / f"{name}_acq-sag_seg-coarse_msk.nii.gz")
    found = dict(real_arrays(tmp_path, (1.5, 1.5, 1.5), ["spider022"]))
    assert list(found) == ["sub-spider005"]
    grey, coarse = found["sub-spider005"]
    assert grey.shape == (12, 16, 6) and 12 <= (coarse == 1).sum() / 6 <= 20
    assert grey[coarse == 1].mean() > 4 * grey[coarse == 0].mean()


def test_cord_and_roots_are_marked_where_the_canal_has_a_dark_core() -> None:
    coarse = np.zeros((20, 60, 20), np.int64)
    coarse[4:16, :, 4:16] = 3
    grey = np.where(coarse == 3, 1.0, 0.2)
    grey[8:12, :40, 8:12] = 0.4
    grey[4, :, 4:16] = 0.4
    marked = mark_cord(grey, coarse, (1.5, 1.5, 1.5))
    # The last of these rows are blurred into the ones below; what is neither dark nor bright stays open.
    assert (marked[9:11, :38, 9:11] == 7).all() and (marked[13:15, :38, 5:15] == 8).all()
    assert (marked[4, :38, 5:15] == 3).all()
    assert (marked[:, 44:] == coarse[:, 44:]).all() and (marked[coarse == 0] == 0).all()
    assert (mark_cord(np.where(coarse == 3, 1.0, 0.2), coarse, (1.5, 1.5, 1.5)) == coarse).all()


def test_the_gap_between_vertebra_and_disc_is_endplate() -> None:
    column = [0, 0, 1, 1, 1, 0, 0, 2, 2, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 0, 0, 0, 0, 0, 0]
    wanted = [0, 0, 1, 1, 1, 4, 4, 2, 2, 4, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 255, 255, 255, 255, 0, 0]
    marked = mark_plates(np.tile(np.array(column, np.uint8)[None, :, None], (3, 1, 2)), 0.75)
    assert marked.tolist() == np.tile(np.array(wanted)[None, :, None], (3, 1, 2)).tolist()
    far = np.array([1, *[0] * 7, 2, 0, 0, 3], np.uint8)[None, :, None]  # 5 mm apart; a disc behind which the canal lies
    assert mark_plates(far, 0.75)[0, :, 0].tolist() == [1, *[0] * 7, 2, 255, 255, 3]
    assert mark_plates(np.zeros((2, 5, 2), np.uint8), 0.75).max() == 0


def test_whole_vertebrae_of_ct_leave_other_bone_open(tmp_path) -> None:
    import nibabel as nib

    units = np.full((16, 20, 44), 40, np.int16)
    mask = np.zeros(units.shape, np.uint8)
    units[4:10, 4:8], mask[4:10, 4:8] = 300, 20
    units[4:10, 12:16] = 300  # a vertebra that nobody labelled
    affine = np.array([[0, 0, 1.5, 0], [1.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])
    for name in ("sub-a", "sub-b"):
        nib.save(nib.Nifti1Image(units, affine), tmp_path / f"{name}_ct.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), tmp_path / f"{name}_seg-vert_msk.nii.gz")
    scans = list(whole_arrays(tmp_path, (1.5, 1.5, 1.5), ["sub-b"]))
    assert [name for name, _ in scans] == ["sub-a"]
    labels = np.moveaxis(Volume(scans[0][1][1], affine).reoriented("PIR").array, 2, 0)
    assert np.unique(labels).tolist() == [5, 6, 255]
    assert 0.8 < (labels == 5).sum() / (mask > 0).sum() < 1.3 and (labels == 255).sum() > (mask > 0).sum()
    write_cache(tmp_path / "ct.npz", {}, scans)
    deep = replace(TINY, deep_patches=((16, 16, 40),), real_patches=((8, 8, 8),))
    batch = RealFeed(Cache(tmp_path / "ct.npz"), deep, CPU).batch(0)
    assert batch.images.shape == (1, 1, 16, 16, 40) and set(batch.labels.unique().tolist()) <= {0, 5, 6}
    assert not bool(batch.valid.all())


def test_shipped_config_holds_the_validation_scans_out() -> None:
    config = read_training_config("semantic")
    assert {"spider022", "spider052", "spider057", "spider127", "spider191", "spider241"} <= set(config.held_out)
    assert config.network.classes == len(CLASS_IDS) == len(config.class_weights)
    for file in CONFIGS.glob("*.json"):
        read = read_training_config(file)
        assert parse_config(json.loads(read.to_json())) == read
    with pytest.raises(SpinepsError, match="semantic"):
        read_training_config("nonsense")


def test_draws_follow_from_seed_and_step() -> None:
    one, two, other = (Chance.of(CPU, 1, step, 0) for step in (5, 5, 6))
    a, b, c = ([*x.normal(4).tolist(), x.uniform(0, 1)] for x in (one, two, other))
    assert a == b and a != c


def test_flip_mirrors_the_last_axis_and_swaps_sides(caches) -> None:
    volume = torch.arange(24.0).reshape(1, 2, 3, 4)
    centre = [0.5, 1, 1.5]
    points = sampling_points(Chance.of(CPU, 0), STILL, (2, 3, 4), centre, False, CPU)
    torch.testing.assert_close(sample(volume, points, nearest=True), volume)
    points = sampling_points(Chance.of(CPU, 0), STILL, (2, 3, 4), centre, True, CPU)
    torch.testing.assert_close(sample(volume, points, nearest=False), volume.flip(3))
    left, right = CLASS_IDS.index(43), CLASS_IDS.index(44)
    feed = SyntheticFeed(
        [Cache(caches / "maps.npz")], replace(TINY, warp=STILL, patches=((20, 20, 12),)), CPU, toy_painter
    )
    for step in range(6):
        labels = feed.batch(step).labels[0]
        at = torch.nonzero(labels == left)[:, 2].float().mean(), torch.nonzero(labels == right)[:, 2].float().mean()
        assert at[0] < at[1]


def test_points_outside_are_known() -> None:
    points = sampling_points(Chance.of(CPU, 0), STILL, (4, 4, 4), [0.5, 0.5, 0.5], False, CPU)
    assert int(inside(points, (2, 2, 2)).sum()) == 8


def test_coarse_loss_asks_for_sums_only() -> None:
    groups = group_matrix()
    labels = torch.tensor([0, 1, 2, 3]).reshape(1, 1, 1, 4).expand(1, 4, 4, 4).contiguous()
    valid = torch.ones_like(labels, dtype=torch.bool)

    def loss(ids: list[int]) -> float:
        classes = torch.tensor([CLASS_IDS.index(i) for i in ids])
        logits = 12 * torch.nn.functional.one_hot(classes, 15).float().T.reshape(1, 15, 1, 1, 4)
        return float(coarse_loss(logits.expand(1, 15, 4, 4, 4), labels, valid, groups)[0])

    assert loss([0, 49, 100, 61]) < 0.05
    assert loss([26, 41, 100, 60]) < 0.05
    # Were an endplate as good as a disc or a vertebra, it would take over both.
    assert loss([0, 49, 62, 61]) > 1 and loss([0, 62, 100, 61]) > 1
    assert loss([0, 100, 49, 0]) > 1
    # A CT mask knows whole vertebrae only: anything else may stand beside them, but no bone.
    whole = torch.tensor([6, 5, 6, 6]).reshape(1, 1, 1, 4).expand(1, 4, 4, 4).contiguous()
    labels, spider = whole, labels
    assert loss([100, 62, 60, 26]) < 0.05 and loss([49, 62, 60, 26]) > 1
    labels = spider
    wrong = loss([0, 100, 100, 61])
    valid[..., 1] = False
    assert loss([0, 100, 100, 61]) < wrong


def test_full_loss_is_small_only_for_the_truth() -> None:
    labels = torch.randint(0, 15, (1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    hot = torch.nn.functional.one_hot(labels, 15).movedim(-1, 1).float()
    weights, valid = torch.ones(15), torch.ones_like(labels, dtype=torch.bool)
    perfect, ignorant = (float(full_loss(k * hot, labels, valid, weights)) for k in (20, 0))
    assert perfect < 0.02 < 1 < ignorant
    valid[:, :4] = False
    labels[:, :4] = 3
    assert float(full_loss(20 * hot, labels, valid, weights)) < 0.02


def test_looks_are_standardised_and_vary() -> None:
    image = torch.rand(16, 16, 8, generator=torch.Generator().manual_seed(0))
    looks = [random_look(Chance.of(CPU, k), image, (1.5, 1.5, 1.5)) for k in range(8)]
    for look in looks:
        assert torch.isfinite(look).all() and abs(float(look.mean())) < 1e-3 and abs(float(look.std()) - 1) < 1e-2
    assert not torch.equal(looks[0], looks[1])


def test_one_image_in_three_is_made_coarser() -> None:
    image = torch.rand(12, 12, 8, generator=torch.Generator().manual_seed(0))
    made = [coarser(Chance.of(CPU, k), image, (1.25, 1.25, 1.5)) for k in range(200)]
    blurred = [m for m in made if not torch.equal(m, image)]
    assert 45 < len(blurred) < 90 and all(m.shape == image.shape and m.std() < image.std() for m in blurred)
    flat = torch.ones(12, 12, 8)
    assert all(torch.allclose(coarser(Chance.of(CPU, k), flat, (1.25, 1.25, 1.5)), flat, atol=1e-5) for k in range(8))


def test_thick_slices_keep_flat_images_and_blur_edges() -> None:
    assert torch.allclose(thick_slices(torch.ones(3, 4, 9), 2, 3.0, 0.5), torch.ones(3, 4, 9), atol=1e-5)
    step = torch.zeros(3, 4, 9)
    step[..., 5:] = 1
    thick = thick_slices(step, 2, 3.0, 0.0)
    assert ((thick > 0.05) & (thick < 0.95)).any()


@pytest.mark.parametrize("across", [1, 2])
def test_looks_of_a_scan_have_thick_slices_mostly_across_one_axis(across: int, monkeypatch) -> None:
    axes: list[int] = []
    monkeypatch.setattr("spineps.training.intensity.thick_slices", lambda image, axis, *how: axes.append(axis) or image)
    for k in range(100):
        random_look(Chance.of(CPU, k), torch.rand(4, 4, 4), (1.5, 1.5, 1.5), across)
    assert set(axes) == {0, 1, 2} and 0.5 < axes.count(across) / len(axes) < 0.9


def test_initial_weights_come_from_anywhere(caches) -> None:
    assert initial_weights(None, "semantic") is None
    bundled = initial_weights("bundled", "semantic")
    assert bundled is not None and "out.weight" in bundled
    trainer = toy_trainer(caches)
    trainer.save(caches / "c.pt")
    assert set(initial_weights(str(caches / "c.pt"), "semantic")) == set(trainer.params)
    with pytest.raises(OptionError, match="do not fit"):
        Trainer(TINY, trainer.objective, CPU, bundled)


def test_a_wider_network_starts_with_the_answers_of_the_narrow_one_and_learns_with_all_its_channels(caches) -> None:
    narrow, x = toy_trainer(caches), torch.randn(1, 1, 8, 12, 4)
    average = {name: p.numpy().copy() for name, p in narrow.average.items()}
    for widths in ((4, 8), (6, 8), (4, 12), (7, 16)):
        config = replace(TINY, network=replace(TINY.network, widths=widths))
        wide = Trainer(config, narrow.objective, CPU, average)
        assert torch.allclose(wide.network(x), narrow.network(x), atol=1e-5)
        before = {name: p.detach().clone() for name, p in wide.params.items()}
        for _ in range(2):
            wide.one_step(0)
        assert all((p != before[name]).any(dim=tuple(range(1, p.ndim))).all() for name, p in wide.params.items())
    others: tuple[dict, ...] = ({"widths": (3, 8)}, {"classes": 16}, {"in_channels": 2}, {"skip": "concat"})
    for other in others:
        with pytest.raises(OptionError, match="do not fit"):
            widened(replace(TINY.network, **other), average, seed=0)


def test_a_deeper_network_starts_with_nearly_the_answers_of_the_shallow_one(caches) -> None:
    shallow, x = toy_trainer(caches), torch.randn(1, 1, 16, 24, 16)
    for _ in range(3):
        shallow.one_step(0)
    start = {name: p.detach().numpy().copy() for name, p in shallow.params.items()}
    blocks = {"encoder_blocks": (2, 3), "decoder_blocks": (2,)}
    deep = Trainer(replace(TINY, network=replace(TINY.network, **blocks)), shallow.objective, CPU, start)
    assert set(deep.params) > set(start)
    fresh = Trainer(replace(TINY, network=replace(TINY.network, **blocks)), shallow.objective, CPU)
    with torch.no_grad():
        wanted = shallow.network(x)
        near, far = ((t.network(x) - wanted).std() / wanted.std() for t in (deep, fresh))
    assert near < 0.25 and far > 3 * near
    before = {name: p.detach().clone() for name, p in deep.params.items()}
    deep.one_step(0)
    assert all(bool((p != before[name]).any()) for name, p in deep.params.items())


def test_painted_people_feed_the_network(tmp_path) -> None:
    from spineps.training.phantoms import paint, phantom_arrays

    people = list(phantom_arrays((40, 48, 24), (3, 3, 3), first=5, count=1))
    write_cache(tmp_path / "people.npz", {}, people)
    config = replace(TINY, zoom=(3.0, 3.0, 3.0), patches=((32, 40, 16),))
    batch = SyntheticFeed([Cache(tmp_path / "people.npz")], config, CPU, paint).batch(0)
    assert batch.images.shape == (1, 1, 32, 40, 16) and torch.isfinite(batch.images).all()
    assert len(torch.unique(batch.labels)) > 5
    again = SyntheticFeed([Cache(tmp_path / "people.npz")], config, CPU, paint).batch(0)
    torch.testing.assert_close(again.images, batch.images)


def test_pictures_are_png(tmp_path) -> None:
    write_png(tmp_path / "p" / "a.png", np.zeros((4, 6, 3), np.uint8))
    import matplotlib.image

    assert matplotlib.image.imread(tmp_path / "p" / "a.png").shape == (4, 6, 3)


def test_a_training_step_needs_torch_numpy_and_scipy_only() -> None:
    """GPU machines that are lent for minutes have nothing else."""
    code = (
        "import sys\n"
        "for name in ('nibabel', 'SimpleITK', 'TPTBox', 'openvino', 'matplotlib', 'cc3d', 'rich', 'typer', 'edt'):\n"
        "    sys.modules[name] = None\n"
        "import spineps.training.__main__, spineps.training.phantoms, spineps.training.export\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_plates_are_drawn_where_vertebra_and_disc_touch() -> None:
    column = torch.tensor([0, 1, 1, 1, 2, 2, 1, 1, 3])
    labels = column[None, :, None].expand(5, 9, 3).contiguous()
    assert with_plates(labels)[2, :, 1].tolist() == [0, 1, 1, 4, 2, 2, 4, 1, 3]


def test_an_output_can_be_calibrated_at_export(caches, tmp_path) -> None:
    toy_trainer(caches, TINY).save(tmp_path / "checkpoint.pt")
    export(tmp_path / "checkpoint.pt", tmp_path / "plain")
    export(tmp_path / "checkpoint.pt", tmp_path / "more", {100: 0.5})
    (_, plain), (_, more) = (load_weights(tmp_path / name / "weights.npz") for name in ("plain", "more"))
    change = more["out.bias"] - plain["out.bias"]
    assert change[CLASS_IDS.index(100)] == pytest.approx(0.5, abs=1e-3) and np.count_nonzero(change) == 1
    export(tmp_path / "checkpoint.pt", tmp_path / "calm", temperature=2.0)
    calm = load_weights(tmp_path / "calm" / "weights.npz")[1]
    assert all(np.allclose(calm[n], plain[n] / (2 if n.startswith("out.") else 1), atol=1e-3) for n in plain)
    with pytest.raises(OptionError, match="17"):
        export(tmp_path / "checkpoint.pt", tmp_path / "odd", {17: 1.0})


def test_several_runs_are_averaged_at_export(caches, tmp_path) -> None:
    trainer = toy_trainer(caches, TINY)
    trainer.save(tmp_path / "first.pt")
    with torch.no_grad():
        for values in trainer.average.values():
            values.add_(0.5)
    trainer.save(tmp_path / "second.pt")
    export(tmp_path / "first.pt", tmp_path / "one")
    export(tmp_path / "first.pt", tmp_path / "mean", others=[tmp_path / "second.pt"])
    (_, one), (_, mean) = (load_weights(tmp_path / name / "weights.npz") for name in ("one", "mean"))
    assert all(np.allclose(mean[n], one[n] + 0.25, atol=2e-3) for n in one)
    toy_trainer(caches, replace(TINY, network=replace(TINY.network, skip="concat"))).save(tmp_path / "other.pt")
    with pytest.raises(OptionError, match="another network"):
        export(tmp_path / "first.pt", tmp_path / "odd", others=[tmp_path / "other.pt"])


def own_scan(folder, mask: np.ndarray) -> None:
    """A scan as a run leaves it: the image, and in a folder beside it a mask that somebody has corrected."""
    import nibabel as nib

    affine = np.array([[0, 0, 1.5, 0], [-1.5, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 0, 1.0]])
    (folder / "derivatives_seg").mkdir(parents=True)
    nib.save(nib.Nifti1Image(10.0 * mask, affine), folder / "sub-1_T1w.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), folder / "derivatives_seg" / "sub-1_mod-T1w_seg-spine_msk.nii.gz")


def test_own_scans_teach_every_structure_and_its_side(tmp_path) -> None:
    mask = np.zeros((24, 32, 16), np.uint8)
    mask[4:10, 4:28], mask[12:16, :, :8], mask[12:16, :, 8:], mask[18:22] = 49, 43, 44, 52
    own_scan(tmp_path / "rawdata", mask)
    (tmp_path / "rawdata" / "sub-2_seg-spine_msk.nii.gz").write_bytes(b"")  # without an image it is left out
    [(name, (_, labels))] = own_arrays(tmp_path, (1.5, 1.5, 1.5), ())
    assert name == "sub-1_T1w"
    ids = np.array([*[0] * FULL, *CLASS_IDS])[labels]
    assert (ids == np.where(mask == 52, 62, mask)).all()
    assert list(own_arrays(tmp_path, (1.5, 1.5, 1.5), ("sub-1",))) == []
    write_cache(tmp_path / "own.npz", {}, [(name, np.stack([labels, labels]))])
    config = replace(TINY, real_patches=((24, 32, 16),), warp=Warp((0, 0, 0), 1, 1, 0), real_per_step=1)
    feed = RealFeed(Cache(tmp_path / "own.npz"), config, CPU)
    for step in range(6):  # flipped or not, the left one keeps its name
        found = feed.batch(step).labels[0].numpy()
        left, right = (np.argwhere(found == FULL + CLASS_IDS.index(i))[:, 2].mean() for i in (43, 44))
        assert left < right


@pytest.mark.parametrize("ending", ["T2w", "ct"])
def test_scans_with_another_kind_of_mask_are_left_to_it(tmp_path, ending) -> None:
    (tmp_path / f"sub-1_{ending}.nii.gz").write_bytes(b"")
    assert [*real_arrays(tmp_path, (1.5, 1.5, 1.5), ()), *whole_arrays(tmp_path, (1.5, 1.5, 1.5), ())] == []


def test_fine_tuning_as_documented(tmp_path, capsys) -> None:
    from spineps.cli.main import main

    mask = np.zeros((32, 48, 16), np.uint8)
    mask[6:14, 4:20], mask[6:14, 20:26], mask[6:14, 26:42], mask[16:22] = 49, 100, 49, 61
    own_scan(tmp_path / "scans", mask)
    bundled = json.loads((CONFIGS / "semantic.json").read_text())
    small = bundled | {"real_patches": [[32, 48, 16]], "real_per_step": 1, "deep_patches": []}
    (tmp_path / "small.json").write_text(json.dumps(small))

    def run(*arguments: object) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["train", *map(str, arguments)])
        assert ended.value.code == 0

    run("cache-real", tmp_path / "scans", tmp_path / "mine.npz")
    run("semantic", "--config", tmp_path / "small.json", "--init", "bundled", "--device", "cpu", "--steps", 2,
        "--real", tmp_path / "mine.npz", "--out", tmp_path / "run")  # fmt: skip
    run("export", tmp_path / "run" / "checkpoint.pt", tmp_path / "model")
    from spineps.models.registry import get_semantic_model

    model = get_semantic_model(tmp_path / "model")
    image = Volume(10.0 * mask, np.diag([1.5, 1.5, 1.5, 1]))
    assert model.config.log_name and model.probabilities(image, tta=False).shape == (15, 32, 48, 16)
    with pytest.raises(SystemExit):
        main(["train", "cache-real", str(tmp_path / "run"), str(tmp_path / "none.npz")])
    assert not (tmp_path / "none.npz").exists()
