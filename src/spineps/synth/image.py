"""From a label map to a scan: `ImageSpec` holds every number, `synthesise` turns tissue classes into grey values."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spineps.synth import contrasts
from spineps.synth.arrays import (
    Array,
    Arrays,
    NumpyArrays,
    blur,
    linear_matrix,
    normal,
    slice_matrix,
    smooth_field,
)
from spineps.synth.labelmap import Phantom
from spineps.synth.tissues import BONE_TISSUES, MARROW_TISSUES, TISSUE_COUNT, Tissue

CONTRASTS = ("any", "T2", "T1", "STIR", "CT", "Dixon", "random")


@dataclass(frozen=True)
class ImageSpec:
    """All numbers of one synthetic acquisition; array axes are (p, i, r), lengths in mm.

    Attributes:
        contrast: name of the prior it was drawn from.
        means, sds: grey value and texture amplitude per :class:`Tissue`.
        fine, coarse: correlation lengths of the texture.
        marrow_sd: sd of the marrow's grey value from vertebra to vertebra.
        nucleus_fade: how much discs differ in the brightness of their nucleus, 0 .. 1.
        shell: weight of the cortical shell, 0 .. 1.
        shell_width: its width.
        flow: share of signal that flowing fluid loses in blobs, 0 .. 1.
        lesions: amplitude of random bright or dark blobs.
        chemical_shift: shift of fat along i.
        blur: sd of the point spread along (p, i, r).
        slice_axis: axis along which slices are thick, -1 for isotropic scans.
        slice_thickness, slice_gap, slice_phase: of those slices (phase 0 .. 1 of a spacing).
        slice_nearest: True when slices are repeated, not interpolated, onto the grid.
        bias, bias_length: amplitude (log) and length of the smooth bias field.
        coil, coil_length: 0 .. 1 weight and length of the fall-off from a coil at the back.
        noise: sd, relative to 1.
        rician: magnitude noise of MR; additive otherwise.
        noise_blur: sd in voxels to which noise is correlated (interpolated scans).
        ghost, ghost_shift, ghost_axis: weight, shift and axis of a motion ghost.
        saturation: darkening 0 .. 1 of a band in front of the spine.
        saturation_edge: mm from the middle of the bodies forward to its edge.
        saturation_tilt: slope of the band, mm per mm.
        low, high: quantiles of the window.
        clip: grey value, in windows, above which the scan saturates.
        gamma: exponent.
        levels: number of grey levels, 0 for unquantised.
        scale, offset: final linear scale (CT: Hounsfield units, window unused).
        signed: True for CT: no gamma, negative values kept, clipped to ``floor`` and ``ceiling``.
        floor, ceiling: of a CT, Hounsfield units / 1000.
        seed: of all noise fields.
    """

    contrast: str
    means: tuple[float, ...]
    sds: tuple[float, ...]
    fine: float = 2.0
    coarse: float = 9.0
    marrow_sd: float = 0.02
    nucleus_fade: float = 0.5
    shell: float = 0.7
    shell_width: float = 1.0
    flow: float = 0.0
    lesions: float = 0.0
    chemical_shift: float = 0.0
    blur: tuple[float, float, float] = (0.5, 0.5, 0.5)
    slice_axis: int = -1
    slice_thickness: float = 3.0
    slice_gap: float = 0.3
    slice_phase: float = 0.5
    slice_nearest: bool = False
    bias: float = 0.0
    bias_length: float = 80.0
    coil: float = 0.0
    coil_length: float = 150.0
    noise: float = 0.01
    rician: bool = True
    noise_blur: float = 0.0
    ghost: float = 0.0
    ghost_shift: float = 20.0
    ghost_axis: int = 0
    saturation: float = 0.0
    saturation_edge: float = 30.0
    saturation_tilt: float = 0.0
    low: float = 0.002
    high: float = 0.998
    clip: float = 1.3
    gamma: float = 1.0
    levels: int = 0
    scale: float = 1.0
    offset: float = 0.0
    signed: bool = False
    floor: float = -1.024
    ceiling: float = 3.071
    seed: int = 0

    def to_json(self) -> str:
        """JSON text; `from_json` gives back an equal spec."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ImageSpec:
        """Inverse of `to_json`."""
        data: dict[str, Any] = json.loads(text)
        for name in ("means", "sds", "blur"):
            data[name] = tuple(data[name])
        return cls(**data)


