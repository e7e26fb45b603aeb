"""How well two label volumes agree: overlaps from one joint histogram, distances from surface to surface.

Pure functions.  What an absent structure is worth is said once, in :class:`Score`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from spineps.volume import Box, bounding_box

NAN = math.nan
#: ``state`` of a structure: in both masks, only in the reference, only in the prediction, in neither.
BOTH, MISSING, SURPLUS, ABSENT = "both", "missing", "surplus", "absent"


@dataclass(frozen=True)
class Score:
    """Agreement on one structure.

    Attributes:
        dice, iou: 0..1; 0 when only one mask has the structure, NaN when neither has it.
        assd_mm, hd95_mm: see :func:`surface_scores`; NaN unless both masks have the structure.
        volume_mm3, reference_mm3: in the prediction, in the reference.
        centroid_mm: distance of the centres of mass; NaN unless both masks have the structure.
    """

    dice: float
    iou: float
    assd_mm: float
    hd95_mm: float
    volume_mm3: float
    reference_mm3: float
    centroid_mm: float

    @property
    def state(self) -> str:
        """
        >>> Score(0.0, 0.0, NAN, NAN, 0.0, 8.0, NAN).state
        'missing'
        """
        if self.volume_mm3 > 0:
            return BOTH if self.reference_mm3 > 0 else SURPLUS
        return MISSING if self.reference_mm3 > 0 else ABSENT

    @property
    def volume_error_mm3(self) -> float:
        """Prediction minus reference."""
        return self.volume_mm3 - self.reference_mm3

    @property
    def volume_error_percent(self) -> float:
        """Of the reference; NaN when that is empty.

        >>> Score(0.8, 0.667, 0.4, 1.0, 90.0, 120.0, 0.2).volume_error_percent
        -25.0
        """
        return 100 * self.volume_error_mm3 / self.reference_mm3 if self.reference_mm3 > 0 else NAN


def dice_of(both: float, first: float, second: float) -> float:
    """Twice the overlap over the sum of the sizes; NaN when both are empty.

    >>> dice_of(2, 4, 4), dice_of(0, 0, 3), dice_of(0, 0, 0)
    (0.5, 0.0, nan)
    """
    return 2 * both / (first + second) if first + second else NAN


def iou_of(both: float, first: float, second: float) -> float:
    """Overlap over union; NaN when both are empty.

    >>> iou_of(2, 4, 4), iou_of(0, 0, 0)
    (0.3333333333333333, nan)
    """
    union = first + second - both
    return both / union if union else NAN


def joint_histogram(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All overlaps of all labels at once.

    Args:
        first, second: label arrays of the same shape, integers >= 0.

    Returns:
        ids (K,), ascending, 0 first, the labels of either array; counts (K, K), voxels with ids[i] in ``first`` and
        ids[j] in ``second``.

    >>> ids, counts = joint_histogram(np.array([0, 7, 7, 2]), np.array([0, 7, 0, 7]))
    >>> ids.tolist(), counts.tolist()
    ([0, 2, 7], [[1, 0, 0], [0, 0, 1], [1, 0, 1]])
    """
    either = np.flatnonzero((first != 0) | (second != 0))
    a = first.reshape(-1)[either].astype(np.int64)
    b = second.reshape(-1)[either].astype(np.int64)
    seen = np.zeros(int(max(a.max(initial=0), b.max(initial=0))) + 1, bool)
    seen[a] = seen[b] = seen[0] = True
    ids = np.flatnonzero(seen)
    place = np.cumsum(seen) - 1
    counts = np.bincount(place[a] * len(ids) + place[b], minlength=len(ids) ** 2).reshape(len(ids), len(ids))
    counts[0, 0] = first.size - len(either)
    return ids, counts


def voxels_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of all labelled voxels, and their labels."""
    flat = labels.reshape(-1)
    index = np.flatnonzero(flat)
    return index, flat[index]


def surfaces(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Surface of every label: its voxels with a face towards another label, the background or the image's edge.

    Args:
        labels: (X, Y, Z) integers >= 0.

    Returns:
        Ascending flat indices by label.

    >>> surface = surfaces(np.ones((3, 3, 3), np.uint8))[1]
    >>> len(surface), 13 in surface
    (26, False)
    """
    padded = np.pad(labels, 1)
    index, value = voxels_of(padded)
    flat, outer = padded.reshape(-1), np.zeros(len(index), bool)
    for step in (padded.shape[1] * padded.shape[2], padded.shape[2], 1):
        outer |= (flat[index - step] != value) | (flat[index + step] != value)
    index, value = index[outer], value[outer]
    x, y, z = np.unravel_index(index, padded.shape)
    index = np.ravel_multi_index((x - 1, y - 1, z - 1), labels.shape)
    order = np.argsort(value, kind="stable")
    index, value = index[order], value[order]
    starts = np.flatnonzero(np.diff(value, prepend=0))
    parts = np.split(index, starts)[1:]
    return {int(value[s]): part for s, part in zip(starts, parts, strict=True)}


