"""The official `openai` client against the endpoint."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from .conftest import (
    FALLBACK,
    FLAGGED,
    SAFE,
    STEERED,
    USER,
    Limits,
    Model,
    ask,
    call,
    completion,
    deltas,
    make_guard,
)

SEARCH = {"name": "search", "strict": True, "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": SEARCH}]


def through(
    model: Model | str, work: Any, guard: Any = None, *, sent: str = "k", **parts: Any
) -> Any:
    async def main(server: Any) -> Any:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=sent, max_retries=0
        ) as client:
            return await work(client)

    return ask(model, main, guard, **parts)


def chat(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(model="remote", messages=USER, **more)


def test_chat_and_models() -> None:
    async def work(client: Any) -> Any:
        return await chat(client), [model.id async for model in client.models.list()]

    found, models = through(Model(completion(FLAGGED)), work)
    assert (found.choices[0].message.content, found.usage.total_tokens) == (STEERED, 8)
    assert found.ttsa_guard["action"] == "swap"
    assert models == ["remote"]


@pytest.mark.parametrize("mode", ["buffered", "progressive"])
def test_streams(mode: str) -> None:
    async def work(client: Any) -> Any:
        stream = await chat(client, stream=True, stream_options={"include_usage": True})
        return [chunk async for chunk in stream]

    model = Model(chunks=deltas("Here is ", "a fine answer."))
    chunks = through(model, work, make_guard(streaming=mode))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert ("".join(texts), chunks[-1].usage.total_tokens) == (SAFE, 8)


@pytest.mark.parametrize("mode", ["buffered", "progressive"])
def test_tools(mode: str) -> None:
    async def work(client: Any) -> Any:
        async with client.chat.completions.stream(
            model="remote", messages=USER, tools=TOOLS
        ) as stream:
            streamed = await stream.get_final_completion()
        return await chat(client, tools=TOOLS), streamed

    made = call({"q": "owls"})
    model = Model(
        completion(None, tool_calls=[made]), chunks=deltas({"tool_calls": [{**made, "index": 0}]})
    )
    for found in through(model, work, make_guard(streaming=mode)):
        [one] = found.choices[0].message.tool_calls
        assert (one.function.name, one.function.arguments) == ("search", '{"q": "owls"}')
        assert found.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("error", "model", "parts"),
    [
        (openai.AuthenticationError, Model(), {"key": "right"}),
        (openai.RateLimitError, Model(), {"limits": Limits(concurrency=0)}),
        (openai.NotFoundError, Model(status=404), {}),
        (openai.BadRequestError, Model(status=400), {}),
        (openai.UnprocessableEntityError, Model(status=422), {}),
        (openai.InternalServerError, Model(status=500), {}),
    ],
)
def test_error_classes(error: Any, model: Model, parts: Any) -> None:
    async def work(client: Any) -> Any:
        with pytest.raises(error) as told:
            await chat(client)
        return told.value.body

    assert through(model, work, **parts)["message"]


def test_an_error_in_a_stream() -> None:
    said = [""]

    async def read(stream: Any) -> None:
        async for chunk in stream:
            said[0] += chunk.choices[0].delta.content or ""

    async def work(client: Any) -> str:
        stream = await chat(client, stream=True)
        with pytest.raises(openai.APIError, match="stopped in the middle"):
            await read(stream)
        return said[0]

    model = Model(chunks=deltas("One is fine. ", "Two")[:2], gap=0.02, end=False)
    assert through(model, work, make_guard(streaming="progressive")) == "One is fine."


def test_the_fallback_is_a_filtered_answer() -> None:
    found = through(Model(completion(FLAGGED)), chat, make_guard(()))
    assert found.choices[0].message.content == FALLBACK
    assert found.choices[0].finish_reason == "content_filter"
