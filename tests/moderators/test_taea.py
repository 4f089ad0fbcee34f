"""The image moderator that learns from what it judges, over encoders that need no download."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow  # noqa: N813

from tests.pictures import asking, image_part, png
from tests.vision.tiny import save
from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.errors import ConfigError
from ttsa_guard.guard import Guard
from ttsa_guard.images import Image
from ttsa_guard.moderators.base import moderate_images_safely
from ttsa_guard.moderators.taea import Taea, TaeaOptions, parts
from ttsa_guard.plugins import Plugins
from ttsa_guard.testing import SeeingBackend, check_image_moderator
from ttsa_guard.verdict import Verdict
from ttsa_guard.vision.base import Floats, unit

OFF = {"negative": {"alpha": 0}}
LEARNING = {"positive": {"alpha": 2}, "max_drift": 1.0}
WHITE, DARK = 235, 20


class Greys:
    """An encoder in which a white image is "bright", and a black one is "dark"."""

    grid = (1, 1)
    scale = 6.0

    def __init__(self) -> None:
        self.running = 0

    def texts(self, texts: Sequence[str]) -> Floats:
        return np.array([[1.0, 0] if "bright" in text else [0, 1.0] for text in texts])

    def images(self, images: Sequence[pillow.Image]) -> Floats:
        self.running += 1
        assert self.running == 1, "two calls at once"
        time.sleep(0.001)
        light = np.array([np.asarray(image, dtype=float).mean() / 255 for image in images])
        self.running -= 1
        return unit(np.stack([light, 1 - light], -1))

    def patches(self, images: Sequence[pillow.Image]) -> Floats:
        return self.images(images)[:, None]


def moderator(**options: Any) -> Taea:
    classes = {"unsafe": {"glare": ("bright",)}, "safe": {"night": ("dark",)}}
    return Taea(TaeaOptions.model_validate({"model": "none", **classes, **options}), Greys())


def grey(level: int, width: int = 8) -> Image:
    return Image.from_bytes(png(width, 8, level))


def judged(own: Taea, *images: Image) -> list[Verdict]:
    return asyncio.run(moderate_images_safely(own, images, seconds=30))


def test_it_keeps_the_contract_where_it_learns_nothing() -> None:
    check_image_moderator(moderator(**OFF))


def test_unsafe_classes_flag_together_and_are_the_categories() -> None:
    white, middle, dark = judged(moderator(**OFF), grey(WHITE), grey(127), grey(DARK))
    assert [v.decision for v in (white, middle, dark)] == ["flag", "pass", "pass"]
    assert white.categories == {"glare": white.score}
    assert white.score > 0.95
    assert middle.score == pytest.approx(0.5, abs=0.02)
    assert judged(moderator(**OFF, threshold=0.4), grey(127))[0].decision == "flag"


def test_images_teach_it_and_each_of_them_once() -> None:
    own, border = moderator(**LEARNING), grey(127)
    before = judged(own, border)[0].score
    assert judged(own, *[border] * 5)[-1].score == pytest.approx(before)
    judged(own, *(grey(100, width) for width in range(1, 5)))
    after = judged(own, border)[0].score
    assert after < before - 0.1
    own.reset()
    assert judged(own, border)[0].score == pytest.approx(before)


def test_without_anything_to_learn_no_image_changes_another() -> None:
    own = moderator(**OFF)
    alone = judged(moderator(**OFF), grey(127))
    judged(own, *(grey(100, width) for width in range(1, 9)))
    assert judged(own, grey(127)) == alone
    assert own.resets == 0


def test_a_drift_over_the_bound_gives_the_verdict_of_the_twin(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = judged(moderator(**OFF), grey(127))[0].score
    own = moderator(**{**LEARNING, "max_drift": 0.05})
    with caplog.at_level(logging.INFO):
        scores = [v.score for v in judged(own, *(grey(127, width) for width in range(1, 9)))]
    assert max(abs(score - plain) for score in scores) <= 0.05
    assert own.resets > 0
    assert "forgets what it learned" in caplog.text


def test_conversations_at_once_take_their_turns() -> None:
    """The encoder is never entered twice at once, and every call gets its own verdicts."""
    own = moderator(**LEARNING)
    calls = [[grey(level, width) for width in range(1, 4)] for level in (60, 100, 160, 200)]

    async def all_at_once() -> list[list[Verdict]]:
        return await asyncio.gather(
            *(moderate_images_safely(own, images, seconds=30) for images in calls)
        )

    found = asyncio.run(all_at_once())
    assert [[v.decision for v in verdicts] for verdicts in found] == [
        *[["pass"] * 3] * 2,
        *[["flag"] * 3] * 2,
    ]


def test_the_event_loop_is_free_while_it_judges() -> None:
    own, threads = moderator(**OFF), []
    images = own._encoder.images
    own._encoder.images = lambda found: threads.append(threading.get_ident()) or images(found)  # type: ignore[method-assign, func-returns-value]
    judged(own, grey(127))
    assert threads != [threading.get_ident()]


def test_a_call_that_is_cancelled_leaves_it_whole() -> None:
    own = moderator(**LEARNING)

    async def cancelled() -> None:
        work = asyncio.ensure_future(own.moderate_images([grey(127, w) for w in range(1, 30)]))
        await asyncio.sleep(0.005)
        work.cancel()
        await asyncio.wait({work})

    asyncio.run(cancelled())
    assert judged(own, grey(WHITE))[0].decision == "flag"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (lambda: Image.from_bytes(png(broken=True)), "not decoded"),
        (lambda: Image.from_url("https://example.com/a.png"), "cannot be read"),
    ],
)
def test_what_it_cannot_judge_fails_and_teaches_nothing(image: Any, reason: str) -> None:
    own = moderator(**LEARNING)
    good, bad = judged(own, grey(DARK), image())
    assert good.decision == "pass"
    assert bad.decision == "failed"
    assert reason in bad.reason


def test_features_that_are_no_numbers_fail_and_teach_nothing() -> None:
    own = moderator(**LEARNING)
    images = own._encoder.images
    own._encoder.images = lambda found: np.full((len(found), 2), np.nan)  # type: ignore[method-assign]
    assert judged(own, grey(DARK))[0].decision == "failed"
    own._encoder.images = images  # type: ignore[method-assign]
    assert judged(own, grey(DARK)) == judged(moderator(**LEARNING), grey(DARK))


def test_it_says_that_it_learns_from_users(caplog: pytest.LogCaptureFixture) -> None:
    moderator(**OFF)
    assert caplog.text == ""
    moderator()
    assert "learns from the images that users send" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"unsafe": {}},
        {"safe": {}},
        {"unsafe": {"glare": ()}},
        {"templates": ["a photo"]},
        {"templates": []},
        {"max_drift": 1.5},
        {"model": ""},
        {"positive": {"size": 0}},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"image_moderators\.taea"):
        Plugins().make("image_moderators", Use(use="taea", options={"model": "none", **wrong}))


def test_parts_are_the_corners_and_the_middle_of_any_image() -> None:
    for size in ((40, 80), (1, 1), (3, 2)):
        found = parts(pillow.new("RGB", size))
        assert len(found) == 5
        assert {part.size for part in found} == {tuple(max(1, s * 3 // 4) for s in size)}
    numbered = pillow.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    assert [np.asarray(part)[0, 0] for part in parts(numbered)] == [0, 4, 1, 5, 0]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_as_the_image_gate_of_a_guard(kind: str, tmp_path: Path) -> None:
    options = {
        "model": str(save(kind, tmp_path)),
        "device": "cpu",
        "unsafe": {"weather": ["the storm", "fog"]},
        "safe": {"animals": ["a cat"], "things": ["a kettle"]},
        "templates": ["a photo of {}"],
        "learning_rate": 1e-4,
        "threshold": 1.0,
    }
    config = GuardConfig.parse({"image_gate": {"use": "taea", "options": options}, "steerers": []})
    guard = Guard.from_config(config, backend=SeeingBackend([]))
    answer = "Begin with two circles, and add a beak."
    good, bad = (
        asyncio.run(guard.review(asking(image_part(data)), answer))
        for data in (png(64, 48), png(64, 48, broken=True))
    )
    assert good.text == answer
    assert good.record.image_score is not None
    assert 0 < good.record.image_score < 1
    assert bad.action == "fallback"
