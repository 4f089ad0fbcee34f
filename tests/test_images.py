"""Images of a conversation: what is taken, what is refused, and that nothing of them is shown."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from typing import Any

import pytest

from tests import pictures
from tests.pictures import asking, data_url, image_part, png, text_part
from ttsa_guard.errors import ImageError
from ttsa_guard.images import DEFAULT_LIMITS, IMAGE_TYPES, Image, ImageLimits
from ttsa_guard.messages import Message, own_seed

KINDS = {
    "png": (png(3, 5), "image/png"),
    "gif": (pictures.GIF, "image/gif"),
    "jpeg": (pictures.JPEG, "image/jpeg"),
    "jpg": (pictures.JPEG, "image/jpg"),
    **{kind: (pictures.webp(kind), "image/webp") for kind in pictures.WEBP},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_by_its_header(kind: str) -> None:
    data, declared = KINDS[kind]
    image = Image.from_url(data_url(data, declared))
    assert (image.width, image.height) == (3, 5)
    assert image.media_type in IMAGE_TYPES
    assert image.data == data
    assert image.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_ends_anywhere_is_an_error_and_nothing_else(kind: str) -> None:
    data, declared = KINDS[kind]
    for end in range(1, len(data)):
        with pytest.raises(ImageError):
            Image.from_url(data_url(data[:end], declared))


@pytest.mark.parametrize("kind", pictures.HOSTILE)
def test_a_hostile_image_is_a_clear_error(kind: str) -> None:
    url, said = pictures.HOSTILE[kind]
    with pytest.raises(ImageError) as caught:
        Message.conversation(asking(image_part(url=url)))
    assert said in caught.value.message
    assert caught.value.hint
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert len(str(caught.value)) < 200


def peak(work: Any) -> int:
    """Bytes that `work` has at once, besides its arguments."""
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [("image_url", "data:image/png;base64,"), ("image_url", "http://a/"), ("file", ""), ("x", "")],
)
def test_200_megabytes_are_refused_without_a_copy(kind: str, scheme: str) -> None:
    url = scheme + "A" * 200_000_000
    inside = {"url": url, "file_data": url, "data": url}
    assert peak(lambda: Message.conversation(asking({"type": kind, kind: inside}))) < 1_000_000


def test_a_bomb_costs_no_more_than_its_bytes() -> None:
    url = data_url(pictures.bomb())
    assert peak(lambda: Image.from_url(url)) < 1_000_000


def test_a_jpeg_without_end_is_given_up() -> None:
    for filling in (b"\xff", b"\xff\xe0\0\0"):
        with pytest.raises(ImageError):
            Image.from_url(
                data_url(b"\xff\xd8\xff" + filling * 100_000 + b"\xff\xd9", "image/jpeg")
            )


@pytest.mark.parametrize("most", range(68, 74))
def test_the_limit_is_exact(most: int) -> None:
    data, limits = png(), ImageLimits(max_bytes=most)
    if len(data) <= most:
        assert Image.from_url(data_url(data), limits).size == len(data)
    else:
        with pytest.raises(ImageError, match=f"more than {most} bytes"):
            Image.from_url(data_url(data), limits)


def test_limits_of_pixels_and_of_images() -> None:
    with pytest.raises(ImageError, match="2 x 2 pixels; 3 are taken"):
        Image.from_url(data_url(png()), ImageLimits(max_pixels=3))
    two = ImageLimits(max_images=2)
    turns = [*asking(image_part()), *asking(image_part())]
    assert len(Message.conversation(turns, limits=two)) == 2
    with pytest.raises(ImageError, match="more than 2 images"):
        Message.conversation([*turns, *asking(image_part())], limits=two)


def test_nothing_of_an_image_is_shown() -> None:
    [message] = Message.conversation(asking(image_part(png(grey=7))))
    [image] = message.images
    shown = f"{message!r} {message} {image!r} {image}"
    assert image.sha256 in shown
    assert f"size={image.size}" in shown
    assert "PNG" not in shown
    assert "base64" not in shown


UNREAD = {
    "http": image_part(url="http://127.0.0.1:9/secret.png"),
    "https": image_part(url="HTTPS://example.com/a.png"),
    "by id": {"type": "file", "file": {"file_id": "file-1"}},
    "pdf": {"type": "file", "file": {"file_data": data_url(b"%PDF-1.7", "application/pdf")}},
    "bare": {"type": "file", "file": {"file_data": "JVBERi0="}},
    "sound": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "unknown": {"type": "hologram"},
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_cannot_be_read_is_not_fetched_and_not_forgotten(kind: str) -> None:
    [message] = Message.conversation(asking(UNREAD[kind]))
    [image] = message.images
    assert not image.readable
    assert image.size == 0
    others = {i.sha256 for k, p in UNREAD.items() if k != kind for i in images(p)}
    assert len(others - {image.sha256}) == len(UNREAD) - 1


def images(*parts: Any) -> tuple[Image, ...]:
    return Message.conversation(asking(*parts))[0].images


def test_an_image_in_a_file_is_an_image() -> None:
    url = data_url(png())
    for data in (url, url.partition(",")[2]):
        assert images({"type": "file", "file": {"file_data": data}}) == images(image_part())
    with pytest.raises(ImageError, match="SVG"):
        images({"type": "file", "file": {"file_data": data_url(pictures.SVG, "text/xml")}})


def test_images_belong_to_their_message_in_order() -> None:
    parts = [image_part(png(grey=1)), text_part("a"), image_part(png(grey=2)), text_part("b")]
    [first, second] = Message.conversation([{"role": "user", "content": parts}, *asking()])
    assert first.content == "a b"
    assert [i.data for i in first.images] == [png(grey=1), png(grey=2)]
    assert second.images == ()


def test_an_image_alone_is_a_conversation() -> None:
    [message] = Message.conversation(asking(image_part(), text=""))
    assert message.content == ""
    assert len(message.images) == 1


def test_another_image_is_another_seed() -> None:
    seeds = {
        own_seed(1, Message.conversation(asking(*parts)))
        for parts in ([], [image_part(png())], [image_part(png(grey=1))])
    }
    assert len(seeds) == 3
    # that of a conversation without images is what it was before there were any
    assert own_seed(1, [Message("user", "How do I do it?")]) in seeds


def test_parts_of_no_shape_are_no_texts() -> None:
    for part in ({"type": ["image_url"]}, {}, {"type": None, "None": 3}):
        assert not images(part)[0].readable


def test_an_image_without_a_url_is_refused() -> None:
    for part in ({"type": "image_url"}, {"type": "image_url", "image_url": {"url": 3}}):
        with pytest.raises(ImageError, match="no URL"):
            Message.conversation(asking(part))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_an_image_or_an_error_and_nothing_else(kind: str) -> None:
    data, declared = KINDS[kind]
    draw = random.Random(kind)
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(data))] = draw.randrange(256)
        try:
            image = Image.from_url(data_url(bytes(damaged), declared))
        except ImageError:
            continue
        assert 0 < image.width * image.height <= DEFAULT_LIMITS.max_pixels
