"""What becomes of an answer: the guard reviews its text, its reasoning and its tool calls."""

from __future__ import annotations

import logging

from ttsa_guard.guard import Guard
from ttsa_guard.reasoning import split_reasoning
from ttsa_guard.serve.wire import ChatRequest, ModelAnswer, Reply
from ttsa_guard.streaming import StreamGate

log = logging.getLogger(__name__)


async def reviewed(
    guard: Guard, asked: ChatRequest, answer: ModelAnswer, *, stream_gate: StreamGate | None = None
) -> Reply:
    """Return what may be shown of an answer.

    Reasoning is never shown. Tool calls leave only with the answer that they came with: where that
    is swapped, they are dropped. If they are flagged, the reply is the fallback. Whatever fails
    ends in the fallback. Nothing is raised but `asyncio.CancelledError`.

    Args:
        stream_gate: the gate of the stream that has shown a part of the answer.
    """
    try:
        return await _reviewed(guard, asked, answer, stream_gate)
    except Exception as error:
        # The message may quote the moderated text, so only the kind of error is named.
        log.error("a review failed with %s; the fallback is given", type(error).__name__)
        return _fallback(guard, stream_gate, None)


async def _reviewed(
    guard: Guard, asked: ChatRequest, answer: ModelAnswer, stream_gate: StreamGate | None
) -> Reply:
    inline, text = split_reasoning(answer.text)
    if stream_gate:
        text = text.lstrip()  # a stream begins with the first word
    reasoning, review = "\n".join(filter(None, [answer.reasoning, inline])), None
    if answer.calls and guard.config.gate_tool_calls:
        gated = await guard.review_calls(asked.conversation, answer.calls, reasoning=reasoning)
        review = gated.record.id if gated else None
        if gated and gated.action != "pass":
            return _fallback(guard, stream_gate, review)
        reasoning = ""  # it has been judged
    finish = "tool_calls" if answer.calls else answer.finish
    if not text.strip():
        return Reply("", answer.calls, finish, "pass", review)
    outcome = await guard.review(
        asked.conversation, text, reasoning=reasoning, stream_gate=stream_gate
    )
    if outcome.action == "pass":
        return Reply(outcome.text, answer.calls, finish, "pass", outcome.record.id)
    finish = "stop" if outcome.action == "swap" else "content_filter"
    return Reply(outcome.text, (), finish, outcome.action, outcome.record.id)


def _fallback(guard: Guard, stream_gate: StreamGate | None, review: str | None) -> Reply:
    """Return the fallback, after what a stream has shown already."""
    if stream_gate:
        stream_gate.close()
    shown, text = stream_gate.text if stream_gate else "", guard.config.fallback
    text = f"{shown}\n\n{text}" if shown else text
    return Reply(text, (), "content_filter", "fallback", review)
