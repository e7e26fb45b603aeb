"""How high every vertebra lies, those included that show no body."""

from __future__ import annotations

import numpy as np

from spineps.anatomy import BODY_PARTS
from spineps.phases.components import is_in


def body_heights(sem: np.ndarray, inst: np.ndarray) -> dict[int, float]:
    """Position along axis 1 (PIR, voxels) of the body of every vertebra.

    A vertebra of which only posterior parts are seen lies where its body would be: each of those structures hangs lower
    than the body by the amount that the other vertebrae show, a spinous process more than an arch.

    Args:
        sem: structures.
        inst: any ids, vertebrae only.
    """
    voxels = np.nonzero(inst)
    ids, row = np.unique(inst[voxels], return_inverse=True)
    code, height = sem[voxels].astype(np.int64), voxels[1].astype(np.float64)
    is_body = is_in(sem, BODY_PARTS)[voxels]
    code[is_body] = 0
    place, size = 256 * row + code, 256 * len(ids)
    number = np.bincount(place, minlength=size).reshape(-1, 256)
    total = np.bincount(place, height, size).reshape(-1, 256)
    mean = total / np.maximum(number, 1)
    has_body = number[:, 0] > 0
    drops = np.zeros(256)
    for k in np.flatnonzero((number[has_body] > 0).any(axis=0)):
        shown = has_body & (number[:, k] > 0)
        drops[k] = np.median(mean[shown, k] - mean[shown, 0])
    guessed = ((mean - drops) * number).sum(axis=1) / number.sum(axis=1)
    return {int(i): float(mean[k, 0] if has_body[k] else guessed[k]) for k, i in enumerate(ids)}
