"""Requests with pictures, to the endpoint."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from tests.pictures import HOSTILE, asking, data_url, image_part, png
from ttsa_guard.serve.app import Limits
from ttsa_guard.testing import ScriptedImageModerator, SeeingBackend

from .conftest import (
    FALLBACK,
    FLAGGED,
    SAFE,
    STEERED,
    Model,
    ask,
    completion,
    deltas,
    events,
    make_guard,
    post,
    text_of,
)
from .conftest import reply as first_choice

TURNS = asking(image_part(), {"type": "file", "file": {"file_data": data_url(png(grey=9))}})
ALONE = asking(image_part(), text="")


def said(model: Model, guard: Any = None, turns: Any = TURNS) -> str:
    return str(first_choice(model, guard, messages=turns)["message"]["content"])


def test_the_upstream_gets_the_parts_as_they_were_sent() -> None:
    model = Model()
    assert said(model) == SAFE
    assert model.asked[0]["messages"] == TURNS


def test_a_flagged_answer_is_steered_by_a_model_that_sees() -> None:
    backend = SeeingBackend([STEERED])
    assert said(Model(completion(FLAGGED)), make_guard(backend)) == STEERED
    assert [i.data for i in backend.calls[0][0].prompt.images] == [png(), png(grey=9)]


def test_a_flagged_answer_is_not_steered_by_a_model_that_sees_nothing() -> None:
    guard = make_guard()
    assert said(Model(completion(FLAGGED)), guard) == FALLBACK
    assert guard.backend.calls == []


def test_a_picture_alone_is_gated_as_usual() -> None:
    assert said(Model(), turns=ALONE) == SAFE
    assert said(Model(completion(FLAGGED)), turns=ALONE) == FALLBACK


@pytest.mark.parametrize("mode", ["buffered", "progressive"])
def test_the_image_gate(mode: str) -> None:
    gate = [ScriptedImageModerator(lambda image: float(image.width > 5))]

    def shown(picture: bytes) -> str:
        guard = make_guard(image_gate=gate, streaming=mode)
        model = Model(completion(f"{SAFE} And more."), chunks=deltas(f"{SAFE} And ", "more."))
        turns = asking(image_part(picture))
        return text_of(ask(model, lambda server: events(server, messages=turns), guard))

    assert shown(png()) == f"{SAFE} And more."
    assert shown(png(9)) == FALLBACK


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_picture_is_a_bad_request(kind: str) -> None:
    url, problem = HOSTILE[kind]
    model = Model()
    status, found = ask(
        model, lambda server: post(server, {"messages": asking(image_part(url=url))})
    )
    assert (status, found["error"]["param"]) == (400, "messages")
    assert problem in found["error"]["message"]
    assert len(found["error"]["message"]) < 200
    assert model.asked == []


def test_200_megabytes_are_not_read() -> None:
    body = io.BytesIO(b'{"messages": "data:image/png;base64,' + b"A" * 200_000_000)

    async def work(server: Any) -> tuple[int, str]:
        url, headers = f"{server.url}/v1/chat/completions", {"Content-Type": "application/json"}
        async with server.session.post(url, data=body, headers=headers) as response:
            return response.status, await response.text()

    status, found = ask(Model(), work)
    assert status == 413
    assert "too large" in found


@pytest.mark.parametrize("stream", [False, True])
def test_megabytes_of_pictures_get_to_the_upstream(stream: bool) -> None:
    part = {"type": "file", "file": {"file_data": data_url(b"%PDF" * 600_000, "application/pdf")}}
    model = Model(chunks=deltas(SAFE))
    body = json.dumps({"messages": asking(part), "stream": stream}).encode()

    async def work(server: Any) -> int:
        url, headers = f"{server.url}/v1/chat/completions", {"Content-Type": "application/json"}
        async with server.session.post(url, data=io.BytesIO(body), headers=headers) as response:
            return int(response.status)

    guard = make_guard(streaming="progressive")
    assert ask(model, work, guard, limits=Limits(body=2**22)) == 200
    assert model.asked[0]["messages"] == asking(part)


def test_the_limits_are_those_of_the_settings() -> None:
    guard = make_guard(images={"max_images": 1})
    status, found = ask(Model(), lambda server: post(server, {"messages": TURNS}), guard)
    assert status == 400
    assert "more than 1 images" in found["error"]["message"]
