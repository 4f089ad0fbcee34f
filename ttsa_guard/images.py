"""Images in a conversation: read from data URLs, and checked by their headers alone.

Nothing is fetched and nothing is decoded here, so that a hostile image costs no more than its own
bytes. No error and no `repr` holds anything of an image.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from pydantic import Field

from ttsa_guard.errors import ImageError
from ttsa_guard.settings import Settings

_LONGEST_HEAD = 200
"""Most characters of a data URL before its comma."""
_MOST_SEGMENTS = 1000
"""Most segments of a JPEG before the one with its size."""
_KINDS = "send a PNG, JPEG, GIF or WebP image as data:image/...;base64,..."


class ImageLimits(Settings):
    """What images a conversation may have. Others are refused before anything is decoded."""

    max_bytes: int = Field(8 * 2**20, ge=1, description="Most bytes of one image or file.")
    max_pixels: int = Field(
        32_000_000, ge=1, description="Most pixels of one image: its width times its height."
    )
    max_images: int = Field(
        16, ge=0, description="Most images and files of one conversation, with its earlier turns."
    )


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, repr=False)
class Image:
    """One image of a message. Two images are equal if their bytes are.

    Args:
        data: the file as it was sent; empty if it cannot be read.
        media_type: "image/png", "image/jpeg", "image/gif" or "image/webp", by the bytes and not by
            what the sender says; empty if it cannot be read.
        sha256: of the bytes, in hexadecimal; of the reference, if it cannot be read.
        width: in pixels, by the header.
        height: likewise.
    """

    data: bytes = field(compare=False)
    media_type: str
    sha256: str
    width: int = 0
    height: int = 0

    def __repr__(self) -> str:
        return f"Image(sha256={self.sha256!r}, size={self.size})"

    @property
    def size(self) -> int:
        """Number of bytes; 0 if it cannot be read."""
        return len(self.data)

    @property
    def readable(self) -> bool:
        """Whether its bytes are here, and it is an image."""
        return bool(self.data)

    @classmethod
    def from_url(cls, url: str, limits: ImageLimits = DEFAULT_LIMITS) -> Image:
        """Read an image from a data URL.

        An http(s) URL gives an image that cannot be read: it is never fetched.

        Raises:
            ImageError: the image exceeds the limits, is broken, is not what it says to be, or is
                none of the known kinds.
        """
        if url[:8].lower().startswith(("http://", "https://")):
            return cls._unread(url, limits)
        declared, data = _decoded(url, limits)
        return cls._checked(data, declared, limits)

    @classmethod
    def from_file(cls, data: str, limits: ImageLimits = DEFAULT_LIMITS) -> Image:
        """Read the data of a file: a data URL, or base64 alone.

        A file that is no image cannot be read.

        Raises:
            ImageError: as `from_url` does.
        """
        is_url = data[:5].lower() == "data:"
        declared, raw = _decoded(data, limits) if is_url else ("", _base64(data, limits))
        if declared.startswith("image/") or _kind(raw) or _is_svg(declared, raw):
            return cls._checked(raw, declared, limits)
        return cls(b"", "", hashlib.sha256(raw).hexdigest())

    @classmethod
    def from_bytes(cls, data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image:
        """Read an image from the bytes of its file. Raises as `from_url` does."""
        _refuse_more(len(data), limits)
        return cls._checked(data, "", limits)

    @classmethod
    def _unread(cls, reference: str, limits: ImageLimits) -> Image:
        _refuse_more(len(reference) // 4 * 3, limits)
        digest = hashlib.sha256(reference.encode("utf-8", "surrogatepass"))
        return cls(b"", "", digest.hexdigest())

    @classmethod
    def _checked(cls, data: bytes, declared: str, limits: ImageLimits) -> Image:
        if _is_svg(declared, data):
            raise ImageError("an SVG image is a program and is not taken", hint=_KINDS)
        kind = _kind(data)
        if kind is None:
            raise ImageError("an image is of no known kind", hint=_KINDS)
        if declared and declared.replace("image/jpg", "image/jpeg") != kind:
            raise ImageError(
                f"an image is {kind}, and its data URL says something else",
                hint="send the media type that it has",
            )
        try:
            width, height = _SIZES[kind](data)
        except (IndexError, ValueError):
            width = height = 0
        if not (width and height and _is_whole(kind, data)):
            raise ImageError("an image is broken or cut off", hint="send the whole file")
        if width * height > limits.max_pixels:
            raise ImageError(
                f"an image has {width} x {height} pixels; {limits.max_pixels} are taken",
                hint="send a smaller one, or raise images.max_pixels",
            )
        return cls(data, kind, hashlib.sha256(data).hexdigest(), width, height)


def images_in(
    parts: Sequence[Any], limits: ImageLimits = DEFAULT_LIMITS, *, found: int = 0
) -> tuple[Image, ...]:
    """Return what the content parts of a message hold besides text, in order.

    Files, recordings and whatever else is no image count as images that cannot be read: a guard
    that has not seen them must not answer as if it had.

    Args:
        parts: as in OpenAI's chat completions: "text", "image_url", "file" and others.
        found: images of the conversation so far.

    Raises:
        ImageError: an image exceeds the limits or is broken.
    """
    images: list[Image] = []
    for part in filter(_is_image, parts):
        if found + len(images) >= limits.max_images:
            raise ImageError(
                f"the conversation has more than {limits.max_images} images",
                hint="send fewer, or raise images.max_images",
            )
        images.append(_image(part, limits))
    return tuple(images)


def image_parts(content: Any) -> list[Mapping[str, Any]]:
    """Return the parts of a message's content besides its texts."""
    return [part for part in content if _is_image(part)] if isinstance(content, list) else []


