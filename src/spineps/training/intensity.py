"""Changes of grey values on the device: other scanners, windows, coils, slices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spineps.models.scaling import spread, standardise
from spineps.training.chance import Chance
from spineps.training.warp import smooth_field


def random_look(chance: Chance, image: Tensor, zoom: tuple[float, float, float], across: int = 2) -> Tensor:
    """Another look of the same anatomy.

    Args:
        chance: source.
        image: (x, y, z) in 0 .. 1.2, see :func:`spineps.models.scaling.spread`.
        zoom: voxel size in mm.
        across: axis across which slices lie most often: 2 for sagittal ones, 1 for axial ones.

    Returns:
        (x, y, z), ready for the network.
    """
    x = image
    if chance.happens(0.3):
        axis = across if chance.happens(0.7) else (across + int(chance.numbers.integers(1, 3))) % 3
        x = thick_slices(x, axis, chance.uniform(1.2, 5.0) / zoom[axis], chance.uniform(0, 1))
    if chance.happens(0.2):
        for axis in range(3):
            x = along(x, gaussian_matrix(x.shape[axis], chance.uniform(0.2, 0.9)), axis)
    if chance.happens(0.6):
        low, high = chance.uniform(0.0, 0.08), chance.uniform(0.55, 1.15)
        x = ((x - low) / (high - low)).clamp(0, 1)
    x = x.clamp(min=0) ** float(np.exp(chance.uniform(-0.8, 0.8)))
    if chance.happens(0.05):
        x = x.max() - x
    x = x * torch.exp(smooth_field(chance, x.shape, cells=2)[0] * chance.uniform(0, 0.5))
    if chance.happens(0.7):
        x = x + chance.normal(*x.shape) * chance.uniform(0, 0.08)
    if chance.happens(0.5):
        x = spread(x)
    return standardise(x)


def coarser(chance: Chance, image: Tensor, zoom: tuple[float, float, float]) -> Tensor:
    """One image in three as if its voxels were 1.3 to 2.2 mm: thin plates are to be found in such scans, too."""
    if chance.happens(1 / 3):
        mm = chance.uniform(1.3, 2.2)
        for axis in range(3):
            image = thick_slices(image, axis, mm / zoom[axis], chance.uniform(0, 1))
    return image


def recoloured(chance: Chance, image: Tensor) -> Tensor:
    """Grey values 0 .. 1.2 through a random curve with eight corners, after a little smoothing (CT is grainy)."""
    x = image
    for axis in range(3):
        x = along(x, gaussian_matrix(x.shape[axis], 0.6), axis)
    corners = torch.tensor(chance.numbers.uniform(0, 1, 8), dtype=x.dtype, device=x.device)
    place = (x / 1.2).clamp(0, 1) * 7
    low = place.long().clamp(max=6)
    return corners[low] + (corners[low + 1] - corners[low]) * (place - low)


def thick_slices(image: Tensor, axis: int, thickness: float, phase: float) -> Tensor:
    """The image as if acquired in slices ``thickness`` voxels thick along ``axis`` and interpolated linearly."""
    n = image.shape[axis]
    if thickness <= 1 or n < 3:
        return image
    centres = np.arange(phase * thickness, n - 1 + 1e-6, thickness)
    if len(centres) < 2:
        return image
    voxels = np.arange(n)
    profile = np.clip(0.5 * thickness + 0.5 - np.abs(voxels - centres[:, None]), 0, 1)
    profile /= profile.sum(axis=1, keepdims=True)
    place = np.clip((voxels - centres[0]) / thickness, 0, len(centres) - 1)
    low = np.minimum(place.astype(int), len(centres) - 2)
    back = np.zeros((n, len(centres)))
    back[voxels, low] = 1 - (place - low)
    back[voxels, low + 1] = place - low
    return along(image, back @ profile, axis)


def gaussian_matrix(n: int, sigma: float) -> np.ndarray:
    """(n, n) blur by ``sigma`` voxels that keeps constants."""
    voxels = np.arange(n)
    matrix = np.exp(-0.5 * ((voxels[:, None] - voxels) / sigma) ** 2)
    return matrix / matrix.sum(axis=1, keepdims=True)


def along(image: Tensor, matrix: np.ndarray, axis: int) -> Tensor:
    """``matrix`` (m, n) applied along one axis of a 3-D tensor."""
    weights = torch.as_tensor(matrix, dtype=image.dtype, device=image.device)
    return torch.movedim(torch.tensordot(weights, image, dims=([1], [axis])), 0, axis)
