"""Small image files of every kind, made by hand, and what a hostile sender makes of them."""

from __future__ import annotations

import base64
import struct
from typing import Any

from ttsa_guard.conformance import png


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of some seventy bytes, whose header promises gigabytes of pixels."""
    header = struct.pack(">II", width, height)
    return png().replace(struct.pack(">II", 2, 2), header)


GIF = base64.b64decode("R0lGODlhAwAFAIAAAAAAAP///ywAAAAAAwAFAAACBISPaQUAOw==")
JPEG = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xc0\x00\x0b\x08\x00\x05\x00\x03\x01\x01\x11\x00\xff\xd9"
WEBP = {
    "VP8X": b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\x02\0\0" + b"\x04\0\0",
    "VP8L": b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", 2 | 4 << 14),
    "VP8": b"VP8 " + struct.pack("<I", 10) + b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 3, 5),
}
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>x()</script></svg>'


def webp(kind: str) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(WEBP[kind])) + b"WEBP" + WEBP[kind]


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(
    data: bytes = b"", kind: str = "image/png", *, url: str | None = None
) -> dict[str, Any]:
    return {
        "type": "image_url",
        "image_url": {"url": data_url(data or png(), kind) if url is None else url},
    }


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def asking(*parts: Any, text: str = "How do I do it?") -> list[dict[str, Any]]:
    """A conversation of one turn: a text, if it is not empty, and these parts."""
    return [{"role": "user", "content": [*([text_part(text)] if text else []), *parts]}]


HOSTILE = {
    "bomb": (data_url(bomb()), "60000 x 60000 pixels"),
    "cut off": (data_url(png(40, 40)[:-20]), "broken or cut off"),
    "cut off in the header": (data_url(png()[:20]), "broken or cut off"),
    "no pixels": (data_url(bomb(0, 0)), "broken or cut off"),
    "another kind": (data_url(png(), "image/jpeg"), "is image/png"),
    "text": (data_url(b"hello", "image/png"), "of no known kind"),
    "svg": (data_url(SVG, "image/svg+xml"), "SVG"),
    "svg as png": (data_url(SVG, "image/png"), "SVG"),
    "svg as text": (f"data:image/svg+xml;utf8,{SVG.decode()}", "no data URL with base64"),
    "no base64": ("data:image/png;base64,!!!!", "no valid base64"),
    "file": ("file:///etc/passwd", "no data URL"),
    "empty": ("", "no data URL"),
}
"""URLs that are refused, and a part of why."""
