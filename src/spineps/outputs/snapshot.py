"""The picture: sagittal and coronal cuts that follow the spine, with structures, vertebrae and their names."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spineps.anatomy import (
    BY_ID,
    DISC_OFFSET,
    ENDPLATE,
    ENDPLATE_INFERIOR,
    ENDPLATE_OFFSET,
    ENDPLATE_SUPERIOR,
    METAL,
    SACRUM,
    STRUCTURES,
    VERTEBRA_IDS,
    VERTEBRAE,
    instance_name,
)
from spineps.outputs.curved import BODIES, Cut, curved_cuts
from spineps.volume import Volume

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

#: Usual height of a panel and largest width of all, in picture points.
HEIGHT, WIDTH = 700, 1500
#: Picture points per mm: fewer leave no room for the names of cervical vertebrae, more show nothing new.
COARSEST, FINEST = 1.5, 4.0
#: Points between panels, least width of one (names need room beside a narrow slab) and of the picture.
GAP, NARROWEST, LEAST_WIDTH = 10, 112, 720
#: Sizes of letters in points.
TITLE, NAME, TEXT = 16, 13, 12
#: Lengths of the scale bar in mm; the longest that takes less than this part of a panel is drawn.
BARS, BAR_PART = (100, 50, 20, 10), 0.5
#: Hounsfield units shown of a CT, and what only a CT holds: air.
CT_WINDOW, CT_AIR = (-200.0, 1000.0), -250.0
#: How bright the middle of the vertebral bodies is to be (0..1), and the strongest brightening (gamma) towards it.
BODY_BRIGHTNESS, STRONGEST_GAMMA = 0.36, 0.5
#: How dark they may be before that, for the sake of what is bright around the spine.
DARKEST_BODY = 0.28
#: Opacity of a structure and of its outline.
FILL, OUTLINE = 0.38, 0.95
#: Names less sure than this get a question mark.
UNSURE = 0.5
#: The anterior arch of C1 is no thicker than this (mm).
ATLAS_MM = 8.0
#: Most lines of warnings.
NOTE_LINES = 4
#: Neighbouring vertebrae get clearly different hues (Okabe and Ito's palette for colour-blind readers, brightened).
PALETTE = ("#e69f00", "#56b4e9", "#00b07f", "#f0e442", "#4a80ff", "#ff6a3d", "#e07bb8")
INK, PAPER, WARNING = "#e8e8e8", "#101014", "#ffb000"


def snapshot_png(
    image: Volume,
    semantic: Volume,
    instance: Volume,
    title: str = "",
    warnings: Sequence[str] = (),
    confidence: Mapping[int, float] | None = None,
) -> bytes:
    """The picture as PNG; the same arguments give the same bytes.

    Args:
        image: the scan.
        semantic: structures on the same grid.
        instance: vertebrae on the same grid.
        title: usually the file's name.
        warnings: printed below.
        confidence: of the vertebra names (0..1), unsure ones get a question mark; None shows numbers, not names.
    """
    from PIL import Image, ImageDraw
    from PIL.PngImagePlugin import PngInfo

    sagittal, coronal = curved_cuts(image, semantic, instance)
    empty = not sagittal.structures.any() and not coronal.structures.any() and len(sagittal.instance) == 1
    kinds = ("",) if empty else ("", "semantic", "instance")
    panels = [(cut, what) for cut in (sagittal, coronal) for what in kinds]
    height_mm, widths_mm = sagittal.size_mm[0], [cut.size_mm[1] for cut, _ in panels]
    scale = min(FINEST, max(HEIGHT / height_mm, COARSEST))
    for _ in range(2):  # narrow panels take their least width whatever the scale
        wide = [mm for mm in widths_mm if mm * scale > NARROWEST]
        room = WIDTH - GAP * (len(panels) + 1) - NARROWEST * (len(panels) - len(wide))
        scale = min(scale, room / sum(wide)) if wide else scale
    height = max(round(height_mm * scale), 1)
    sizes = [max(round(mm * scale), 1) for mm in widths_mm]
    boxes = [max(size, NARROWEST) for size in sizes]
    width = max(sum(boxes) + GAP * (len(panels) + 1), LEAST_WIDTH)
    notes = _wrapped(["Nothing was found.", *warnings] if empty else warnings, width - 2 * GAP)
    legend = _legend({label for cut, what in panels if what for label in cut.semantic}, width)
    top, line = TITLE + 2 * GAP, TEXT + 5
    picture = Image.new("RGB", (width, top + height + GAP + line * (len(legend) + len(notes)) + GAP // 2), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP), _shortened(title, width - 2 * GAP), INK, _font(TITLE))
    window = _window(sagittal, coronal)
    x = GAP
    for (cut, what), size, box in zip(panels, sizes, boxes, strict=True):
        left = x + (box - size) // 2
        grey = _shown(cut.image(height, size), *window)
        picture.paste(Image.fromarray(_overlaid(grey, cut, what)), (left, top))
        for side, letter, anchor in ((x, cut.left, "la"), (x + box, cut.right, "ra")):
            _write(draw, side + (4 if anchor == "la" else -4), top + 3, letter, INK, anchor, NAME + 2)
        if not what:
            _scale_bar(draw, x + GAP, top + height - GAP, scale, box)
        if what == "instance":
            _names(draw, cut, (left, top, size, height), x, confidence)
        x += box + GAP
    y = top + height + GAP
    for row in legend:
        for at, text, colour in row:
            draw.rectangle((at, y + 2, at + TEXT - 3, y + TEXT - 1), colour)
            draw.text((at + TEXT + 2, y), text, INK, _font(TEXT))
        y += line
    for note in notes:
        draw.text((GAP, y), note, WARNING, _font(TEXT))
        y += line
    # Where the sagittal panels are, in picture points: thumbnails are cut out there.
    info, count = PngInfo(), len(kinds)
    info.add_text("spineps-sagittal", f"{GAP},{top},{sum(boxes[:count]) + GAP * count},{top + height}")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info, compress_level=6)
    return buffer.getvalue()


def _window(sagittal: Cut, coronal: Cut) -> tuple[float, float, float]:
    """Grey value that is black, that is white, and gamma: from the spine itself, so that fat around it may be white."""
    grey = np.concatenate([cut.grey.ravel() for cut in (sagittal, coronal)])
    structures = np.concatenate([cut.structures.ravel() for cut in (sagittal, coronal)])
    spine, bodies = grey[structures != 0], grey[np.isin(structures, BODIES)]
    if grey.min() < CT_AIR:
        low, high = CT_WINDOW
    else:
        low, all_of_it = np.percentile(grey, (1, 99.5)).tolist()
        high = all_of_it
        if bodies.size:
            # Fat is white only where the bodies would be too dark otherwise; the spine itself never is.
            high = min(all_of_it, low + (float(np.median(bodies)) - low) / DARKEST_BODY)
            high = max(high, float(np.percentile(spine, 99.5)))
        high = max(high, low + 1e-6)
    middle = float(np.median(bodies)) if bodies.size else high
    middle = min(max((middle - low) / (high - low), 1e-3), 1 - 1e-3)
    return low, high, min(max(math.log(BODY_BRIGHTNESS) / math.log(middle), STRONGEST_GAMMA), 1.0)


def _shown(grey: np.ndarray, low: float, high: float, gamma: float) -> np.ndarray:
    """(rows, columns, 3) float32, 0..255."""
    bright = ((grey - low) / (high - low)).clip(0, 1) ** gamma * 255
    return np.repeat(bright[..., None], 3, axis=2).astype(np.float32)


def _overlaid(grey: np.ndarray, cut: Cut, what: str) -> np.ndarray:
    """uint8 colours; structures are drawn at twice the size and averaged, so that outlines are not jagged."""
    if not what:
        return np.rint(grey).astype(np.uint8)
    height, width = grey.shape[:2]
    shapes, colour = (cut.semantic, structure_color) if what == "semantic" else (cut.instance, instance_color)
    labels = cut.labels(shapes, 2 * height, 2 * width)
    table = np.zeros((max(shapes) + 1, 4), np.float32)
    for label in shapes:
        if label:
            table[label] = (*_rgb(colour(label)), FILL)
    overlay = table[labels]
    edge = np.zeros(labels.shape, bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    for side, border in ((edge[:, 1:], across), (edge[:, :-1], across), (edge[1:], down), (edge[:-1], down)):
        side |= border
    overlay[edge & (labels > 0), 3] = OUTLINE
    overlay[..., :3] *= overlay[..., 3:]
    overlay = (overlay[::2, ::2] + overlay[1::2, ::2] + overlay[::2, 1::2] + overlay[1::2, 1::2]) / 4
    return np.rint(grey * (1 - overlay[..., 3:]) + overlay[..., :3]).astype(np.uint8)


def _names(
    draw: ImageDraw,
    cut: Cut,
    panel: tuple[int, int, int, int],
    box: int,
    confidence: Mapping[int, float] | None,
) -> None:
    """Each vertebra's name at the left of its body, never over one another.

    Args:
        panel: left, top, width, height of the cut in picture points.
        box: left end of the room that names may take.
    """
    left, top, width, height = panel
    rows, columns = cut.vertebrae.shape
    bodies = np.isin(cut.structures, (*BODIES, SACRUM))
    places = []
    for vertebra in (*VERTEBRAE, SACRUM):
        row, column = np.nonzero((cut.vertebrae == vertebra) & bodies)
        if not row.size and vertebra == VERTEBRA_IDS["C1"]:  # it has no body: beside its anterior arch
            row, column = np.nonzero(cut.vertebrae == vertebra)
            front = column < column.min(initial=columns) + ATLAS_MM / cut.zoom[1]
            row, column = row[front], column[front]
        if row.size:
            y = float(np.median(row))
            beside = column[np.abs(row - y) <= NAME / 2 * rows / height]
            places.append((y, float(beside.min() if beside.size else column.min()), vertebra))
    places.sort()
    ys = _spread([top + (y + 0.5) * height / rows for y, *_ in places], top + 2 * NAME, top + height - NAME / 2)
    for y, (_, x, vertebra) in zip(ys, places, strict=True):
        text = instance_name(vertebra) if confidence is not None or vertebra == SACRUM else f"# {vertebra}"
        text += "?" if confidence is not None and confidence.get(vertebra, 1.0) < UNSURE else ""
        at = max(left + x * width / columns - 5, box + 3 + _font(NAME, True).getlength(text))
        _write(draw, at, y, text, _mixed(instance_color(vertebra), INK, 0.2), "rm", NAME)


def _spread(places: Sequence[float], low: float, high: float, gap: float = NAME + 1) -> list[float]:
    """Sorted places moved as little as needed to lie ``gap`` apart, between ``low`` and ``high`` if there is room.

    >>> _spread([10, 12, 40], 0, 41, 6)
    [8.0, 14.0, 40.0]
    """
    # Groups of names that touch share the shift which is best for all of them.
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _start(groups[-2], gap, low, high) + len(groups[-2]) * gap > _start(
            groups[-1], gap, low, high
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_start(group, gap, low, high) + k * gap for group in groups for k in range(len(group))]


def _start(group: Sequence[float], gap: float, low: float, high: float) -> float:
    best = sum(place - k * gap for k, place in enumerate(group)) / len(group)
    return float(max(min(best, high - (len(group) - 1) * gap), low))


def _scale_bar(draw: ImageDraw, x: int, y: int, scale: float, room: int) -> None:
    length = next((mm for mm in BARS if mm * scale <= BAR_PART * room), BARS[-1])
    draw.rectangle((x - 1, y - 4, x + round(length * scale) + 1, y), PAPER)
    draw.rectangle((x, y - 3, x + round(length * scale), y - 1), INK)
    _write(draw, x, y - 8, f"{length} mm", INK, "ls", TEXT)


def _write(draw: ImageDraw, x: float, y: float, text: str, colour: str, anchor: str, size: int) -> None:
    """Bold letters that can be read on any grey."""
    draw.text((round(x), round(y)), text, colour, _font(size, True), anchor, stroke_width=2, stroke_fill=PAPER)


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib; found without importing that, which takes longer than the picture."""
    import importlib.util

    from PIL import ImageFont

    spec = importlib.util.find_spec("matplotlib")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    path = folder / f"mpl-data/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf"
    # The other layout engine is not in every Pillow, and fails on odd characters.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _shortened(text: str, width: float) -> str:
    """Without its middle, where names of files say least."""
    text = " ".join(text.split())
    shown, kept = text, len(text)
    while _font(TITLE).getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return shown


