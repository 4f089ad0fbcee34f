"""What a user sees: the rail in a running LLMRails, in both Colang versions where the host can do
it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nemoguardrails.rails.llm.options import RailStatus, RailType
from nemoguardrails.streaming import END_OF_STREAM, StreamingHandler
from nemoguardrails.testing import FakeLLMModel
from nemoguardrails.types import LLMResponse, ToolCall, ToolCallFunction

from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator

from .conftest import FALLBACK, FLAGGED, SAFE, STEERED, USER, make_app, make_guard, say


class Watched(ScriptedModerator):
    """A gate that also keeps the prompts."""

    def __init__(self) -> None:
        super().__init__(name="gate")
        self.prompts: list[str] = []

    async def moderate(self, texts: Any, *, prompts: Any) -> Any:
        self.prompts += prompts
        return await super().moderate(texts, prompts=prompts)


def test_safe_answer_is_untouched_and_costs_one_gate_call(version: str) -> None:
    gate, backend = ScriptedModerator(name="gate"), ScriptedBackend([])
    app = make_app(version, make_guard(backend, gate=gate), [SAFE])
    assert say(app) == {"role": "assistant", "content": SAFE}
    assert (gate.calls, backend.calls) == ([[SAFE]], [])


def test_flagged_answer_is_swapped(version: str) -> None:
    assert say(make_app(version, make_guard(), [FLAGGED])) == {
        "role": "assistant",
        "content": STEERED,
    }


def test_without_a_good_answer_the_user_reads_the_fallback(version: str) -> None:
    assert say(make_app(version, make_guard([FLAGGED]), [FLAGGED]))["content"] == FALLBACK


def test_every_turn_is_reviewed(version: str) -> None:
    app = make_app(
        version, make_guard([STEERED, FLAGGED, STEERED]), [FLAGGED, SAFE, FLAGGED, FLAGGED]
    )
    assert [say(app)["content"] for _ in range(4)] == [STEERED, SAFE, FALLBACK, STEERED]


INSTRUCTIONS = [{"type": "general", "content": "You are the bot of a museum.\n"}]
TOLD = [("system", "You are the bot of a museum.")]


@pytest.mark.parametrize(
    ("settings", "before", "read"),
    [
        ({"instructions": INSTRUCTIONS}, [], TOLD),
        ({}, [], []),
        ({"instructions": INSTRUCTIONS, "passthrough": True}, [], []),
        (
            {"instructions": INSTRUCTIONS},
            [{"role": "system", "content": "Be brief."}],
            [("system", "Be brief.")],
        ),
    ],
    ids=["its-own", "the-hosts", "not-sent", "of-the-conversation"],
)
def test_what_mends_reads_the_instructions_that_the_apps_model_has_read(
    settings: dict[str, Any], before: list[dict[str, str]], read: list[tuple[str, str]]
) -> None:
    guard, seen = make_guard(), []
    review = guard.review

    async def spy(messages: Any, answer: str, **_: Any) -> Any:
        seen.append([(m.role, m.content) for m in messages])
        return await review(messages, answer)

    guard.review = spy  # type: ignore[method-assign, assignment]
    say(make_app("1.0", guard, [FLAGGED], **settings), [*before, *USER])
    assert seen == [[*read, ("user", USER[0]["content"])]]


@pytest.mark.parametrize("settings", [{}, {"passthrough": True}])
def test_history_holds_what_the_user_saw(settings: dict[str, Any]) -> None:
    guard = make_guard()
    seen: list[Any] = []
    review = guard.review

    async def spy(messages: Any, answer: str, **_: Any) -> Any:
        seen.append([(m.role, m.content) for m in messages])
        return await review(messages, answer)

    guard.review = spy  # type: ignore[method-assign]
    app = make_app("1.0", guard, [FLAGGED, SAFE], **settings)
    turns = [{"role": "system", "content": "Be kind."}, *USER]
    turns.append(say(app, turns))
    say(app, [*turns, {"role": "user", "content": "And then?"}])
    first = [("system", "Be kind."), ("user", USER[0]["content"])]
    assert seen == [first, [*first, ("assistant", STEERED), ("user", "And then?")]]


class Asked(Resample):
    """A steerer that keeps what it is told of preferences."""

    def __init__(self) -> None:
        super().__init__(ResampleOptions(n=1))
        self.prefer: list[Any] = []

    async def steer(self, task: Any) -> Any:
        self.prefer.append(task.prefer)
        async for candidates in super().steer(task):
            yield candidates


def test_preferences_in_the_context_reach_the_steerers(version: str) -> None:
    steerer = Asked()
    app = make_app(version, make_guard([STEERED, STEERED], steerers=[steerer]), [FLAGGED, FLAGGED])
    wanted = {"empathy": 0.6, "helpfulness": 0.4}
    assert say(app)["content"] == STEERED
    assert (
        say(app, [{"role": "context", "content": {"ttsa_prefer": wanted}}, *USER])["content"]
        == STEERED
    )
    assert steerer.prefer == [None, wanted]


def test_history_that_the_app_has_not_seen() -> None:
    gate = Watched()
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": FLAGGED},
        {"role": "user", "content": "b"},
    ]
    app = make_app("1.0", make_guard(gate=gate), [SAFE])
    assert say(app, turns)["content"] == SAFE
    assert gate.prompts == ["b"]


@pytest.mark.parametrize(("answer", "reply"), [(SAFE, SAFE), (FLAGGED, STEERED)])
def test_messages_of_several_parts(answer: str, reply: str) -> None:
    gate = Watched()
    parts = [{"type": "text", "text": "what"}, {"type": "text", "text": "is this?"}]
    app = make_app("1.0", make_guard(gate=gate), [answer], passthrough=True)
    assert say(app, [{"role": "user", "content": parts}])["content"] == reply
    assert set(gate.prompts) == {"what is this?"}


def test_exceptions_instead_of_the_fallback(version: str) -> None:
    app = make_app(
        version, make_guard([FLAGGED, STEERED]), [FLAGGED, FLAGGED], enable_rails_exceptions=True
    )
    reply = say(app)
    event = reply["content"] if version == "1.0" else reply["events"][0]
    assert event["type"] == "OutputRailException"
    assert FLAGGED not in str(reply)
    assert say(app)["content"] == STEERED  # a swap is no exception


def test_check_of_a_given_answer() -> None:
    app = make_app("1.0", make_guard([STEERED, FLAGGED]))

    async def check(text: str) -> Any:
        return await app.check_async(
            [*USER, {"role": "assistant", "content": text}], rail_types=[RailType.OUTPUT]
        )

    results = [asyncio.run(check(text)) for text in (SAFE, FLAGGED, FLAGGED)]
    modified = RailStatus.MODIFIED
    assert [(r.status, r.content) for r in results] == [
        (RailStatus.PASSED, SAFE),
        (modified, STEERED),
        (modified, FALLBACK),
    ]


@pytest.mark.parametrize("texts", [False, True])
def test_outcome_is_in_the_log_without_texts(texts: bool) -> None:
    app = make_app("1.0", make_guard(audit={"texts": texts}), [FLAGGED])
    response = say(app, options={"log": {"activated_rails": True}, "output_vars": ["ttsa_outcome"]})
    [rail] = [r for r in response.log.activated_rails if r.type == "output"]
    outcome = response.output_data["ttsa_outcome"]
    assert (rail.name, rail.stop, rail.executed_actions[0].return_value) == (
        "ttsa steer output",
        False,
        outcome,
    )
    assert (
        outcome.metadata["action"],
        outcome.metadata["gate_score"],
        len(outcome.metadata["candidates"]),
    ) == ("swap", 1.0, 1)
    assert FLAGGED not in str(outcome)


@pytest.mark.parametrize(("answer", "reply"), [(SAFE, SAFE), (FLAGGED, STEERED)])
@pytest.mark.parametrize(
    ("version", "options"),
    [("1.0", None), ("1.0", {"log": {"activated_rails": True}}), ("2.x", None)],
)
def test_reasoning_never_leaves(version: str, answer: str, reply: str, options: Any) -> None:
    response = say(
        make_app(version, make_guard(), [f"<think>a bad plan</think>{answer}"]), options=options
    )
    assert getattr(response, "reasoning_content", None) in (None, "")
    message = response if isinstance(response, dict) else response.response[0]
    assert message["content"].strip() == reply


def test_tool_calls_pass() -> None:
    call = ToolCall("1", function=ToolCallFunction("search", {"q": "good owls", "n": 3}))
    backend = ScriptedBackend([])
    app = make_app("1.0", make_guard(backend), passthrough=True)
    app.update_llm(
        FakeLLMModel(llm_responses=[LLMResponse("", tool_calls=[call]), LLMResponse(SAFE)])
    )
    reply = say(app)
    assert reply["tool_calls"][0]["function"]["name"] == "search"
    result = {"role": "tool", "content": "a bad page", "tool_call_id": "1", "name": "search"}
    assert say(app, [*USER, reply, result])["content"] == SAFE
    assert backend.calls == []


def test_later_rails_see_the_new_answer() -> None:
    colang = (
        'define subflow shout\n  if "steered" in $bot_message\n    $bot_message = "LATER RAIL"\n'
    )
    flows = {"output": {"flows": ["shout"]}}
    app = make_app("1.0", make_guard(), [FLAGGED], colang=colang, rails=flows)
    app.config.rails.output.flows.reverse()
    assert say(app)["content"] == "LATER RAIL"


# ---------------------------------------------------------------- streams


async def _streamed(app: Any, **kwargs: Any) -> list[Any]:
    return [piece async for piece in app.stream_async(**{"messages": USER, **kwargs})]


@pytest.mark.parametrize(("answer", "reply"), [(SAFE, SAFE), (FLAGGED, STEERED)])
def test_stream_begins_after_the_review(version: str, answer: str, reply: str) -> None:
    pieces = asyncio.run(_streamed(make_app(version, make_guard(), [answer])))
    assert "".join(pieces) == reply
    assert len(pieces) > 1


def test_stream_with_metadata_of_an_answer_from_elsewhere() -> None:
    async def words() -> Any:
        for word in FLAGGED.split():
            yield word + " "

    pieces = asyncio.run(
        _streamed(make_app("1.0", make_guard()), generator=words(), include_metadata=True)
    )
    assert "".join(p["text"] for p in pieces) == STEERED


def test_stream_of_an_exception() -> None:
    app = make_app("1.0", make_guard([FLAGGED]), [FLAGGED], enable_rails_exceptions=True)
    [error] = asyncio.run(_streamed(app))
    assert '"code": "content_blocked"' in error
    assert FLAGGED not in error


def test_streaming_handler_gets_the_new_answer(version: str) -> None:
    app = make_app(version, make_guard(), [FLAGGED])

    async def run() -> tuple[str, str]:
        handler = StreamingHandler()
        reply = await app.generate_async(messages=USER, streaming_handler=handler)
        return "".join([c async for c in handler if c is not END_OF_STREAM]), reply["content"]

    assert asyncio.run(run()) == (STEERED, STEERED)


@pytest.mark.parametrize(("answer", "allowed"), [(SAFE, True), (FLAGGED, False)])
def test_a_window_of_the_hosts_own_stream_is_blocked(answer: str, allowed: bool) -> None:
    app = make_app("1.0", make_guard())
    steer = app.runtime.action_dispatcher.get_action("ttsa_steer")
    outcome = asyncio.run(
        steer(context={"bot_message": answer, "user_message": "q"}, config=app.config)
    )
    assert (outcome.is_blocked, outcome.is_transform) == (not allowed, False)
