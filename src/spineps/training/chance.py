"""Randomness that can be replayed: everything drawn in a step follows from (seed, step) alone.

No generator state has to be saved, and a run that is cut and resumed draws what it would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Chance:
    """Numbers from numpy, fields from torch, both from one key."""

    numbers: np.random.Generator
    fields: torch.Generator

    @classmethod
    def of(cls, device: torch.device, *key: int) -> Chance:
        """The source that belongs to ``key``."""
        numbers = np.random.default_rng(list(key))
        fields = torch.Generator(device=device)
        fields.manual_seed(int(numbers.integers(2**62)))
        return cls(numbers, fields)

    def uniform(self, low: float, high: float) -> float:
        """One number in [low, high)."""
        return float(self.numbers.uniform(low, high))

    def happens(self, probability: float) -> bool:
        """True in that share of draws."""
        return bool(self.numbers.random() < probability)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal field on the device."""
        return torch.randn(shape, generator=self.fields, device=self.fields.device)
