"""The spine generator: replay, anatomy that holds for every seed, and two backends that agree."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spineps import anatomy
from spineps.synth.arrays import Arrays, normal, smooth_field
from spineps.synth.chain import frames
from spineps.synth.image import CONTRASTS, ImageSpec, random_image_spec, synthesise
from spineps.synth.labelmap import Phantom, field_of_view, render
from spineps.synth.phantom import make_phantom
from spineps.synth.spec import SpineSpec, View, random_spec, vertebra_chain
from spineps.synth.tissues import BONE_TISSUES, Tissue

seeds = st.integers(0, 10_000)


@lru_cache(maxsize=32)
def phantom(seed: int, region: str = "any", shape: tuple[int, int, int] = (42, 50, 36), zoom: float = 2.7) -> Phantom:
    spec = random_spec(np.random.default_rng(seed), region)
    return render(spec, field_of_view(shape, (zoom, zoom, zoom)))


@lru_cache(maxsize=4)
def whole(seed: int, thoracic: int = 12, lumbar: int = 5) -> Phantom:
    spec = random_spec(np.random.default_rng(seed), "whole", thoracic=thoracic, lumbar=lumbar, pathology=0.3)
    spec = replace(spec, view=View(15.3, (8.0, 0.0, 0.0)))
    return render(spec, field_of_view((66, 220, 36), (3.8, 3.8, 3.8)))


@settings(max_examples=4, deadline=None)
@given(seeds)
def test_spec_survives_pickling_and_replays(seed: int) -> None:
    spec = random_spec(np.random.default_rng(seed), "lumbar")
    again: SpineSpec = pickle.loads(pickle.dumps(spec))
    assert again == spec
    grid = field_of_view((24, 28, 20), (4.0, 4.0, 4.0))
    first, second = render(spec, grid), render(again, grid)
    for name in ("tissue", "semantic", "instance"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_semantic_and_instance_agree(seed: int) -> None:
    p = phantom(seed)
    semantic, instance = p.semantic, p.instance
    assert set(np.unique(semantic)) <= set(anatomy.CLASS_IDS)
    vertebra = np.isin(semantic, anatomy.VERTEBRA_PARTS)
    assert np.isin(instance[vertebra], anatomy.VERTEBRAE).all()
    assert (instance[semantic == anatomy.SACRUM] == anatomy.SACRUM).all()
    assert (instance[semantic == anatomy.DISC] // 100 == 1).all()
    assert (instance[semantic == anatomy.ENDPLATE] // 100 == 2).all()
    assert not instance[np.isin(semantic, (0, anatomy.CORD, anatomy.CANAL))].any()
    bone = np.isin(p.tissue, [*BONE_TISSUES, Tissue.CARTILAGE, Tissue.METAL])
    assert not vertebra.any() or bone[vertebra].mean() > 0.99


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_disc_lies_between_its_vertebrae(seed: int) -> None:
    p = phantom(seed)
    order = p.spec.vertebrae
    centre = {}
    for v in np.unique(p.instance):
        if v:
            where = np.argwhere(p.instance == v)
            inside = (where > 0).all() and (where < np.array(p.grid.shape) - 1).all()
            centre[int(v)] = (float(where[:, 1].mean()), len(where), bool(inside))
    for above, below in pairwise(order):
        disc = centre.get(100 + above)
        if disc and disc[2] and disc[1] > 20 and above in centre and below in centre and above > 2:
            bodies = [np.argwhere((p.instance == v) & (p.semantic == anatomy.CORPUS))[:, 1] for v in (above, below)]
            if all(len(b) > 50 for b in bodies):
                assert bodies[0].mean() < disc[0] < bodies[1].mean()


@pytest.mark.parametrize(("thoracic", "lumbar"), [(12, 5), (11, 4), (13, 6)])
def test_whole_spine_has_the_whole_chain_in_order(thoracic: int, lumbar: int) -> None:
    p = whole(thoracic, thoracic, lumbar)
    chain = [v for v, _ in vertebra_chain(thoracic, lumbar)]
    assert p.spec.vertebrae == tuple(chain)
    present = [v for v in np.unique(p.instance) if 0 < v < 100]
    assert set(present) == {*chain, anatomy.SACRUM}
    heights = [np.argwhere(p.instance == v)[:, 1].mean() for v in (*chain, anatomy.SACRUM)]
    assert np.all(np.diff(heights) > 0)
    assert 128 in np.unique(p.instance) or thoracic != 13
    assert 101 not in np.unique(p.instance)
    for v in chain:
        labels, n = cc3d.connected_components((p.instance == v).astype(np.uint8), connectivity=26, return_N=True)
        sizes = np.bincount(labels.ravel())[1:]
        assert n == 1 or sizes.max() > 0.95 * sizes.sum(), anatomy.VERTEBRA_NAMES[v]


def test_cord_ends_at_the_conus_and_its_roots_go_on_in_the_sac() -> None:
    p = whole(12)
    rows = {v: np.argwhere(p.instance == v)[:, 1].mean() for v in (18, 22, 24)}
    cord = np.argwhere(np.isin(p.tissue, (Tissue.CORD, Tissue.CORD_GREY)))[:, 1]
    assert rows[18] < cord.max() < rows[22]
    # One class, as in annotated scans: below the conus the bundle of roots.
    labelled, canal = p.semantic == anatomy.CORD, p.semantic == anatomy.CANAL
    filled = np.flatnonzero(labelled.any((0, 2)))
    # At the sacrum the bundle is thinner than these voxels; in the network's it is whole.
    assert (np.diff(filled[filled < rows[24]]) == 1).all() and filled[-1] > rows[24]
    fine = render(p.spec, field_of_view((150, 560, 90), (1.5, 1.5, 1.5))).semantic == anatomy.CORD
    assert (np.diff(np.flatnonzero(fine.any((0, 2)))) == 1).all()
    assert np.flatnonzero(canal.any((0, 2)))[-1] < p.grid.shape[1] - 1
    below = np.arange(p.grid.shape[1])[None, :, None] > cord.max()
    roots = p.tissue == Tissue.CAUDA
    assert (roots & below).sum() > 50 and (roots & labelled & below).sum() > 2 * (roots & canal & below).sum()
    assert (labelled & below).sum() < (canal & below).sum()


def test_sides_are_right() -> None:
    """Axis 2 grows to the right of the person, and the right-sided codes are the even ones of 44..48."""
    p = whole(12)
    r = {c: np.argwhere(p.semantic == c)[:, 2].mean() for c in range(43, 49)}
    for left in (43, 45, 47):
        assert r[left] < r[left + 1]
    assert p.grid.axcodes == "PIR"


def test_curves_have_the_right_sign() -> None:
    """Seen from the side, necks and loins are hollow behind and the chest is round."""
    spec = random_spec(np.random.default_rng(1), "whole", pathology=0, spread=0)
    p = render(replace(spec, warp=0.0, view=View(15.3, (8.0, 0.0, 0.0))), field_of_view((70, 240, 36), (3.0, 3.0, 3.0)))

    def bow(top: int, middle: int, bottom: int) -> float:
        a, b, c = (
            np.argwhere((p.instance == v) & (p.semantic == anatomy.CORPUS)).mean(axis=0)[:2]
            for v in (top, middle, bottom)
        )
        return float(b[0] - np.interp(b[1], [a[1], c[1]], [a[0], c[0]]))

    assert bow(20, 23, 24) < 0 and bow(3, 5, 7) < 0.5
    assert bow(9, 14, 19) > 1


def test_whole_spine_mirrors() -> None:
    """A symmetric person is the same from both sides, with the paired codes swapped."""
    spec = random_spec(np.random.default_rng(3), "lumbar", pathology=0, spread=0)
    levels = tuple(replace(v, lean=0.0, turn=0.0, slip_r=0.0, seed=0) for v in spec.levels)
    spec = replace(spec, levels=levels, warp=0.0, view=View(22.0, (5.0, 0.0, 0.0)))
    semantic = render(spec, field_of_view((48, 40, 50), (2.0, 2.0, 2.0))).semantic
    swap = np.arange(256)
    for s in anatomy.STRUCTURES:
        swap[s.id] = s.mirror
    mirrored = swap[semantic[:, :, ::-1]]
    either = (semantic > 0) | (mirrored > 0)
    assert (semantic[either] == mirrored[either]).mean() > 0.9


@pytest.mark.parametrize("contrast", [c for c in CONTRASTS if c != "any"])
def test_images_replay_and_show_the_label_map(contrast: str) -> None:
    p = phantom(5, "lumbar")
    spec = random_image_spec(np.random.default_rng(7), contrast)
    again: ImageSpec = pickle.loads(pickle.dumps(spec))
    assert again == spec
    image = synthesise(p, spec)
    assert image.dtype == np.float32 and image.shape == p.tissue.shape and np.isfinite(image).all()
    assert np.array_equal(image, synthesise(p, again))
    assert image.std() > 0


def test_dark_line_of_cortex_and_ligament_lies_outside_of_the_label() -> None:
    """As in annotated MR; a network that learns otherwise draws bodies too deep."""
    tissue = np.full((24, 12, 12), Tissue.FAT, np.uint8)
    tissue[10:] = Tissue.MARROW_BODY
    spec = random_image_spec(np.random.default_rng(2), "T2", degrade=0)
    spec = replace(spec, slice_axis=-1, shell=1.0, shell_width=1.4, blur=(0.3, 0.3, 0.3), levels=0, coil=0.0)
    line = synthesise((tissue, np.zeros_like(tissue)), spec, zoom=(1.0, 1.0, 1.0)).mean(axis=(1, 2))
    assert line[9] < 0.5 * min(line[:5].mean(), line[15:].mean())
    assert line[10] > 1.5 * line[9] and line[6] > 0.8 * line[:5].mean()


def test_backends_agree() -> None:
    torch = pytest.importorskip("torch")
    from spineps.synth.arrays import TorchArrays

    backend = TorchArrays("cpu")
    plain = Arrays()
    assert np.allclose(normal(plain, (7, 5, 3), 9), backend.get(normal(backend, (7, 5, 3), 9)), atol=1e-5)
    field = smooth_field(plain, (9, 8, 7), (3.0, 0.5, 2.0), 4)
    assert np.allclose(field, backend.get(smooth_field(backend, (9, 8, 7), (3.0, 0.5, 2.0), 4)), atol=1e-4)
    p = phantom(5, "lumbar")
    for seed in range(4):
        spec = replace(random_image_spec(np.random.default_rng(seed), "any"), levels=0)
        here = synthesise(p, spec)
        there = synthesise(
            (torch.from_numpy(p.tissue).long(), torch.from_numpy(p.instance).long()), spec, backend, p.grid.zoom
        )
        assert there.dtype == torch.float32
        assert np.abs(here - backend.get(there)).max() < 2e-3 * max(np.abs(here).max(), 1)


def test_make_phantom_is_deterministic_and_turns() -> None:
    arguments = {"region": "lumbar", "zoom": (2.0, 2.0, 4.0), "shape": (60, 80, 18)}
    first = make_phantom(3, **arguments)  # type: ignore[arg-type]
    second = make_phantom(3, **arguments)  # type: ignore[arg-type]
    turned = make_phantom(3, orientation="LAS", **arguments)  # type: ignore[arg-type]
    assert first[0].array.dtype == np.float32 and first[0].zoom == pytest.approx((2.0, 2.0, 4.0))
    for a, b, c in zip(first[:3], second[:3], turned[:3], strict=True):
        assert a.array.tobytes() == b.array.tobytes()
        assert c.axcodes == "LAS"
        assert np.array_equal(c.reoriented("PIR").array, a.array)
    assert (first[1].array == anatomy.CORPUS).sum() > 500


def test_unknown_choices_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="region"):
        random_spec(rng, "knee")
    with pytest.raises(ValueError, match="contrast"):
        random_image_spec(rng, "PET")
    with pytest.raises(ValueError, match="region"):
        make_phantom(0, "knee")


def test_diseases_are_drawn() -> None:
    """Each disease changes the label map where it should, and a fused disc leaves bone in its place."""
    healthy = random_spec(np.random.default_rng(5), "lumbar", thoracic=12, lumbar=5, pathology=0)
    healthy = replace(healthy, view=View(22.0, (5.0, 0.0, 0.0)))
    grid = field_of_view((52, 60, 44), (2.0, 2.0, 2.0))

    def with_level(**changes: object) -> Phantom:
        levels = tuple(replace(v, **changes) if v.id == 22 else v for v in healthy.levels)  # type: ignore[arg-type]
        return render(replace(healthy, levels=levels), grid)

    disc = next(v.disc for v in healthy.levels if v.id == 22)
    assert disc is not None
    before = render(healthy, grid)
    assert (before.instance == 122).sum() > 300
    fused = with_level(disc=replace(disc, fused=True, height=4.0))
    assert not (fused.instance == 122).any()
    hernia = with_level(disc=replace(disc, hernia=6.0))
    assert (hernia.instance == 122).sum() > (before.instance == 122).sum()
    assert (hernia.semantic == anatomy.CANAL).sum() < (before.semantic == anatomy.CANAL).sum()
    assert (with_level(lesion=8.0).tissue == Tissue.LESION).sum() > 50
    assert (with_level(modic_lower=6.0).tissue == Tissue.MODIC).sum() > 50
    assert (with_level(screws=True).tissue == Tissue.METAL).sum() > 50
    worn = with_level(disc=replace(disc, degeneration=0.9))
    assert not (worn.tissue[worn.instance == 122] == Tissue.NUCLEUS).any()


def test_discs_have_their_height_in_the_middle() -> None:
    """However strong the lordosis: 60 degrees over five discs used to add 5 mm to the lowest one."""
    spec = random_spec(np.random.default_rng(5), "lumbar", thoracic=12, lumbar=5, pathology=0, spread=0)
    for above, below in pairwise(frames(spec)[19:25]):
        top = above.to_space(np.array([0, above.half_height, 0]))
        bottom = below.to_space(np.array([0, -below.half_height, 0]))
        assert above.level.disc is not None
        hollows = 0.85 * (above.level.concavity_lower + below.level.concavity_upper)
        assert np.linalg.norm(bottom - top) + hollows == pytest.approx(above.level.disc.height, abs=1.2)


def test_low_dark_last_discs_over_wedged_vertebrae_are_common() -> None:
    """One person in eight or so, or networks call such vertebrae sacrum; L5 stays L5 however low its disc is."""
    last = [
        (spec, next(v for v in reversed(spec.levels) if v.id != anatomy.SACRUM))
        for spec in (random_spec(np.random.default_rng(s), "lumbar", lumbar=5) for s in range(300))
    ]
    low = [(spec, v) for spec, v in last if v.disc and v.disc.height < 6 and v.disc.degeneration > 0.55]
    assert 0.1 < len(low) / len(last) < 0.25
    spec = next(spec for spec, v in low if v.disc and not v.disc.fused and v.sizes["wedge"] > 6)
    p = render(replace(spec, view=View(24.5, (4.0, 0.0, 0.0))), field_of_view((50, 50, 30), (1.5, 1.5, 1.5)))
    sagittal = p.semantic[:, :, 15]
    assert (p.instance[p.semantic == anatomy.DISC] == 124).any()
    assert (sagittal[p.instance[:, :, 15] == 24] == anatomy.CORPUS).sum() > 150
    assert (sagittal == anatomy.SACRUM).sum() > 150


def test_a_domed_sacrum_fits_into_the_vertebra_on_it() -> None:
    pairs = []
    for seed in range(200):
        levels = random_spec(np.random.default_rng(seed), "lumbar").levels
        first = next(n for n, v in enumerate(levels) if v.id == anatomy.SACRUM)
        pairs.append((levels[first - 1].concavity_lower, levels[first].concavity_upper))
    domed = [pair for pair in pairs if pair[1] < 0]
    assert 0.04 < len(domed) / len(pairs) < 0.2
    assert all(above == -below for above, below in domed)


def test_grey_values_hardly_tell_the_sacrum_from_the_bodies() -> None:
    specs = [random_image_spec(np.random.default_rng(seed)) for seed in range(300)]
    body, sacrum, posterior = (
        np.array([spec.means[t] for spec in specs])
        for t in (Tissue.MARROW_BODY, Tissue.MARROW_SACRUM, Tissue.MARROW_POSTERIOR)
    )
    assert (np.abs(sacrum - body) < 0.12).mean() > 0.9 > (np.abs(posterior - body) < 0.12).mean()


def test_the_seam_below_the_dens_is_body_and_fat_lies_over_it() -> None:
    seams = fat = 0
    for seed in range(8):
        spec = random_spec(np.random.default_rng(seed), "cervical")
        spec = replace(spec, view=View(2.0, (5.0, 0.0, 0.0)))
        p = render(spec, field_of_view((40, 84, 24), (1.0, 1.0, 1.0)))
        c2 = (p.instance == 2) & (p.semantic == anatomy.CORPUS)
        seams += bool(np.isin(p.tissue[c2], [Tissue.ENDPLATE, Tissue.CARTILAGE, Tissue.ANNULUS]).any())
        top = np.argwhere(c2)[:, 1].min()
        fat += bool((p.tissue[:, top - 6 : top] == Tissue.FAT).any())
    assert 2 <= seams <= 7 and fat >= 5


@pytest.mark.parametrize("zoom", [1.5, 2.0])
def test_thin_discs_keep_a_voxel_between_their_plates(zoom: float) -> None:
    """Else networks learn that two plates may meet."""
    spec = random_spec(np.random.default_rng(5), "lumbar", thoracic=12, lumbar=5, pathology=0)
    levels = tuple(
        replace(v, disc=replace(v.disc, height=2.5), concavity_lower=0.4, tilt=0.0, lean=0.0) if v.disc else v
        for v in spec.levels
    )
    n = round(60 / zoom)
    p = render(replace(spec, levels=levels, view=View(22.0, (-15.0, 0.0, 0.0))), field_of_view((n, n, n), (zoom,) * 3))
    plates = np.argwhere((p.instance == 221).any(axis=1))
    low, high = np.percentile(plates, [20, 80], axis=0).astype(int)
    columns = (p.instance == 121).any(axis=1)[low[0] : high[0], low[1] : high[1]]
    assert columns.size > 50 and columns.mean() > 0.99


def test_plates_are_numbered_like_the_disc_between_them() -> None:
    spec = random_spec(np.random.default_rng(5), "lumbar", pathology=0)
    instance = render(spec, field_of_view((64, 96, 32), (2, 2, 2))).instance
    discs = [int(i) for i in np.unique(instance) if 100 < i < 126]
    assert len(discs) >= 3
    for disc in discs[1:-1]:
        plates = np.argwhere(instance == disc + 100)[:, 1]
        assert plates.min() < np.argwhere(instance == disc)[:, 1].mean() < plates.max()


def test_ct_is_thick_across_the_body_more_often_than_along_it() -> None:
    rng = np.random.default_rng(3)
    specs = [random_image_spec(rng, "CT") for _ in range(300)]
    thick = [spec for spec in specs if spec.slice_axis >= 0]
    assert 0.25 < len(thick) / len(specs) < 0.55
    assert sum(spec.slice_axis == 1 for spec in thick) > 0.6 * len(thick)
    assert all(spec.slice_gap == 0 and spec.blur[spec.slice_axis] == 0.3 for spec in thick)


def test_a_head_shows_a_brain_stem_in_fluid_that_is_no_spine() -> None:
    spec = random_spec(np.random.default_rng(4), "cervical", pathology=0, spread=0)
    upright = replace(spec, warp=0.0, view=View(1.0, (8.0, 0.0, 0.0)))
    phantom = render(upright, field_of_view((60, 70, 40), (3.0, 3.0, 3.0)))
    first = int(np.flatnonzero((phantom.semantic > 0).any(axis=(0, 2)))[0])
    above = phantom.tissue[:, :first]
    assert not phantom.instance[:, :first].any()
    shares = np.bincount(above.ravel(), minlength=46) / above.size
    assert all(shares[t] > 0.005 for t in (Tissue.CORD, Tissue.BRAIN, Tissue.CSF, Tissue.OTHER_BONE))
    middle = above[:, -8:, 18:22]
    assert np.isin(middle, (Tissue.CORD, Tissue.BRAIN)).any(axis=(0, 2)).all(), "the stem reaches down to the cord"
    assert (middle == Tissue.CSF).any(axis=(0, 2)).all(), "and fluid surrounds it"
