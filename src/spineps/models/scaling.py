"""How grey values reach a network.  Training and inference both call this, so that they cannot differ.

Everything works on numpy arrays and on torch tensors alike.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

A = TypeVar("A", bound=Any)

#: Hounsfield units kept of a CT: fat to dense bone.  An image with values below the lower end is taken for a CT,
#: because MR images are never that negative.
HOUNSFIELD_WINDOW = (-300.0, 1300.0)
#: Percentiles between which an image is spread; values above are kept up to CEILING times the spread.
PERCENTILES, CEILING = (0.5, 99.5), 1.2


def spread(image: A) -> A:
    """Grey values of a whole image to 0 .. 1.2 by its own percentiles; CT is windowed first.

    >>> spread(np.array([0.0, 5.0, 10.0])).round(1).tolist()
    [0.0, 0.5, 1.0]
    """
    x: Any = image.astype(np.float32) if isinstance(image, np.ndarray) else image
    low, high = HOUNSFIELD_WINDOW
    if float(x.min()) < low:
        x = x.clip(low, high)
    low, high = _percentiles(x)
    scaled: A = ((x - low) / max(high - low, 1e-6)).clip(0, CEILING)
    return scaled


def standardise(patch: A) -> A:
    """Zero mean and unit variance over a patch."""
    return (patch - patch.mean()) / (patch.std() + 1e-6)


def _percentiles(x: Any, most: int = 1_000_000) -> tuple[float, float]:
    # Percentiles of every k-th voxel are as good and keep huge scans cheap.
    sample = x.reshape(-1)
    sample = sample[:: max(len(sample) // most, 1)]
    if not isinstance(sample, np.ndarray):
        sample = sample.detach().cpu().numpy()
    low, high = np.percentile(sample, PERCENTILES)
    return float(low), float(high)
