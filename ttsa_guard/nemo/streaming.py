"""Streams that are safe behind a rewriting rail.

The host streams the original text whatever the rail answers, in both Colang versions. Here nothing
is emitted before the gate has passed it: the whole reply after the review, or, with ``streaming:
progressive``, sentence by sentence while the answer grows.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from nemoguardrails.context import streaming_handler_var
from nemoguardrails.streaming import END_OF_STREAM, StreamingHandler

from ttsa_guard.errors import PromptError
from ttsa_guard.guard import Guard
from ttsa_guard.images import ImageLimits
from ttsa_guard.messages import Message, images_of, last_user
from ttsa_guard.nemo.actions import current_stream_gate
from ttsa_guard.nemo.names import FLOW
from ttsa_guard.nemo.requests import RequestRefusedError, refuse_images
from ttsa_guard.streaming import pieces

log = logging.getLogger(__name__)
_REMEMBERED = 1000
"""Conversations whose events the app keeps; it rebuilds those of others from their messages."""


def guard_streams(app: Any, guard: Callable[[], Guard]) -> None:
    """Replace `stream_async` of this app, and what its `generate_async` does with a streaming
    handler.
    """
    plain = app.generate_async

    async def generate_async(
        prompt: str | None = None,
        messages: list[dict[str, Any]] | None = None,
        options: Any = None,
        state: Any = None,
        streaming_handler: Any = None,
    ) -> Any:
        outer = streaming_handler_var.get()
        handler = streaming_handler or outer
        # Without this the model would write into the handler before the review.
        streaming_handler_var.set(None)
        try:
            reply = await plain(prompt=prompt, messages=messages, options=options, state=state)
            _forget(app.events_history_cache)
            for piece in _pieces(reply) if handler else ():
                await handler.push_chunk(piece)
            return reply
        finally:
            # no token: a request that was given up may end in another context
            streaming_handler_var.set(outer)
            if handler:
                await handler.push_chunk(END_OF_STREAM)

    async def progressive(
        prompt: Any, messages: Any, options: Any, state: Any
    ) -> AsyncGenerator[str, None]:
        handler, limits = StreamingHandler(), guard().config.images
        refuse_images(messages or (), limits)
        asked = _asked(prompt, messages, limits)
        stream_gate = guard().stream_gate(last_user(asked), images_of(asked))
        token = current_stream_gate.set(stream_gate)
        work = asyncio.ensure_future(plain(prompt, messages, options, state, handler))
        current_stream_gate.reset(token)
        work.add_done_callback(lambda _: handler.queue.put_nowait(END_OF_STREAM))
        try:
            async for piece in stream_gate.stream(_texts(handler)):
                yield piece
            reply = await work
            _forget(app.events_history_cache)
            for piece in _pieces(reply, shown=stream_gate.text):
                yield piece
        finally:
            work.cancel()

    async def buffered(
        prompt: Any, messages: Any, options: Any, state: Any
    ) -> AsyncGenerator[str, None]:
        for piece in _pieces(await generate_async(prompt, messages, options, state)):
            yield piece

    async def stream_async(
        prompt: str | None = None,
        messages: list[dict[str, Any]] | None = None,
        options: Any = None,
        state: Any = None,
        include_metadata: bool = False,
        generator: AsyncIterator[Any] | None = None,
        include_generation_metadata: bool | None = None,
    ) -> AsyncGenerator[Any, None]:
        grows = guard().config.streaming == "progressive" and generator is None
        stream = progressive if grows else buffered
        if generator is not None:  # an answer from elsewhere: only the output rails run
            answer = "".join([text async for text in _texts(generator)])
            turns: Sequence[Any] = messages or [{"role": "user", "content": prompt or ""}]
            prompt, messages = None, [*turns, {"role": "assistant", "content": answer}]
            options = {"rails": ["output"]}
        try:
            async for piece in stream(prompt, messages, options, state):
                yield {"text": piece} if include_metadata or include_generation_metadata else piece
        except RequestRefusedError as error:
            yield _error(str(error), "downstream_error", 400)
        except Exception as error:
            log.error("streaming failed with %s", type(error).__name__)
            yield _error(
                "The answer could not be generated.", "generation_error", "generation_failed"
            )

    app.generate_async = generate_async
    app.stream_async = stream_async


def _forget(cache: dict[Any, Any]) -> None:
    """Drop the oldest conversations: the host keeps the events of every one for ever."""
    while len(cache) > _REMEMBERED:
        del cache[next(iter(cache))]


async def _texts(chunks: AsyncIterator[Any]) -> AsyncGenerator[str, None]:
    """Yield texts up to the end, or to an error that the host puts among them."""
    async for chunk in chunks:
        text = chunk["text"] if isinstance(chunk, dict) else chunk
        if text.startswith('{"error"'):
            return
        yield text


def _asked(
    prompt: str | None, messages: Sequence[Mapping[str, Any]] | None, limits: ImageLimits
) -> tuple[Message, ...]:
    """Return the turns of the conversation, or none if the user has said nothing."""
    turns = [m for m in messages or () if m.get("role") in ("system", "user", "assistant")]
    try:
        return Message.conversation(turns or prompt or "", limits=limits)
    except PromptError:
        return ()


def _pieces(reply: Any, *, shown: str = "") -> list[str]:
    """Return the words of a reply in any of the host's shapes, without what has been shown of it.

    An exception is the error that the host streams for one.
    """
    reply = getattr(reply, "response", reply)
    message = reply[-1] if isinstance(reply, list) else reply
    if isinstance(message, dict) and message.get("role") == "exception":
        reason = message["content"].get("message", "blocked")
        return [_error(reason, "guardrails_violation", "content_blocked", param=FLOW)]
    text = message if isinstance(message, str) else message.get("content") or ""
    return pieces(text, shown=shown)


def _error(message: str, kind: str, code: str | int, **details: str) -> str:
    """Make a chunk that the host's server recognises as the end of a stream."""
    return json.dumps({"error": {"message": message, "type": kind, "code": code, **details}})
