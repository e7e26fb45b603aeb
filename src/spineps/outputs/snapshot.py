"""The picture: sagittal and coronal cuts that follow the spine, with structures, vertebrae and their names."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spineps.anatomy import (
    BY_ID,
    CORPUS,
    CORPUS_INNER,
    DISC,
    DISC_OFFSET,
    ENDPLATE,
    ENDPLATE_INFERIOR,
    ENDPLATE_OFFSET,
    ENDPLATE_SUPERIOR,
    METAL,
    SACRUM,
    STRUCTURES,
    VERTEBRAE,
    instance_name,
)
from spineps.volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Size of one picture point, how far beyond the masks the picture reaches, and the length of the scale bar, in mm.
PIXEL_MM, MARGIN_MM, BAR_MM = 0.6, 20.0, 50.0
#: Width to each side of the coronal cut in mm.
CORONAL_MM = 50.0
#: Largest height of a panel and width of all panels in inches; room for names.
HEIGHT, WIDTH, NAME_SPACE, GAP = 6.2, 13.0, 0.5, 0.1
#: Standard deviation (mm) of the smoothing of the spine's course.
SMOOTHING_MM = 12.0
#: Hounsfield units shown of a CT.
CT_WINDOW = (-250.0, 1200.0)
UNSURE = 0.5
#: Neighbouring vertebrae get clearly different hues (Okabe and Ito's palette for colour-blind readers, brightened).
PALETTE = ("#e69f00", "#56b4e9", "#00b07f", "#f0e442", "#4a80ff", "#ff6a3d", "#e07bb8")
INK, PAPER = "#e8e8e8", "#101014"


@dataclass(frozen=True)
class Cut:
    """One curved cut, rows from top to bottom of the body.

    Attributes:
        image: (rows, columns) float.
        semantic: labels, same shape.
        instance: labels, same shape.
        left: letter of the body side at the left of the picture.
        right: letter at its right.
    """

    image: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    left: str
    right: str


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sagittal, coronal = curved_cuts(image, semantic, instance)
    panels = [
        (sagittal, None, False),
        (sagittal, "semantic", False),
        (sagittal, "instance", True),
        (coronal, "semantic", False),
        (coronal, "instance", True),
    ]
    rows = sagittal.image.shape[0]
    names = [NAME_SPACE if named else 0.0 for *_, named in panels]
    free = WIDTH - sum(names) - GAP * (len(panels) + 1)
    height = min(HEIGHT, free * rows / sum(cut.image.shape[1] for cut, *_ in panels))
    widths = [height * cut.image.shape[1] / rows for cut, *_ in panels]
    notes = [line for text in warnings for line in textwrap.wrap(f"! {text}", 120)][:4]
    width = max(sum(widths) + sum(names) + GAP * (len(panels) + 1), 7.0)
    legend = _legend_rows(semantic, width)
    top, bottom = 0.42, 0.17 * (len(legend) + len(notes)) + 0.15
    figure = Figure(figsize=(width, height + top + bottom), facecolor=PAPER, dpi=110)
    canvas = FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, **how: Any) -> None:
        figure.text(x / width, y / (height + top + bottom), text, **how)

    x = GAP
    for (cut, what, named), panel, extra in zip(panels, widths, names, strict=True):
        box = (x / width, bottom / (height + top + bottom), panel / width, height / (height + top + bottom))
        _draw(figure.add_axes(box), cut, what, confidence if named else None, named)
        x += panel + extra + GAP
    write(GAP, bottom + height + 0.15, title, color=INK, fontsize=11)
    y = bottom - 0.2
    for row in legend:
        for x, text, color in row:
            write(x, y, text, color=color, fontsize=7.5)
        y -= 0.17
    for note in notes:
        write(GAP, y, note, color="#ffb000", fontsize=8)
        y -= 0.17
    buffer = io.BytesIO()
    # Where the sagittal panels with their names are, in pixels: thumbnails are cut out there.
    box = (GAP, top, GAP * 3 + sum(widths[:3]) + sum(names[:3]), top + height)
    place = ",".join(str(round(v * figure.dpi)) for v in box)
    canvas.print_png(buffer, metadata={"Software": None, "spineps-sagittal": place})
    return buffer.getvalue()


def curved_cuts(image: Volume, semantic: Volume, instance: Volume) -> tuple[Cut, Cut]:
    """Sagittal and coronal cut through the middle of the vertebral column, row by row along the body's axis."""
    image, semantic, instance = (v.reoriented("PIR") for v in (image, semantic, instance))
    zoom = np.array(image.zoom)
    rows = np.arange(0, (image.shape[1] - 1) * zoom[1] + 1e-6, PIXEL_MM) / zoom[1]
    course = spine_course(semantic)
    p_mid, r_mid = (np.interp(rows, np.arange(image.shape[1]), course[:, c]) for c in (0, 1))
    reach = CORONAL_MM / zoom[2]
    p_low, p_high = _extent(semantic.array, 0, MARGIN_MM / zoom[0])
    r_low, r_high = max(r_mid.min() - reach, 0), min(r_mid.max() + reach, image.shape[2] - 1)
    p_axis = np.arange(p_low, p_high + 1e-6, PIXEL_MM / zoom[0])
    r_axis = np.arange(r_low, r_high + 1e-6, PIXEL_MM / zoom[2])
    i = rows[:, None]
    sagittal = np.broadcast_arrays(p_axis[None, :], i, r_mid[:, None])
    # Radiological view: the patient's right is at the left of the picture.
    coronal = np.broadcast_arrays(p_mid[:, None], i, r_axis[None, ::-1])
    return _cut(image, semantic, instance, sagittal, "A", "P"), _cut(image, semantic, instance, coronal, "R", "L")


