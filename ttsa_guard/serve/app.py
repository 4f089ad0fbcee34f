"""The endpoint: its routes, its limits, and what it answers where something is wrong."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ttsa_guard.budget import within
from ttsa_guard.guard import Guard
from ttsa_guard.messages import images_of
from ttsa_guard.serve.faults import ApiError, internal, wrong
from ttsa_guard.serve.review import reviewed
from ttsa_guard.serve.upstream import Upstream
from ttsa_guard.serve.wire import (
    ChatRequest,
    ModelAnswer,
    Reply,
    completion,
    event,
    first_chunk,
    last_chunks,
    text_chunk,
)
from ttsa_guard.telemetry import request_begun, request_ended

log = logging.getLogger(__name__)
LEFT = 499
"""The status in the metrics of a request whose client has left."""
_EVENTS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
_BUSY = {"Retry-After": "1"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the endpoint, and all of them together.

    Args:
        body: largest request, in bytes.
        seconds: longest time of one request: its body, the upstream's answer and the review.
        concurrency: most requests for an answer at the same time.
    """

    body: int = 2**20
    seconds: float = 120.0
    concurrency: int = 64


class Endpoint:
    """Answers chat completions with what the guard lets out of the upstream's answers.

    Args:
        guard: reviews every answer. No request can go around it.
        upstream: the chat model.
        key: what clients send as their bearer token; None: nothing. ``/healthz`` needs none.
        metrics: writes the metrics as text; None: there are none.
    """

    def __init__(
        self,
        guard: Guard,
        upstream: Upstream,
        *,
        limits: Limits | None = None,
        key: str | None = None,
        metrics: Callable[[], bytes] | None = None,
    ) -> None:
        self.guard, self.upstream, self.limits = guard, upstream, limits or Limits()
        self._key, self._metrics = key, metrics
        self._running, self._idle, self._stopping = 0, asyncio.Event(), False
        self._idle.set()

    def app(self) -> web.Application:
        """Return the application with all routes."""
        app = web.Application(client_max_size=self.limits.body, middlewares=[self._told])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/metrics", self._numbers)
        return app

    async def drain(self, seconds: float) -> int:
        """Take no new requests, and wait for those that run.

        Returns:
            The number of requests that still run after `seconds`.
        """
        self._stopping = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:
            log.warning("%d requests did not end in time", self._running)
        return self._running

    # ------------------------------------------------------------------ routes

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok", "running": self._running})

    async def _numbers(self, request: web.Request) -> web.StreamResponse:
        if not self._metrics:
            raise wrong(
                None,
                "this server has no metrics",
                "install ttsa-guard[telemetry] and start it again",
                status=501,
            )
        return web.Response(
            body=self._metrics(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self.upstream.models())

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if self._stopping:
            raise _later(503, "this server is stopping; ask another one", "server_stopping")
        if self._running >= self.limits.concurrency:
            raise _later(429, "too many requests at the same time; try again later", "server_busy")
        self._running += 1
        self._idle.clear()
        request_begun()
        started, status = time.perf_counter(), LEFT
        try:
            response = await self._in_time(request)
            status = response.status
            return response
        except ApiError as fault:
            status = fault.status
            raise
        finally:
            request_ended(status, time.perf_counter() - started)
            self._running -= 1
            if not self._running:
                self._idle.set()

    # ------------------------------------------------------------------ answers

    async def _in_time(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for a completion, or say what is wrong, in a stream that has begun too.

        Raises:
            ApiError: something is wrong, and nothing was sent.
        """
        stream = _Stream(request)
        try:
            return await within(self.limits.seconds, self._answered(request, stream))
        except ConnectionError:  # the client has left
            raise
        except asyncio.TimeoutError:
            problem = f"no answer within {self.limits.seconds:g} seconds"
            hint = "ask for less, or have --timeout of this server raised"
            fault = ApiError(504, f"{problem}; {hint}", kind="api_error", code="timeout")
        except Exception as error:
            fault = _fault(error)
        if not stream.begun:
            raise fault
        await stream.send(fault.body())
        return stream.response

    async def _answered(self, request: web.Request, stream: _Stream) -> web.StreamResponse:
        asked = ChatRequest.parse(await _body(request), self.guard.config.images)
        if asked.stream and self.guard.config.streaming == "progressive":
            return await self._growing(asked, stream)
        answer = await self.upstream.complete(asked)
        reply = await reviewed(self.guard, asked, answer)
        if asked.stream:
            return await _end(stream, asked, answer, reply, shown="")
        return web.json_response(completion(reply, answer))

    async def _growing(self, asked: ChatRequest, stream: _Stream) -> web.StreamResponse:
        """Show sentences that the gate passes while the answer grows, and then the rest of it."""
        images, answer = images_of(asked.conversation), ModelAnswer()
        stream_gate = self.guard.stream_gate(asked.prompt, images)
        texts: asyncio.Queue[str | None] = asyncio.Queue()

        async def read() -> None:
            try:
                async for text in self.upstream.stream(asked, answer):
                    texts.put_nowait(text)
            finally:
                texts.put_nowait(None)

        # The whole answer is read, whatever its first flag: the review judges all of it.
        reading = asyncio.ensure_future(read())
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async for piece in stream_gate.stream(_queued(texts)):
                await _begin(stream, answer)
                await stream.send(text_chunk(answer, piece))
            await reading
            reply = await reviewed(self.guard, asked, answer, stream_gate=stream_gate)
            return await _end(stream, asked, answer, reply, shown=stream_gate.text)
        finally:
            reading.cancel()
            await asyncio.wait({reading})

    # ------------------------------------------------------------------ what is wrong

    @web.middleware
    async def _told(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who has the key, and turn every fault into OpenAI's error format."""
        try:
            if request.path != "/healthz":
                self._admit(request)
            return await handler(request)
        except ConnectionError:
            raise
        except web.HTTPException as found:
            fault = ApiError(found.status, _ROUTES.get(found.status, found.reason or "refused"))
            fault.headers = {k: v for k, v in found.headers.items() if k == "Allow"}
        except Exception as error:
            fault = _fault(error)
        return web.json_response(fault.body(), status=fault.status, headers=fault.headers)

    def _admit(self, request: web.Request) -> None:
        """Raise unless the request has the key.

        Raises:
            ApiError: it has not.
        """
        if self._key is None:
            return
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(
            sent.strip().encode("utf-8", "surrogateescape"), self._key.encode()
        )
        if not right or scheme.lower() != "bearer":
            raise ApiError(
                401,
                "no valid key in the header Authorization; send: Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


_ROUTES = {
    404: "there is no such address here; there are /v1/chat/completions and /v1/models",
    405: "this address does not take the method; the header Allow names those that it takes",
    413: "the request is too large; send a shorter one, or have --max-body of this server raised",
}


class _Stream:
    """Server-sent events to one client. It begins with the first that is sent."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse(headers=_EVENTS)

    @property
    def begun(self) -> bool:
        return self.response.prepared

    async def send(self, data: Any) -> None:
        if not self.begun:
            await self.response.prepare(self._request)
        await self.response.write(event(data))


async def _begin(stream: _Stream, answer: ModelAnswer) -> None:
    if not stream.begun:
        await stream.send(first_chunk(answer))


async def _end(
    stream: _Stream, asked: ChatRequest, answer: ModelAnswer, reply: Reply, *, shown: str
) -> web.StreamResponse:
    await _begin(stream, answer)
    for chunk in last_chunks(reply, answer, shown=shown, usage=asked.usage):
        await stream.send(chunk)
    await stream.send(b"[DONE]")
    return stream.response


async def _queued(texts: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    while (text := await texts.get()) is not None:
        yield text


async def _body(request: web.Request) -> bytes:
    if request.content_type != "application/json":  # a page of another site cannot send that
        raise wrong(
            None,
            "the body is not declared as JSON",
            "send Content-Type: application/json",
            status=415,
        )
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise wrong(
            None,
            "the request is too large",
            "send a shorter one, or have --max-body raised",
            status=413,
        ) from None


def _later(status: int, message: str, code: str) -> ApiError:
    kind = "rate_limit_error" if status == 429 else "api_error"
    return ApiError(status, message, kind=kind, code=code, headers=_BUSY)


def _fault(error: Exception) -> ApiError:
    """Return the error that a client is told. Of our own faults only the kind is logged."""
    if isinstance(error, ApiError):
        return error
    log.error("a request failed with %s", type(error).__name__)
    return internal()
