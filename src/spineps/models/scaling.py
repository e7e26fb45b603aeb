"""How grey values reach a network.  Training and inference both call this, so that they cannot differ.

Works on numpy arrays and torch tensors alike where noted.
"""

from __future__ import annotations

import numpy as np

#: Hounsfield units kept of a CT: fat to dense bone.  An image with values below the lower end is taken for a CT,
#: because MR images are never that negative.
HOUNSFIELD_WINDOW = (-300.0, 1300.0)
#: Percentiles between which an image is spread; values above are kept up to CEILING times the spread.
PERCENTILES, CEILING = (0.5, 99.5), 1.2


def spread(image: np.ndarray) -> np.ndarray:
    """Grey values of a whole image to float32 in 0 .. 1.2 by its own percentiles; CT is windowed first.

    >>> spread(np.array([0.0, 5.0, 10.0])).round(1).tolist()
    [0.0, 0.5, 1.0]
    """
    x = np.asarray(image, np.float32)
    low, high = HOUNSFIELD_WINDOW
    if float(x.min()) < low:
        x = np.clip(x, low, high)
    low, high = (float(v) for v in np.percentile(_sample(x), PERCENTILES))
    return np.clip((x - low) / max(high - low, 1e-6), 0, CEILING)


def standardise(patch: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over a patch, any shape, float32."""
    mean, std = float(patch.mean()), float(patch.std())
    return ((patch - mean) / (std + 1e-6)).astype(np.float32, copy=False)


def _sample(x: np.ndarray, most: int = 2_000_000) -> np.ndarray:
    # Percentiles of every k-th voxel are as good and keep huge scans cheap.
    flat = x.reshape(-1)
    return flat[:: max(flat.size // most, 1)]
