"""Conversations with pictures, in both Colang versions."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import httpx
import pytest
from nemoguardrails import LLMRails
from nemoguardrails.exceptions import LLMCallException
from nemoguardrails.server import api
from nemoguardrails.testing import FakeLLMModel

from tests.pictures import HOSTILE, asking, data_url, image_part, png
from ttsa_guard.messages import Message, images_of
from ttsa_guard.nemo import BackendModel, install
from ttsa_guard.nemo.requests import RequestRefusedError
from ttsa_guard.testing import ScriptedBackend, ScriptedImageModerator, SeeingBackend

from .conftest import FALLBACK, FLAGGED, SAFE, STEERED, make_app, make_config, make_guard, say
from .test_privacy import EVERYTHING, TRACING

ONE, TWO = png(grey=1), png(grey=2)
ALONE = asking(image_part(ONE), text="")


class Records:
    """An observer that keeps the records."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def write(self, record: Any) -> None:
        self.kept.append(record)


def observed(guard: Any) -> Records:
    guard._sink = Records()
    return guard._sink


def seeing_app(version: str, answers: list[str], **parts: Any) -> tuple[LLMRails, SeeingBackend]:
    """An app whose only model sees images: the chat and its repair are both its own."""
    backend = SeeingBackend(answers)
    app = LLMRails(make_config(version, passthrough=True), llm=BackendModel(backend))
    install(app, make_guard(backend, **parts))
    return app, backend


@pytest.mark.parametrize("text", ["What is this?", ""], ids=["with a text", "alone"])
def test_a_conversation_with_pictures(version: str, text: str) -> None:
    app, backend = seeing_app(version, [FLAGGED, STEERED, SAFE])
    turns = asking(
        image_part(ONE), {"type": "file", "file": {"file_data": data_url(TWO)}}, text=text
    )
    records = observed(app.runtime.registered_action_params["ttsa_guard"])
    assert say(app, turns)["content"] == STEERED
    if version == "1.0":  # that of Colang 2.x takes no earlier answers
        turns += [{"role": "assistant", "content": STEERED}]
    turns += [{"role": "user", "content": "And now?"}]
    assert say(app, turns)["content"] == SAFE
    seen = [[image.data for image in batch[0].prompt.images] for batch in backend.calls]
    assert seen == [[ONE, TWO]] * 3
    assert [r.action for r in records.kept] == ["swap", "pass"]
    assert [i.size for i in records.kept[1].images] == [len(ONE), len(TWO)]


def test_a_model_that_sees_nothing_steers_nothing(version: str) -> None:
    guard = make_guard()
    records = observed(guard)
    app = make_app(version, guard, [FLAGGED])
    assert say(app, asking(image_part(ONE)))["content"] == FALLBACK
    assert [r.reason for r in records.kept] == ["the model cannot see the images"]
    assert guard.backend.calls == []


def test_a_picture_alone_is_gated_as_usual(version: str) -> None:
    assert say(make_app(version, make_guard(), [SAFE]), ALONE)["content"] == SAFE
    assert say(make_app(version, make_guard(), [FLAGGED]), ALONE)["content"] == FALLBACK


def test_a_text_model_does_not_answer_a_picture(version: str) -> None:
    backend = ScriptedBackend([SAFE])
    app = LLMRails(make_config(version, passthrough=True), llm=BackendModel(backend))
    install(app, make_guard(backend))
    with pytest.raises(LLMCallException, match="cannot see the images"):
        say(app, asking(image_part(ONE)))
    assert backend.calls == []


class Looks(FakeLLMModel):
    """A model of the host that keeps what it is given."""

    def __init__(self, *answers: str) -> None:
        super().__init__(responses=list(answers))
        self.given: list[Any] = []

    async def generate_async(self, prompt: Any, **options: Any) -> Any:
        self.given.append([message.to_dict() for message in prompt])
        return await super().generate_async(prompt, **options)


def test_the_hosts_model_gets_the_parts_as_they_were_sent(version: str) -> None:
    model, turns = Looks(SAFE), asking(image_part(ONE), image_part(url="https://example.com/a.png"))
    app = LLMRails(make_config(version, passthrough=True), llm=model)
    install(app, make_guard())
    assert say(app, turns)["content"] == SAFE
    assert model.given == [turns]


def reviewed_images(app: LLMRails) -> list[list[bytes]]:
    """The images of each review of this app, from now on."""
    found: list[list[bytes]] = []
    guard = app.runtime.registered_action_params["ttsa_guard"]
    review = guard.review

    async def kept(messages: Any, *args: Any, **options: Any) -> Any:
        found.append([i.data for i in images_of(Message.conversation(messages))])
        return await review(messages, *args, **options)

    guard.review = kept
    return found


def test_another_picture_under_the_same_text_is_another_conversation(version: str) -> None:
    """The host keeps the events of a conversation under its texts alone."""
    answers = {ONE: "It is the first.", TWO: "It is the second."}

    def answer(request: Any) -> str:
        return answers[request.prompt.images[-1].data]

    app, _ = seeing_app(version, answer)  # type: ignore[arg-type]
    found = reviewed_images(app)
    for picture in (ONE, TWO, ONE):
        assert say(app, asking(image_part(picture)))["content"] == answers[picture]
    assert found == [[ONE], [TWO], [ONE]]


