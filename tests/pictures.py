"""Small image files of every kind, made by hand, and what a hostile sender makes of them."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 2, height: int = 2, grey: int = 0) -> bytes:
    """A whole PNG of one grey."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes([grey]) * width) * height)
    return bomb(header, rows)


def bomb(header: bytes = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), rows: bytes = b""):
    """A PNG whose header may promise more than its few bytes hold: here 10 GB of pixels."""
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


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
    "no pixels": (data_url(bomb(bytes(13))), "broken or cut off"),
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
