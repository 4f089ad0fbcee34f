"""Streams that are safe behind a rewriting rail: generate, review, swap, and only then emit.

The host streams the original text whatever the rail answers, in both Colang versions.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from nemoguardrails.context import streaming_handler_var
from nemoguardrails.streaming import END_OF_STREAM

_PIECE = re.compile(r"\s*\S+|\s+$")


def buffer_streams(app: Any) -> None:
    """Replace `stream_async` of this app, and what its `generate_async` does with a streaming handler."""
    plain = app.generate_async

    async def generate_async(
        prompt: str | None = None,
        messages: list[dict[str, Any]] | None = None,
        options: Any = None,
        state: Any = None,
        streaming_handler: Any = None,
    ) -> Any:
        handler = streaming_handler or streaming_handler_var.get()
        # Without this the model would write into the handler before the review.
        token = streaming_handler_var.set(None)
        try:
            reply = await plain(prompt=prompt, messages=messages, options=options, state=state)
            for piece in _pieces(reply) if handler else ():
                await handler.push_chunk(piece)
            return reply
        finally:
            streaming_handler_var.reset(token)
            if handler:
                await handler.push_chunk(END_OF_STREAM)

    async def stream_async(
        prompt: str | None = None,
        messages: list[dict[str, Any]] | None = None,
        options: Any = None,
        state: Any = None,
        include_metadata: bool = False,
        generator: AsyncIterator[Any] | None = None,
        include_generation_metadata: bool | None = None,
    ) -> AsyncGenerator[Any, None]:
        if generator is not None:  # an answer from elsewhere: only the output rails run
            answer = "".join([c["text"] if isinstance(c, dict) else c async for c in generator])
            turns: Sequence[Any] = messages or [{"role": "user", "content": prompt or ""}]
            prompt, messages = None, [*turns, {"role": "assistant", "content": answer}]
            options = {"rails": ["output"]}
        reply = await generate_async(prompt, messages, options, state)
        for piece in _pieces(reply):
            yield {"text": piece} if include_metadata or include_generation_metadata else piece

    app.generate_async = generate_async
    app.stream_async = stream_async


def _pieces(reply: Any) -> list[str]:
    """The words of a reply in any of the host's shapes, or the error that the host streams for an exception."""
    reply = getattr(reply, "response", reply)
    message = reply[-1] if isinstance(reply, list) else reply
    if isinstance(message, str):
        return _PIECE.findall(message)
    if message.get("role") == "exception":
        reason = message["content"].get("message", "blocked")
        error = {"message": reason, "type": "guardrails_violation", "param": "ttsa steer output", "code": "content_blocked"}
        return [json.dumps({"error": error})]
    return _PIECE.findall(message.get("content") or "")