def random_image_spec(rng: np.random.Generator, contrast: str = "any", *, degrade: float = 1.0) -> ImageSpec:
    """Draw an acquisition.

    Args:
        rng: source of all randomness.
        contrast: one of `CONTRASTS`; "any" mixes them (30 % random contrasts, the rest clinical ones), "random" gives
            every tissue a random grey value.
        degrade: factor on noise, bias and artefacts; 0 for a clean scan.
    """
    if contrast not in CONTRASTS:
        raise ValueError(f"contrast {contrast!r} is none of {CONTRASTS}")
    if contrast == "any":
        contrast = str(
            rng.choice(["random", "T2", "T1", "STIR", "CT", "Dixon"], p=[0.28, 0.34, 0.13, 0.08, 0.11, 0.06])
        )
    if contrast == "Dixon":
        contrast = str(rng.choice(["DixonWater", "DixonFat"], p=[0.7, 0.3]))
    means, sds = _random_greys(rng) if contrast == "random" else _prior_greys(rng, contrast)
    is_ct = contrast == "CT"
    u = rng.uniform
    thick = not is_ct and rng.random() < 0.65
    sharp = float(u(0.25, 0.8)) if rng.random() < 0.8 else float(u(0.7, 1.4))
    noise = float(u(0.003, 0.04)) if rng.random() < 0.75 else float(u(0.03, 0.1))
    odd_greys = not is_ct and rng.random() < 0.3
    windowed = is_ct and degrade > 0 and rng.random() < 0.3
    return ImageSpec(
        contrast=contrast,
        means=tuple(float(m) for m in means),
        sds=tuple(float(s) for s in sds),
        fine=float(u(1.5, 3.5)),
        coarse=float(u(6, 16)),
        marrow_sd=float(u(0, 0.07)) * (0.6 if is_ct else 1.0),
        nucleus_fade=float(u(0, 1.0)),
        shell=float(u(0.6, 1.0) if contrast != "random" else u(0, 1)),
        shell_width=float(u(0.6, 1.3)),
        flow=float(u(0.1, 0.6)) if rng.random() < 0.3 * degrade else 0.0,
        lesions=float(rng.normal(0, 0.3)) if rng.random() < 0.2 * degrade else 0.0,
        chemical_shift=float(u(-1.5, 1.5)) if not is_ct and rng.random() < 0.3 * degrade else 0.0,
        blur=(sharp, sharp * float(u(0.8, 1.25)), sharp if not thick else 0.3),
        slice_axis=int(rng.choice([2, 0, 1], p=[0.88, 0.06, 0.06])) if thick else -1,
        slice_thickness=float(u(1.6, 5.0)),
        slice_gap=float(u(0, 0.8)),
        slice_phase=float(u(0, 1)),
        slice_nearest=bool(rng.random() < 0.3),
        bias=0.0 if is_ct else float(u(0, 0.4)) * degrade,
        bias_length=float(u(60, 160)),
        coil=0.0 if is_ct or rng.random() < 0.3 else float(u(0.3, 1.0)) * degrade,
        coil_length=float(u(50, 300)),
        noise=noise * degrade * (0.7 if is_ct else 1.0),
        rician=not is_ct,
        noise_blur=float(u(0.3, 0.8)) if rng.random() < 0.35 else 0.0,
        ghost=float(u(0.03, 0.2)) if not is_ct and rng.random() < 0.15 * degrade else 0.0,
        ghost_shift=float(u(8, 60)),
        ghost_axis=int(rng.choice([0, 1], p=[0.7, 0.3])),
        saturation=float(u(0.5, 1.0)) if not is_ct and rng.random() < 0.4 * degrade else 0.0,
        saturation_edge=float(u(18, 50)),
        saturation_tilt=float(u(-0.4, 0.4)),
        low=float(u(0.0, 0.02)),
        high=float(u(0.97, 0.999)) if not odd_greys else float(u(0.85, 0.99)),
        clip=float(u(1.0, 1.6)) if not odd_greys else float(u(0.8, 1.05)),
        gamma=float(np.exp(u(-0.35, 0.35))) if not odd_greys else float(np.exp(u(-0.9, 0.9))),
        levels=0 if rng.random() < 0.6 else int(rng.choice([256, 128, 64, 32], p=[0.6, 0.2, 0.1, 0.1])),
        scale=1000.0 if is_ct else float(u(200, 1500)),
        offset=0.0,
        signed=is_ct,
        floor=-float(u(0.12, 0.6)) if windowed else -1.024,
        ceiling=float(u(0.5, 1.6)) if windowed else 3.071,
        seed=int(rng.integers(2**31)),
    )


