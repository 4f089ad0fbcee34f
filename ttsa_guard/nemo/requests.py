"""What a request may not set: the host's flows trust variables and options that skip its rails,
whoever sets them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from nemoguardrails.colang.v2_x.runtime.flows import InternalEvents
from nemoguardrails.context import raw_llm_request
from nemoguardrails.exceptions import StreamingNotSupportedError
from nemoguardrails.rails.llm import llmrails
from nemoguardrails.rails.llm.options import GenerationOptions

from ttsa_guard.errors import ImageError
from ttsa_guard.guard import Guard
from ttsa_guard.images import ImageLimits, image_parts, images_in, references
from ttsa_guard.nemo.privacy import guarded

log = logging.getLogger(__name__)
WITHHELD = frozenset({"generation_options", "output_rails_in_progress", "skip_output_rails"})
"""Variables of the conversation's context that switch the host's output rails off, in one of the
Colang versions."""


class RequestRefusedError(StreamingNotSupportedError):  # type: ignore[misc]
    """A request would switch output rails off, or has an image that is not taken.

    Of the host's errors, the base is the one that its server answers with 400.
    """


def guard_requests(app: Any, guard: Callable[[], Guard]) -> None:
    """Drop from each request to this app what would keep the answer from its output rails, or
    refuse it, as the settings say. Refuse it if it has an image that is not taken.

    Clients of the host's server send messages of the role "context" and options, as the application
    can. `state` and the event interfaces are the application's own and are left alone.
    """
    plain = app.generate_async

    async def generate_async(
        prompt: str | None = None,
        messages: list[dict[str, Any]] | None = None,
        options: Any = None,
        state: Any = None,
        streaming_handler: Any = None,
    ) -> Any:
        mended, mended_options = allowed_messages(messages or ()), allowed_options(options)
        if guard().config.requests == "refuse" and (
            mended != list(messages or ()) or mended_options is not options
        ):
            raise RequestRefusedError("the request would switch output rails off")
        refuse_images(messages or (), guard().config.images)
        messages = None if messages is None else mended
        before = guarded.get()
        guarded.set(True)
        try:
            return await plain(prompt, messages, mended_options, state, streaming_handler)
        finally:
            guarded.set(before)

    app.generate_async = generate_async


def guard_prompts(app: Any) -> None:
    """Keep context and event messages from the models of this app, and let content parts through.

    With ``passthrough`` in Colang 1.0, the host gives the model the request's messages as they are,
    and stumbles over the two roles that are its own. In Colang 2.x it gives the model the parts of
    a message in the place of messages, and fails.
    """
    if app.config.colang_version != "1.0":
        _wrap_parts(app.runtime.action_dispatcher)
        return
    plain = app.runtime.generate_events

    async def generate_events(*args: Any, **kwargs: Any) -> Any:
        asked = raw_llm_request.get()
        if isinstance(asked, list):
            said = [m for m in asked if m.get("role") not in ("context", "event")]
            # where nobody has said anything, None makes the host take the text of the event
            raw_llm_request.set(said or None)
        return await plain(*args, **kwargs)

    app.runtime.generate_events = generate_events


def _wrap_parts(dispatcher: Any) -> None:
    plain = dispatcher.execute_action

    async def execute_action(name: str, params: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if name == "PassthroughLLMAction" and isinstance(params.get("user_message"), list):
            said = [{"role": "user", "content": params["user_message"]}]
            params = {**params, "user_message": said}
        return await plain(name, params, *args, **kwargs)

    dispatcher.execute_action = execute_action


@cache
def tell_images_apart() -> None:
    """Let the host remember a conversation by its images, too.

    It keeps the events of earlier turns under the texts alone. With another image under the same
    text, the rails would see those of the first conversation. The key gets the images themselves,
    which the events hold anyway. It is no text then, so that no user can write it.
    """
    plain = llmrails.get_history_cache_key

    def get_history_cache_key(messages: list[dict[str, Any]]) -> Any:
        shown = tuple(
            (place, *references(part))
            for place, message in enumerate(messages)
            for part in image_parts(message.get("content"))
        )
        return (plain(messages), shown) if shown else plain(messages)

    llmrails.get_history_cache_key = get_history_cache_key


def refuse_images(messages: Sequence[Mapping[str, Any]], limits: ImageLimits) -> None:
    """Raise where an image of a request exceeds the limits, is broken or of no known kind.

    Raises:
        RequestRefusedError: an image does.
    """
    found = 0
    try:
        for message in messages:
            if isinstance(content := message.get("content"), list):
                found += len(images_in(content, limits, found=found))
    except ImageError as error:
        raise RequestRefusedError(f"{error.message}; {error.hint}") from None


def allowed_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages without variables of `WITHHELD`, and without events that start, stop or
    finish flows.
    """
    return [_allowed(message) for message in messages if not _steers_flows(message)]


def allowed_options(options: Any) -> Any:
    """Return the options, with output rails wherever the model is asked.

    Options that switch dialog off stay as they are: the model is not asked then, and input rails
    are checked alone.
    """
    if not options:
        return options
    parsed = GenerationOptions(**options) if isinstance(options, dict) else options
    rails = getattr(parsed, "rails", None)
    if rails is None or rails.dialog is False or (rails.output and rails.tool_output):
        return options
    log.warning("a request asked for no output rails; they run")
    checked = rails.model_copy(update={"output": True, "tool_output": True})
    return parsed.model_copy(update={"rails": checked})


def _allowed(message: Mapping[str, Any]) -> dict[str, Any]:
    if message.get("role") == "context":
        return {**message, "content": _without_withheld(message.get("content"))}
    event = _event(message)
    if event.get("type") == "ContextUpdate":
        return {**message, "event": {**event, "data": _without_withheld(event.get("data"))}}
    return dict(message)


def _without_withheld(variables: Any) -> Any:
    if not isinstance(variables, Mapping) or not WITHHELD.intersection(variables):
        return variables
    names = ", ".join(sorted(WITHHELD.intersection(variables)))
    log.warning("a request set %s; that is ignored", names)
    return {name: value for name, value in variables.items() if name not in WITHHELD}


def _steers_flows(message: Mapping[str, Any]) -> bool:
    return _event(message).get("type") in InternalEvents.ALL


def _event(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the event that a message brings; an empty one for other messages."""
    event = message.get("event")
    return event if message.get("role") == "event" and isinstance(event, Mapping) else {}
