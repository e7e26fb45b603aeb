"""Groups of labels, so that masks that tell apart more can be held against masks that tell apart less.

>>> [GROUPS[g] for g in (VERTEBRA_GROUP, DISC_GROUP, CANAL_GROUP)]
['all vertebrae', 'all discs', 'canal with cord']
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spineps.anatomy import (
    BY_ID,
    CANAL_PARTS,
    CORPUS,
    CORPUS_INNER,
    DENS,
    DISC,
    DISC_OFFSET,
    ENDPLATE,
    ENDPLATE_INFERIOR,
    ENDPLATE_OFFSET,
    ENDPLATE_SUPERIOR,
    SACRUM,
    VERTEBRA_PARTS,
    VERTEBRAE,
)
from spineps.evaluation.metrics import places, surfaces

ENDPLATES = (ENDPLATE, ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR)
#: Numbers of coarse masks, as in the coarse SPIDER labels: 1 vertebra, 2 disc, 3 canal.
VERTEBRA_GROUP, DISC_GROUP, CANAL_GROUP = 1, 2, 3
GROUPS: dict[int, str] = {VERTEBRA_GROUP: "all vertebrae", DISC_GROUP: "all discs", CANAL_GROUP: "canal with cord"}
_PLATE = 4


def structure_name(label: int) -> str:
    """
    >>> structure_name(49), structure_name(53)
    ('vertebral body', 'inferior endplate')
    """
    other = {
        CORPUS_INNER: "vertebral body, inner",
        DENS: "dens",
        ENDPLATE_SUPERIOR: "superior endplate",
        ENDPLATE_INFERIOR: "inferior endplate",
    }
    return BY_ID[label].name if label in BY_ID else other.get(label, f"structure {label}")


def merged(structures: np.ndarray) -> np.ndarray:
    """Structure codes without the distinctions that models make differently: endplates are 62, bodies 49.

    >>> merged(np.array([52, 53, 62, 50, 41])).tolist()
    [62, 62, 62, 49, 41]
    """
    return _mapped(structures, {**dict.fromkeys(ENDPLATES, ENDPLATE), CORPUS_INNER: CORPUS}, keep=True)


def grouped(structures: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Structure codes as 1 vertebra, 2 disc, 3 canal; the sacrum and everything else become background.

    Vertebrae are all their parts and the half of the endplates that lies nearer to them; the other half is disc.
    """
    groups = {
        **dict.fromkeys(VERTEBRA_PARTS, VERTEBRA_GROUP),
        **dict.fromkeys(CANAL_PARTS, CANAL_GROUP),
        **dict.fromkeys(ENDPLATES, _PLATE),
        DISC: DISC_GROUP,
    }
    return endplates_shared(_mapped(structures, groups), [VERTEBRA_GROUP], [DISC_GROUP], [_PLATE], affine)


def vertebrae_with_endplates(instances: np.ndarray, affine: np.ndarray, discs: bool = True) -> np.ndarray:
    """Instance codes without endplates: each voxel of them goes to the nearest vertebra.

    Args:
        instances: codes of the ``seg-vert`` mask.
        discs: True gives the half that lies nearer to a disc to that disc.
    """
    bones = (*VERTEBRAE, SACRUM)
    below = [DISC_OFFSET + v for v in bones] if discs else []
    return endplates_shared(instances, bones, below, [ENDPLATE_OFFSET + v for v in bones], affine)


def endplates_shared(
    labels: np.ndarray, bones: Sequence[int], discs: Sequence[int], plates: Sequence[int], affine: np.ndarray
) -> np.ndarray:
    """Every voxel of ``plates`` takes the label of the nearest bone or disc; as near to both, it is bone.

    >>> endplates_shared(np.array([[[1, 4, 4, 4, 4, 2]]]), [1], [2], [4], np.eye(4)).tolist()
    [[[1, 1, 1, 2, 2, 2]]]
    """
    from scipy.spatial import cKDTree

    index = np.flatnonzero(np.isin(labels, plates))
    if not len(index):
        return labels
    out, here = labels.copy().reshape(-1), places(index, labels.shape, affine)
    surface = surfaces(labels)
    best, nearest = np.full(len(index), np.inf), np.zeros(len(index), labels.dtype)
    for wanted in (bones, discs):
        found = [i for i in wanted if i in surface]
        if not found:
            continue
        flat = np.concatenate([surface[i] for i in found])
        distance, at = cKDTree(places(flat, labels.shape, affine)).query(here)
        nearer = distance < best - 1e-6
        best[nearer], nearest[nearer] = distance[nearer], out[flat[at[nearer]]]
    out[index] = nearest
    return out.reshape(labels.shape)


def _mapped(labels: np.ndarray, table: dict[int, int], keep: bool = False) -> np.ndarray:
    size = int(labels.max(initial=0)) + 1
    lookup = np.arange(size) if keep else np.zeros(size, int)
    for old, new in table.items():
        if old < size:
            lookup[old] = new
    return lookup.astype(np.uint16)[labels]
