"""Tell a body that is two bodies from a tall one, and cut it.

Two fused bodies with the disc between them reach over two bodies and a disc: about 2.3 times the height and volume that
the neighbours predict.  A tall but single body stays near their trend, is never much taller than it is deep, and does
not come apart into equally thick pieces (the dens of C2 is thin).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spineps.phases.components import boxes, centres, counts, label_components
from spineps.volume import bounding_box

#: From this multiple of the predicted body plus disc on (1.5 is halfway between one and two).
MERGED = 1.5
#: The same beside a disc fragment that lies inside the body (published: volume ratio 1.5).
MERGED_AROUND_DISC = 1.35
#: Height over depth: single bodies of all levels stay below 1.0 in the mean (C3 0.95, T6 0.75, L3 0.8).
USUAL_ASPECT, SURE_ASPECT, LEAST_ASPECT = 0.9, 1.45, 1.1
#: No single body is as high, mm (L4: 28 in the mean; a C2 with its dens 39); lumbar body with its disc.
TALLEST, PITCH = 42.0, 36.0
#: A neighbour counts when it is at most this many bodies away (published).
NEIGHBOURHOOD = 5
#: Least share of thickness that the thinner piece has of the thicker.
ALIKE = 0.5
#: Least share of volume that the smaller of two pieces parted by erosion has of the larger.
EVEN = 0.8
#: A cross-section is a notch below this share of the ones around it.
NOTCH = 0.9
#: The top body of a neck (neighbours lower than this, mm), whose upper third is so much slimmer than its lower third,
#: is a C2: its dens is as high as so many bodies.
NECK, DENS_TAPER, DENS_HEIGHTS = 22.0, 0.75, 1.4
#: Where so much of the scan (mm) lies above the top body, the spine ends there: of a neck (with bodies up to so high in
#: a tall person) it is a C2, whatever hangs on its dens (47 mm in a head in T1w, with the fat above it).
HEAD_ABOVE, TALL_NECK = 35.0, 26.0
#: Alone below the skull, a body no deeper than this and so high (mm) is a C2 with its dens.
NECK_DEPTH, C2_HEIGHTS = 20.0, (34.0, 55.0)
#: A dens that was parted from C2's body: below the skull, pointed, and no taller than so many of the bodies below it (a
#: dens alone 1.0 to 1.8, a whole C2 at least 1.9), of which the next is no C2 itself.
POINTED, DENS_ALONE, LIKE_OTHERS = 0.6, 1.8, 1.5
#: Neither of the two is as large (mm3; 3,500 to 4,500 in three heads).
LARGEST_DENS = 8000.0
#: Disc height as a share of body height where it cannot be measured (0.2 thoracic to 0.35 lumbar).
DISC_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Shape:
    """One body's measures.

    Attributes:
        centre: (3,) voxel index.
        axis: (3,) unit vector in mm space along the spine, pointing down.
        height: mm along the axis (2nd to 98th percentile).
        depth: mm from front to back.
        volume: mm3.
        cut: touches the upper or lower end of the scan.
        shallow: touches its front or rear end, so that ``depth`` is not the body's.
        place: rank from the top.
        taper: volume of the upper third over that of the lower third.
        above: mm of the scan above it.
    """

    centre: np.ndarray
    axis: np.ndarray
    height: float
    depth: float
    volume: float
    cut: bool
    shallow: bool
    place: int
    taper: float = 1.0
    above: float = 0.0


def describe(whole: np.ndarray, zoom: Sequence[float], extent: tuple[int, int], above: int = 0) -> dict[int, Shape]:
    """Measures of every body of a label array (PIR).

    Args:
        whole: body numbers.
        zoom: voxel size in mm.
        extent: slices along axis 1 that hold labels.
        above: slices of the scan above the array.
    """
    scale = np.asarray(zoom, float)
    middle = centres(whole)
    order = sorted(middle, key=lambda i: (middle[i][1], i))
    where = boxes(whole)
    shapes = {}
    for place, body in enumerate(order):
        axis = _spine_axis([middle[i] * scale for i in order], place)
        box = where[body]
        points = np.argwhere(whole[box] == body) * scale
        along = points @ axis
        first, last = along.min() + np.ptp(along) / 3, along.max() - np.ptp(along) / 3
        shapes[body] = Shape(
            centre=middle[body],
            axis=axis,
            height=_extent(along, 2) + float(zoom[1]),
            depth=_extent(points @ np.array([axis[1], -axis[0], 0.0]), 10) * 1.2,
            volume=len(points) * float(np.prod(scale)),
            cut=box[1].start <= extent[0] + 1 or box[1].stop >= extent[1],
            shallow=box[0].start == 0 or box[0].stop == whole.shape[0],
            place=place,
            taper=float((along < first).sum() + 1) / float((along > last).sum() + 1),
            above=float((box[1].start + above) * zoom[1]),
        )
    return shapes


def expected(shape: Shape, others: Sequence[Shape]) -> tuple[float, float] | None:
    """(height, volume) that the neighbours predict; None when the scan cuts all of them.

    Where labels end far below the upper end of the scan, it cuts nothing: such a top body counts if there is no other.

    The median of the straight lines through pairs of neighbours (Theil-Sen, in logarithms) is not moved by one further
    outlier, and follows the growth of bodies from neck to loin.
    """
    near = [s for s in others if abs(s.place - shape.place) <= NEIGHBOURHOOD]
    near = [s for s in near if not s.cut] or [s for s in near if s.place < shape.place and s.above > HEAD_ABOVE]
    if not near:
        return None
    places = np.array([s.place for s in near], float)
    height, volume = (
        _theil_sen(places, np.log([getattr(s, name) for s in near]), shape.place) for name in ("height", "volume")
    )
    return height, volume


def pieces_in(
    shape: Shape, prediction: tuple[float, float] | None, disc_inside: bool = False, top: bool = False
) -> int:
    """How many vertebrae a body holds; 1 for an ordinary one, and for a C2 with its dens at the ``top`` of the row."""
    aspect = shape.height / max(shape.depth, 1e-6)
    if prediction is None:
        # Nothing to compare with: only the shape itself can tell, or its height where the scan cuts the depth.
        if aspect <= SURE_ASPECT or (shape.shallow and shape.height < TALLEST):
            return 1
        below_skull = top and shape.above > HEAD_ABOVE and shape.depth < NECK_DEPTH
        if below_skull and C2_HEIGHTS[0] < shape.height < C2_HEIGHTS[1]:
            return 1
        return max(round(shape.height / PITCH) if shape.shallow else _number(aspect / USUAL_ASPECT), 2)
    height, volume = prediction
    slim = height < NECK and shape.taper < DENS_TAPER
    has_dens = top and (slim or (height < TALL_NECK and shape.above > HEAD_ABOVE))
    heights = shape.height / height - (DENS_HEIGHTS if has_dens else 0.0)
    ratio = min(_bodies(heights), shape.volume / volume)
    if aspect < LEAST_ASPECT or ratio < (MERGED_AROUND_DISC if disc_inside else MERGED):
        return 1
    return max(_number(heights), 2)


def _bodies(heights: float) -> float:
    """How many bodies, with discs between them, are as tall as so many body heights."""
    return (heights + DISC_SHARE) / (1 + DISC_SHARE)


def _number(heights: float) -> int:
    return round(_bodies(heights))


def is_dens(shape: Shape, below: Sequence[Shape]) -> bool:
    """Whether a top body is the dens of the next one (``below``: all others, from the top)."""
    # Further down bodies are taller.
    whole = [s.height for s in below[:3] if not s.cut]
    if len(whole) < 2 or below[0].cut or shape.above <= HEAD_ABOVE:
        return False
    usual = float(np.median(whole[1:]))
    # In a scan that leans, corners lie above lumbar bodies, too.
    neck = below[0].height < TALL_NECK and max(shape.depth, below[0].depth) < NECK_DEPTH
    neck = neck and max(shape.volume, below[0].volume) < LARGEST_DENS
    alike = below[0].height < LIKE_OTHERS * usual and shape.height < DENS_ALONE * max(usual, below[0].height)
    together = shape.height + below[0].height
    return neck and alike and shape.taper < POINTED and C2_HEIGHTS[0] < together < C2_HEIGHTS[1]


def split_body(mask: np.ndarray, zoom: Sequence[float], axis: np.ndarray, number: int) -> np.ndarray | None:
    """Cut a body into ``number`` pieces.

    Two pieces that erosion can part are cut as in the published system, by the plane where they meet again when they
    grow.  Otherwise each cut is a plane across the spine where a body should end, or at a notch near there.

    Args:
        mask: bool, the body's own box.
        zoom: voxel size in mm.
        axis: (3,) unit vector along the spine, pointing down.
        number: pieces, 2 or more.

    Returns:
        Numbers 1..``number`` from the top (0 outside), or None when the pieces would not look like bodies.
    """
    if number == 2:
        plane = parting_plane(mask)
        if plane is not None:
            sides = halves(mask, *plane)
            # Erosion may also part a body at its slim middle: then the plane lies far from the middle of the two.
            if counts(sides)[1:].min() >= EVEN * counts(sides)[1:].max():
                return sides
    sides = _cross_cuts(mask, zoom, axis, number)
    return sides if _balanced(sides, zoom, axis) else None


def parting_plane(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Point and normal (voxel units, pointing up) of the plane between two bodies that touch.

    Erode until the mask falls apart, let the two largest parts grow in turn until they overlap: the plane goes through
    the overlap's centre, across the line between the parts.  None when the mask vanishes before it falls apart.  The
    larger part grows first; of just two, the first in memory order (published; it may move the plane by half a voxel).
    """
    from scipy.ndimage import binary_erosion, distance_transform_cdt

    reach = 20
    box = bounding_box(mask, reach)
    if box is None:
        return None
    state = mask[box]
    for _ in range(11):
        state = binary_erosion(state, np.ones((3, 3, 3), bool))
        parts, count = label_components(state, 26)
        if count > 1:
            break
    else:
        return None
    largest = np.argsort(-counts(parts, count + 1)[1:], kind="stable")[:2] + 1
    first, second = (1, 2) if count == 2 else largest.tolist()
    start = [s.start for s in box]
    # Whole sums divided once: where the plane runs through voxel centres, the last digit decides.
    normal, low = ((np.argwhere(parts == part) + start).mean(axis=0) for part in (first, second))
    normal -= low
    # Growing by one voxel in turn is a threshold on the chessboard distance.
    far, far_too = (distance_transform_cdt(parts != part, "chessboard") for part in (first, second))
    for step in range(1, 2 * reach):
        overlap = (far <= (step + 1) // 2) & (far_too <= step // 2)
        if overlap.any():
            point = (np.argwhere(overlap) + start).mean(axis=0)
            return point, normal if normal[1] <= 0 else -normal
    return None


def halves(mask: np.ndarray, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """1 on and above the plane, 2 below, 0 outside the mask."""
    axes = np.ogrid[tuple(slice(n) for n in mask.shape)]
    above = sum((axis - p) * n for axis, p, n in zip(axes, point, normal, strict=True)) >= 0
    return np.where(mask, np.where(above, 1, 2), 0).astype(np.uint8)


def _cross_cuts(mask: np.ndarray, zoom: Sequence[float], axis: np.ndarray, number: int) -> np.ndarray:
    voxels = np.argwhere(mask)
    along = (voxels * np.asarray(zoom)) @ axis
    # One bin per voxel height, smoothed over 3: the area of cross-sections.
    low, step = float(along.min()), float(zoom[1])
    bins = ((along - low) / step).astype(int)
    area = np.convolve(np.bincount(bins), np.ones(3) / 3, mode="same")
    side = np.ones(len(voxels), np.uint8)
    length = len(area)
    for cut in range(1, number):
        target = length * cut / number
        reach = 0.3 * length / number
        window = area[max(int(target - reach), 0) : int(target + reach) + 2]
        # A notch counts, a slope does not: bodies are slim in the middle, and a disc turned to bone bulges.
        notch = window.min() < NOTCH * min(window[0], window[-1])
        place = max(int(target - reach), 0) + int(window.argmin()) if notch else int(target - 0.5)
        side += (bins > place).astype(np.uint8)
    out = np.zeros(mask.shape, np.uint8)
    out[tuple(voxels.T)] = side
    return out


def _balanced(sides: np.ndarray, zoom: Sequence[float], axis: np.ndarray) -> bool:
    """All pieces are of similar thickness and none is a sliver."""
    heights, thickness = [], []
    for side in range(1, int(sides.max()) + 1):
        points = np.argwhere(sides == side)
        if not len(points):
            return False
        heights.append(_extent((points * np.asarray(zoom)) @ axis, 2) + float(zoom[1]))
        thickness.append(len(points) / heights[-1])
    return min(thickness) >= ALIKE * max(thickness) and min(heights) >= 0.4 * max(heights)


def _spine_axis(middle: Sequence[np.ndarray], place: int) -> np.ndarray:
    upper, lower = middle[max(place - 1, 0)], middle[min(place + 1, len(middle) - 1)]
    axis = lower - upper
    axis[2] = 0.0
    length = float(np.linalg.norm(axis))
    # Alone, or beside a fragment at its own level: straight down.
    if length < 1e-6 or axis[1] < 0.5 * length:
        return np.array([0.0, 1.0, 0.0])
    return axis / length


def _extent(values: np.ndarray, percentile: float) -> float:
    low, high = np.percentile(values, [percentile, 100 - percentile])
    return float(high - low)


def _theil_sen(x: np.ndarray, y: np.ndarray, at: float) -> float:
    i, j = np.triu_indices(len(x), 1)
    slope = float(np.median((y[j] - y[i]) / (x[j] - x[i]))) if len(i) else 0.0
    # Bodies never change by more than an eighth from one level to the next.
    slope = min(max(slope, -0.12), 0.12)
    return float(np.exp(np.median(y - slope * x) + slope * at))
