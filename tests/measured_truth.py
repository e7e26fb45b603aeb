"""What a synthetic person's numbers say that should be measured, from the distance fields, not from masks."""

from __future__ import annotations

import numpy as np

from spineps.anatomy import SACRUM
from spineps.synth.body import draw_body
from spineps.synth.canvas import Canvas
from spineps.synth.chain import PIR_TO_RAS, Frame, frames
from spineps.synth.person import SpineSpec
from spineps.volume import Grid

STEP = 0.25


def true_heights(frame: Frame) -> tuple[float, float, float, float]:
    """Front, middle and back height and depth of a body, mm, from its distance field in its own frame."""
    sizes = frame.level.sizes
    half = np.array([frame.back + 5, frame.half_height + 7, max(sizes["width_upper"], sizes["width_lower"]) / 6])
    affine = np.eye(4)
    affine[:3, :3] = PIR_TO_RAS @ frame.axes * STEP
    shape = tuple(int(2 * n / STEP) for n in half)
    affine[:3, 3] = PIR_TO_RAS @ (frame.centre - frame.axes @ half)
    body = draw_body(Canvas(Grid((shape[0], shape[1], shape[2]), affine)), frame)
    assert body is not None
    inside = body.distance < 0
    band = np.abs(body.local[2]) <= sizes["width_upper"] / 6 * 0.9
    profile = (inside & band).sum(axis=1).sum(axis=1) / band[0, 0].sum() * STEP
    at = body.local[0][:, 0, 0]
    level = (np.abs(body.local[1]) < 0.15 * sizes["height"]) & band
    row = (inside & level).sum(axis=(1, 2)) / level.sum(axis=(1, 2))
    back, front = at[row > 0.5].max(), at[row > 0.5].min()
    place = (back - at) / (back - front)

    def strip(low: float, high: float) -> float:
        return float(profile[(place > low) & (place < high)].mean())

    # From the strips to the walls along the slope of the end faces.
    step = sizes.get("wedge", 0.0) / (2 * frame.back) * 0.12 * (back - front)
    return strip(0.82, 0.94) + step, strip(0.4, 0.6), strip(0.06, 0.18) - step, float(back - front + STEP)


def plate_normal(frame: Frame, upper: bool) -> np.ndarray:
    """Cranial normal (RAS) of the rim's plane."""
    slope = frame.level.sizes.get("wedge", 0.0) / 4 / frame.back
    # Rims rise towards the front (local p < 0) by wedge / 4 from the middle, both faces in mirror image.
    local = np.array([slope, 1.0, 0.0]) if not upper else np.array([-slope, 1.0, 0.0])
    normal = PIR_TO_RAS @ frame.axes @ -local
    return normal / np.linalg.norm(normal)


def placed(spec: SpineSpec) -> dict[int, Frame]:
    """First frame of every id: vertebrae, and S1."""
    found: dict[int, Frame] = {}
    for frame in frames(spec):
        found.setdefault(frame.level.id, frame)
    return found


def true_slip(known: dict[int, Frame], above: int) -> float:
    """mm by which a vertebra stands in front of the next at the mid-line, where posterior walls are hollow."""
    order = list(known)
    upper, lower = known[above].level, known[order[order.index(above) + 1]].level
    return lower.slip_p + 0.96 * (upper.hollow - lower.hollow)


def sagittal_angle(spec: SpineSpec, upper: int, top: bool, lower: int, bottom: bool) -> float:
    """Degrees between two end faces in the sagittal plane of the vertebrae between, positive for lordosis."""
    known = placed(spec)
    ids = list(known)[list(known).index(upper) : list(known).index(lower) + 1]
    right = sum(PIR_TO_RAS @ known[v].axes[:, 2] for v in ids if v != SACRUM)
    right /= np.linalg.norm(right)
    up = -sum(PIR_TO_RAS @ known[v].axes[:, 1] for v in ids if v != SACRUM)
    up -= right * (up @ right)
    up /= np.linalg.norm(up)
    front = np.cross(up, right)
    leans = [
        np.arctan2(n @ front, n @ up) for n in (plate_normal(known[upper], top), plate_normal(known[lower], bottom))
    ]
    return float(np.degrees(leans[1] - leans[0]))


def coronal_angle(spec: SpineSpec, ids: list[int]) -> float:
    """Largest angle in the coronal plane between an upper end face and a lower one further down, degrees."""
    known = placed(spec)
    right = sum(PIR_TO_RAS @ known[v].axes[:, 2] for v in ids)
    right /= np.linalg.norm(right)
    up = -sum(PIR_TO_RAS @ known[v].axes[:, 1] for v in ids)
    up -= right * (up @ right)
    up /= np.linalg.norm(up)

    def lean(normal: np.ndarray) -> float:
        return float(np.degrees(np.arctan2(normal @ right, normal @ up)))

    tops = [lean(plate_normal(known[v], True)) for v in ids]
    bottoms = [lean(plate_normal(known[v], False)) for v in ids]
    return max(abs(bottoms[j] - tops[i]) for i in range(len(ids)) for j in range(i + 1, len(ids)))
