"""One synthetic acquisition: `ImageSpec` holds every number, `random_image_spec` draws one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spineps.synth import contrasts
from spineps.synth.tissues import TISSUE_COUNT, Tissue

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
        shell_width: mm outside of the label at which the shell of an MR is half as strong (cortex and ligament).
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
    shell_width: float = 1.4
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
    spec = ImageSpec(
        contrast=contrast,
        means=tuple(float(m) for m in means),
        sds=tuple(float(s) for s in sds),
        fine=float(u(1.5, 3.5)),
        coarse=float(u(6, 16)),
        marrow_sd=float(u(0, 0.07)) * (0.6 if is_ct else 1.0),
        nucleus_fade=float(u(0, 1.0)),
        shell=float(u(0.6, 1.0) if contrast != "random" else u(0, 1)),
        shell_width=float(u(0.6, 2.2)),
        flow=float(u(0.1, 0.6)) if rng.random() < 0.3 * degrade else 0.0,
        lesions=float(rng.normal(0, 0.3)) if rng.random() < 0.2 * degrade else 0.0,
        chemical_shift=float(u(-1.5, 1.5)) if not is_ct and rng.random() < 0.3 * degrade else 0.0,
        blur=(sharp, sharp * float(u(0.8, 1.25)), sharp if not thick else 0.3),
        slice_axis=int(rng.choice([2, 0, 1], p=[0.82, 0.06, 0.12])) if thick else -1,
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
    if not is_ct or rng.random() > 0.4:
        return spec
    # Slices of a CT adjoin, mostly across the body: in five millimetres a thoracic disc is hardly seen.
    axis = int(rng.choice([1, 2, 0], p=[0.8, 0.12, 0.08]))
    blur = tuple(0.3 if k == axis else b for k, b in enumerate(spec.blur))
    return replace(spec, slice_axis=axis, slice_gap=0.0, blur=(blur[0], blur[1], blur[2]))


def _prior_greys(rng: np.random.Generator, contrast: str) -> tuple[np.ndarray, np.ndarray]:
    prior = contrasts.PRIORS[contrast]
    means = np.array([prior[Tissue(n)][0] for n in range(TISSUE_COUNT)])
    spread = np.array([prior[Tissue(n)][1] for n in range(TISSUE_COUNT)])
    means = means + spread * np.clip(rng.standard_normal(TISSUE_COUNT), -2, 2)
    is_ct = contrast == "CT"
    unit = 0.4 if is_ct else 1.0
    for leader, follower, sd, share in contrasts.FOLLOWERS:
        if is_ct and follower is Tissue.MARROW_POSTERIOR:
            continue
        if rng.random() < share:
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
    for leader, follower, sd, share in contrasts.FOLLOWERS:
        if rng.random() < share:
            means[follower] = np.clip(means[leader] + sd * rng.standard_normal(), 0, 1)
    if rng.random() < 0.5:
        means[Tissue.CORTEX] = rng.uniform(0, 0.15)
    if rng.random() < 0.5:
        means[Tissue.ENDPLATE] = means[Tissue.CORTEX]
    if rng.random() < 0.5:
        means[Tissue.CAUDA] = 0.5 * (means[Tissue.CAUDA] + means[Tissue.CSF])
    return means, rng.uniform(0.01, 0.1, TISSUE_COUNT)
