"""Which parts of a mask go on above or below its largest part, as a spine does, and which lie beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: How far beside a part the next one may begin: this, and this share of the way up or down to it (in CT of trunks a
#: femoral head called body lay 54 mm beside and 48 mm below, a stent in the aorta 16 mm in front of the column).
BESIDE_MM, BESIDE_SHARE = 6.0, 0.6


def continuing(places: Sequence[np.ndarray], upright: int) -> list[bool]:
    """Whether each part goes on where the first one, or one that goes on from it, ends.

    Args:
        places: (n, 3) mm of the voxels of each part, the largest part first.
        upright: axis along which the body stands.
    """
    from scipy.spatial import cKDTree

    kept = [k == 0 for k in range(len(places))]
    reached = list(places[:1])
    while reached:
        points = reached.pop()
        tree = cKDTree(points)
        for k in [k for k, is_in in enumerate(kept) if not is_in]:
            gap, nearest = tree.query(places[k])
            step = np.abs(places[k][gap.argmin()] - points[nearest[gap.argmin()]])
            if np.linalg.norm(np.delete(step, upright)) <= BESIDE_MM + BESIDE_SHARE * step[upright]:
                kept[k] = True
                reached.append(places[k])
    return kept
