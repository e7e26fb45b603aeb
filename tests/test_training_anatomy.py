"""Real shapes for training: the canal is found in rings of bone, labels say no more than is known, the feed replays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spineps.anatomy import CLASS_IDS, SACRUM
from spineps.errors import OptionError
from spineps.inference.network import NetSpec
from spineps.synth.tissues import TISSUE_COUNT, Tissue
from spineps.training.cache import FULL, UNKNOWN, Cache, write_cache
from spineps.training.config import TrainingConfig, Warp

torch = pytest.importorskip("torch")

from spineps.training.anatomy import anatomy_arrays, dressed_spine, dressed_trunk  # noqa: E402
from spineps.training.dressing import canal_track  # noqa: E402
from spineps.training.feed import AnatomyFeed  # noqa: E402
from spineps.training.loss import coarse_loss, group_matrix  # noqa: E402
from spineps.training.semantic import SemanticObjective  # noqa: E402

CPU = torch.device("cpu")
ZOOM = (1.5, 1.5, 1.5)
CONFIG = TrainingConfig(
    network=NetSpec(kind="unet", classes=15, widths=(4, 8)),
    zoom=ZOOM,
    deep_patches=((24, 32, 16),),
    anatomy_share=0.5,
    held_out=("verse007",),
    warp=Warp(rotation=(0, 0, 5), scale=1.1, stretch=1, bend=1),
)


def rings(first: int = 18, count: int = 4, rows: int = 120, discs: bool = False) -> np.ndarray:
    """Bodies, 15 rows high and 4 apart, with an arch around a canal of 18 mm by 20 mm whose middle is (36.5, 20)."""
    codes = np.zeros((60, rows, 41), np.uint8)
    for k in range(count):
        top = 10 + 19 * k
        codes[10:31, top : top + 15, 8:33] = first + k
        codes[31:45, top + 3 : top + 13, 10:31] = first + k
        codes[31:43, top : top + 15, 14:27] = 0
        if discs and k:
            codes[10:31, top - 4 : top, 8:33] = 100 + first + k - 1
    return codes


def trunk() -> np.ndarray:
    """Rings with discs, a solid sacrum with a coccyx, muscle, a rib, an organ and a hip bone beside them."""
    codes = np.pad(rings(21, 4, 160, discs=True), [(5, 5), (0, 0), (20, 20)])
    for row in range(86, 150):
        half = 16 if row < 130 else 4
        front = 20 + (row - 86) // 3
        codes[front : front + 28, row, 40 - half : 40 + half] = SACRUM
    codes[30:45, 100:140, 5:12], codes[48:56, 20:70, 22:28], codes[5:12, 30:60, 35:50] = 41, 50, 56
    return codes


@pytest.fixture(scope="module")
def dressed() -> dict[str, np.ndarray]:
    return {
        "spine": dressed_spine(rings(), ZOOM, np.random.default_rng(0)),
        "trunk": dressed_trunk(trunk(), ZOOM, np.random.default_rng(0)),
    }


def test_the_canal_is_found_inside_the_rings() -> None:
    track = canal_track(rings(), ZOOM)
    rows = slice(15, 80)
    assert track.known[rows].all() and not track.known[-5:].any()
    assert np.abs(track.p[rows] - 36.5).max() < 1 and np.abs(track.r[rows] - 20).max() < 0.5
    assert np.abs(track.depth[rows] - 12).max() < 1.5 and np.abs(track.width[rows] - 13).max() < 1.5


def test_cord_lies_in_the_sac_and_the_sac_in_the_canal(dressed) -> None:
    tissue, labels, _ = dressed["spine"]
    cord, sac = labels == 7, labels == 8
    assert cord.any() and sac.any()
    hollow = np.zeros(labels.shape, bool)
    hollow[30 + 31 : 30 + 43, :, 20 + 14 : 20 + 27] = True
    assert not ((cord | sac) & ~hollow).any()
    for row in np.flatnonzero(cord.any((0, 2))):
        p, r = np.nonzero(cord[:, row])
        around = np.nonzero((sac | cord)[:, row])
        assert around[0].min() < p.min() and p.max() < around[0].max()
        assert around[1].min() < r.min() and r.max() < around[1].max()
    assert set(np.unique(tissue[sac])) <= {Tissue.CSF, Tissue.CAUDA}
    # T11 to L2: the cord ends on the way, and its roots, which have the same label, go on.
    made_of = np.isin(tissue, (Tissue.CORD, Tissue.CAUDA))
    assert not (tissue[:, -40:] == Tissue.CORD).any() and (made_of & cord)[:, -40:].any()


def test_labels_say_no_more_than_is_known(dressed) -> None:
    tissue, labels, instance = dressed["spine"]
    assert set(np.unique(labels)) <= {5, 6, 7, 8, UNKNOWN} and tissue.max() < TISSUE_COUNT
    assert (labels[(instance >= 18) & (instance < 22)] == 5).all()
    assert (labels[:, :10] == UNKNOWN).all() and (labels[:, 84:] == UNKNOWN).all()
    made = np.isin(tissue, (Tissue.NUCLEUS, Tissue.ANNULUS))
    # Discs that a rule has drawn fill the gaps, and may be anything but vertebra.
    assert made[45:55, 25:29, 40].all() and (labels[made & (labels != UNKNOWN)] == 6).all()
    tissue, labels, instance = dressed["trunk"]
    sacrum = FULL + CLASS_IDS.index(SACRUM)
    assert set(np.unique(labels)) == {1, 2, 7, 8, FULL, sacrum, UNKNOWN}
    hip = trunk() == 41
    assert (labels[hip] == FULL).all() and (tissue[hip] == Tissue.OTHER_BONE).all()
    coccyx = np.zeros(labels.shape, bool)
    coccyx[:, 131:] = True
    assert (labels[coccyx & (trunk() == SACRUM)] == UNKNOWN).all()
    # The sacrum's canal is carved out of solid bone, and holds the end of the sac.
    assert ((labels == 8) & (trunk() == SACRUM)).any()
    assert (tissue[:, :, 0] == Tissue.AIR).any() and (tissue == Tissue.SKIN).any()


def test_a_canal_that_no_ring_encloses_is_unknown() -> None:
    codes = rings(20, 5, 140)
    codes[31:45, 29:110] = 0
    labels = dressed_spine(codes, ZOOM, np.random.default_rng(0))[1]
    middle = labels[30 + 36, :, 40]
    assert (middle[60:80] == UNKNOWN).all() and (middle[15:20] != UNKNOWN).all()


def save(folder, name: str, codes: np.ndarray) -> None:
    import nibabel as nib

    affine = np.array([[0, 0, 1.5, 0], [-1.5, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(codes, affine), folder / name)


def test_sources_are_chosen_by_name_and_cut_into_chunks(tmp_path) -> None:
    save(tmp_path, "sub-a_seg-vert_msk.nii.gz", rings())
    save(tmp_path, "sub-b_seg-vert_msk.nii.gz", rings())
    save(tmp_path, "sub-b_ct.nii.gz", rings())
    save(tmp_path, "sub-verse007_seg-vert_msk.nii.gz", rings())
    chunks = dict(anatomy_arrays([tmp_path], ZOOM, ("verse007",)))
    assert list(chunks) == ["sub-a-0"]
    assert chunks["sub-a-0"].dtype == np.uint8 and chunks["sub-a-0"].shape[2] <= 133
    with pytest.raises(OptionError, match="verse007"):
        list(anatomy_arrays([tmp_path / "sub-verse007_seg-vert_msk.nii.gz"], ZOOM, ("verse007",)))


def painter(tissue, instance, zoom, chance):
    return tissue.float() + chance.normal(*tissue.shape)


def feed(tmp_path, dressed, **changes) -> AnatomyFeed:
    write_cache(tmp_path / "anatomy.npz", {"kind": "anatomy"}, dressed.items())
    return AnatomyFeed([Cache(tmp_path / "anatomy.npz")], replace(CONFIG, **changes), CPU, painter)


def test_a_step_draws_the_same_patch_again(tmp_path, dressed) -> None:
    one, two = feed(tmp_path, dressed), feed(tmp_path, dressed)
    seen = set()
    for step in range(12):
        a, b = one.batch(step), two.batch(step)
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.valid, b.valid)
        assert a.images.shape == (1, 1, 24, 32, 16) and torch.isfinite(a.images).all()
        logits = torch.zeros(1, 15, 24, 32, 16)
        assert torch.isfinite(coarse_loss(logits, a.labels, a.valid, group_matrix())[0])
        seen |= set(a.labels.unique().tolist())
    # Vertebra, disc, canal, the plates beside discs and certain background.
    assert {1, 2, 4, 5, 8, FULL} <= seen
    assert 0.3 < np.mean([one.takes(step) for step in range(200)]) < 0.7
    never = feed(tmp_path, dressed, anatomy_share=0.0)
    assert not any(never.takes(step) for step in range(50))


def test_held_out_shapes_are_refused(tmp_path, dressed) -> None:
    with pytest.raises(OptionError, match="verse007"):
        feed(tmp_path, {"sub-verse007-0": dressed["spine"]})


class FixedFeed:
    """Stands for the feed of real scans, and counts."""

    def __init__(self, batch) -> None:
        self.value, self.steps = batch, []

    def batch(self, step: int):
        self.steps.append(step)
        return self.value


def test_real_scans_take_every_step_that_shapes_leave(tmp_path, dressed) -> None:
    shapes = feed(tmp_path, dressed)
    weight = torch.zeros(15, requires_grad=True)

    def network(images):
        return weight[None, :, None, None, None] + 0 * images

    for anatomy in (None, shapes):
        real = FixedFeed(shapes.batch(0))
        objective = SemanticObjective(CONFIG, CPU, None, real, anatomy)
        names = [objective(network, step)[1].keys() for step in range(10)]
        taken = [anatomy is not None and anatomy.takes(step) for step in range(10)]
        assert ["anatomy" in n for n in names] == taken and real.steps == [k for k in range(10) if not taken[k]]
