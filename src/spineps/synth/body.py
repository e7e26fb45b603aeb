"""Vertebral bodies, their endplates and the discs between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spineps.anatomy import SACRUM
from spineps.synth.canvas import Canvas, smoothstep
from spineps.synth.chain import Frame
from spineps.volume import Box

#: Thickness in mm of labelled endplates: 0.92 to 1.12 in two annotated T2w crops, a little more to stay whole.
ENDPLATE_THICKNESS = 1.1


@dataclass(frozen=True, eq=False)
class BodyField:
    """One body drawn in its box.

    Attributes:
        box: voxels.
        distance: signed distance of the body, mm, negative inside.
        upper, lower: masks of its two endplates.
        inside: mask of its cross-section, rims left out.
        above, below: mm beyond its upper and its lower face, negative in the body.
        rho: 0 at the middle of the cross-section, 1 at its outline.
        local: (p, i, r) of every voxel.
    """

    box: Box
    distance: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    inside: np.ndarray
    above: np.ndarray
    below: np.ndarray
    rho: np.ndarray
    local: np.ndarray


def outline(
    frame: Frame, p: np.ndarray, r: np.ndarray, width: np.ndarray | float, depth: np.ndarray | float
) -> np.ndarray:
    """Normalised radius in the axial cross-section: two half superellipses, the rear one hollowed at the mid-line."""
    level = frame.level
    lateral = np.abs(r) * 2 / width
    rear = 0.45 * depth
    x = p - (frame.back - rear)
    behind = x > 0
    hollow = np.float32(level.hollow) * np.maximum(1 - lateral * lateral, 0)
    scaled = np.where(behind, (x + hollow * np.minimum(x / rear, 1.2)) / rear, -x / (0.55 * depth))
    exponent = np.where(behind, np.float32(level.back), np.float32(level.front))
    tiny = np.float32(1e-6)
    total = (np.maximum(scaled, 0) + tiny) ** exponent + (lateral + tiny) ** exponent
    return total ** (1 / exponent)


def _faces(frame: Frame, p: np.ndarray, rho: np.ndarray, lateral: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height of the upper and lower endplate surfaces, local i in mm."""
    level, s = frame.level, frame.level.sizes
    half = np.float32(frame.half_height)
    depth = 2 * frame.back
    front = np.clip((np.float32(frame.back) - p) / np.float32(depth), 0, 1) * 2 - 1
    tall = half + np.float32(s.get("wedge", 0.0) / 4) * front
    dish = 1 - np.minimum(rho, 1) ** 2
    upper = -tall + np.float32(level.concavity_upper) * dish
    lower = tall - np.float32(level.concavity_lower) * dish
    cervical = float(np.clip(8.2 - level.key, 0, 1)) if level.key > 2.5 else 0.0
    if cervical:
        k = np.float32(cervical * s["width_upper"] / 20)
        # Uncinate processes above; below, a lip at the front and bevelled sides that receive the next pair.
        upper = upper - 4.2 * k * smoothstep((lateral - 0.55) / 0.4) * (front < 0.8)
    if level.key < 7.8:
        lip = np.float32(1.6 * s["width_upper"] / 20)
        lower = lower + lip * (front * (front > 0)) - lip * smoothstep((lateral - 0.6) / 0.4)
    return upper, lower


