"""Plain answers: what passes, what is swapped, and what a client is told of it."""

from __future__ import annotations

import asyncio

import pytest

from ttsa_guard.testing import ScriptedBackend, ScriptedModerator

from .conftest import (
    FALLBACK,
    FLAGGED,
    KEY,
    SAFE,
    STEERED,
    USER,
    Model,
    ask,
    call,
    completion,
    make_guard,
    post,
    reply,
)

PLAN = "A bad seekrit plan for all that."


def test_a_good_answer_passes_with_its_numbers() -> None:
    model = Model()
    status, found = ask(model, lambda server: post(server, {"temperature": 0.5}))
    review = found.pop("ttsa_guard")
    assert (status, review["action"], len(review["review"]) > 8) == (200, "pass", True)
    assert (found["id"], found["model"], found["usage"]["total_tokens"]) == (
        "chatcmpl-1",
        "remote",
        8,
    )
    assert found["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": SAFE, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert model.asked == [{"model": "remote", "messages": USER, "temperature": 0.5}]
    assert model.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_good_answer_costs_one_gate_call_and_no_generation() -> None:
    gate, backend = ScriptedModerator(name="gate"), ScriptedBackend([])
    assert reply(Model(), make_guard(backend, gate=gate))["message"]["content"] == SAFE
    assert (gate.calls, backend.calls) == ([[SAFE]], [])


@pytest.mark.parametrize(
    ("found", "said", "finish", "action"),
    [(STEERED, STEERED, "stop", "swap"), (FLAGGED, FALLBACK, "content_filter", "fallback")],
)
def test_a_flagged_answer_is_mended(found: str, said: str, finish: str, action: str) -> None:
    status, answer = ask(Model(completion(FLAGGED)), guard=make_guard([found]))
    choice = answer["choices"][0]
    assert (status, choice["message"]["content"], choice["finish_reason"]) == (200, said, finish)
    assert answer["ttsa_guard"]["action"] == action
    assert "seekrit" not in str(answer)


def test_the_guard_reads_the_conversation_without_tools_and_their_results() -> None:
    backend = ScriptedBackend([STEERED])
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "and owls?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call({"q": "owls"})]},
        {"role": "tool", "tool_call_id": "call_7", "content": "hoot hoot hoot"},
    ]
    model = Model(completion(FLAGGED))
    assert reply(model, make_guard(backend), messages=messages)["message"]["content"] == STEERED
    assert model.asked[0]["messages"] == messages
    [[request]] = backend.calls
    assert len(request.prompt.soft_ids) == len("be brief and owls?".split())


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_how_an_answer_ended_is_passed_on(finish: str) -> None:
    assert reply(Model(completion(finish=finish)))["finish_reason"] == finish


def test_what_a_model_writes_into_other_fields_is_not_passed_on() -> None:
    answer = completion(annotations=[{"title": FLAGGED}], audio={"transcript": FLAGGED})
    answer["choices"][0]["logprobs"] = {"content": [{"token": FLAGGED}]}
    answer["choices"].append({"index": 1, "message": {"role": "assistant", "content": FLAGGED}})
    answer |= {"system_fingerprint": "fp", "extra": FLAGGED}
    answer["usage"]["note"] = FLAGGED
    _, found = ask(Model(answer))
    assert found["choices"][0]["message"]["content"] == SAFE
    assert len(found["choices"]) == 1
    assert "seekrit" not in str(found)


def test_a_refusal_of_the_model_is_reviewed_as_its_answer() -> None:
    assert reply(Model(completion(None, refusal=FLAGGED)))["message"]["content"] == STEERED
    assert reply(Model(completion(None, refusal="Not that.")))["message"]["content"] == "Not that."


@pytest.mark.parametrize("text", ["", None, " \n"])
def test_an_empty_answer_is_one(text: str | None) -> None:
    gate = ScriptedModerator(name="gate")
    assert reply(Model(completion(text)), make_guard(gate=gate))["message"]["content"] == ""
    assert gate.calls == []


# ---------------------------------------------------------------------- reasoning

BESIDE = [{"reasoning_content": PLAN}, {"reasoning": PLAN}, {"reasoning_details": [{"text": PLAN}]}]