def has_images(content: Any) -> TypeGuard[list[Any]]:
    """Return whether the content of a message has parts besides text."""
    return isinstance(content, list) and any(map(_is_image, content))


def with_text(content: Sequence[Any], text: str | Sequence[Any]) -> list[Any]:
    """Return content parts with another text, or the text parts of others, in place of theirs."""
    parts = [{"type": "text", "text": text}] if isinstance(text, str) else text
    return [*(p for p in parts if not _is_image(p)), *filter(_is_image, content)]


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") not in _TEXTS


def references(part: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the texts in a content part that is no text: a URL, base64, an id."""
    inside = part.get(str(part.get("type")))
    texts = inside.values() if isinstance(inside, Mapping) else [inside]
    return tuple(text for text in texts if isinstance(text, str))


_TEXTS: Sequence[Any] = (
    "text refusal thinking redacted_thinking reasoning tool_use tool_result".split()
)
"""Types of parts that hold text, or that are no part of what is said."""


def _image(part: Mapping[str, Any], limits: ImageLimits) -> Image:
    kind, inside = part.get("type"), part.get(str(part.get("type")))
    if kind == "image_url":
        url = inside.get("url") if isinstance(inside, Mapping) else inside
        if not isinstance(url, str):
            raise ImageError("an image has no URL", hint=_KINDS)
        return Image.from_url(url, limits)
    data = inside.get("file_data") if kind == "file" and isinstance(inside, Mapping) else None
    if isinstance(data, str):
        return Image.from_file(data, limits)
    known = (str(kind), *references(part))
    _refuse_more(sum(map(len, known)) // 4 * 3, limits)
    return Image._unread("\n".join(known), limits)


def _decoded(url: str, limits: ImageLimits) -> tuple[str, bytes]:
    """Return the declared media type and the bytes of a data URL."""
    head, comma, _ = url[:_LONGEST_HEAD].partition(",")
    kind, *parameters = head.lower().split(";")
    if not (comma and kind.startswith("data:") and parameters[-1:] == ["base64"]):
        raise ImageError("an image is in no data URL with base64", hint=_KINDS)
    return kind.removeprefix("data:").strip(), _base64(url, limits, start=len(head) + 1)


def _base64(text: str, limits: ImageLimits, *, start: int = 0) -> bytes:
    # four characters are three bytes; nothing is copied before it is known to be short enough
    _refuse_more((len(text) - start) // 4 * 3 - 2, limits)
    try:
        data = base64.b64decode(text[start:], validate=True)
    except ValueError:
        raise ImageError("an image is no valid base64", hint=_KINDS) from None
    _refuse_more(len(data), limits)
    return data


def _refuse_more(size: int, limits: ImageLimits) -> None:
    if size > limits.max_bytes:
        raise ImageError(
            f"an image or file has more than {limits.max_bytes} bytes",
            hint="send a smaller one, or raise images.max_bytes",
        )


def _is_svg(declared: str, data: bytes) -> bool:
    return "svg" in declared or (not _kind(data) and b"<svg" in data[:1000].lower())


def _kind(data: bytes) -> str | None:
    """Return the media type by the first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)


def _is_whole(kind: str, data: bytes) -> bool:
    """Return whether the mark that ends a file of this kind is there."""
    match kind:
        case "image/png":
            return data.rfind(b"IEND\xaeB`\x82") > 0
        case "image/jpeg":  # cameras write more behind it
            return data.rfind(b"\xff\xd9") > 0
        case "image/gif":
            return data.rstrip(b"\0").endswith(b";")
        case _:
            return int.from_bytes(data[4:8], "little") + 8 <= len(data)


def _png(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise ValueError("no header")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _gif(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _webp(data: bytes) -> tuple[int, int]:
    kind, numbers = data[12:16], data[20:30]
    if kind == b"VP8X":
        width, height = numbers[4:7], numbers[7:10]
        return 1 + int.from_bytes(width, "little"), 1 + int.from_bytes(height, "little")
    if kind == b"VP8L" and numbers[0] == 0x2F:
        bits = int.from_bytes(numbers[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and numbers[3:6] == b"\x9d\x01\x2a":
        width, height = numbers[6:8], numbers[8:10]
        return int.from_bytes(width, "little") & 0x3FFF, int.from_bytes(height, "little") & 0x3FFF
    raise ValueError("no header")


def _jpeg(data: bytes) -> tuple[int, int]:
    for marker, start in _segments(data):
        # the frame headers, and not the tables with numbers among theirs
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[start + 3 : start + 5], data[start + 5 : start + 7]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
    raise ValueError("no header")


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the markers of a JPEG, and where the lengths of their segments stand."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        if data[at] != 0xFF:
            raise ValueError("no segment")
        yield data[at + 1], at + 2
        # bytes of 0xFF may stand before a marker
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")


_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}
_SIZES: Mapping[str, Callable[[bytes], tuple[int, int]]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
    "image/webp": _webp,
}
IMAGE_TYPES = frozenset(_SIZES)
"""The media types of images that can be read."""