def _prior_greys(rng: np.random.Generator, contrast: str) -> tuple[np.ndarray, np.ndarray]:
    prior = contrasts.PRIORS[contrast]
    means = np.array([prior[Tissue(n)][0] for n in range(TISSUE_COUNT)])
    spread = np.array([prior[Tissue(n)][1] for n in range(TISSUE_COUNT)])
    means = means + spread * np.clip(rng.standard_normal(TISSUE_COUNT), -2, 2)
    is_ct = contrast == "CT"
    unit = 0.4 if is_ct else 1.0
    for leader, follower, sd in contrasts.FOLLOWERS:
        if is_ct and follower is Tissue.MARROW_POSTERIOR:
            continue
        if rng.random() < 0.75:
            shift = prior[follower][0] - prior[leader][0]
            means[follower] = means[leader] + shift + sd * unit * rng.standard_normal()
    if rng.random() < 0.35:
        means[Tissue.ENDPLATE] = 0.5 * (means[Tissue.CORTEX] + means[Tissue.ENDPLATE])
    sds = rng.uniform(0.008, 0.06, TISSUE_COUNT) * unit
    if is_ct:
        sds[[Tissue.MARROW_BODY, Tissue.MARROW_POSTERIOR, Tissue.MARROW_SACRUM]] = rng.uniform(0.02, 0.09)
        return means, sds
    if rng.random() < 0.25:
        # Not quite any protocol: bend the contrast towards a random one.
        weight = rng.uniform(0, 0.35)
        means = (1 - weight) * means + weight * rng.uniform(0, 1, TISSUE_COUNT)
    return np.clip(means, 0, 1.3), sds


