"""The endpoint in this process, in front of a scripted upstream that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp import web

from ttsa_guard.serve.app import Endpoint, Limits
from ttsa_guard.serve.upstream import Upstream
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import scripted_guard

SAFE = "Here is a fine answer."
FLAGGED = "Mix the bad seekrit powder."
STEERED = "Here is a steered answer."
FALLBACK = "Let us talk about something else."
USER = [{"role": "user", "content": "How do I do it?"}]
KEY = "k3y-of-the-upstream"


def make_guard(answers: Any = (STEERED,), **parts: Any) -> Any:
    return scripted_guard(
        answers, **{"fallback": FALLBACK, "steerers": [Resample(ResampleOptions(n=1))], **parts}
    )


def call(arguments: Any, name: str = "search", **more: Any) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {
        "id": "call_7",
        "type": "function",
        "function": {"name": name, "arguments": text},
        **more,
    }


def completion(text: str | None = SAFE, *, finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "remote",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "finish_reason": "tool_calls" if message.get("tool_calls") else finish,
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    }


def deltas(*found: Any, finish: str = "stop") -> list[dict[str, Any]]:
    """Chunks of a stream: a text is a delta of content."""
    made = [{"content": one} if isinstance(one, str) else one for one in found]
    chunks = [{"delta": delta, "finish_reason": None, "index": 0} for delta in made]
    chunks.append({"delta": {}, "finish_reason": finish, "index": 0})
    head = {"id": "chatcmpl-1", "created": 1, "model": "remote"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return [
        *({**head, "choices": [one]} for one in chunks),
        {**head, "choices": [], "usage": usage},
    ]


class Model:
    """The upstream. It answers each request with `answer`, or streams `chunks`.

    Args:
        answer: a body; a function of the request that makes one; or bytes, sent as they are.
        status: of every answer.
        gap: seconds before each chunk, and before an answer.
        end: whether a stream ends as it should.
    """

    def __init__(
        self,
        answer: Any = None,
        *,
        chunks: list[Any] | None = None,
        status: int = 200,
        gap: float = 0.0,
        end: bool = True,
    ) -> None:
        self.answer = completion() if answer is None else answer
        self.chunks, self.status, self.gap, self.end = chunks, status, gap, end
        self.asked: list[Any] = []
        self.headers: list[Any] = []
        self.sent = 0
        self.running = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(request.headers)
        self.running += 1
        try:
            if body.get("stream"):
                return await self._stream(request)
            await asyncio.sleep(self.gap)
            answer = self.answer(body) if callable(self.answer) else self.answer
            if isinstance(answer, bytes):
                return web.Response(body=answer, status=self.status)
            return web.json_response(answer, status=self.status)
        finally:
            self.running -= 1

    async def models(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(request.headers)
        return web.json_response(
            {"object": "list", "data": [{"id": "remote", "object": "model"}]}, status=self.status
        )

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in self.chunks or []:
            await asyncio.sleep(self.gap)
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.sent += 1
        if self.end:
            await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def listening(app: web.Application) -> Any:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def served(
    model: Model | str, guard: Any = None, *, limits: Limits | None = None, **parts: Any
) -> Any:
    """The endpoint at `url`, with its upstream; closed with all that it holds."""
    app = web.Application(client_max_size=2**24)
    guard = guard or make_guard()
    if isinstance(model, Model):
        app.router.add_post("/v1/chat/completions", model.chat)
        app.router.add_get("/v1/models", model.models)
    async with listening(app) as behind:
        url = behind if isinstance(model, Model) else model
        upstream = Upstream(url, key=KEY, timeout=parts.pop("upstream_seconds", 5.0))
        endpoint = Endpoint(guard, upstream, limits=limits, **parts)
        async with listening(endpoint.app()) as front, aiohttp.ClientSession() as session:
            yield SimpleNamespace(url=front, session=session, endpoint=endpoint, model=model)
        await upstream.close()
        await guard.close()


async def post(server: Any, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Ask for a completion. A body of bytes is sent as it is."""
    sent: dict[str, Any] = (
        {"data": body, "headers": {"Content-Type": "application/json", **headers}}
        if isinstance(body, bytes)
        else {"json": {"model": "remote", "messages": USER, **(body or {})}, "headers": headers}
    )
    async with server.session.post(f"{server.url}/v1/chat/completions", **sent) as response:
        return response.status, await response.json()


async def events(server: Any, **body: Any) -> list[Any]:
    """Ask for a stream, and return its events without the last, which says that it is done."""
    sent = {"model": "remote", "messages": USER, "stream": True, **body}
    async with server.session.post(f"{server.url}/v1/chat/completions", json=sent) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = (await response.read()).splitlines()
    found = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
    if found[-1] == b"[DONE]":
        found.pop()
    return [json.loads(one) for one in found]


def text_of(chunks: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]
    )


def ask(
    model: Model | str,
    work: Callable[[Any], Awaitable[Any]] = post,
    guard: Any = None,
    **parts: Any,
) -> Any:
    """The result of `work` with a server, which is then closed."""

    async def main() -> Any:
        async with served(model, guard, **parts) as server:
            return await work(server)

    return asyncio.run(main())


def reply(model: Model | str, guard: Any = None, **body: Any) -> Any:
    """The first choice of an answer that is none of an error."""
    status, found = ask(model, lambda server: post(server, body), guard)
    assert status == 200, found
    return found["choices"][0]
