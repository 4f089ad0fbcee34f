"""Flagged text is in nothing that the host records, hands out or logs."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome, TransformTarget
from nemoguardrails.testing import FakeLLMModel
from nemoguardrails.types import LLMResponse, ToolCall, ToolCallFunction

from ttsa_guard.testing import ScriptedModerator

from .conftest import CHAT_V2, FALLBACK, FLAGGED, SAFE, STEERED, USER, make_app, make_guard, say

EVERYTHING = {
    "log": {
        "activated_rails": True,
        "llm_calls": True,
        "internal_events": True,
        "colang_history": True,
    },
    "output_vars": True,
    "llm_output": True,
}
TRACING = {"enabled": True, "adapters": [{"name": "OpenTelemetry"}], "enable_content_capture": True}


@pytest.mark.parametrize("settings", [{}, {"passthrough": True}, {"enable_rails_exceptions": True}])
@pytest.mark.parametrize("found", [STEERED, FLAGGED], ids=["swap", "fallback"])
def test_a_client_that_asks_for_everything(settings: dict[str, Any], found: str) -> None:
    app = make_app("1.0", make_guard([found]), [FLAGGED], **settings)
    response = say(app, options=EVERYTHING, state={})
    assert "seekrit" not in response.model_dump_json()
    assert "seekrit" not in app.explain().model_dump_json()
    assert response.log.llm_calls[0].completion == "[withheld]"
    assert response.log.activated_rails[-1].executed_actions[0].return_value.metadata["action"] in (
        "swap",
        "fallback",
    )


def test_an_answer_that_passes_is_recorded_as_ever() -> None:
    response = say(make_app("1.0", make_guard(), [SAFE]), options=EVERYTHING)
    assert response.log.llm_calls[0].completion == SAFE
    assert SAFE in response.log.colang_history


def test_a_turn_that_cannot_be_reviewed() -> None:
    turns = [{"role": "user", "content": [{"type": "text", "text": " "}]}]
    response = say(
        make_app("1.0", make_guard(), [FLAGGED], passthrough=True), turns, options=EVERYTHING
    )
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
    assert [e["text"] for e in response.log.internal_events if e["type"] == "BotMessage"] == [
        "[withheld]"
    ]


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
def test_reasoning_is_in_no_record(
    version: str, answer: LLMResponse, passthrough: bool, options: Any
) -> None:
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
    app = make_app(
        "1.0", make_guard(), [FLAGGED], colang=colang, rails={"output": {"flows": ["check it"]}}
    )
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
    say(make_app("1.0", make_guard([found]), [FLAGGED], tracing=TRACING))
    traced = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "ttsa_guard.review" in traced
    assert USER[0]["content"] in traced  # the host does record texts
    assert "seekrit" not in traced


# ------------------------------------------------------------------ rails before ours

NUMBER = "seekrit-123-45-6789"
ORIGINAL = f"My secret number is {NUMBER}, and that is the whole story of it."
MASKED = ORIGINAL.replace(NUMBER, "[NUMBER]")
MASKING = {
    "1.0": (
        "define subflow mask it\n  $masked = execute mask_it(text=$bot_message)\n  $bot_message ="
        ' $masked.transform_text["bot_message"]\n  $note = execute note_it(text=$bot_message)\n'
    ),
    "2.x": (
        f"{CHAT_V2}\nflow output rails $output_text\n  global $bot_message\n  $masked = await"
        " MaskItAction(text=$output_text)\n  $note = await NoteItAction(text=$output_text)\n "
        ' $bot_message = $masked.transform_text["bot_message"]\n  ttsa steer output\n'
    ),
}


@action(name="mask_it")
async def mask_it(text: str) -> RailOutcome:
    """A rail that says too much about what it has done."""
    masked = [(TransformTarget.BOT_MESSAGE, text.replace(NUMBER, "[NUMBER]"))]
    return RailOutcome.transform(
        masked, reason=f"there was a number in {text!r}", metadata={"original": text, text: 1}
    )


@action(name="note_it")
async def note_it(text: str) -> dict[str, Any]:
    return {"seen": [f"I saw: {text.upper()}", (text, 1)], text: 1}


def masking_app(version: str, answer: str, **settings: Any) -> Any:
    rails = {"rails": {"output": {"flows": ["mask it"]}}} if version == "1.0" else {}
    app = make_app(version, make_guard(), colang=MASKING[version], **rails, **settings)
    app.register_action(mask_it, "mask_it")
    app.register_action(note_it, "note_it")
    app.update_llm(
        FakeLLMModel(llm_responses=[LLMResponse(answer, provider_metadata={"raw": answer})])
    )
    return app


def shown(record: Any) -> str:
    return str(record).casefold()


@pytest.mark.parametrize(
    ("more", "reply"), [("", MASKED), (" Bad.", STEERED)], ids=["passed", "flagged"]
)
@pytest.mark.parametrize("traced", [False, True])
def test_what_an_earlier_rail_rewrote(more: str, reply: str, traced: bool, spans: Any) -> None:
    app = masking_app("1.0", ORIGINAL + more.lower(), tracing={**TRACING, "enabled": traced})
    response = say(app, options=EVERYTHING, state={})
    assert response.response[0]["content"] == reply
    for record in (
        response,
        response.model_dump_json(),
        app.explain(),
        [span.to_json() for span in spans.get_finished_spans()],
    ):
        assert "seekrit" not in shown(record)


@pytest.mark.parametrize(
    ("more", "reply"), [("", MASKED), (" Bad.", STEERED)], ids=["passed", "flagged"]
)
def test_what_an_earlier_rail_rewrote_in_the_state_of_colang_2(more: str, reply: str) -> None:
    app = masking_app("2.x", ORIGINAL + more.lower())
    asked = [{"type": "UtteranceUserActionFinished", "final_transcript": "How do I do it?"}]
    new, state = asyncio.run(app.process_events_async(asked, None, blocking=True))
    assert [event["script"] for event in new if event["type"] == "StartUtteranceBotAction"] == [
        reply
    ]
    records = [new, state.context, state.last_events, [vars(a) for a in state.actions.values()]]
    records += [[flow.context, flow.arguments] for flow in state.flow_states.values()]
    assert "seekrit" not in shown(records)


@pytest.mark.parametrize("exceptions", [False, True])
def test_what_an_earlier_rail_blocked(exceptions: bool) -> None:
    colang = "define subflow block it\n  bot refuse to respond\n  stop\n"
    rails = {"output": {"flows": ["block it"]}}
    app = make_app(
        "1.0",
        make_guard(),
        [FLAGGED],
        colang=colang,
        rails=rails,
        enable_rails_exceptions=exceptions,
    )
    response = say(app, options=EVERYTHING, state={})
    assert response.response[0]["content"] == "I'm sorry, I can't respond to that."
    assert "seekrit" not in shown(response)
    assert "seekrit" not in shown(app.explain())


def test_what_a_later_rail_rewrote() -> None:
    colang = 'define subflow replace it\n  $bot_message = "Something else."\n'
    app = make_app(
        "1.0", make_guard(), [ORIGINAL], colang=colang, rails={"output": {"flows": ["replace it"]}}
    )
    app.config.rails.output.flows.reverse()
    response = say(app, options=EVERYTHING, state={})
    assert response.response[0]["content"] == "Something else."
    assert "seekrit" not in shown(response)


@pytest.mark.parametrize("answer", [SAFE, FLAGGED])
def test_what_a_provider_adds(answer: str) -> None:
    app = make_app("1.0", make_guard())
    metadata = {"logprobs": [{"token": word} for word in answer.split()], "id": "7"}
    app.update_llm(FakeLLMModel(llm_responses=[LLMResponse(answer, provider_metadata=metadata)]))
    assert say(app, options=EVERYTHING).llm_metadata == (metadata if answer == SAFE else None)


def test_other_keys_of_a_runnable() -> None:
    """The host's `RunnableRails` returns what its chain gave, with the answer in its place: the
    context's passthrough_output."""

    async def chain(**_: Any) -> Any:
        return FLAGGED, {
            "output": FLAGGED,
            "source": f"see: {FLAGGED}",
            "parts": [FLAGGED.upper()],
            "n": 3,
        }

    app = make_app("1.0", make_guard(), passthrough=True)
    app.passthrough_fn = chain
    response = say(app, options={"output_vars": True})
    assert response.output_data["bot_message"] == STEERED
    assert response.output_data["passthrough_output"]["n"] == 3
    assert "seekrit" not in shown(response)


def test_a_turn_that_was_cancelled(version: str, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(
        version, make_guard(gate=ScriptedModerator(delay=60), gate_seconds=60), [FLAGGED]
    )

    async def run() -> str:
        work = asyncio.ensure_future(app.generate_async(messages=USER))
        while (
            app._explain_info is None
            or not app._explain_info.llm_calls
            or not app._explain_info.llm_calls[0].completion
        ):
            await asyncio.sleep(0.01)
        before = str(app.explain())
        work.cancel()
        await asyncio.wait([work])
        return before

    assert "seekrit" in asyncio.run(run())
    assert "seekrit" not in shown(app.explain())
    assert "seekrit" not in caplog.text


def test_other_conversations_in_the_same_task_keep_their_records() -> None:
    app = make_app(
        "1.0", make_guard([STEERED]), [SAFE, FLAGGED, "Another fine answer, to another question."]
    )

    async def run() -> list[str]:
        return [
            (await app.generate_async(messages=[{"role": "user", "content": f"{i}?"}]))["content"]
            for i in range(3)
        ]

    replies = asyncio.run(run())
    assert [call.completion for call in app.explain().llm_calls] == [
        replies[0],
        "[withheld]",
        replies[2],
    ]