def draw_body(canvas: Canvas, frame: Frame) -> BodyField | None:
    """Body and endplates of a level; None outside the field of view or for C1."""
    level, s = frame.level, frame.level.sizes
    if level.key < 1.5:
        return None
    half = frame.half_height
    wide = max(s["width_upper"], s["width_lower"]) / 2
    flare = level.osteophyte
    low = np.array([-frame.back - 4.0 - flare, -half - 6.0, -wide - flare - 2])
    high = np.array([frame.back + 3.0 + flare, half + 5.0, wide + flare + 2])
    box = canvas.frame_box(frame, low, high, 2.0)
    if box is None:
        return None
    local = canvas.local(box, frame)
    p, i, r = local
    t = np.clip(i / np.float32(half), -1, 1)
    blend = (t + 1) / 2
    t2 = t * t
    hollow = np.float32(level.waist) * (1 - t2)
    rim = 2 * np.float32(flare) * t2 * t2 * t2 if flare else np.float32(0)
    width = (s["width_upper"] + blend * (s["width_lower"] - s["width_upper"])) * (1 - hollow) + rim
    # Seen from the side a body is waisted about half as much as from the front.
    depth = (s["depth_upper"] + blend * (s["depth_lower"] - s["depth_upper"])) * (1 - np.float32(0.5) * hollow) + rim
    rho = outline(frame, p, r, width, depth)
    radial = (rho - 1) * (0.5 * np.minimum(width, depth))
    upper, lower = _faces(frame, p, rho, np.abs(r) * 2 / width)
    _schmorl(frame, p, r, upper, lower)
    above, below = upper - i, i - lower
    axial = np.maximum(above, below)
    k = np.float32(2.2 * s["height"] / 25)
    h = np.clip(0.5 + 0.5 * (radial - axial) / k, 0, 1)
    distance = radial * h + axial * (1 - h) + k * h * (1 - h)
    plate = np.float32(ENDPLATE_THICKNESS / 2)
    inside = radial < np.float32(-0.6)
    has_upper = level.id != SACRUM or level.key < 25.5
    return BodyField(
        box=box,
        distance=distance,
        upper=inside & (np.abs(above) <= plate) if has_upper and level.key > 2.5 else np.zeros(box_shape(box), bool),
        lower=inside & (np.abs(below) <= plate) if level.id != SACRUM else np.zeros(box_shape(box), bool),
        inside=inside,
        above=above,
        below=below,
        rho=rho,
        local=local,
    )


def make_room(first: BodyField, second: BodyField, least: float) -> tuple[Box, np.ndarray] | None:
    """Push the two plates beside a thin disc into the bone, so that a sheet of ``least`` mm is left between them.

    Args:
        first, second: the bodies above and below the disc; their plates are moved in place.
        least: mm, about a voxel: networks learn to forget discs that grids swallow.

    Returns:
        Box and mask of that sheet, None where the bodies do not meet.
    """
    a, b = (tuple((s.start, s.stop) for s in field.box) for field in (first, second))
    box = tuple(slice(max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    if any(s.stop <= s.start for s in box):
        return None
    u, v = (
        tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, field.box, strict=True))
        for field in (first, second)
    )
    below, above = first.below[u], second.above[v]
    gap = below + above
    shift = np.maximum(np.float32(least + ENDPLATE_THICKNESS) - gap, 0) / 2
    shift[gap < -1] = 0
    plate = np.float32(ENDPLATE_THICKNESS / 2)
    both = first.inside[u] & second.inside[v]
    np.copyto(first.lower[u], np.abs(below + shift) <= plate, where=both)
    np.copyto(second.upper[v], np.abs(above + shift) <= plate, where=both)
    return (box[0], box[1], box[2]), both & (gap >= -1) & (np.abs(below - above) <= np.float32(least))


def box_shape(box: Box) -> tuple[int, int, int]:
    """Voxels along each axis of a box."""
    return box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start


