"""What a guard does about the images of a conversation."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.pictures import HOSTILE, asking, data_url, image_part, png
from ttsa_guard.config import FALLBACK, GuardConfig
from ttsa_guard.errors import PluginError, PromptError
from ttsa_guard.guard import Guard
from ttsa_guard.images import Image
from ttsa_guard.messages import Message
from ttsa_guard.plugins import Plugins, hookimpl
from ttsa_guard.record import Outcome
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import (
    ScriptedBackend,
    ScriptedImageModerator,
    SeeingBackend,
    scripted_guard,
)

BAD, GOOD = "a bad answer with SECRET words", "a good answer in plain words"
SEEN = asking(image_part())
UNREAD = asking(image_part(url="https://example.com/a.png"))


def guard_of(backend: ScriptedBackend, **settings: Any) -> Guard:
    return scripted_guard(backend, steerers=[Resample(ResampleOptions(n=1))], **settings)


def review(guard: Guard, turns: Any, answer: str = BAD, **options: Any) -> Outcome:
    return asyncio.run(guard.review(turns, answer, **options))


def test_a_model_that_sees_the_images_steers() -> None:
    backend = SeeingBackend([GOOD])
    assert review(guard_of(backend), SEEN).text == GOOD
    assert backend.calls[0][0].prompt.images == Message.conversation(SEEN)[0].images


@pytest.mark.parametrize("turns", [SEEN, [*SEEN, *asking()]], ids=["now", "earlier"])
def test_a_model_that_sees_none_refuses_to_steer(turns: Any) -> None:
    backend = ScriptedBackend([GOOD])
    outcome = review(guard_of(backend), turns)
    assert (outcome.text, outcome.action) == (FALLBACK, "fallback")
    assert outcome.record.reason == "the model cannot see the images"
    assert backend.calls == []


def test_nobody_steers_by_what_cannot_be_read() -> None:
    backend = SeeingBackend([GOOD])
    assert review(guard_of(backend), UNREAD).record.reason == "the model cannot see the images"


def test_a_model_may_see_some_kinds_only() -> None:
    backend = SeeingBackend([GOOD])
    backend.image_types = frozenset({"image/jpeg"})
    assert review(guard_of(backend), SEEN).action == "fallback"


@pytest.mark.parametrize("backend", [ScriptedBackend, SeeingBackend])
@pytest.mark.parametrize("turns", [SEEN, UNREAD, asking(image_part(), text="")])
def test_a_good_answer_passes_whoever_sees_the_image(backend: Any, turns: Any) -> None:
    assert review(guard_of(backend([])), turns, GOOD).text == GOOD


def test_an_image_alone_is_steered() -> None:
    assert review(guard_of(SeeingBackend([GOOD])), asking(image_part(), text="")).text == GOOD


def test_no_plain_answer_without_seeing() -> None:
    backend = ScriptedBackend([GOOD])
    with pytest.raises(PromptError, match="cannot see the images"):
        asyncio.run(guard_of(backend).respond(SEEN))
    assert backend.calls == []
    assert asyncio.run(guard_of(SeeingBackend([GOOD])).respond(SEEN)).text == GOOD


def test_a_refused_image_is_the_reason_of_the_fallback() -> None:
    outcome = review(
        guard_of(SeeingBackend([])), asking(image_part(url=HOSTILE["cut off"][0])), GOOD
    )
    assert outcome.text == FALLBACK
    assert outcome.record.reason == "image refused: an image is broken or cut off"


def test_the_limits_are_those_of_the_settings() -> None:
    guard = guard_of(SeeingBackend([]), images={"max_pixels": 3})
    assert "3 are taken" in review(guard, SEEN, GOOD).record.reason


def test_records_have_hash_and_size_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, path = png(grey=5), tmp_path / "audit.jsonl"
    guard = guard_of(SeeingBackend([GOOD]), audit={"path": path, "texts": True})
    with caplog.at_level(logging.DEBUG):
        outcome = review(guard, asking(image_part(data)))
    image = Image.from_url(data_url(data))
    assert json.loads(path.read_text())["images"] == [{"sha256": image.sha256, "size": len(data)}]
    for secret in (data_url(data)[22:], repr(data)[2:-1]):
        assert secret not in path.read_text() + caplog.text + repr(outcome)


# ------------------------------------------------------------------ the image gate


def gated(
    score: Any = lambda image: float(image.width > 5), **parts: Any
) -> tuple[Guard, ScriptedImageModerator]:
    moderator = ScriptedImageModerator(score, **parts)
    return scripted_guard(
        SeeingBackend([GOOD]), image_gate=[moderator], gate_seconds=0.2
    ), moderator


WIDE = asking(image_part(png(9, 2)))


def test_an_answer_to_a_flagged_image_does_not_leave() -> None:
    guard, _ = gated()
    outcome = review(guard, WIDE, GOOD)
    assert (outcome.text, outcome.record.reason) == (FALLBACK, "an image is flagged")
    assert outcome.record.image_score == 1.0
    assert outcome.withheld == (GOOD,)
    assert review(guard, SEEN, GOOD).text == GOOD
    assert review(guard, asking(), GOOD).record.image_score is None


def test_images_of_earlier_turns_count() -> None:
    assert review(gated()[0], [*WIDE, *asking()], GOOD).text == FALLBACK


def test_every_image_is_judged_once() -> None:
    guard, moderator = gated()
    turns = asking(*(image_part(png(grey=grey)) for grey in (1, 2, 1)))
    assert review(guard, turns, GOOD).text == GOOD
    assert [[i.data for i in batch] for batch in moderator.calls] == [[png(grey=1), png(grey=2)]]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"error": RuntimeError("SECRET")}, "RuntimeError"),
        ({"delay": 5.0}, "TimeoutError"),
        ({"score": lambda _: 7.0}, "ModeratorError"),
    ],
)
def test_an_image_gate_that_fails_ends_closed(parts: Any, reason: str) -> None:
    record = review(gated(**parts)[0], SEEN, GOOD).record
    assert (record.action, record.reason) == ("fallback", f"image gate failed: {reason}")


def test_an_image_that_cannot_be_read_ends_closed() -> None:
    guard, moderator = gated()
    assert review(guard, UNREAD, GOOD).record.reason == (
        "image gate failed: an image or file that cannot be read"
    )
    assert moderator.calls == []


def test_one_of_several_image_moderators_is_enough() -> None:
    both = [ScriptedImageModerator(), ScriptedImageModerator(lambda _: 0.7)]
    guard = scripted_guard([], image_gate=both)
    assert review(guard, SEEN, GOOD).record.image_score == 0.7


def test_a_stream_shows_nothing_of_an_answer_to_a_flagged_image() -> None:
    async def shown(turns: Any) -> str:
        images = Message.conversation(turns)[0].images
        stream_gate = gated()[0].stream_gate("How?", images)

        async def texts() -> Any:
            yield "A fine sentence. Another"
            yield " one, and more."

        return "".join([piece async for piece in stream_gate.stream(texts())])

    assert asyncio.run(shown(SEEN)).startswith("A fine sentence.")
    assert asyncio.run(shown(WIDE)) == ""


def test_settings_name_the_image_gate() -> None:
    plugins = Plugins()
    found: list[Any] = []

    class Brings:
        @hookimpl
        def ttsa_register_image_moderators(self, register: Any) -> None:
            register("wide", lambda options: found.append(options) or ScriptedImageModerator())

    plugins.add(Brings())
    config = GuardConfig.parse(
        {"image_gate": "wide", "gate": "lite", "guide": "lite", "steerers": []}
    )
    guard = Guard.from_config(config, plugins=plugins, backend=SeeingBackend([]))
    assert len(guard.image_gate) == len(found) == 1
    with pytest.raises(PluginError, match="registers no image_moderator of that name"):
        plugins.load("image_moderators", "lite")
