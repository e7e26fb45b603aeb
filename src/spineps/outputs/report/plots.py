"""Small plots of a measure from level to level, drawn as the spine stands: top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from spineps.outputs.markup import attributes
from spineps.outputs.report.sources import level_name

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 300, 46, 12, 30, 30
#: Height of a level in a short and in a long spine.
PITCH = (9.0, 17.0)
#: Dot, square, triangle: told apart in grey too.
SHAPES = ("M-3.2,0a3.2,3.2 0 1,0 6.4,0a3.2,3.2 0 1,0 -6.4,0", "M-2.8,-2.8h5.6v5.6h-5.6z", "M0,-3.6L3.6,2.9H-3.6z")


@dataclass(frozen=True)
class Plot:
    """Columns of the table that belong together.

    Attributes:
        title: what is drawn.
        unit: of the axis.
        kind: ``vertebra``, ``disc`` or both (empty).
        series: (legend, column).
        zero: the axis begins at 0.
    """

    title: str
    unit: str
    kind: str
    series: tuple[tuple[str, str], ...]
    zero: bool = False


_HEIGHTS = (("anterior", "height_anterior"), ("middle", "height_middle"), ("posterior", "height_posterior"))
PLOTS = (
    Plot("Height of the bodies", "mm", "vertebra", _HEIGHTS),
    Plot("Height of the discs", "mm", "disc", _HEIGHTS, True),
    Plot("Canal and cord, area", "mm²", "", (("canal", "canal_area"), ("cord", "cord_area")), True),
    Plot("Canal, front to back", "mm", "", (("canal", "canal_ap"), ("cord", "cord_ap")), True),
)


def plots_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """All plots that have at least two values, as inline SVG; every point carries ``data-label``."""
    return "".join(_plot(plot, list(rows)) for plot in PLOTS)


def number(text: str | None) -> float | None:
    """A cell of the table; None for n/a.

    >>> number("3.5"), number("n/a"), number(None), number("nan")
    (3.5, None, None, None)
    """
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``.

    >>> ticks(21.3, 33.9), ticks(0, 310), ticks(5, 5)
    ([20, 25, 30, 35], [0, 100, 200, 300, 400], [4.0, 4.5, 5.0, 5.5, 6.0])
    """
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 9) for k in range(first, last + 1)]


def _plot(plot: Plot, rows: list[Mapping[str, Any]]) -> str:
    drawn = []
    for legend, column in plot.series:
        points = [
            (k, value, number(row["measured"].get(f"{column}_u")) or 0.0)
            for k, row in enumerate(rows)
            if plot.kind in ("", row["kind"]) and (value := number(row["measured"].get(column))) is not None
        ]
        if points:
            drawn.append((legend, points))
    values = [value + sign * u for _, points in drawn for _, value, u in points for sign in (-1, 1)]
    if sum(len(points) for _, points in drawn) < 2:
        return ""
    pitch = min(max(300 / len(rows), PITCH[0]), PITCH[1])
    marks = ticks(min(0.0, *values) if plot.zero else min(values), max(values))
    height = TOP + pitch * len(rows) + BOTTOM

    def x(value: float) -> float:
        return round(LEFT + (value - marks[0]) / (marks[-1] - marks[0]) * (WIDTH - LEFT - RIGHT), 1)

    def y(k: int) -> float:
        return round(TOP + (k + 0.5) * pitch, 1)

    parts = _names(rows, y, pitch)
    parts += [f'<line class="grid" x1="{x(t)}" x2="{x(t)}" y1="{TOP}" y2="{height - BOTTOM}"/>' for t in marks]
    parts += [f'<text class="tick" x="{x(t)}" y="{height - BOTTOM + 13}">{t:g}</text>' for t in marks]
    for number_, (legend, points) in enumerate(drawn, 1):
        parts.append(_series(legend, number_, points, rows, plot.unit, x, y))
    label = attributes({"aria-label": f"{plot.title} in {plot.unit} from level to level"})
    legend = "".join(
        f'<g transform="translate({LEFT + 78 * k},{TOP - 12})"><path class="s{k + 1}" d="{SHAPES[k]}"/>'
        f'<text x="8" y="4">{escape(name)}</text></g>'
        for k, (name, _) in enumerate(drawn)
    )
    return (
        f"<figure><figcaption>{escape(plot.title)} <small>({plot.unit})</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img"{label}>{legend}{"".join(parts)}</svg></figure>'
    )


def _names(rows: list[Mapping[str, Any]], y: Callable[[int], float], pitch: float) -> list[str]:
    parts = []
    for k, row in enumerate(rows):
        if row["kind"] == "vertebra":
            box = {"x": LEFT, "y": y(k) - pitch / 2, "width": WIDTH - LEFT - RIGHT, "height": pitch}
            parts.append(f'<rect class="band"{attributes(box)}/>')
            parts.append(f'<text class="name" x="{LEFT - 6}" y="{y(k) + 3.5:g}">{escape(str(row["name"]))}</text>')
    return parts


def _series(
    legend: str,
    place: int,
    points: list[tuple[int, float, float]],
    rows: list[Mapping[str, Any]],
    unit: str,
    x: Callable[[float], float],
    y: Callable[[int], float],
) -> str:
    line = " ".join(f"{x(value)},{y(k)}" for k, value, _ in points)
    parts = [f'<polyline class="s{place}" points="{line}"/>']
    for k, value, u in points:
        name = escape(level_name(rows[k], rows))
        parts.append(
            f'<g data-label="{rows[k]["label"]}"><title>{name}, {legend}: {value:.3g} ± {u:.2g} {unit}</title>'
            f'<line class="s{place}" x1="{x(value - u)}" x2="{x(value + u)}" y1="{y(k)}" y2="{y(k)}"/>'
            f'<path class="s{place}" transform="translate({x(value)},{y(k)})" d="{SHAPES[place - 1]}"/></g>'
        )
    return "".join(parts)
