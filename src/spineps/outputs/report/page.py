"""The report of one scan: everything in one HTML file that opens from a disk and asks no server for anything.

The browser is told so too: the page's own policy forbids every request, and every script but the two whose hashes it
names.  NiiVue travels zipped and is run by the script that unpacks it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import re
from base64 import b64encode
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from spineps.anatomy import BY_ID
from spineps.errors import SpinepsError
from spineps.outputs.bids import EXTRA_NAMES
from spineps.outputs.markup import filled, json_text, picture_format, resource, save_picture
from spineps.outputs.report.plots import plots_html
from spineps.outputs.report.scene import Scene, build_scene
from spineps.outputs.report.sources import Findings, Sources, key_of, level_name, read_findings, sources_of
from spineps.outputs.report.tables import angles_html, chip, definitions_html, levels_html, measures_html, run_html
from spineps.outputs.snapshot import UNSURE, instance_color, structure_color
from spineps.outputs.writer import Writer
from spineps.volume import Volume

logger = logging.getLogger(__name__)

PARTS = ("report.html", "base.css", "report.css", "report.js", "niivue.umd.js")
#: Where a page tells its key.
MARK = re.compile(r'<meta name="spineps-report" content="([0-9a-f]{64})">')
PICTURE_QUALITY = 82


def write_report(sources: Sources, always: bool = False) -> bool:
    """Write the page unless the one that is there shows the same content; True when it was written.

    Raises:
        InputNotFoundError, UnreadableInputError: the masks are missing or damaged.
        OutputError: the page cannot be written.
    """
    marks = sources.fingerprints()
    key = key_of(sources, marks, program())
    if not always and _key_in(sources.out) == key:
        return False
    findings = read_findings(sources, marks)
    scene = build_scene(findings.image, findings.semantic, findings.vertebrae)
    page = report_html(sources, findings, scene, marks, key)
    with Writer() as writer:
        writer.write(sources.out, lambda stream: stream.write(page.encode()))
    return True


def try_report(record: Path, image: Path | None, volume: Volume | None = None) -> None:
    """Write the page of a run that is over: a page that fails must not cost the masks."""
    try:
        write_report(sources_of(record, image, volume))
    except (SpinepsError, ValueError, ArithmeticError, LookupError, OSError, MemoryError) as error:
        logger.warning("The report could not be written (%s): %s", record.name, error)


def report_html(sources: Sources, findings: Findings, scene: Scene, marks: dict[str, dict[str, Any]], key: str) -> str:
    """The page's text."""
    rows, angles = findings.rows, angles_html(findings.spine)
    script = resource("report.js")
    chips = "".join(chip(flag.title, flag.severity, flag.rule) for flag in findings.flags)
    plots = plots_html(rows)
    measures = f"<div class=plots>{plots}</div>{angles}{measures_html(rows)}" if plots or angles else ""
    return filled(
        resource("report.html"),
        key=key,
        policy=f"{_hash(script)} {_hash(resource('niivue.umd.js'))}",
        title=escape(sources.title),
        style=resource("base.css") + resource("report.css"),
        chips=chips,
        notes="".join(f"<li>{escape(str(note))}</li>" for note in findings.notes),
        levels=levels_html(rows) if rows else "<p>There is no vertebra in the mask.</p>",
        measures=measures + definitions_html() if measures else "<p class=quiet>Nothing was measured.</p>",
        picture=_picture(sources.picture),
        run=run_html(findings, sources.record, marks),
        licence=escape(resource("niivue-LICENSE.txt")),
        data=json_text(_data(findings, scene)),
        volumes="".join(_packed(name, content) for name, content in scene.volumes.items()),
        niivue=_packed("niivue", _niivue()),
        script=script,
    )


@cache
def program() -> str:
    """Hash of all that the page is made with."""
    return hashlib.sha256("\0".join(map(resource, PARTS)).encode()).hexdigest()


def _data(findings: Findings, scene: Scene) -> dict[str, Any]:
    """What the page's script works with."""
    rows = []
    for row in findings.rows:
        doubt = "?" if row["confidence"] is not None and row["confidence"] < UNSURE else ""
        name = level_name(row, findings.rows)
        rows.append({"label": row["label"], "name": name + doubt, "kind": row["kind"], **scene.anchors[row["label"]]})
    return {
        "rows": rows,
        "structures": {v: [_structure(v), structure_color(v)] for v in _labels(findings.semantic)},
        "vertebrae": {v: instance_color(v) for v in _labels(findings.vertebrae)},
        "scale": scene.scale,
        "shown": scene.shown,
        "image": findings.image is not None,
    }


def _labels(mask: Volume) -> list[int]:
    return [int(v) for v in np.flatnonzero(np.bincount(mask.array.ravel(), minlength=256)) if v]


def _structure(label: int) -> str:
    return BY_ID[label].name if label in BY_ID else EXTRA_NAMES.get(label, f"structure {label}")


def _picture(path: Path | None) -> str:
    """The picture in the page, small."""
    from PIL import Image

    if path is None:
        return "<p class=quiet>There is no picture.</p>"
    try:
        with Image.open(path) as picture:
            stream = io.BytesIO()
            save_picture(picture.convert("RGB"), stream, PICTURE_QUALITY)
            width, height = picture.size
    except (OSError, ValueError, SyntaxError) as error:  # Pillow calls a damaged PNG a syntax error
        logger.warning("%s cannot be shown: %s", path.name, error)
        return "<p class=quiet>The picture cannot be read.</p>"
    kind, content = picture_format().lower(), b64encode(stream.getvalue()).decode()
    return (
        f'<img id=snapshot alt="Sagittal and coronal cuts" width={width} height={height} '
        f'src="data:image/{kind};base64,{content}">'
    )


def _packed(name: str, content: bytes) -> str:
    return f'<script type="application/gzip" id="{name}">{b64encode(content).decode()}</script>\n'


@cache
def _niivue() -> bytes:
    return gzip.compress(resource("niivue.umd.js").encode(), 9, mtime=0)


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _key_in(path: Path) -> str:
    """The key of a page that is there."""
    try:
        with path.open("rb") as stream:
            found = MARK.search(stream.read(2000).decode("utf-8", "replace"))
    except OSError:
        return ""
    return found[1] if found else ""
