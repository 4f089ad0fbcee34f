"""Flagged text is in nothing that the host records, hands out or logs."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from nemoguardrails.testing import FakeLLMModel
from nemoguardrails.types import LLMResponse, ToolCall, ToolCallFunction

from .conftest import FALLBACK, FLAGGED, SAFE, STEERED, USER, make_app, make_guard, say

EVERYTHING = {
    "log": {"activated_rails": True, "llm_calls": True, "internal_events": True, "colang_history": True},
    "output_vars": True,
    "llm_output": True,
}


@pytest.mark.parametrize("settings", [{}, {"passthrough": True}, {"enable_rails_exceptions": True}])
@pytest.mark.parametrize("found", [STEERED, FLAGGED], ids=["swap", "fallback"])
def test_a_client_that_asks_for_everything(settings: dict[str, Any], found: str) -> None:
    app = make_app("1.0", make_guard([found]), [FLAGGED], **settings)
    response = say(app, options=EVERYTHING, state={})
    assert "seekrit" not in response.model_dump_json()
    assert "seekrit" not in app.explain().model_dump_json()
    assert response.log.llm_calls[0].completion == "[withheld]"
    assert response.log.activated_rails[-1].executed_actions[0].return_value.metadata["action"] in ("swap", "fallback")


def test_an_answer_that_passes_is_recorded_as_ever() -> None:
    response = say(make_app("1.0", make_guard(), [SAFE]), options=EVERYTHING)
    assert response.log.llm_calls[0].completion == SAFE
    assert SAFE in response.log.colang_history


def test_a_turn_that_cannot_be_reviewed() -> None:
    turns = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    response = say(make_app("1.0", make_guard(), [FLAGGED], passthrough=True), turns, options=EVERYTHING)
    assert response.response[0]["content"] == FALLBACK
    assert "seekrit" not in response.model_dump_json()


def test_later_turns_of_a_session() -> None:
    app = make_app("1.0", make_guard([STEERED, STEERED]), [FLAGGED, SAFE, FLAGGED])
    state: Any = {}
    texts = []
    for _ in range(3):
        response = say(app, options=EVERYTHING, state=state)
        state = response.state
        texts.append(response.response[0]["content"])
        assert "seekrit" not in response.model_dump_json()
    assert texts == [STEERED, SAFE, STEERED]


def test_the_users_own_words_stay() -> None:
    app = make_app("1.0", make_guard([STEERED]), ["bad"])
    response = say(app, [{"role": "user", "content": "Is it bad?"}], options=EVERYTHING)
    assert "Is it bad?" in response.log.colang_history
    assert [e["text"] for e in response.log.internal_events if e["type"] == "BotMessage"] == ["[withheld]"]


SEARCH = ToolCall("1", function=ToolCallFunction("search", {"q": "owls"}))
THOUGHT = "a seekrit plan"
ANSWERS = {
    "nothing else": LLMResponse("", reasoning=THOUGHT),
    "in the text": LLMResponse(f"<think>{THOUGHT}</think>"),
    "beside a tool call": LLMResponse("", tool_calls=[SEARCH], reasoning=THOUGHT),
    "before a safe answer": LLMResponse(SAFE, reasoning=THOUGHT),
    "before a flagged answer": LLMResponse(FLAGGED, reasoning=THOUGHT),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("passthrough", [False, True])
@pytest.mark.parametrize("options", [None, EVERYTHING])
def test_reasoning_is_in_no_record(version: str, answer: LLMResponse, passthrough: bool, options: Any) -> None:
    if version == "2.x" and options:
        pytest.skip("the host has no such options there")
    model = FakeLLMModel(llm_responses=[answer, LLMResponse(SAFE)])
    app = make_app(version, make_guard([STEERED]), passthrough=passthrough)
    app.update_llm(model)
    response = say(app, options=options)
    assert "seekrit" not in str(response)
    assert "seekrit" not in app.explain().model_dump_json()
    assert "seekrit" not in str(app.events_history_cache)


@pytest.mark.parametrize("found", [STEERED, FLAGGED], ids=["swap", "fallback"])
@pytest.mark.parametrize("streams", [False, True])
def test_logs(version: str, found: str, streams: bool, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(version, make_guard([found]), [FLAGGED])

    async def run() -> str:
        if streams:
            return "".join([piece async for piece in app.stream_async(messages=USER)])
        return str((await app.generate_async(messages=USER))["content"])

    with caplog.at_level(logging.DEBUG):
        assert asyncio.run(run()) == (STEERED if found == STEERED else FALLBACK)
    assert "seekrit" not in caplog.text
    assert "nemoguardrails" in {r.name.split(".")[0] for r in caplog.records} or version == "2.x"


def test_an_action_of_the_host_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks(context: Any) -> None:
        raise RuntimeError(f"cannot handle {context['bot_message']}")

    colang = "define subflow check it\n  execute breaks\n"
    app = make_app("1.0", make_guard(), [FLAGGED], colang=colang, rails={"output": {"flows": ["check it"]}})
    app.register_action(breaks, "breaks")
    with caplog.at_level(logging.DEBUG):
        say(app)
    assert "seekrit" not in caplog.text
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "Error while execution 'breaks' with parameters '[withheld]': RuntimeError",
        "RuntimeError",
    ]


@pytest.mark.parametrize("found", [STEERED, FLAGGED], ids=["swap", "fallback"])
def test_traces_of_the_host(found: str, spans: Any) -> None:
    tracing = {"enabled": True, "adapters": [{"name": "OpenTelemetry"}], "enable_content_capture": True}
    say(make_app("1.0", make_guard([found]), [FLAGGED], tracing=tracing))
    traced = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "ttsa_guard.review" in traced
    assert USER[0]["content"] in traced  # the host does record texts
    assert "seekrit" not in traced