def test_a_later_turn_has_the_pictures_of_its_own_conversation() -> None:
    """Both conversations have the same texts up to here."""
    app = make_app("1.0", make_guard(), [SAFE] * 4, passthrough=True)
    found = reviewed_images(app)
    later = [{"role": "assistant", "content": SAFE}, {"role": "user", "content": "And now?"}]
    for picture in (ONE, TWO):
        say(app, asking(image_part(picture)))
    for picture in (ONE, TWO):
        say(app, [*asking(image_part(picture)), *later])
    assert found == [[ONE], [TWO], [ONE], [TWO]]
    keys = list(app.events_history_cache)
    assert len(keys) == len(set(keys)) == 4


def test_nobody_can_write_the_key_of_a_picture() -> None:
    app = make_app("1.0", make_guard(), [SAFE] * 2, passthrough=True)
    say(app, asking(image_part(ONE)))
    [key] = app.events_history_cache
    assert not isinstance(key, str)


def test_an_answer_may_hold_an_image(version: str) -> None:
    answers = [f"It is {data_url(ONE)} in base64.", "A" * 1500, "[{'a': '" + "A" * 1500 + "'}]"]
    app = make_app(version, make_guard(), answers, passthrough=True)
    for answer in answers:
        assert say(app, asking(image_part(ONE)))["content"] == answer


def test_a_text_that_a_rail_rewrites_keeps_its_pictures() -> None:
    rail = "define subflow tidy\n  $user_message = 'What is this, please?'\n"
    app = make_app("1.0", make_guard(), [SAFE], colang=rail, rails={"input": {"flows": ["tidy"]}})
    found = reviewed_images(app)
    assert say(app, asking(image_part(ONE)))["content"] == SAFE
    assert found == [[ONE]]


def test_a_hostile_picture_is_refused_before_any_model_sees_it(version: str) -> None:
    model = Looks()
    app = LLMRails(make_config(version, passthrough=True), llm=model)
    install(app, make_guard())
    for url, said in HOSTILE.values():
        with pytest.raises(RequestRefusedError, match=said) as caught:
            say(app, asking(image_part(url=url)))
        assert len(str(caught.value)) < 200
    assert model.given == []


@pytest.mark.parametrize("mode", [pytest.param("buffered", marks=pytest.mark.slow), "progressive"])
def test_streams(version: str, mode: str) -> None:
    async def run(turns: Any) -> str:
        app, _ = seeing_app(version, [f"{FLAGGED} And more.", STEERED], streaming=mode)
        return "".join([piece async for piece in app.stream_async(messages=turns)])

    assert asyncio.run(run(asking(image_part(ONE)))) == STEERED
    refused = asyncio.run(run(asking(image_part(url=HOSTILE["bomb"][0]))))
    assert "60000 x 60000 pixels" in refused
    assert "seekrit" not in refused


@pytest.mark.parametrize("mode", [pytest.param("buffered", marks=pytest.mark.slow), "progressive"])
def test_the_image_gate_in_streams(version: str, mode: str) -> None:
    async def run(picture: bytes) -> str:
        gate = [ScriptedImageModerator(lambda image: float(image.width > 5))]
        app, _ = seeing_app(version, [SAFE], streaming=mode, image_gate=gate)
        turns = asking(image_part(picture))
        return "".join([piece async for piece in app.stream_async(messages=turns)])

    assert asyncio.run(run(ONE)) == SAFE
    assert asyncio.run(run(png(9))) == FALLBACK


def test_the_hosts_server_answers_400(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app("1.0", make_guard(), [SAFE] * 2, passthrough=True)
    monkeypatch.setitem(api.llm_rails_instances, api._generate_cache_key(["seen"], "m"), app)

    async def post(part: Any) -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=api.app), base_url="http://here"
        ) as client:
            body = {"model": "m", "guardrails": {"config_id": "seen"}, "messages": asking(part)}
            return await client.post("/v1/chat/completions", json=body)

    good, bad = (asyncio.run(post(p)) for p in (image_part(), image_part(url=HOSTILE["svg"][0])))
    assert (good.status_code, bad.status_code) == (200, 400)
    assert good.json()["choices"][0]["message"]["content"] == SAFE
    assert "SVG" in bad.text


@pytest.mark.parametrize("found", [STEERED, FLAGGED], ids=["swap", "fallback"])
def test_nothing_of_a_picture_is_logged_or_traced(
    version: str, found: str, caplog: pytest.LogCaptureFixture, spans: Any
) -> None:
    turns = asking(image_part(ONE), {"type": "file", "file": {"file_data": data_url(TWO)[22:]}})
    tracing = {"tracing": TRACING} if version == "1.0" else {}
    backend = SeeingBackend([found])
    app = make_app(version, make_guard(backend), [FLAGGED], **tracing)
    with caplog.at_level(logging.DEBUG):
        reply = say(app, turns, **({"options": EVERYTHING} if version == "1.0" else {}))
    traced = "".join(span.to_json() for span in spans.get_finished_spans())
    log = str(getattr(reply, "log", ""))
    for secret in (data_url(ONE)[22:], data_url(TWO)[22:], repr(ONE)[2:-1]):
        assert secret not in caplog.text + traced + log
    assert "ttsa_guard.review" in traced


def test_megabytes_of_a_picture_do_not_hold_up_a_flagged_turn(version: str) -> None:
    """To look for quotes in them took some ten seconds."""
    part = {"type": "file", "file": {"file_data": data_url(b"%PDF" + b"a" * 6_000_000, "a/b")}}
    app = make_app(version, make_guard(), [FLAGGED])
    began = time.process_time()
    assert say(app, asking(part))["content"] == FALLBACK
    assert time.process_time() - began < 5
