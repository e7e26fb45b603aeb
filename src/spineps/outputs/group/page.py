"""The page: one HTML file with everything in it but the thumbnails, which lie in a folder beside it.

Inlined, the thumbnails of 2,000 scans would make an HTML of some 40 MB that a browser reads to its end before it shows
anything; as files they are loaded when they come into view, over ``file://`` too.
"""

from __future__ import annotations

import hashlib
import html
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spineps.outputs.group.flags import FLAGS
from spineps.outputs.markup import filled, json_text, picture_format, resource, save_picture
from spineps.outputs.writer import Writer

logger = logging.getLogger(__name__)

THUMBS = "thumbs"
#: Largest size of a thumbnail in pixels: bodies of a whole spine can still be told apart, a file weighs 10 to 25 kB.
WIDTH, HEIGHT, QUALITY = 640, 400, 75


def write_page(writer: Writer, path: Path, title: str, cards: Sequence[dict[str, Any]]) -> None:
    """``index.html`` from the template, style and script in ``outputs/page``.

    A browser keeps ratings by the names of the folders around the page, as they are now: they are found again after the
    page was written anew, and on a stick.
    """
    flags = [{"code": f.code, "title": f.title, "rule": f.rule, "severity": f.severity} for f in FLAGS]
    identity = hashlib.sha256("/".join(path.absolute().parts[-5:]).encode()).hexdigest()[:12]
    data = {"id": identity, "title": title, "flags": flags, "scans": cards}
    text = filled(
        resource("page.html"),
        style=resource("base.css") + resource("page.css"),
        title=html.escape(title),
        data=json_text(data),
        script=resource("page.js"),
    )
    writer.write(path, lambda stream: stream.write(text.encode()))


class Thumbnails:
    """Small pictures in ``<folder>/thumbs``, cut out of the snapshots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / THUMBS

    def make(self, scan: str, snapshot: Path) -> str:
        """Write the thumbnail of a scan; returns its name, empty when there is no picture to make it from."""
        from PIL import Image

        name = f"{hashlib.sha256(scan.encode()).hexdigest()[:16]}.{picture_format().lower()}"
        try:
            with Image.open(snapshot) as picture:
                small = picture.crop(_sagittal(picture)).convert("RGB")
            small.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS, reducing_gap=2)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow calls a damaged PNG a syntax error
            logger.warning("No thumbnail from %s: %s", snapshot.name, error)
            return ""
        with Writer() as writer:
            writer.write(self.folder / name, lambda stream: save_picture(small, stream, QUALITY))
        return f"{THUMBS}/{name}"

    def forget_others(self, names: Iterable[str]) -> None:
        """Delete thumbnails of scans that are no more."""
        kept = {Path(name).name for name in names}
        for path in self.folder.glob("*.*"):
            if path.suffix in (".webp", ".jpeg") and not path.name.startswith(".") and path.name not in kept:
                path.unlink(missing_ok=True)


def _sagittal(picture: Any) -> tuple[int, int, int, int]:
    """The box of the sagittal panels with their names; the whole picture when it does not tell."""
    try:
        left, top, right, bottom = (int(v) for v in str(picture.info["spineps-sagittal"]).split(","))
    except (KeyError, ValueError):
        return 0, 0, picture.width, picture.height
    return left, top, min(right, picture.width), min(bottom, picture.height)