def spine_course(semantic: Volume) -> np.ndarray:
    """Middle (posterior index, right index) of bodies and discs at every inferior index, smoothed; mask in PIR."""
    from scipy.ndimage import gaussian_filter1d

    column = np.isin(semantic.array, (CORPUS, CORPUS_INNER, DISC, ENDPLATE, ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR))
    mask = column if column.any() else semantic.array != 0
    counts = mask.sum(axis=(0, 2))
    size_p, size_i, size_r = mask.shape
    middle = np.tile([(size_p - 1) / 2, (size_r - 1) / 2], (size_i, 1))
    heights = np.flatnonzero(counts)
    if heights.size:
        p = mask.sum(axis=2).T[heights] @ np.arange(size_p) / counts[heights]
        r = mask.sum(axis=0)[heights] @ np.arange(size_r) / counts[heights]
        for column_number, values in enumerate((p, r)):
            middle[:, column_number] = np.interp(np.arange(size_i), heights, values)
    return gaussian_filter1d(middle, SMOOTHING_MM / semantic.zoom[1], axis=0, mode="nearest")


def _extent(mask: np.ndarray, axis: int, margin: float) -> tuple[float, float]:
    """First and last index along ``axis`` that the picture shows: the masks and a margin, or everything."""
    hits = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
    last = mask.shape[axis] - 1.0
    return (max(hits[0] - margin, 0.0), min(hits[-1] + margin, last)) if hits.size else (0.0, last)


def _cut(image: Volume, semantic: Volume, instance: Volume, where: Sequence[np.ndarray], left: str, right: str) -> Cut:
    from scipy.ndimage import map_coordinates

    grey = map_coordinates(image.array.astype(np.float32, copy=False), where, order=1, mode="nearest")
    nearest = tuple(np.clip(np.rint(axis).astype(int), 0, n - 1) for axis, n in zip(where, image.shape, strict=True))
    return Cut(grey, semantic.array[nearest].astype(int), instance.array[nearest].astype(int), left, right)