def places(index: np.ndarray, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """(N, 3) millimetres of voxel centres, sheared and oblique grids included."""
    voxels = np.stack(np.unravel_index(index, shape), axis=1).astype(float)
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def distances_to(here: np.ndarray, there: np.ndarray, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """From each voxel of ``here`` to the nearest of ``there``, mm, centre to centre.

    Args:
        here, there: flat indices, ``there`` not empty.

    >>> distances_to(np.array([0, 3]), np.array([3]), (1, 1, 4), np.diag([1, 1, 0.5, 1])).tolist()
    [1.5, 0.0]
    """
    from scipy.spatial import cKDTree

    distance = np.zeros(len(here))
    apart = ~np.isin(here, there, assume_unique=True)  # most of a good mask's surface lies on the other one
    if apart.any():
        tree = cKDTree(places(there, shape, affine), balanced_tree=False, compact_nodes=False)
        distance[apart] = tree.query(places(here[apart], shape, affine))[0]
    return distance


def surface_scores(there: np.ndarray, back: np.ndarray) -> tuple[float, float]:
    """Both symmetric surface distances.

    Args:
        there, back: mm from each surface to the other, not empty.

    Returns:
        ASSD: mean of the two mean distances; HD95: 95th percentile of all distances of both directions together.

    >>> surface_scores(np.array([0.0, 0.0]), np.array([1.0, 3.0]))[0]
    1.0
    """
    return float((there.mean() + back.mean()) / 2), float(np.percentile(np.concatenate([there, back]), 95))


def joint_box(first: np.ndarray, second: np.ndarray) -> Box:
    """Smallest box that holds every label of both arrays (one voxel when there is none)."""
    box = bounding_box(((first != 0) | (second != 0)).view(np.uint8))
    return box if box is not None else (slice(0, 1), slice(0, 1), slice(0, 1))


def centroids(labels: np.ndarray, affine: np.ndarray) -> dict[int, np.ndarray]:
    """Centre of mass of every label, (3,) mm.

    >>> {k: v.tolist() for k, v in centroids(np.array([[[0, 2, 2]]]), np.diag([1, 1, 2, 1])).items()}
    {2: [0.0, 0.0, 3.0]}
    """
    index, value = voxels_of(labels)
    if not len(index):
        return {}
    count = np.bincount(value)
    sums = [np.bincount(value, weights=axis) for axis in np.unravel_index(index, labels.shape)]
    ids = np.flatnonzero(count)
    voxels = np.stack(sums, axis=1)[ids] / count[ids, None]
    return dict(zip(ids.tolist(), voxels @ affine[:3, :3].T + affine[:3, 3], strict=True))


@dataclass(frozen=True)
class Compared:
    """Two label volumes on one grid, ready for questions about pairs of labels."""

    ids: np.ndarray
    counts: np.ndarray
    shape: tuple[int, ...]
    affine: np.ndarray
    surfaces: tuple[dict[int, np.ndarray], dict[int, np.ndarray]]
    centres: tuple[dict[int, np.ndarray], dict[int, np.ndarray]]

    def sizes(self, label: int, reference_label: int) -> tuple[int, int, int]:
        """Voxels of the overlap, of ``label`` in the prediction, of ``reference_label`` in the reference."""
        i, j = (np.flatnonzero(self.ids == x) for x in (label, reference_label))
        first, second = int(self.counts[i].sum()), int(self.counts[:, j].sum())
        return int(self.counts[i][:, j].sum()), first, second

    def score(self, label: int, reference_label: int | None = None) -> Score:
        """Agreement of one label of the prediction with one (by default the same) of the reference."""
        other = label if reference_label is None else reference_label
        both, first, second = self.sizes(label, other)
        assd = hd95 = centroid = NAN
        if first and second:
            a, b = self.surfaces[0][label], self.surfaces[1][other]
            there = distances_to(a, b, self.shape, self.affine)
            back = distances_to(b, a, self.shape, self.affine)
            assd, hd95 = surface_scores(there, back)
            centroid = float(np.linalg.norm(self.centres[0][label] - self.centres[1][other]))
        voxel = abs(float(np.linalg.det(self.affine[:3, :3])))
        dice, iou = dice_of(both, first, second), iou_of(both, first, second)
        return Score(dice, iou, assd, hd95, first * voxel, second * voxel, centroid)


def compare(prediction: np.ndarray, reference: np.ndarray, affine: np.ndarray) -> Compared:
    """Look at both label volumes once.

    Args:
        prediction, reference: (X, Y, Z) integers >= 0 on the same grid.
        affine: (4, 4), index -> mm.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"shapes {prediction.shape} and {reference.shape} differ")
    ids, counts = joint_histogram(prediction, reference)
    both = (prediction, reference)
    return Compared(
        ids,
        counts,
        prediction.shape,
        affine,
        (surfaces(both[0]), surfaces(both[1])),
        (centroids(both[0], affine), centroids(both[1], affine)),
    )
