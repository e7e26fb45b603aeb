"""From a label map to a scan: `synthesise` turns tissue classes into grey values on any backend.

Importable with nothing but numpy (and torch for that backend): training machines need no more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from spineps.synth.acquisition import CONTRASTS, ImageSpec, random_image_spec
from spineps.synth.arrays import (
    Array,
    Arrays,
    blur,
    linear_matrix,
    normal,
    slice_matrix,
    smooth_field,
)
from spineps.synth.tissues import BONE_TISSUES, MARROW_TISSUES, TISSUE_COUNT, Tissue

if TYPE_CHECKING:
    from spineps.synth.labelmap import Phantom

__all__ = ["CONTRASTS", "ImageSpec", "random_image_spec", "synthesise"]


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
    arrays = arrays or Arrays()
    if isinstance(phantom, tuple):
        tissue, instance = phantom
    else:
        tissue, instance, zoom = phantom.tissue, phantom.instance, phantom.grid.zoom
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
    """Darken (MR) or brighten (CT) the rim of bone; discs and endplates count as inside, they have their own class.

    Annotators of MR leave cortex and ligament out: in four SPIDER scans the dark line in front of the bodies reaches
    from 0.3 mm inside of the label to 2.1 mm outside.  Masks of CT hold the cortex.
    """
    xp = arrays.xp
    solid = np.zeros(TISSUE_COUNT)
    bony = [*BONE_TISSUES]
    solid[[*bony, Tissue.ENDPLATE, Tissue.NUCLEUS, Tissue.ANNULUS, Tissue.CARTILAGE]] = 1
    bone = np.zeros(TISSUE_COUNT)
    bone[bony] = 1
    sigma = max(0.9, 0.45 * float(np.mean(zoom)))
    # No ligament runs along the sides of a body: the line is half as wide there.
    soft = blur(arrays, arrays.take(solid, tissue), _in_voxels((sigma, sigma, 0.5 * sigma), zoom))
    weight = xp.clip((1 - soft) * spec.shell, 0, 1) * arrays.take(bone, tissue)
    if not spec.signed:
        # A flat border blurs to half of erfc: the line is half as strong ``shell_width`` outside of the label.
        at_width = 0.5 * math.erfc(spec.shell_width / sigma / math.sqrt(2))
        weight = weight + xp.clip(soft * (0.5 / at_width), 0, 1) * spec.shell * arrays.take(_rim_friends(), tissue)
    return image + (float(spec.means[Tissue.CORTEX]) - image) * weight


def _rim_friends() -> np.ndarray:
    """How much of the shell of bone is seen in each soft tissue: the edge of the canal's content must stay true."""
    table = np.ones(TISSUE_COUNT)
    table[[Tissue.EPIDURAL_FAT, Tissue.EPIDURAL_VEIN, Tissue.NERVE]] = 0.5
    table[[*BONE_TISSUES, Tissue.ENDPLATE, Tissue.NUCLEUS, Tissue.ANNULUS, Tissue.CARTILAGE, Tissue.GAS]] = 0
    table[[Tissue.CSF, Tissue.CORD, Tissue.CORD_GREY, Tissue.CAUDA, Tissue.AIR, Tissue.LUNG, Tissue.METAL]] = 0
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