def _draw(axes: Axes, cut: Cut, what: str | None, confidence: Mapping[int, float] | None, named: bool) -> None:
    from matplotlib.patheffects import withStroke

    low, high = _window(cut.image)
    axes.imshow(cut.image, cmap="gray", vmin=low, vmax=high, interpolation="bilinear", aspect="auto")
    if what is not None:
        labels = cut.semantic if what == "semantic" else cut.instance
        axes.imshow(_tinted(labels, what), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    rows, columns = cut.image.shape
    outline = [withStroke(linewidth=2, foreground=PAPER)]
    for x, letter, side in ((0.02, cut.left, "left"), (0.98, cut.right, "right")):
        axes.text(
            x, 0.99, letter, color=INK, transform=axes.transAxes, ha=side, va="top", fontsize=10, weight="bold",
            path_effects=outline,
        )  # fmt: skip
    if what is None:
        length = BAR_MM / PIXEL_MM
        axes.plot([0.04 * columns, 0.04 * columns + length], [rows * 0.975] * 2, color=INK, linewidth=2)
        axes.text(
            0.04 * columns, rows * 0.965, f"{BAR_MM:g} mm", color=INK, fontsize=8, va="bottom", path_effects=outline
        )
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_ylim(rows - 0.5, -0.5)
    if named:
        _names(axes, cut, confidence)


def _names(axes: Axes, cut: Cut, confidence: Mapping[int, float] | None) -> None:
    rows, columns = cut.image.shape
    lowest = -1e9
    places = []
    for vertebra in (*VERTEBRAE, SACRUM):
        inside = (cut.instance == vertebra) & np.isin(cut.semantic, (CORPUS, CORPUS_INNER, SACRUM))
        if not inside.any():
            inside = cut.instance == vertebra
        if inside.any():
            places.append((float(np.median(np.nonzero(inside)[0])), vertebra))
    for row, vertebra in sorted(places):
        lowest = max(row, lowest + rows * 0.022)  # never over one another
        text = instance_name(vertebra) if confidence is not None or vertebra == SACRUM else f"# {vertebra}"
        doubt = "?" if confidence is not None and confidence.get(vertebra, 1.0) < UNSURE else ""
        axes.text(
            columns * 1.0 + 4, lowest, text + doubt, color=instance_color(vertebra), fontsize=9,
            va="center", ha="left", clip_on=False, weight="bold",
        )  # fmt: skip


def _tinted(labels: np.ndarray, what: str) -> np.ndarray:
    """RGBA: translucent inside, stronger at the borders of each label."""
    from matplotlib.colors import to_rgba

    present = np.unique(labels)
    table = np.zeros((len(present), 4))
    for row, label in enumerate(present):
        color = structure_color(int(label)) if what == "semantic" else instance_color(int(label))
        if label and color:
            table[row] = to_rgba(color, 0.42)
    picture = table[np.searchsorted(present, labels)]
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    picture[edge & (picture[..., 3] > 0), 3] = 0.85
    return picture


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


def _mixed(color: str, other: str, part: float) -> str:
    a, b = (np.array([int(c[k : k + 2], 16) for k in (1, 3, 5)]) for c in (color, other))
    return "#" + "".join(f"{round(v):02x}" for v in a * (1 - part) + b * part)


def _window(grey: np.ndarray) -> tuple[float, float]:
    if grey.min() < CT_WINDOW[0]:
        return CT_WINDOW
    low, high = np.percentile(grey, (1, 99.7))
    return float(low), float(max(high, low + 1e-6))


def _legend_rows(semantic: Volume, width: float) -> list[list[tuple[float, str, str]]]:
    """(x in inches, text, colour) of the structures that are present, broken into lines."""
    present = set(np.unique(semantic.array).tolist())
    present |= {ENDPLATE} if present & {ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR} else set()
    rows: list[list[tuple[float, str, str]]] = [[]]
    x = GAP
    for structure in STRUCTURES:
        if structure.id not in present:
            continue
        text = "■ " + structure.name.replace("articular process", "articular").removeprefix("vertebral ")
        length = 0.12 + 0.063 * len(text)  # 7.5 point letters
        if x + length > width:
            rows.append([])
            x = GAP
        rows[-1].append((x, text, structure.color))
        x += length
    return rows
