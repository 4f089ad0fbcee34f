"""The action behind the flow ``ttsa steer output``: one review of the guard, as a `RailOutcome`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from nemoguardrails import RailsConfig
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome, TransformTarget

from ttsa_guard.guard import Guard
from ttsa_guard.images import DEFAULT_LIMITS, ImageLimits, has_images, with_text
from ttsa_guard.messages import Message
from ttsa_guard.nemo.privacy import take_reasoning, withhold
from ttsa_guard.reasoning import split_reasoning
from ttsa_guard.record import Outcome
from ttsa_guard.streaming import StreamGate
from ttsa_guard.tool_calls import texts_of_calls

log = logging.getLogger(__name__)
NAME = "ttsa_steer"
"""In Colang 2.x: ``TtsaSteerAction``."""
TOOLS_NAME = "ttsa_gate_tools"
TOOLS_FLOW = "ttsa gate tool calls"
PREFER = "ttsa_prefer"
"""In the conversation's context: what this user prefers, for the steerer prosocial."""

current_stream_gate: ContextVar[StreamGate | None] = ContextVar(
    "ttsa_guard_stream_gate", default=None
)
"""That of the answer that is being streamed in this context."""

Event = Mapping[str, Any]


def make_action(guard: Guard, *, plain: bool = False) -> Callable[..., Awaitable[Any]]:
    """Make the action for `guard`.

    Args:
        plain: whether its outcome is plain data, which the host can save with a state of Colang
            2.x.

    The action raises nothing but `asyncio.CancelledError`: when an action raises, the host logs its
    parameters, which hold the flagged text. It closes over the guard because streaming passes no
    registered parameters.
    """

    async def ttsa_steer(
        context: Mapping[str, Any] | None = None,
        events: list[Any] | None = None,
        config: Any = None,
    ) -> Any:
        outcome = await steered(context, events, config)
        return _as_data(outcome) if plain else outcome

    async def steered(
        context: Mapping[str, Any] | None, events: list[Any] | None, config: Any
    ) -> RailOutcome:
        # Without events this is a window of a stream, where the host does not apply a rewrite.
        refuse = events is None or bool(getattr(config, "enable_rails_exceptions", False))
        said = (context or {}).get("bot_message") or ""
        try:
            thoughts = take_reasoning(events or ())
            withhold(thoughts, events or ())
            if not said:
                return RailOutcome.allow()
            # the host leaves it in where it streams from the model
            inline, answer = split_reasoning(said)
            outcome = await guard.review(
                conversation(
                    events or (),
                    context or {},
                    guard.config.images,
                    instructions=_instructions(config),
                ),
                answer,
                reasoning="\n".join(filter(None, [*thoughts, inline])),
                stream_gate=current_stream_gate.get(),
                prefer=(context or {}).get(PREFER),
            )
            if outcome.text != said:
                withhold([said, answer, *outcome.withheld], events or ())
            return _rendered(outcome, said=said, rewritable=events is not None, refuse=refuse)
        except Exception as error:
            # The message may quote the moderated text, so only the kind of error is named.
            log.error("%s failed with %s; the fallback is given", NAME, type(error).__name__)
            with suppress(Exception):
                withhold([said], events or ())
            return _failed(guard, error, refuse)

    # Of the system: runs here even if there is an action server, and stays out of the prompt's
    # history.
    registered: Callable[..., Awaitable[Any]] = action(is_system_action=True, name=NAME)(ttsa_steer)
    return registered


def make_tools_action(guard: Guard) -> Callable[..., Awaitable[RailOutcome]]:
    """Make the action behind the flow ``ttsa gate tool calls``, for Colang 1.0: models of Colang
    2.x call no tools.
    """

    async def ttsa_gate_tools(
        context: Mapping[str, Any] | None = None,
        events: list[Any] | None = None,
        config: Any = None,
    ) -> RailOutcome:
        calls = [
            event
            for event in events or ()
            if isinstance(event, dict) and event.get("type") == "BotToolCalls"
        ][-1:]
        refuse = bool(getattr(config, "enable_rails_exceptions", False))
        made = [event.get("tool_calls") for event in calls]
        try:
            thoughts = take_reasoning(events or ())
            withhold(thoughts, events or ())
            said = conversation(events or (), context or {}, guard.config.images)
            outcome = await guard.review_calls(said, made, reasoning="\n".join(thoughts))
            if outcome is None:
                return RailOutcome.allow()
            if outcome.action == "pass":
                return RailOutcome.allow(metadata=outcome.record.numbers())
            blocked = _fallback(
                outcome.text, refuse, outcome.record.reason, outcome.record.numbers()
            )
        except Exception as error:
            log.error("%s failed with %s; the fallback is given", TOOLS_NAME, type(error).__name__)
            blocked = _failed(guard, error, refuse)
        for event in calls:
            event["tool_calls"] = []  # the host would return them although they were blocked
        with suppress(Exception):
            withhold(texts_of_calls(made), events or ())
        return blocked

    registered: Callable[..., Awaitable[RailOutcome]] = action(
        is_system_action=True, name=TOOLS_NAME
    )(ttsa_gate_tools)
    return registered


