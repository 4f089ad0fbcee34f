"""Tool calls of a model: the gate sees the texts in their arguments."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from typing import Any

import pytest
from nemoguardrails.logging.processing_log import processing_log_var
from nemoguardrails.testing import FakeLLMModel
from nemoguardrails.types import LLMResponse, ToolCall, ToolCallFunction

from ttsa_guard.testing import ScriptedBackend, ScriptedModerator

from .conftest import FALLBACK, FLAGGED, SAFE, USER, make_app, make_guard, say
from .test_privacy import EVERYTHING

GOOD = {"query": "owls", "n": 3, "sure": True}
BAD = {"to": ["a", {"text": FLAGGED}], "n": 3}


def app_for(
    *calls: dict[str, Any], answer: LLMResponse | None = None, guard: Any = None, **settings: Any
) -> Any:
    app = make_app("1.0", guard or make_guard(ScriptedBackend([])), passthrough=True, **settings)
    tools = [
        ToolCall(str(i), function=ToolCallFunction("send", deepcopy(arguments)))
        for i, arguments in enumerate(calls)
    ]
    app.update_llm(
        FakeLLMModel(llm_responses=[answer or LLMResponse("", tool_calls=tools), LLMResponse(SAFE)])
    )
    return app


def test_calls_that_pass_are_made() -> None:
    gate = ScriptedModerator(name="gate")
    app = app_for(GOOD, {"text": "hello"}, guard=make_guard(gate=gate))
    reply = say(app)
    assert [call["function"]["arguments"] for call in reply["tool_calls"]] == [
        GOOD,
        {"text": "hello"},
    ]
    assert gate.calls == [["owls\nhello"]]


def test_calls_without_texts_cost_nothing() -> None:
    gate = ScriptedModerator(name="gate")
    assert say(app_for({"n": 3}, {}, guard=make_guard(gate=gate)))["tool_calls"]
    assert gate.calls == []


@pytest.mark.parametrize(
    "options", [None, EVERYTHING, {"rails": {"tool_output": False}}, {"rails": ["input", "dialog"]}]
)
def test_flagged_calls_are_dropped(options: Any) -> None:
    app = app_for(GOOD, BAD)
    reply = say(app, options=options)
    message = reply.response[0] if options else reply
    assert message["content"] == FALLBACK
    assert not message.get("tool_calls")
    assert not getattr(reply, "tool_calls", None)
    for record in (reply, app.explain(), app.events_history_cache):
        assert "seekrit" not in str(record)
    assert say(app)["content"] == SAFE


def test_flagged_calls_in_a_stream() -> None:
    async def read() -> str:
        return "".join([piece async for piece in app_for(BAD).stream_async(messages=USER)])

    assert asyncio.run(read()) == FALLBACK


def test_flagged_calls_with_exceptions_on() -> None:
    reply = say(app_for(BAD, enable_rails_exceptions=True))
    assert (reply["role"], reply["content"]["type"]) == ("exception", "OutputRailException")
    assert "seekrit" not in str(reply)


@pytest.mark.parametrize(
    "gate", [{"error": RuntimeError(FLAGGED)}, {"delay": 60}, {"instead": None}], ids=str
)
def test_a_gate_that_fails_keeps_calls_back(gate: Any) -> None:
    reply = say(app_for(GOOD, guard=make_guard(gate=ScriptedModerator(**gate), gate_seconds=0.05)))
    assert reply == {"role": "assistant", "content": FALLBACK}


def test_an_action_of_another_kind_keeps_calls_back() -> None:
    async def ttsa_gate_tools() -> Any:
        return None

    app = app_for(BAD)
    app.register_action(ttsa_gate_tools, "ttsa_gate_tools")
    assert say(app)["content"] == "I'm sorry, I can't respond to that."


def test_a_guard_that_leaves_calls_alone() -> None:
    reply = say(app_for(BAD, guard=make_guard(ScriptedBackend([]), gate_tool_calls=False)))
    assert reply["tool_calls"][0]["function"]["arguments"] == BAD


def test_the_review_of_calls_is_on_record() -> None:
    options = {"log": {"activated_rails": True}}
    rails = say(app_for(BAD), options=options).log.activated_rails
    [rail] = [rail for rail in rails if rail.name == "ttsa gate tool calls"]
    metadata = rail.executed_actions[0].return_value.metadata
    assert (metadata["action"], metadata["reason"], metadata["gate_score"]) == (
        "fallback",
        "the gate flagged it",
        1.0,
    )


def test_a_cancelled_call_leaves_no_log() -> None:
    gate = ScriptedModerator(name="gate", delay=60)
    app = app_for(BAD, guard=make_guard(gate=gate, gate_seconds=60))

    logs: list[str] = []

    async def asked() -> None:
        try:
            await app.generate_async(messages=USER)
        finally:
            logs.append(str(processing_log_var.get()))

    async def main() -> None:
        work = asyncio.ensure_future(asked())
        while not gate.calls and not work.done():
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(main())
    assert logs == ["[]"]
