"""Cuts that follow the spine, on the scan's own rows and columns, to be shown at any scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spineps.anatomy import (
    CANAL_PARTS,
    CORPUS,
    CORPUS_INNER,
    DISC,
    ENDPLATE,
    ENDPLATE_INFERIOR,
    ENDPLATE_SUPERIOR,
    SACRUM,
)
from spineps.volume import Volume, bounding_box

if TYPE_CHECKING:
    from scipy.sparse import csr_array

#: How far beyond the masks a cut reaches, and the coronal one to each side of the spine, in mm.
MARGIN_MM, CORONAL_MM = 20.0, 50.0
#: Standard deviation (mm) of the smoothing of the spine's course.
SMOOTHING_MM = 12.0
#: Steepest turn of the sagittal cut about the spine's axis (mm to the side per mm back): about 27 degrees.
STEEPEST = 0.5
#: Slices further apart than this (mm) are blended in shape; between closer ones no step is seen.
THICK_MM = 2.0
BODIES = (CORPUS, CORPUS_INNER)
COLUMN = (*BODIES, DISC, ENDPLATE, ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR)


@dataclass(frozen=True)
class Shape:
    """One label of a cut: signed distance to its outline (mm, positive inside) from ``row`` and ``column`` on."""

    row: int
    column: int
    distance: np.ndarray


@dataclass(frozen=True)
class Cut:
    """One curved cut, rows from top to bottom of the body.

    Attributes:
        grey: (rows, columns) float32.
        semantic: shapes by label; 0 is the background.
        instance: likewise.
        structures, vertebrae: labels of the nearest voxels, shape of ``grey``.
        zoom: mm of one row and one column.
        left: letter of the body side at the left of the picture.
        right: letter at its right.
    """

    grey: np.ndarray
    semantic: Mapping[int, Shape]
    instance: Mapping[int, Shape]
    structures: np.ndarray
    vertebrae: np.ndarray
    zoom: tuple[float, float]
    left: str
    right: str

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        return self.grey.shape[0] * self.zoom[0], self.grey.shape[1] * self.zoom[1]

    def image(self, height: int, width: int) -> np.ndarray:
        """Grey values on ``height`` x ``width`` picture points."""
        from scipy.ndimage import gaussian_filter, map_coordinates

        # Where picture points are coarser than voxels, voxels between them count too.
        steps = [n / m for n, m in zip(self.grey.shape, (height, width), strict=True)]
        blurred = gaussian_filter(self.grey, [0.4 * math.sqrt(max(step**2 - 1, 0)) for step in steps])
        where = [_centres(n, m) for n, m in zip(self.grey.shape, (height, width), strict=True)]
        shown: np.ndarray = map_coordinates(blurred, np.meshgrid(*where, indexing="ij"), order=3, mode="nearest")
        return shown

    def labels(self, shapes: Mapping[int, Shape], height: int, width: int) -> np.ndarray:
        """Labels on ``height`` x ``width`` picture points; outlines are smooth, not the steps of voxels."""
        best = np.full((height, width), -np.inf, np.float32)
        found = np.zeros((height, width), np.int32)
        weights = [_spline(n, m) for n, m in zip(self.grey.shape, (height, width), strict=True)]
        for label, shape in sorted(shapes.items()):
            (rows, along), (columns, across) = (
                _part(matrix, first, count)
                for matrix, first, count in zip(weights, (shape.row, shape.column), shape.distance.shape, strict=True)
            )
            distance = (across @ (along @ shape.distance).T).T
            target = best[rows, columns]
            nearer = distance > target
            target[nearer] = distance[nearer]
            found[rows, columns][nearer] = label
        return found


def curved_cuts(image: Volume, semantic: Volume, instance: Volume) -> tuple[Cut, Cut]:
    """Sagittal and coronal cut through the middle of the vertebral column, row by row along the body's axis.

    The sagittal cut is turned about that axis so that it meets the middle of the canal, too: both stay in view where
    scoliosis rotates vertebrae.

    Args:
        image, semantic, instance: on one grid, axes in any order.
    """
    image, semantic, instance = _around_the_spine(image, semantic, instance)
    posterior, inferior, right = image.zoom
    course, turn = spine_course(semantic), _turn(semantic)
    p, r = (np.arange(n) for n in (image.shape[0], image.shape[2]))
    sideways = course[:, 1:] + turn[:, None] * (p - course[:, :1]) * posterior / right
    sideways = sideways.clip(0, image.shape[2] - 1)  # at the edge of a slab the cut follows its last slice
    reach = CORONAL_MM / right
    r = r[(r >= course[:, 1].min() - reach) & (r <= course[:, 1].max() + reach)]
    # Radiological view: the patient's right is at the left of the picture.
    back = np.broadcast_to(course[:, :1], (len(course), len(r)))
    volumes = [v.array.transpose(2, 1, 0) for v in (image, semantic, instance)]
    sagittal = _cut(volumes, sideways, (right, inferior, posterior), ("A", "P"))
    volumes = [v.array[:, :, r[0] : r[-1] + 1][:, :, ::-1] for v in (image, semantic, instance)]
    return sagittal, _cut(volumes, back, (posterior, inferior, right), ("R", "L"))


def spine_course(semantic: Volume) -> np.ndarray:
    """Middle (posterior index, right index) of bodies and discs at every inferior index, smoothed; mask in PIR.

    Below them it follows the sacrum.
    """
    column = np.isin(semantic.array, COLUMN)
    below = semantic.array == SACRUM
    below[:, column.any(axis=(0, 2))] = False
    mask = column | below
    return _middle(mask if mask.any() else semantic.array != 0, semantic.zoom[1])


def _middle(mask: np.ndarray, zoom: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    size_p, size_i, size_r = mask.shape
    in_p, in_r = mask.sum(axis=2).T, mask.sum(axis=0)
    counts = in_p.sum(axis=1)
    middle = np.tile([(size_p - 1) / 2, (size_r - 1) / 2], (size_i, 1))
    heights = np.flatnonzero(counts)
    if heights.size:
        for number, (sums, size) in enumerate(((in_p, size_p), (in_r, size_r))):
            values = sums[heights] @ np.arange(size) / counts[heights]
            middle[:, number] = np.interp(np.arange(size_i), heights, values)
    smooth: np.ndarray = gaussian_filter1d(middle, SMOOTHING_MM / zoom, axis=0, mode="nearest")
    return smooth


def _turn(semantic: Volume) -> np.ndarray:
    """mm to the right per mm back, from the middle of the bodies to that of the canal, at every inferior index."""
    from scipy.ndimage import gaussian_filter1d

    column, canal = np.isin(semantic.array, COLUMN), np.isin(semantic.array, CANAL_PARTS)
    rows = np.flatnonzero(column.any(axis=(0, 2)) & canal.any(axis=(0, 2)))
    if not rows.size:
        return np.zeros(semantic.shape[1])
    # Each is smoothed over its own rows, so both are known at each of the common ones.
    posterior, inferior, right = semantic.zoom
    apart = (_middle(canal, inferior) - _middle(column, inferior))[rows] * (posterior, right)
    turn = np.interp(np.arange(semantic.shape[1]), rows, apart[:, 1] / np.maximum(apart[:, 0], 10.0))
    smooth: np.ndarray = gaussian_filter1d(turn.clip(-STEEPEST, STEEPEST), SMOOTHING_MM / inferior, mode="nearest")
    return smooth


def _around_the_spine(*volumes: Volume) -> tuple[Volume, Volume, Volume]:
    """The part that is shown, axes in PIR: a scan of a whole body is not copied."""
    image, semantic, instance = volumes
    margin = [
        math.ceil((CORONAL_MM if code in "LR" else MARGIN_MM) / zoom)
        for code, zoom in zip(image.axcodes, image.zoom, strict=True)
    ]
    box = bounding_box(semantic.array, margin) or bounding_box(instance.array, margin)
    parts = [(v.cropped(box) if box else v).reoriented("PIR") for v in (image, semantic, instance)]
    return parts[0], parts[1], parts[2]


def _cut(
    volumes: list[np.ndarray], depth: np.ndarray, zoom: tuple[float, float, float], letters: tuple[str, str]
) -> Cut:
    """The cut through arrays (depth, row, column) at the depth (voxels) of every row and column."""
    from scipy.ndimage import map_coordinates

    image, semantic, instance = volumes
    row, column = np.ogrid[: depth.shape[0], : depth.shape[1]]
    grey = map_coordinates(image, np.broadcast_arrays(depth, row, column), order=1, mode="nearest", output=np.float32)
    nearest = np.rint(depth).astype(int), row, column
    shapes = []
    for labels in (semantic, instance):
        thick = zoom[0] > THICK_MM
        planes = list(_slices(labels, depth)) if thick else [(labels[nearest], np.ones(depth.shape, np.float32))]
        shapes.append(_shapes(planes, zoom[1:], 2 * max(zoom if thick else zoom[1:])))
    return Cut(grey, shapes[0], shapes[1], semantic[nearest], instance[nearest], zoom[1:], *letters)


def _slices(labels: np.ndarray, depth: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every slice that the cut touches, and its share at every point."""
    for k in range(math.floor(depth.min()), math.ceil(depth.max()) + 1):
        weight = (1 - np.abs(depth - k)).clip(0).astype(np.float32)
        if weight.any():
            yield labels[k], weight