def _wrapped(texts: Sequence[str], width: float) -> list[str]:
    """Lines of all texts, at most :data:`NOTE_LINES`."""
    lines: list[str] = []
    for text in (f"! {text}" for text in texts):
        letter = _font(TEXT).getlength(text) / len(text)
        lines += textwrap.wrap(text, max(int(width / letter * 0.95), 10))
    return lines if len(lines) <= NOTE_LINES else [*lines[: NOTE_LINES - 1], f"! {lines[NOTE_LINES - 1]} …"]


def _legend(labels: set[int], width: float) -> list[list[tuple[float, str, str]]]:
    """(x, text, colour) of the structures in view, broken into lines."""
    shown = labels | ({ENDPLATE} if labels & {ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR} else set())
    rows: list[list[tuple[float, str, str]]] = []
    x = width
    for structure in STRUCTURES:
        if structure.id in shown:
            text = structure.name.replace("articular process", "articular").removeprefix("vertebral ")
            length = _font(TEXT).getlength(text) + TEXT + 2
            if x + length > width - GAP:
                rows.append([])
                x = GAP
            rows[-1].append((x, text, structure.color))
            x += length + 2 * GAP
    return rows


def structure_color(label: int) -> str:
    """``#rrggbb`` of a value of the semantic mask."""
    if label in (ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR):
        return "#dd66aa" if label == ENDPLATE_SUPERIOR else BY_ID[ENDPLATE].color
    return BY_ID[label].color if label in BY_ID else "#ff00ff"


def instance_color(label: int) -> str:
    """``#rrggbb`` of a value of the instance mask."""
    if label == METAL:
        return "#ff00ff"
    vertebra = label % DISC_OFFSET
    color = BY_ID[SACRUM].color if vertebra == SACRUM else PALETTE[_rank(vertebra) % len(PALETTE)]
    if label >= ENDPLATE_OFFSET:
        return _mixed(color, "#000000", 0.35)
    return _mixed(color, "#ffffff", 0.5) if label >= DISC_OFFSET else color


def _rank(vertebra: int) -> int:
    return VERTEBRAE.index(vertebra) if vertebra in VERTEBRAE else vertebra


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _mixed(color: str, other: str, part: float) -> str:
    mixed = (round(a * (1 - part) + b * part) for a, b in zip(_rgb(color), _rgb(other), strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)
