"""The tables of a report, as HTML; every text that comes from a file is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from spineps.outputs.group.flags import UNSURE
from spineps.outputs.markup import attributes
from spineps.outputs.report.plots import number
from spineps.outputs.report.sources import Findings, level_name
from spineps.outputs.snapshot import instance_color
from spineps.phases.measures import COLUMNS, GENANT

SIDES = dict(zip("RLAPSI", ("right", "left", "front", "back", "top", "bottom"), strict=True))
_HEIGHTS = {"height_anterior": "anterior", "height_middle": "middle", "height_posterior": "posterior"}
_CANAL = {"canal_area": "canal", "canal_ap": "canal a.–p.", "cord_area": "cord"}
#: Columns of the table that are shown, with their titles; the file has more.
SHOWN = {
    "vertebra": {
        **_HEIGHTS,
        **{"depth": "depth", "width": "width", "wedge_ratio": "wedge", "biconcavity_ratio": "biconcave"},
        **{"height_loss": "loss", "genant_grade": "Genant", **_CANAL, "volume": "volume"},
    },
    "disc": {
        **_HEIGHTS,
        **{"depth": "depth", "disc_height_index": "index", "bulge": "bulge", "listhesis": "listhesis"},
        **{**_CANAL, "volume": "volume"},
    },
}
ANGLES = {
    **{"lordosis_L1_S1": "Lordosis L1–S1", "lordosis_T12_S1": "Lordosis T12–S1", "kyphosis_T4_T12": "Kyphosis T4–T12"},
    **{"kyphosis_T1_T12": "Kyphosis T1–T12", "lordosis_C2_C7": "Lordosis C2–C7", "cobb_angle": "Cobb angle"},
    "sacral_slope": "Sacral slope",
}
_UNITS = {"mm^2": ("mm²", 1.0, 0), "mm^3": ("cm³", 1e-3, 1), "mm": ("mm", 1.0, 1), "deg": ("°", 1.0, 1)}
_UNITS |= {"%": ("%", 1.0, 0), "1": ("", 1.0, 2)}


def levels_html(rows: list[dict[str, Any]]) -> str:
    """The list beside the viewer: names, how sure they are, the second-best reading, what is odd."""
    lines = []
    for row in rows:
        # A disc has its name from the vertebra above it.
        named = row["kind"] == "vertebra" and row["confidence"] is not None
        doubt = named and row["confidence"] < UNSURE
        color = attributes({"style": f"background:{instance_color(row['label'])}"})
        name = escape(level_name(row, rows))
        lines.append(
            f'<tr data-label="{row["label"]}" class="{row["kind"]}"><th scope="row"><i class="swatch"{color}></i>'
            f'<button type="button" class="jump">{name}</button>{"<b title=unsure>?</b>" if doubt else ""}</th>'
            f"<td>{_sure(row['confidence'], doubt) if named else ''}</td><td>{_second(row) if named else ''}</td>"
            f'<td class="chips">{"".join(_remarks(row, doubt))}</td></tr>'
        )
    head = "".join(f"<th scope=col>{title}</th>" for title in ("Level", "Name is right", "Next best", "Remarks"))
    return f"<table id=levels><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _sure(confidence: float, doubt: bool) -> str:
    share = round(100 * confidence)
    return f'<span class="sure{" doubt" if doubt else ""}" style="--p:{share}%">{share} %</span>'


def _second(row: Mapping[str, Any]) -> str:
    if not row["alternative"]:
        return ""
    return f"{escape(str(row['alternative']))} <small>{100 * (row['alternative_confidence'] or 0):.0f} %</small>"


def _remarks(row: Mapping[str, Any], doubt: bool) -> Iterable[str]:
    if doubt:
        yield chip("unsure", 2, f"The name has a probability below {UNSURE:g}.")
    if row["cut"]:
        sides = ", ".join(SIDES[side] for side in row["cut"])
        yield chip(f"cut: {sides}", 1, f"The field of view ends inside it ({sides}).")
    if row["odd"]:
        yield chip("odd volume", 2, "Much larger or smaller than its neighbours.")
    grade, loss = (number(row["measured"].get(key)) for key in ("genant_grade", "height_loss"))
    if grade and loss is not None:
        rule = f"Genant's cut-offs are {GENANT[0]:g}, {GENANT[1]:g} and {GENANT[2]:g} %. A number, no diagnosis."
        yield chip(f"height −{loss:.0f} %, grade {grade:.0f}", 2, rule)


def chip(text: str, severity: int, about: str = "") -> str:
    """A small coloured word."""
    return f"<span{attributes({'class': 'chip', 'data-severity': severity, 'title': about})}>{escape(text)}</span>"


def measures_html(rows: list[dict[str, Any]]) -> str:
    """Two tables, bodies and discs; columns without any value are left out."""
    parts = []
    for kind, title in (("vertebra", "Vertebrae"), ("disc", "Discs")):
        mine = [row for row in rows if row["kind"] == kind and row["measured"]]
        columns = {
            key: name
            for key, name in SHOWN[kind].items()
            if any(number(row["measured"].get(key)) is not None for row in mine)
        }
        if not columns:
            continue
        head = "".join(
            f"<th scope=col{attributes({'title': COLUMNS[key].text})}>{name} "
            f"<small>{_UNITS[COLUMNS[key].unit][0]}</small></th>"
            for key, name in columns.items()
        )
        body = "".join(
            f'<tr data-label="{row["label"]}"><th scope=row><button type="button" class="jump">'
            f"{escape(level_name(row, rows))}</button></th>"
            f"{''.join(_cell(row['measured'], key) for key in columns)}</tr>"
            for row in mine
        )
        parts.append(
            f"<div class=scroll><table class=measures><caption>{title}</caption>"
            f"<thead><tr><th scope=col>Level</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )
    return f"<div class=sheets>{''.join(parts)}</div>"


def _cell(measured: Mapping[str, str], key: str) -> str:
    value, u = number(measured.get(key)), number(measured.get(f"{key}_u"))
    if value is None:
        return "<td class=none>–</td>"
    unit, factor, digits = _UNITS[COLUMNS[key].unit]
    warn = key == "genant_grade" and value > 0
    text = f"{value:.0f}" if key == "genant_grade" else f"{value * factor:.{digits}f}"
    about = None if u is None else f"± {u * factor:.2g} {unit}".strip()
    return f"<td{attributes({'title': about, 'class': 'warn' if warn else None})}>{text.replace('-', '−')}</td>"


def angles_html(spine: Mapping[str, str]) -> str:
    """Angles of the whole spine."""
    parts = []
    for key, name in ANGLES.items():
        value, u = number(spine.get(key)), number(spine.get(f"{key}_u"))
        if value is None:
            continue
        more = ""
        if key == "cobb_angle" and spine.get("cobb_upper", "n/a") != "n/a":
            more = f" <small>{escape(spine['cobb_upper'])}–{escape(spine.get('cobb_lower') or '')}, "
            more += f"convex to the {escape(spine.get('cobb_convex') or '')}</small>"
        sign = "" if u is None else f" <small>± {u:.1f}°</small>"
        text = f"{value:.1f}°".replace("-", "−")
        parts.append(f"<div{attributes({'title': COLUMNS[key].text})}><dt>{name}</dt><dd>{text}{sign}{more}</dd></div>")
    return f"<dl class=angles>{''.join(parts)}</dl>" if parts else ""


def definitions_html() -> str:
    """What the columns are and where they come from."""
    keys = dict.fromkeys([*SHOWN["vertebra"], *SHOWN["disc"], *ANGLES])
    lines = "".join(
        f"<tr><th scope=row>{escape(key.replace('_', ' '))}</th><td>{escape(COLUMNS[key].text)} "
        f"<span class=quiet>{escape(COLUMNS[key].source)}.</span></td></tr>"
        for key in keys
    )
    return f"<details><summary>What is measured, and how</summary><table class=plain>{lines}</table></details>"


def facts_html(pairs: Sequence[tuple[str, Any]]) -> str:
    """A table of names and values."""
    lines = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{_value(value)}</td></tr>" for name, value in pairs)
    return f"<table class=plain>{lines}</table>"


def _value(value: Any) -> str:
    words = {"True": "yes", "False": "no", "None": "default"}
    return escape(words.get(str(value), str(value)))


def run_html(findings: Findings, record: Mapping[str, Any], marks: Mapping[str, Mapping[str, Any]]) -> str:
    """Options, models and fingerprints of the run."""
    source, grid = record.get("input") or {}, findings.vertebrae.grid
    software = record.get("software") or {}
    voxels = f"{' × '.join(map(str, grid.shape))}, {' × '.join(f'{z:.3g}' for z in grid.zoom)} mm, axes {grid.axcodes}"
    about: list[tuple[str, Any]] = [
        ("Scan", source.get("path") or source.get("name") or "unknown"),
        ("Voxels", voxels),
    ]
    if record:
        about += [
            ("Segmented with", f"{software.get('name', '')} {software.get('version', '')}"),
            ("Written", str(record.get("created", "")).replace("T", " ").replace("+00:00", " UTC")),
        ]
    for part, model in (record.get("models") or {}).items():
        words = [str(model.get(key) or "") for key in ("name", "log_name", "origin")]
        about.append((f"Model, {part}", f"{' · '.join(filter(None, words))} · {str(model.get('fingerprint'))[:16]}"))
    files = [(name, f"{mark['size']:,} bytes · sha256 {mark['sha256']}") for name, mark in marks.items()]
    if source.get("sha256"):
        files.insert(0, ("scan of the run", f"sha256 {source['sha256']}"))
    options = [
        (f"{phase}: {key.replace('_', ' ')}", value)
        for phase, values in (record.get("options") or {}).items()
        for key, value in values.items()
    ]
    parts = [facts_html(about)]
    if options:
        parts.append(f"<details><summary>Options</summary>{facts_html(options)}</details>")
    parts.append(f"<details><summary>Fingerprints of the files</summary>{facts_html(files)}</details>")
    return "".join(parts)
