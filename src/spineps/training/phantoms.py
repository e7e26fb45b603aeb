"""Generated spines for training: label maps made beforehand, images painted from them on the device."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spineps.synth.arrays import TorchArrays
from spineps.synth.image import random_image_spec, synthesise
from spineps.training.chance import Chance

logger = logging.getLogger(__name__)


def phantom_arrays(
    shape: tuple[int, int, int], zoom: tuple[float, float, float], first: int, count: int, region: str = "any"
) -> Iterator[tuple[str, np.ndarray]]:
    """Label maps of random people: (name, uint8 (3, X, Y, Z) of tissue, semantic and instance).

    Args:
        shape: voxels along P, I, R.
        zoom: voxel size in mm.
        first: seed of the first; the n-th has ``first + n``.
        count: how many.
        region: where their fields of view lie.
    """
    from spineps.synth.labelmap import field_of_view, render
    from spineps.synth.spec import random_spec

    grid = field_of_view(shape, zoom)
    for seed in range(first, first + count):
        phantom = render(random_spec(np.random.default_rng(seed), region), grid)
        yield f"{seed:06d}", np.stack([phantom.tissue, phantom.semantic, phantom.instance]).astype(np.uint8)


@cache
def _arrays(device: torch.device) -> Any:
    return TorchArrays(device)


def paint(tissue: Tensor, instance: Tensor, zoom: tuple[float, float, float], chance: Chance) -> Tensor:
    """An image of label maps (x, y, z) in a random contrast, float32, any grey values."""
    spec = random_image_spec(chance.numbers)
    image: Tensor = synthesise((tissue.long(), instance.long()), spec, _arrays(tissue.device), zoom)
    return image
