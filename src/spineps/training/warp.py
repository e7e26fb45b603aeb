"""Changes of shape on the device: rotation, scale, bending and crop in one resampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spineps.training.chance import Chance
from spineps.training.config import Warp


def random_matrix(chance: Chance, warp: Warp, flip: bool) -> np.ndarray:
    """(3, 3) map from patch offsets to source offsets in voxels; ``flip`` mirrors the last axis."""
    matrix = np.eye(3)
    for axis, limit in enumerate(warp.rotation):
        angle = np.deg2rad(chance.uniform(-limit, limit))
        a, b = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    size = np.log(warp.scale) * chance.uniform(-1, 1)
    axes = [np.log(warp.stretch) * chance.uniform(-1, 1) for _ in range(3)]
    matrix = matrix @ np.diag(np.exp(size + np.array(axes)))
    if flip:
        matrix = matrix @ np.diag([1, 1, -1])
    return matrix


def sampling_points(
    chance: Chance, warp: Warp, patch: Sequence[int], centre: Sequence[float], flip: bool, device: torch.device
) -> Tensor:
    """(x, y, z, 3) source voxel indices for every voxel of a patch placed around ``centre``."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in patch]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    matrix = torch.tensor(random_matrix(chance, warp, flip), dtype=torch.float32, device=device)
    points = offsets @ matrix.T + torch.tensor(list(centre), dtype=torch.float32, device=device)
    if warp.bend > 0:
        points = points + smooth_field(chance, patch, cells=4, channels=3).permute(1, 2, 3, 0) * chance.uniform(
            0, warp.bend
        )
    return points


def sample(volume: Tensor, points: Tensor, nearest: bool) -> Tensor:
    """Values of ``volume`` (C, X, Y, Z) at ``points`` (x, y, z, 3), edges repeated; float32 (C, x, y, z)."""
    size = torch.tensor(volume.shape[1:], dtype=torch.float32, device=points.device)
    scaled = 2 * points / (size - 1).clamp(min=1) - 1
    # grid_sample wants the last array axis first.
    values = F.grid_sample(
        volume[None].float(),
        scaled.flip(-1)[None],
        mode="nearest" if nearest else "bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return values[0]


def inside(points: Tensor, shape: Sequence[int]) -> Tensor:
    """True where a point lies within half a voxel of a volume of ``shape``."""
    size = torch.tensor(list(shape), dtype=torch.float32, device=points.device)
    return ((points > -0.5) & (points < size - 0.5)).all(dim=-1)


def smooth_field(chance: Chance, shape: Sequence[int], cells: int, channels: int = 1) -> Tensor:
    """Smooth random field (channels, x, y, z) of about unit variance, ``cells`` bumps along the longest axis."""
    longest = max(shape)
    coarse = [max(round(cells * n / longest), 1) + 1 for n in shape]
    field = chance.normal(1, channels, *coarse)
    return F.interpolate(field, size=list(shape), mode="trilinear", align_corners=True)[0]
