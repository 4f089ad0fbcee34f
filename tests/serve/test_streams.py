"""Streams: buffered as a whole, or sentence by sentence while the answer grows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ttsa_guard.testing import ScriptedBackend

from .conftest import (
    FALLBACK,
    FLAGGED,
    SAFE,
    STEERED,
    Model,
    ask,
    call,
    completion,
    deltas,
    events,
    make_guard,
    text_of,
)

FINE = ["One is fine.", " Two is", " fine.", " Three is fine."]
LATE = ["One is fine. ", "Two is fine. ", "Three is a bad seekrit. ", "Four is fine."]


def streamed(model: Model, guard: Any = None, **body: Any) -> list[Any]:
    return list(ask(model, lambda server: events(server, **body), guard))


def progressive(answers: Any = (STEERED,), **parts: Any) -> Any:
    return make_guard(answers, streaming="progressive", **parts)


@pytest.mark.parametrize(
    ("answer", "said", "finish"),
    [(SAFE, SAFE, "stop"), (FLAGGED, STEERED, "stop")],
)
def test_a_buffered_stream_has_the_reviewed_answer(answer: str, said: str, finish: str) -> None:
    model = Model(completion(answer))
    chunks = streamed(model, stream_options={"include_usage": True})
    assert text_of(chunks) == said
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["finish_reason"] == finish
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 8)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "stream" not in model.asked[0]
    assert "stream_options" not in model.asked[0]
    assert "seekrit" not in str(chunks)


def test_tool_calls_in_a_buffered_stream() -> None:
    chunks = streamed(Model(completion(None, tool_calls=[call({"q": "owls"})])))
    assert chunks[1]["choices"][0]["delta"]["tool_calls"] == [call({"q": "owls"}, index=0)]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_sentences_are_shown_while_the_answer_grows() -> None:
    model = Model(chunks=deltas(*FINE), gap=0.05)

    async def read(server: Any) -> tuple[int, bytes]:
        url = f"{server.url}/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": "q"}], "stream": True}
        async with server.session.post(url, json=body) as response:
            first = b""
            while b"One" not in first:
                first += await response.content.readline()
            return model.sent, first + await response.read()

    sent, whole = ask(model, read, progressive())
    assert sent < len(model.chunks or ())
    assert whole.endswith(b"data: [DONE]\n\n")
    assert text_of(streamed(Model(chunks=deltas(*FINE)), progressive())) == "".join(FINE)


@pytest.mark.parametrize(
    ("rest", "end"),
    [(" And so it ends.", " And so it ends."), (" bad seekrit", f"\n\n{FALLBACK}")],
)
def test_what_was_shown_stays(rest: str, end: str) -> None:
    backend = ScriptedBackend(lambda _: rest)
    chunks = streamed(Model(chunks=deltas(*LATE), gap=0.02), progressive(backend))
    assert text_of(chunks) == f"One is fine. Two is fine.{end}"
    assert "seekrit" not in str(chunks)


def test_a_progressive_stream_shows_no_reasoning() -> None:
    plan = "A seekrit plan. It has sentences. "
    found = [{"reasoning_content": plan}, f"<think>{plan}", "</think>\n\n", *FINE]
    chunks = streamed(Model(chunks=deltas(*found), gap=0.01), progressive())
    assert text_of(chunks) == "".join(FINE)
    assert "seekrit" not in str(chunks)


def halves(arguments: str) -> list[Any]:
    whole = call(arguments)
    first = {**whole, "index": 0, "function": {"name": "search", "arguments": arguments[:9]}}
    second = {"index": 0, "function": {"arguments": arguments[9:]}}
    return [{"tool_calls": [first]}, {"tool_calls": [second]}]


def test_tool_calls_in_a_progressive_stream() -> None:
    good = '{"query": "owls"}'
    chunks = streamed(Model(chunks=deltas("Let me look. ", *halves(good))), progressive())
    assert text_of(chunks) == "Let me look. "
    [made] = [c for c in chunks if c["choices"][0]["delta"].get("tool_calls")]
    assert made["choices"][0]["delta"]["tool_calls"] == [call(good, index=0)]
    bad = deltas("Let me look. ", "It is there. ", *halves('{"query": "bad seekrit"}'))
    chunks = streamed(Model(chunks=bad, gap=0.02), progressive())
    assert text_of(chunks) == f"Let me look. It is there.\n\n{FALLBACK}"
    assert "tool_calls" not in str(chunks)
    assert "seekrit" not in str(chunks)


@pytest.mark.parametrize(
    "model",
    [
        Model(chunks=deltas(*FINE)[:2], gap=0.02, end=False),
        Model(chunks=[*deltas(*FINE)[:2], {"error": {"message": FLAGGED}}], gap=0.02),
    ],
    ids=["stops", "says so"],
)
def test_an_upstream_that_fails_in_a_stream_ends_it_with_an_error(model: Model) -> None:
    chunks = streamed(model, progressive())
    assert chunks[-1]["error"]["code"] == "upstream_failed"
    assert text_of(chunks[:-1]) == "One is fine."
    assert "seekrit" not in str(chunks)


def test_a_client_that_leaves_a_stream_frees_its_work() -> None:
    model = Model(chunks=deltas(*FINE * 99), gap=0.02)

    async def leave(server: Any) -> tuple[int, int]:
        url = f"{server.url}/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": "q"}], "stream": True}
        async with server.session.post(url, json=body) as response:
            await response.content.readline()
            assert model.running == 1
            response.close()
        for _ in range(50):
            await asyncio.sleep(0.02)
            if not model.running:
                break
        return model.running, server.endpoint._running

    assert ask(model, leave, progressive()) == (0, 0)
