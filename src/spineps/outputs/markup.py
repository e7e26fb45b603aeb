"""What the pages share: their templates, text that ends no element, small pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import IO, Any


def resource(name: str) -> str:
    """Text of a file in ``outputs/page``."""
    return (files("spineps.outputs") / "page" / name).read_text(encoding="utf-8")


def filled(template: str, **parts: str) -> str:
    """Replace every mark ``<!--name-->`` of a template in one pass, so that no text put in is taken for a mark.

    >>> filled("<p><!--a-->, <!--b--></p>", a="<!--b-->", b="2")
    '<p><!--b-->, 2</p>'
    """
    return re.sub(r"<!--(\w+)-->", lambda mark: parts[mark[1]], template)


def json_text(content: Any) -> str:
    """JSON that may stand inside ``<script>``: "</script>" in a message must not end the element.

    >>> json_text({"a": "</script>"})
    '{"a":"\\\\u003c/script>"}'
    """
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def picture_format() -> str:
    """WebP where Pillow can write it: half the size of JPEG."""
    from PIL import features

    return "WEBP" if features.check("webp") else "JPEG"


def save_picture(picture: Any, stream: IO[bytes], quality: int) -> None:
    """Write a Pillow image small."""
    picture.save(stream, picture_format(), quality=quality, method=2)


def attributes(values: Mapping[str, Any]) -> str:
    """HTML attributes; None and "" are left out.

    >>> attributes({"data-label": 3, "title": 'a "b"', "class": None})
    ' data-label="3" title="a &quot;b&quot;"'
    """
    from html import escape

    return "".join(f' {key}="{escape(str(value))}"' for key, value in values.items() if value not in (None, ""))