def _shapes(planes: list[tuple[np.ndarray, np.ndarray]], zoom: tuple[float, float], far: float) -> dict[int, Shape]:
    """Outlines as signed distances; between two slices an outline lies where the mean of their distances is 0
    (shape-based interpolation: Raya and Udupa 1990).

    Args:
        planes: labels of a slice and its share at every point.
        zoom: mm of a row and a column.
        far: no distance counts more than this (mm).
    """
    from edt import edt
    from scipy.ndimage import find_objects

    pad = [math.ceil(far / z) + 2 for z in zoom]
    shape = planes[0][0].shape
    places: dict[int, list[tuple[slice, ...]]] = {0: [(slice(0, shape[0]), slice(0, shape[1]))]}
    for plane, _ in planes:
        for label, place in enumerate(find_objects(plane.astype(np.int32)), start=1):
            if place is not None:
                places.setdefault(label, []).append(place)
    shapes = {}
    for label, found in places.items():
        box = tuple(
            slice(
                max(min(p[a].start for p in found) - pad[a], 0), min(max(p[a].stop for p in found) + pad[a], shape[a])
            )
            for a in (0, 1)
        )
        distance = np.zeros(tuple(s.stop - s.start for s in box), np.float32)
        for plane, weight in planes:
            used = np.flatnonzero(weight[box].any(axis=1))
            if used.size:
                rows = slice(max(used[0] - pad[0], 0), used[-1] + pad[0] + 1)
                mask = np.ascontiguousarray(plane[box][rows] == label)
                signed = -far if not mask.any() else far if mask.all() else edt(mask, zoom) - edt(~mask, zoom)
                distance[rows] += weight[box][rows] * np.clip(signed, -far, far)
        shapes[label] = Shape(box[0].start, box[1].start, distance)
    return shapes


def _centres(voxels: int, points: int) -> np.ndarray:
    """Where the picture points lie, in voxels."""
    return (np.arange(points) + 0.5) * (voxels / points) - 0.5


def _spline(voxels: int, points: int) -> csr_array:
    """(points, voxels) weights of a cubic B-spline, which smooths over about one voxel."""
    from scipy.sparse import coo_array

    where = _centres(voxels, points)
    first = np.floor(where).astype(int)
    t = where - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    columns = (first + np.arange(-1, 3)[:, None]).clip(0, voxels - 1)
    rows = np.broadcast_to(np.arange(points), columns.shape)
    return coo_array((weights.astype(np.float32).ravel(), (rows.ravel(), columns.ravel())), (points, voxels)).tocsr()


def _part(matrix: csr_array, first: int, count: int) -> tuple[slice, csr_array]:
    """The picture points that depend on ``count`` voxels alone (at the edge: all there are), and their weights."""
    voxels, points = matrix.shape[1], matrix.shape[0]
    where = _centres(voxels, points)
    low = first + 1 if first else -1.0
    high = first + count - 3 if first + count < voxels else voxels
    start, stop = np.searchsorted(where, (low, high))
    rows = slice(int(start), int(stop))
    return rows, matrix[rows, first : first + count]