@pytest.mark.parametrize(
    "answer",
    [
        *(completion(SAFE, **beside) for beside in BESIDE),
        completion(f"<think>{PLAN}</think>{SAFE}"),
        completion(f"{PLAN}</think>{SAFE}"),
        completion(
            [  # type: ignore[arg-type]
                {"type": "thinking", "thinking": [{"type": "text", "text": PLAN}]},
                {"type": "text", "text": SAFE},
            ]
        ),
    ],
    ids=["content", "beside", "details", "inline", "begun in the prompt", "parts"],
)
@pytest.mark.parametrize(
    ("setting", "said"), [("withhold", SAFE), ("regenerate", STEERED)], ids=str
)
def test_reasoning_is_read_by_nobody(answer: object, setting: str, said: str) -> None:
    status, found = ask(Model(answer), guard=make_guard(reasoning=setting))
    assert (status, found["choices"][0]["message"]["content"]) == (200, said)
    assert "seekrit" not in str(found)
    assert "reasoning" not in str(found)


def test_an_answer_after_harmless_reasoning_stays() -> None:
    model = Model(completion(SAFE, reasoning_content="A fine plan."))
    assert reply(model, make_guard(reasoning="regenerate"))["message"]["content"] == SAFE


# ---------------------------------------------------------------------- tool calls

GOOD = {"query": "owls", "n": 3, "sure": True}


def test_calls_that_pass_are_made() -> None:
    gate = ScriptedModerator(name="gate")
    calls = [call(GOOD), call({"text": "hello"}, name="send")]
    choice = reply(Model(completion(None, tool_calls=calls)), make_guard(gate=gate))
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": calls,
    }
    assert choice["finish_reason"] == "tool_calls"
    assert gate.calls == [["owls\nhello"]]


def test_calls_without_texts_cost_nothing() -> None:
    gate = ScriptedModerator(name="gate")
    model = Model(completion(None, tool_calls=[call({"n": 3}), call("")]))
    assert len(reply(model, make_guard(gate=gate))["message"]["tool_calls"]) == 2
    assert gate.calls == []


@pytest.mark.parametrize(
    "bad",
    [
        call({"to": ["a", {"text": FLAGGED}]}),
        call('{"a": "bad seekrit", "a": "fine"}'),
        call({FLAGGED: 1}),
        call(f"{{ not JSON: {FLAGGED}"),
        call('{"text": "\\u0062ad seekrit"}'),
        call({}, name=FLAGGED),
        call(FLAGGED.join(["[" * 9, "]" * 9])),
        call("[" * 9999 + " bad seekrit"),
    ],
    ids=["inside", "twice", "key", "no JSON", "escaped", "name", "list", "deep"],
)
@pytest.mark.parametrize("text", [None, SAFE])
def test_flagged_calls_are_dropped(bad: object, text: str | None) -> None:
    _, found = ask(Model(completion(text, tool_calls=[call(GOOD), bad])))
    choice = found["choices"][0]
    assert choice["message"]["content"] == FALLBACK
    assert "tool_calls" not in choice["message"]
    assert (choice["finish_reason"], found["ttsa_guard"]["action"]) == (
        "content_filter",
        "fallback",
    )
    assert "seekrit" not in str(found)


@pytest.mark.parametrize("answers", [(STEERED,), ()])
def test_calls_go_with_the_answer_beside_them(answers: tuple[str, ...]) -> None:
    choice = reply(Model(completion(FLAGGED, tool_calls=[call(GOOD)])), make_guard(answers))
    assert choice["message"]["content"] == (STEERED if answers else FALLBACK)
    assert "tool_calls" not in choice["message"]
    kept = reply(Model(completion(SAFE, tool_calls=[call(GOOD)])))["message"]
    assert (kept["content"], kept["tool_calls"]) == (SAFE, [call(GOOD)])


def test_calls_after_flagged_reasoning_are_dropped_where_it_counts() -> None:
    model = Model(completion(None, reasoning=PLAN, tool_calls=[call({"n": 3})]))
    assert reply(model)["message"]["tool_calls"]
    message = reply(model, make_guard(reasoning="regenerate"))["message"]
    assert (message["content"], "tool_calls" in message) == (FALLBACK, False)


def test_a_guard_that_leaves_calls_alone() -> None:
    bad = call({"text": FLAGGED})
    model = Model(completion(None, tool_calls=[bad]))
    assert reply(model, make_guard(gate_tool_calls=False))["message"]["tool_calls"] == [bad]


def test_many_conversations_at_once_keep_apart() -> None:
    def answer(body: dict[str, object]) -> object:
        asked = str(body["model"])
        return completion(FLAGGED if int(asked) % 3 == 0 else f"Fine, {asked}.")

    async def many(server: object) -> list[str]:
        found = await asyncio.gather(*(post(server, {"model": str(i)}) for i in range(30)))
        return [one["choices"][0]["message"]["content"] for _, one in found]

    said = ask(Model(answer), many, make_guard([STEERED] * 10))
    assert said == [STEERED if i % 3 == 0 else f"Fine, {i}." for i in range(30)]
