"""Keep what must not be read out of what the host records, hands to clients and logs.

Of everything that a model has written in a turn, only what left the rails may be read. A flagged
answer, the candidates for another, what stood there before a rail of the host rewrote or blocked
it, and all reasoning stay hidden.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from nemoguardrails.colang.v2_x.runtime.flows import State
from nemoguardrails.context import explain_info_var, llm_response_metadata_var, reasoning_trace_var
from nemoguardrails.logging.explain import LLMCallInfo
from nemoguardrails.logging.processing_log import processing_log_var

from ttsa_guard.images import image_parts, references
from ttsa_guard.nemo.redaction import MARK, Redactor, text_without_images, without_images

_TALKATIVE = (
    "actions.action_dispatcher",
    "actions.llm.generation",
    "actions.v2_x.generation",
    "colang.v1_0.runtime.runtime",
    "colang.v2_x.runtime.runtime",
    "colang.v2_x.runtime.statemachine",
    "llm.call",
    "rails.llm.llmrails",
    "streaming",
)
_AFTER = ".llmrails"
"""Logs when a turn has ended, and its records are clean."""
_ANSWERS = ("general", "generate_bot_message")
"""Tasks of the host whose completions are answers to the user; those of other tasks decide what it
does next."""
_SAYING = ("bot say", "_bot_say", "run output rails", "output rails")
"""Flows of Colang 2.x that are given an answer."""
_OF_USERS = {
    "UtteranceUserActionFinished": "final_transcript",
    "UserMessage": "text",
    "SystemMessage": "content",
}
_STATE = ("context", "context_updates", "internal_events", "last_events", "outgoing_events")


@dataclass
class _Turn:
    """One turn of a conversation, while it goes on.

    Args:
        withheld: texts of the review.
        thoughts: reasoning that the host has dropped.
        running: actions that are tasks of their own.
        calls_before: calls of models that the context had on record when it began.
        broken: it ended with an error or was cancelled, so that nothing of it was said.
    """

    withheld: set[str] = field(default_factory=set)
    thoughts: list[str] = field(default_factory=list)
    running: set[asyncio.Task[Any]] = field(default_factory=set)
    calls_before: int = 0
    broken: bool = False


_turn: ContextVar[_Turn | None] = ContextVar("ttsa_guard_turn", default=None)
guarded: ContextVar[bool] = ContextVar("ttsa_guard_guarded", default=False)
"""A request to an app with a guard is being answered in this context."""


def guard_records(app: Any) -> None:
    """Clean the records of every turn of this app when it ends, however it ends."""
    name = "generate_events" if app.config.colang_version == "1.0" else "process_events"
    plain = getattr(app.runtime, name)

    async def processed(events: list[Any], *args: Any, **kwargs: Any) -> Any:
        if _turn.get():  # rails that run in parallel are inside a turn
            return await plain(events, *args, **kwargs)
        explained, was_guarded = explain_info_var.get(), guarded.get()
        turn = _Turn(calls_before=len(explained.llm_calls) if explained else 0)
        _turn.set(turn)
        guarded.set(True)
        records: list[Any] = [events, args, kwargs]
        try:
            result = await plain(events, *args, **kwargs)
            records.append(result)
            return result
        except BaseException:
            turn.broken = True
            for task in turn.running:
                task.cancel()
            raise
        finally:
            _clean(turn, events, records)
            _drop_images(records[3] if len(records) > 3 else None)
            if turn.broken:  # nobody is told of it, so nothing of it has to stay
                (processing_log_var.get() or []).clear()
            _turn.set(None)
            guarded.set(was_guarded)

    setattr(app.runtime, name, processed)


def guard_actions(app: Any) -> None:
    """Keep what models think within actions until the review, and end the actions with their turn.

    This is for Colang 2.x, where the host runs every action as a task of its own, and goes on with
    it when the turn is broken off.
    """
    if app.config.colang_version == "1.0":
        return
    plain = app.runtime.action_dispatcher.execute_action

    async def execute_action(*args: Any, **kwargs: Any) -> Any:
        turn, task = _turn.get(), asyncio.current_task()
        if turn is None or task is None:
            return await plain(*args, **kwargs)
        if turn.broken:  # before this task has begun
            raise asyncio.CancelledError
        turn.running.add(task)
        try:
            return await plain(*args, **kwargs)
        finally:
            turn.running.discard(task)
            if thought := reasoning_trace_var.get():
                turn.thoughts.append(thought)
                reasoning_trace_var.set(None)

    app.runtime.action_dispatcher.execute_action = execute_action


def take_reasoning(events: Iterable[Any]) -> list[str]:
    """Return what the models have thought in this turn, once each.

    The events that hold it are emptied.
    """
    turn = _turn.get()
    return list(dict.fromkeys([*blank_reasoning(events), *(turn.thoughts if turn else ())]))


def withhold(texts: Iterable[str], events: Iterable[Any]) -> None:
    """Put a mark in the place of the texts wherever this turn has recorded them so far, or will
    have when it ends.

    Clients may ask for the host's log, its events, its context and its state, and traces are made
    from them. The records are the host's own objects, so they are changed in place.
    """
    texts = {text for text in texts if text.strip()}
    if not texts:
        return
    if turn := _turn.get():
        turn.withheld |= texts
    redactor = Redactor(texts, _said_by_users(events), _shown_by_users(events))
    if redactor:
        _apply(redactor, [list(events)])


def blank_reasoning(events: Iterable[Any]) -> list[str]:
    """Empty the events that hold reasoning, and return it; a mark in its place would be shown."""
    found = []
    for event in events:
        data = event.get("data") if isinstance(event, dict) else None
        for holder, key in ((event, "content"), (data, "bot_thinking")):
            of_event = holder is not event or (
                isinstance(event, dict) and event.get("type") == "BotThinking"
            )
            if of_event and isinstance(holder, dict) and holder.get(key):
                found.append(str(holder[key]))
                holder[key] = ""
    return found


# ------------------------------------------------------------------ the end of a turn


def _clean(turn: _Turn, events: list[Any], records: list[Any]) -> None:
    new, state = _parts(records)
    written, spoken = _written_and_said(new)
    versions = {*turn.withheld, *written, *(_versions_in(state) if state else ())}
    thoughts = [*turn.thoughts, *blank_reasoning(new)]
    calls = list(_calls())
    versions.update(call.completion or "" for call in calls if turn.broken or call.task in _ANSWERS)
    said = set(spoken)
    hidden = {text for text in (*versions, *thoughts) if text.strip() and text not in said}
    if not hidden:
        return
    known = [*events, *(state.last_events if state else ())]
    kept = (
        list(_said_by_users(known))
        if turn.broken
        else [*said, *_written_and_said(known)[1], *_said_by_users(known)]
    )
    redactor = Redactor(hidden, kept, _shown_by_users(known))
    if redactor:
        _apply(redactor, [records[0], *([new] if new else [])], state)


def _parts(records: list[Any]) -> tuple[list[Any], State | None]:
    """Return the new events, and the state of Colang 2.x."""
    result = records[3] if len(records) > 3 else None
    arguments = (*records[1], *records[2].values())
    returned = result if isinstance(result, tuple) else (result,)
    state = next((value for value in (*returned, *arguments) if isinstance(value, State)), None)
    new = returned[0]
    return new or [], state


def _apply(redactor: Redactor, records: list[Any], state: State | None = None) -> None:
    redactor.clean([*records, processing_log_var.get(), *_live(state)])
    for call in _calls():
        call.prompt = redactor.text(call.prompt or "")
        call.completion = redactor.text(call.completion or "")
        call.raw_response = None
    # What a provider adds may hold a text token by token.
    llm_response_metadata_var.set(None)


def _live(state: State | None) -> Iterator[Any]:
    """Return what a state of Colang 2.x holds besides programs; the host goes on with it."""
    if state:
        yield from (getattr(state, name) for name in _STATE)
        yield from (vars(action) for action in state.actions.values())
        for flow in state.flow_states.values():
            yield from (flow.context, flow.arguments)


def _written_and_said(events: Iterable[Any]) -> tuple[list[str], list[str]]:
    """Return two lists: the texts that the bot was going to say, and those that it said.

    The first list has every version: as the model wrote it, and as each rail changed it.
    """
    written, said = [], []
    for event in _plain(events):
        kind, data = event.get("type"), event.get("data")
        if kind == "BotMessage":
            written.append(str(event.get("text") or ""))
        elif kind == "ContextUpdate" and isinstance(data, Mapping):
            written.append(str(data.get("bot_message") or ""))
        elif kind in ("StartUtteranceBotAction", "UtteranceBotActionFinished"):
            said.append(str(event.get("script") or event.get("final_script") or ""))
    return written, said


def _versions_in(state: State) -> Iterator[str]:
    for flow in state.flow_states.values():
        if flow.flow_id in _SAYING:
            yield from (text for text in flow.arguments.values() if isinstance(text, str))


def _said_by_users(events: Iterable[Any]) -> Iterator[str]:
    """Return the words of users and operators, which they may read."""
    for event in _plain(events):
        said = event.get(_OF_USERS.get(event.get("type", ""), ""))
        if isinstance(said, list):
            yield from (
                part["text"]
                for part in said
                if isinstance(part, Mapping) and isinstance(part.get("text"), str)
            )
        elif isinstance(said, str):
            yield said


def _shown_by_users(events: Iterable[Any]) -> Iterator[str]:
    """Return the images of users, as the host holds them."""
    for event in _plain(events):
        for part in image_parts(event.get(_OF_USERS.get(event.get("type", ""), ""))):
            yield from references(part)


def _drop_images(result: Any) -> None:
    """Put marks in the place of images in the host's records of this turn, which traces are made
    of.

    The event of what the user has sent keeps them, and so does a state of Colang 2.x: the host goes
    on with those.
    """
    if isinstance(result, list):
        result[:] = map(without_images, result)
    for entry in processing_log_var.get() or ():
        if isinstance(entry.get("data"), dict):
            entry["data"] = without_images(entry["data"])
    for call in _calls():
        call.prompt = text_without_images(call.prompt or "")


def _plain(events: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    return (event for event in events if isinstance(event, Mapping))


def _calls() -> Iterator[LLMCallInfo]:
    """Return the calls of models in this turn."""
    explained, turn = explain_info_var.get(), _turn.get()
    yield from explained.llm_calls[turn.calls_before if turn else 0 :] if explained else ()
    for entry in processing_log_var.get() or ():
        if entry["type"] == "llm_call_info":
            yield entry["data"]


# ------------------------------------------------------------------ logs

_NAME = re.compile(r"[\w.$/-]{1,80}")
_QUOTING = re.compile(r"Error (?:evaluating|in|executing) ")
"""Messages of the host that end with those of an error, or with the text that was at fault."""


def silence() -> None:
    """Drop what the host logs below WARNING about turns of apps with a guard.

    That is in the modules that log whole prompts and answers, before any review. The parameters of
    an action that failed are dropped for the same reason.
    """
    for name in _TALKATIVE:
        logger = logging.getLogger(f"nemoguardrails.{name}")
        if _without_texts not in logger.filters:
            logger.addFilter(_without_texts)


def _without_texts(record: logging.LogRecord) -> bool:
    if not guarded.get():
        return True
    if record.exc_info and record.exc_info[0]:
        # An error's message may quote a text: its kind and place are enough to find it.
        record.msg, record.args = "%s", (record.exc_info[0].__name__,)
        record.exc_info = record.exc_text = None
    elif (
        isinstance(record.args, tuple) and len(record.args) == 3 and "parameters" in str(record.msg)
    ):
        record.args = (record.args[0], MARK, type(record.args[2]).__name__)
    elif isinstance(record.args, tuple) and record.args:
        record.args = tuple(
            MARK if isinstance(arg, str) and not _NAME.fullmatch(arg) else arg
            for arg in record.args
        )
    elif _QUOTING.match(str(record.msg)):
        record.msg = f"{str(record.msg).partition(':')[0]}: {MARK}"
    return record.levelno >= logging.WARNING or record.name.endswith(_AFTER)
