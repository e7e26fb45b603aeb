"""The few array operations that images are made with, for numpy and torch alike.

Blurring, thick slices, zooming and shifting are all "apply a small matrix along one axis"; noise is a hash of the voxel
number, so that both backends draw the same field from the same seed on any device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spineps.inference.resample import blur_matrix

#: A numpy array or a torch tensor.
Array = Any


_MASK = 0xFFFFFFFF


class Arrays:
    """A backend, here numpy: functions under ``xp`` (exp, log, sqrt, cos, clip, round, matmul) and these methods."""

    xp: Any = np

    def put(self, array: np.ndarray) -> Array:
        """A numpy array on this backend, floats as float32, integers as indices."""
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    def get(self, array: Array) -> np.ndarray:
        """Back to numpy."""
        return np.asarray(array)

    def take(self, table: np.ndarray, index: Array) -> Array:
        """``table[index]`` as float32."""
        return self.put(np.asarray(table, np.float32))[index]

    def along(self, array: Array, matrix: np.ndarray, axis: int) -> Array:
        """Apply ``matrix`` (m, n) along an axis of length n."""
        weights = self.put(np.asarray(matrix, np.float32))
        if axis == array.ndim - 1:
            return array @ weights.T
        shape = array.shape
        lead, tail = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
        out = self.xp.matmul(weights, array.reshape(lead, shape[axis], tail))
        return out.reshape(*shape[:axis], weights.shape[0], *shape[axis + 1 :])

    def uniform(self, shape: tuple[int, ...], seed: int) -> Array:
        """Uniform numbers in (0, 1], float32, the same on every backend."""
        x = np.arange(int(np.prod(shape)), dtype=np.uint32)
        x = x * np.uint32(0x9E3779B1) + np.uint32(seed * 0x85EBCA6B & _MASK)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x ^= x >> np.uint32(shift)
            x *= np.uint32(factor)
        x ^= x >> np.uint32(16)
        # 24 bits, the mantissa of float32, so that both backends round alike.
        return (((x >> np.uint32(8)).astype(np.float32) + np.float32(1)) * np.float32(2.0**-24)).reshape(shape)

    def quantiles(self, array: Array, q: tuple[float, ...]) -> list[float]:
        """Quantiles of a thinned copy of the values."""
        return [float(v) for v in np.quantile(self.get(array.reshape(-1)[::7]), q)]


class TorchArrays(Arrays):
    """torch on any device; use it outside of autocast, which would round the fields to half precision.

    Args:
        device: such as ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, device: Any = "cpu") -> None:
        import torch

        self.xp: Any = torch
        self.device = torch.device(device)

    def put(self, array: np.ndarray) -> Array:
        torch = self.xp
        kind = torch.float32 if array.dtype.kind == "f" else torch.int64
        return torch.as_tensor(np.ascontiguousarray(array), device=self.device).to(kind)

    def get(self, array: Array) -> np.ndarray:
        return array.detach().cpu().numpy()

    def take(self, table: np.ndarray, index: Array) -> Array:
        # uint8 would be taken for a mask.
        return super().take(table, index.long())

    def uniform(self, shape: tuple[int, ...], seed: int) -> Array:
        torch = self.xp
        x = torch.arange(int(np.prod(shape)), dtype=torch.int64, device=self.device)
        x = (x * 0x9E3779B1 + (seed * 0x85EBCA6B & _MASK)) & _MASK
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = x ^ (x >> shift)
            x = (x * factor) & _MASK
        x = x ^ (x >> 16)
        return (((x >> 8).to(torch.float32) + 1) * 2.0**-24).reshape(shape)


def normal(arrays: Arrays, shape: tuple[int, ...], seed: int) -> Array:
    """Standard normal field (Box and Muller), float32."""
    xp = arrays.xp
    radius = xp.sqrt(-2 * xp.log(arrays.uniform(shape, seed)))
    return radius * xp.cos(2 * np.pi * arrays.uniform(shape, seed ^ 0x5BD1E995))


def slice_matrix(n: int, spacing: float, thickness: float, phase: float) -> np.ndarray:
    """(m, n) slice profiles: every ``spacing`` voxels one slice of ``thickness`` voxels, first centre at ``phase``."""
    centres = np.arange(phase, n - 1 + 1e-6, spacing)
    distance = np.abs(np.arange(n)[None, :] - centres[:, None])
    weights = np.clip(thickness / 2 + 0.5 - distance, 0, 1)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def linear_matrix(n: int, positions: np.ndarray) -> np.ndarray:
    """(len(positions), n) linear interpolation at fractional positions, edges repeated."""
    at = np.clip(positions, 0, n - 1)
    base = np.minimum(at.astype(int), max(n - 2, 0))
    part = (at - base).astype(np.float32)
    matrix = np.zeros((len(at), n), np.float32)
    rows = np.arange(len(at))
    matrix[rows, base] += 1 - part
    matrix[rows, np.minimum(base + 1, n - 1)] += part
    return matrix


def blur(arrays: Arrays, array: Array, sigmas: tuple[float, float, float]) -> Array:
    """Gaussian blur, sigma in voxels per axis; axes below 0.1 are left alone."""
    for axis, sigma in enumerate(sigmas):
        if sigma >= 0.1 and array.shape[axis] > 1:
            array = arrays.along(array, blur_matrix(array.shape[axis], sigma), axis)
    return array


def smooth_field(arrays: Arrays, shape: tuple[int, int, int], cells: tuple[float, float, float], seed: int) -> Array:
    """Smooth normal field: noise on a coarse grid of ``cells`` voxels, linearly interpolated, about unit variance."""
    coarse = tuple(max(int(np.ceil(n / max(c, 1.0))) + 1, 2) for n, c in zip(shape, cells, strict=True))
    field = normal(arrays, coarse, seed)
    for axis, (n, m) in enumerate(zip(shape, coarse, strict=True)):
        positions = np.arange(n) / max(cells[axis], 1.0)
        field = arrays.along(field, linear_matrix(m, positions), axis)
    return field * 1.6