def _schmorl(frame: Frame, p: np.ndarray, r: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> None:
    level = frame.level
    rng = np.random.default_rng(level.seed + 1)
    for surface, depth, sign in ((upper, level.schmorl_upper, 1), (lower, level.schmorl_lower, -1)):
        place, wide = rng.uniform(-0.3, 0.4) * frame.back, rng.uniform(0.12, 0.25) * level.sizes["width_upper"]
        if depth:
            bump = np.exp(-((p - place) ** 2 + (r - rng.uniform(-4, 4)) ** 2) / np.float32(2 * (wide / 2) ** 2))
            surface += np.float32(sign * depth) * bump


@dataclass(frozen=True, eq=False)
class DiscField:
    """One disc: masks of all its voxels, of its nucleus and of gas in it, and mm below its middle."""

    box: Box
    mask: np.ndarray
    nucleus: np.ndarray
    gas: np.ndarray | None
    height: np.ndarray


def draw_disc(canvas: Canvas, upper: Frame, lower: Frame, solid: np.ndarray) -> DiscField | None:
    """The disc between two neighbours.

    Args:
        canvas: where.
        upper, lower: the frames above and below.
        solid: bool, whole grid: voxels that are bone or endplate already.
    """
    disc = upper.level.disc
    if disc is None:
        return None
    a, b = upper.level.sizes, lower.level.sizes
    top = upper.to_space(np.array([0, upper.half_height, 0.0]))
    bottom = lower.to_space(np.array([0, -lower.half_height, 0.0]))
    axes = _middle_axes(upper.axes, lower.axes)
    width = (a["width_lower"] + b["width_upper"]) / 2 + 2 * disc.bulge * (1 if upper.level.key > 7.5 else 0.3)
    depth = (a["depth_lower"] + b["depth_upper"]) / 2 + 1.6 * disc.bulge
    if lower.level.key > 25.5:
        width, depth = 0.9 * width, 0.9 * depth
    frame = Frame(upper.level, (top + bottom) / 2, axes)
    slack = max(upper.level.concavity_lower, 0) + max(lower.level.concavity_upper, 0) + 1.5
    tall = disc.height / 2 + slack + 0.12 * depth + upper.level.schmorl_lower + lower.level.schmorl_upper + disc.hernia
    half = np.array([depth / 2 + 4 + disc.hernia, tall, width / 2 + 1])
    box = canvas.frame_box(frame, -half, half, 1.0)
    if box is None:
        return None
    local = canvas.local(box, frame)
    p, i, r = local
    # The outline keeps the posterior wall of the bodies; a bulge goes to all sides.
    middle = (upper.back + lower.back) / 2
    shifted = p + np.float32(frame.back - middle - 0.5 * disc.bulge)
    rho = outline(frame, shifted, r, width, depth)
    from_above = _depth_below_rim(canvas, box, upper, upper.half_height, a.get("wedge", 0.0), 1)
    from_below = _depth_below_rim(canvas, box, lower, lower.half_height, b.get("wedge", 0.0), -1)
    room = np.float32(slack + 4) * np.clip((1.02 - rho) / 0.25, 0, 1) - np.float32(0.2)
    mask = (rho < 1) & (from_above > -room) & (from_below > -room) & (np.abs(i) < np.float32(tall))
    if disc.hernia:
        place = np.array([middle - 1.0, 0.0, disc.hernia_side * 0.25 * width], np.float32)
        radii = np.array([disc.hernia + 1.5, disc.height * 0.55 + 0.25 * disc.hernia, 5.5 + disc.hernia], np.float32)
        inside = np.zeros_like(p)
        for k in range(3):
            inside += ((local[k] - place[k]) / radii[k]) ** 2
        mask |= inside < 1
    mask = _largest(mask & ~solid[box])
    flat = np.abs(i) / np.float32(disc.height / 2 + 1.2)
    core = rho / np.float32(disc.nucleus)
    # A worn nucleus shrinks and is gone at a degeneration of 0.8; some adults have a dark cleft across it.
    worn = float(np.clip((disc.degeneration - 0.35) / 0.45, 0, 1))
    nucleus = smoothstep((1.15 - np.sqrt(core * core + (0.75 * flat) ** 2)) / 0.4) > 0.5 + 0.6 * worn
    if upper.level.seed % 10 < 3:
        nucleus &= flat > np.float32(0.16)
    gas = None
    if disc.degeneration > 0.8:
        gas = mask & (flat < 0.35) & (rho < 0.75) & (np.sin(p * 0.6 + upper.level.seed % 7) > 0.2)
    return DiscField(box, mask, nucleus, gas, i)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The biggest connected piece: slivers between rims are not disc."""
    from scipy.ndimage import label

    pieces, count = label(mask, np.ones((3, 3, 3), bool))
    if count < 2:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces == sizes.argmax()


def _depth_below_rim(canvas: Canvas, box: Box, frame: Frame, half: float, wedge: float, sign: int) -> np.ndarray:
    """mm from the plane of an endplate's rim towards the disc."""
    normal = frame.axes[:, 1] * sign
    slope = wedge / 4 / max(frame.back, 1.0)
    # The rim plane is tilted by the wedge: higher in front (local p < 0) by wedge / 4.
    direction = (normal + slope * frame.axes[:, 0]).astype(np.float32)
    block = canvas.space[(slice(None), *box)]
    offset = np.float32(direction @ frame.centre + half)
    return direction[0] * block[0] + direction[1] * block[1] + direction[2] * block[2] - offset


def _middle_axes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    u, _, v = np.linalg.svd(first + second)
    return u @ v