def _random_greys(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    means = rng.uniform(0, 1, TISSUE_COUNT)
    if rng.random() < 0.8:
        means[Tissue.AIR] = rng.uniform(0, 0.12)
    for leader, follower, sd in contrasts.FOLLOWERS:
        if rng.random() < 0.7:
            means[follower] = np.clip(means[leader] + sd * rng.standard_normal(), 0, 1)
    if rng.random() < 0.5:
        means[Tissue.CORTEX] = rng.uniform(0, 0.15)
    if rng.random() < 0.5:
        means[Tissue.ENDPLATE] = means[Tissue.CORTEX]
    if rng.random() < 0.5:
        means[Tissue.CAUDA] = 0.5 * (means[Tissue.CAUDA] + means[Tissue.CSF])
    return means, rng.uniform(0.01, 0.1, TISSUE_COUNT)


def synthesise(
    phantom: Phantom | tuple[Array, Array],
    spec: ImageSpec,
    arrays: Arrays | None = None,
    zoom: tuple[float, float, float] | None = None,
) -> Array:
    """A grey-value image of a label map.

    Args:
        phantom: a phantom whose array axes run along p, i, r; or (tissue, instance), arrays of one shape, on the
            backend or plain numpy.
        spec: the acquisition.
        arrays: backend, numpy when None.
        zoom: voxel size in mm; taken from the phantom when there is one.

    Returns:
        float32 array of the same shape on the backend.
    """
    arrays = arrays or NumpyArrays()
    if isinstance(phantom, Phantom):
        tissue, instance, zoom = phantom.tissue, phantom.instance, phantom.grid.zoom
    else:
        tissue, instance = phantom
    if zoom is None:
        raise ValueError("synthesise needs the voxel size when it is given bare arrays")
    if isinstance(tissue, np.ndarray):
        tissue, instance = arrays.put(tissue), arrays.put(instance)
    image = _signal(arrays, tissue, instance, zoom, spec)
    image = blur(arrays, image, _in_voxels(spec.blur, zoom))
    image = _coils(arrays, image, tissue, zoom, spec)
    image = _sampled(arrays, image, zoom, spec)
    return _greys(arrays, image, spec)


def _in_voxels(mm: tuple[float, float, float], zoom: tuple[float, float, float]) -> tuple[float, float, float]:
    return mm[0] / zoom[0], mm[1] / zoom[1], mm[2] / zoom[2]


def _cells(mm: float, zoom: tuple[float, float, float]) -> tuple[float, float, float]:
    return _in_voxels((mm, mm, mm), zoom)


def _signal(arrays: Arrays, tissue: Array, instance: Array, zoom: tuple[float, float, float], spec: ImageSpec) -> Array:
    """Grey values before the scanner: class means, texture, marrow and disc variation, cortical shell."""
    xp, shape = arrays.xp, tuple(tissue.shape)
    rng = np.random.default_rng(spec.seed)
    means, sds = np.array(spec.means), np.array(spec.sds)
    image = arrays.take(means, tissue)
    fine = smooth_field(arrays, shape, _cells(spec.fine, zoom), spec.seed + 1)
    coarse = smooth_field(arrays, shape, _cells(spec.coarse, zoom), spec.seed + 2)
    image = image + arrays.take(sds, tissue) * (0.7 * fine + 0.5 * coarse)
    marrow = np.zeros(TISSUE_COUNT)
    marrow[list(MARROW_TISSUES)] = 1
    offsets = spec.marrow_sd * rng.standard_normal(256)
    # Endplates and discs belong to no vertebra's marrow; the class mask keeps them out.
    image = image + arrays.take(offsets, instance) * arrays.take(marrow, tissue)
    nucleus = np.zeros(TISSUE_COUNT)
    nucleus[Tissue.NUCLEUS] = 1
    fade = spec.nucleus_fade * rng.uniform(0, 1, 256) * (means[Tissue.ANNULUS] - means[Tissue.NUCLEUS])
    image = image + arrays.take(fade, instance) * arrays.take(nucleus, tissue)
    if spec.flow:
        fluid = np.zeros(TISSUE_COUNT)
        fluid[[Tissue.CSF, Tissue.CAUDA]] = spec.flow
        image = image * (1 - arrays.take(fluid, tissue) * xp.clip(coarse - 0.6, 0, 1))
    if spec.lesions:
        spots = smooth_field(arrays, shape, _cells(12.0, zoom), spec.seed + 3)
        image = image + spec.lesions * xp.clip(spots - 2.2, 0, 1)
    image = _shelled(arrays, image, tissue, zoom, spec)
    if spec.chemical_shift:
        image = _fat_shifted(arrays, image, tissue, zoom, spec)
    return image


def _shelled(arrays: Arrays, image: Array, tissue: Array, zoom: tuple[float, float, float], spec: ImageSpec) -> Array:
    """Darken (MR) or brighten (CT) the rim of bone; discs and endplates count as inside, they have their own class."""
    xp = arrays.xp
    solid = np.zeros(TISSUE_COUNT)
    bony = [*BONE_TISSUES]
    solid[[*bony, Tissue.ENDPLATE, Tissue.NUCLEUS, Tissue.ANNULUS, Tissue.CARTILAGE]] = 1
    bone = np.zeros(TISSUE_COUNT)
    bone[bony] = 1
    mean_zoom = float(np.mean(zoom))
    sigma = max(0.45, 0.55 * spec.shell_width / mean_zoom)
    soft = blur(arrays, arrays.take(solid, tissue), _in_voxels((sigma * mean_zoom,) * 3, zoom))
    inside = arrays.take(bone, tissue)
    weight = xp.clip((1 - soft) * 2.6 * spec.shell, 0, spec.shell) * inside
    outer = xp.clip(soft * 1.2 - 0.1, 0, 0.5) * spec.shell * (1 - arrays.take(solid, tissue))
    outer = outer * arrays.take(_rim_friends(), tissue)
    return image + (float(spec.means[Tissue.CORTEX]) - image) * (weight + outer)


def _rim_friends() -> np.ndarray:
    """Soft tissue into which the shell of bone reaches: not the canal's content, whose edge must stay true."""
    table = np.full(TISSUE_COUNT, 0.5)
    table[[Tissue.CSF, Tissue.CORD, Tissue.CAUDA, Tissue.AIR, Tissue.LUNG, Tissue.METAL]] = 0
    return table


def _fat_shifted(
    arrays: Arrays, image: Array, tissue: Array, zoom: tuple[float, float, float], spec: ImageSpec
) -> Array:
    share = np.zeros(TISSUE_COUNT)
    share[[Tissue.FAT, Tissue.SUBCUTANEOUS_FAT, Tissue.EPIDURAL_FAT]] = 1
    share[list(MARROW_TISSUES)] = 0.45
    fat = image * arrays.take(share, tissue)
    n = image.shape[1]
    shift = linear_matrix(n, np.arange(n) - spec.chemical_shift / zoom[1])
    return image - fat + arrays.along(fat, shift, 1)


def _coils(arrays: Arrays, image: Array, tissue: Array, zoom: tuple[float, float, float], spec: ImageSpec) -> Array:
    """Receive profile, bias field, saturation band, ghost."""
    xp, shape = arrays.xp, tuple(image.shape)
    if spec.bias:
        image = image * xp.exp(spec.bias * smooth_field(arrays, shape, _cells(spec.bias_length, zoom), spec.seed + 4))
    p = np.arange(shape[0])[:, None, None] * zoom[0]
    profile = np.ones((1, 1, 1))
    if spec.coil:
        profile = (
            1 - spec.coil + spec.coil * np.minimum(np.exp((p - 0.62 * shape[0] * zoom[0]) / spec.coil_length), 3.0)
        )
    if spec.saturation:
        # Radiographers put the band just in front of the column, wherever that is in the field of view.
        i = (np.arange(shape[1])[None, :, None] - shape[1] / 2) * zoom[1]
        edge = _column(arrays, tissue, zoom) - spec.saturation_edge + spec.saturation_tilt * i
        profile = profile * (1 - spec.saturation / (1 + np.exp(np.clip((p - edge) / 2.5, -30, 30))))
    if spec.coil or spec.saturation:
        image = image * arrays.put(np.asarray(profile, np.float32))
    if spec.ghost:
        n = shape[spec.ghost_axis]
        moved = linear_matrix(n, (np.arange(n) + spec.ghost_shift / zoom[spec.ghost_axis]) % n)
        image = image + spec.ghost * arrays.along(image, moved, spec.ghost_axis)
    return image


def _column(arrays: Arrays, tissue: Array, zoom: tuple[float, float, float]) -> float:
    """Mean place of the vertebral bodies along axis 0 in mm; the middle of the field when there are none."""
    body = np.zeros(TISSUE_COUNT)
    body[Tissue.MARROW_BODY] = 1
    count = arrays.get(arrays.take(body, tissue).sum(2).sum(1)).astype(np.float64)
    where = np.arange(len(count)) * zoom[0]
    return float((count * where).sum() / count.sum()) if count.sum() > 0 else float(where.mean())


def _sampled(arrays: Arrays, image: Array, zoom: tuple[float, float, float], spec: ImageSpec) -> Array:
    """Noise, and thick slices when there are any: pooled, made noisy, brought back to the grid."""
    axis = spec.slice_axis
    if axis < 0:
        return _noisy(arrays, image, spec)
    n = image.shape[axis]
    spacing = max((spec.slice_thickness + spec.slice_gap) / zoom[axis], 1.0)
    profiles = slice_matrix(n, spacing, spec.slice_thickness / zoom[axis], spec.slice_phase * min(spacing, n - 1) * 0.5)
    image = _noisy(arrays, arrays.along(image, profiles, axis), spec)
    positions = (np.arange(n) - spec.slice_phase * min(spacing, n - 1) * 0.5) / spacing
    if spec.slice_nearest:
        positions = np.rint(positions)
    return arrays.along(image, linear_matrix(len(profiles), positions), axis)


def _noisy(arrays: Arrays, image: Array, spec: ImageSpec) -> Array:
    if not spec.noise:
        return image
    xp, shape = arrays.xp, tuple(image.shape)

    def field(seed: int) -> Array:
        noise = normal(arrays, shape, seed)
        if spec.noise_blur:
            noise = blur(arrays, noise, (spec.noise_blur, spec.noise_blur, 0.0)) * (1 + 2.2 * spec.noise_blur)
        return spec.noise * noise

    if not spec.rician:
        return image + field(spec.seed + 5)
    real, imaginary = image + field(spec.seed + 5), field(spec.seed + 6)
    return xp.sqrt(real * real + imaginary * imaginary)


def _greys(arrays: Arrays, image: Array, spec: ImageSpec) -> Array:
    """Window, saturation, gamma, grey levels."""
    xp = arrays.xp
    if spec.signed:
        return xp.clip(image, spec.floor, spec.ceiling) * spec.scale + spec.offset
    low, high = arrays.quantiles(image, (spec.low, spec.high))
    image = xp.clip((image - low) / max(high - low, 1e-6), 0, spec.clip) / spec.clip
    image = image**spec.gamma
    if spec.levels:
        image = xp.round(image * (spec.levels - 1)) / (spec.levels - 1)
    return image * spec.scale + spec.offset