def _as_data(outcome: RailOutcome) -> dict[str, Any]:
    return {
        "is_blocked": outcome.is_blocked,
        "is_transform": outcome.is_transform,
        "transform_text": outcome.transform_text,
        "reason": outcome.reason,
        "metadata": outcome.metadata,
    }


def conversation(
    events: Iterable[Any],
    context: Mapping[str, Any],
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    instructions: str = "",
) -> list[Message]:
    """Return the conversation up to, and without, the answer under review.

    Earlier answers are in it as the user saw them. Tool calls and their results are left out.
    Without events it is the user's text in the context.

    Args:
        limits: of its images.
        instructions: the system message of a conversation that has none.
    """
    turns: list[dict[str, Any]] = []
    for event in _distinct(events):
        kind = event.get("type")
        if kind == "SystemMessage":
            turns.append({"role": "system", "content": event["content"]})
        elif kind == "UtteranceUserActionFinished":
            turns.append({"role": "user", "content": event["final_transcript"]})
        elif kind == "UserMessage":  # the same text after the input rails
            before = turns.pop()["content"] if turns and turns[-1]["role"] == "user" else None
            said = event["text"]
            # a rail may have rewritten the text alone, and records are without images
            said = with_text(before, said) if has_images(before) else said
            turns.append({"role": "user", "content": said})
        elif kind == "StartUtteranceBotAction":
            turns.append({"role": "assistant", "content": event["script"]})
    if not turns:
        turns = [{"role": "user", "content": context.get("user_message") or ""}]
    if instructions and all(turn["role"] != "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": instructions})
    return list(Message.conversation(turns, limits=limits))


def _instructions(config: Any) -> str:
    """Return the app's own general instructions, which its model has read, too.

    The host's default ones say nothing of the app, and an app with `passthrough` sends none.
    """
    given = getattr(config, "instructions", None)
    if not given or config.passthrough or given == RailsConfig.model_fields["instructions"].default:
        return ""
    return "\n".join(one.content.strip() for one in given if one.type == "general")


def _distinct(events: Iterable[Any]) -> Iterable[Event]:
    """Yield the events that are plain data, once each.

    Colang 2.x keeps objects among them, and records outgoing events twice.
    """
    seen: set[str] = set()
    for event in events:
        if not isinstance(event, Mapping) or event.get("uid") in seen:
            continue
        if "uid" in event:
            seen.add(event["uid"])
        yield event


def _rendered(outcome: Outcome, *, said: str, rewritable: bool, refuse: bool) -> RailOutcome:
    metadata = outcome.record.numbers()  # clients of the host can ask for it
    if outcome.action == "pass" and outcome.text == said:
        return RailOutcome.allow(metadata=metadata)
    if outcome.action != "fallback" and rewritable:
        return RailOutcome.transform(
            [(TransformTarget.BOT_MESSAGE, outcome.text)],
            reason=outcome.record.reason,
            metadata=metadata,
        )
    return _fallback(outcome.text, refuse, outcome.record.reason, metadata)


def _failed(guard: Guard, error: Exception, refuse: bool) -> RailOutcome:
    """Return the fallback after an error, whose message may quote a text and is left out."""
    reason = f"error: {type(error).__name__}"
    return _fallback(guard.config.fallback, refuse, reason, {"action": "fallback"})


def _fallback(text: str, refuse: bool, reason: str, metadata: Mapping[str, Any]) -> RailOutcome:
    """Return the fallback text, or a block where the host is to render the refusal."""
    if refuse:
        return RailOutcome.block(reason=reason, metadata=metadata)
    return RailOutcome.transform(
        [(TransformTarget.BOT_MESSAGE, text)], reason=reason, metadata=metadata
    )
