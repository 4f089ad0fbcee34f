"""Keep flagged text out of what the host records, hands to clients and logs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from nemoguardrails.context import explain_info_var
from nemoguardrails.logging.explain import LLMCallInfo
from nemoguardrails.logging.processing_log import processing_log_var

MARK = "[withheld]"
_TALKATIVE = (
    "actions.action_dispatcher",
    "actions.llm.generation",
    "actions.v2_x.generation",
    "colang.v1_0.runtime.runtime",
    "colang.v2_x.runtime.runtime",
    "colang.v2_x.runtime.statemachine",
    "llm.call",
    "streaming",
)


def withhold(text: str, events: Iterable[Any]) -> None:
    """Put a mark in the place of `text` wherever this turn has recorded it.

    Clients may ask for the host's log, its events, its context and its state, and traces are made from them. The records
    are the host's own objects, so they are changed in place.
    """
    for event in events:
        _blank(event, text)
    for entry in processing_log_var.get() or ():
        _blank(entry, text)
    for call in _calls():
        call.prompt = (call.prompt or "").replace(text, MARK)
        call.completion = (call.completion or "").replace(text, MARK)
        call.raw_response = None


def guard_reasoning(app: Any) -> None:
    """Keep the model's reasoning out of what a turn of this app leaves: no moderator has seen it.

    In 1.0 the host puts it in front of the reply, also of one that no output rail sees (empty, or a tool call), and records it.
    """
    plain = getattr(app.runtime, "generate_events", None)
    if plain is None or app.config.colang_version != "1.0":
        return

    async def generate_events(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = await plain(*args, **kwargs)
        for thought in {event["content"] for event in events if event.get("type") == "BotThinking"}:
            if thought and thought.strip():
                withhold(thought, events)
        blank_reasoning(events)
        return events

    app.runtime.generate_events = generate_events


def blank_reasoning(events: Iterable[Any]) -> None:
    """Empty the events that hold reasoning; a mark in its place would be shown."""
    for event in events:
        if not isinstance(event, dict):
            continue
        if event.get("type") == "BotThinking":
            event["content"] = ""
        elif event.get("type") == "ContextUpdate" and "bot_thinking" in event["data"]:
            event["data"]["bot_thinking"] = ""


def silence() -> None:
    """Drop what the host logs below WARNING in the modules that log whole prompts and answers, before any review; and the
    parameters of an action that failed, for the same reason."""
    for name in _TALKATIVE:
        logger = logging.getLogger(f"nemoguardrails.{name}")
        if _without_texts not in logger.filters:
            logger.addFilter(_without_texts)
    conversation = logging.getLogger("nemoguardrails.rails.llm.llmrails")
    if _without_history not in conversation.filters:
        conversation.addFilter(_without_history)


def _without_texts(record: logging.LogRecord) -> bool:
    if record.exc_info and record.exc_info[0]:
        # An error's message may quote a text: its kind and place are enough to find it.
        record.msg, record.args = "%s", (record.exc_info[0].__name__,)
        record.exc_info = record.exc_text = None
    elif isinstance(record.args, tuple) and len(record.args) == 3 and "parameters" in str(record.msg):
        record.args = (record.args[0], MARK, type(record.args[2]).__name__)
    return record.levelno >= logging.WARNING


def _without_history(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Conversation history so far")


def _calls() -> Iterator[LLMCallInfo]:
    explained = explain_info_var.get()
    yield from explained.llm_calls if explained else ()
    for entry in processing_log_var.get() or ():
        if isinstance(entry.get("data"), LLMCallInfo):
            yield entry["data"]


def _blank(value: Any, text: str) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        if isinstance(inner, str) and inner.strip() == text.strip():
            value[key] = MARK
        else:
            _blank(inner, text)
