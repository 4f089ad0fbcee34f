"""OpenAI's format of chat completions: requests, answers, and streams of them.

Of an upstream's answer only known fields are read, and a reply is written anew. What a model writes
into another field is so never passed on.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ttsa_guard.errors import PromptError
from ttsa_guard.images import DEFAULT_LIMITS, ImageLimits
from ttsa_guard.messages import Message, last_user
from ttsa_guard.record import Action
from ttsa_guard.serve.faults import garbage, wrong
from ttsa_guard.streaming import pieces

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_HEAD = ("id", "created", "model", "system_fingerprint", "service_tier")
_FINISHES = ("stop", "length", "content_filter")
_ID = re.compile(r"[\w.:-]{1,64}")
_LONGEST = 2**22
"""Most characters of an answer, with its reasoning and tool calls."""
_REFUSED = {
    "logprobs": "they would show the words of an answer before its review; leave it out",
    "top_logprobs": "they would show the words of an answer before its review; leave it out",
    "functions": "use tools, whose calls are reviewed",
    "function_call": "use tool_choice, and tools",
    "audio": "only text is reviewed; leave it out",
}
"""Fields that ask for what cannot be reviewed, and what to do instead."""


@dataclass(frozen=True)
class ChatRequest:
    """A request for a chat completion.

    Args:
        body: what the client sent, without what asks for a stream.
        conversation: what the guard reads of it: texts and images, without tool calls and their
            results.
        stream: whether the client wants a stream.
        stream_options: of the client.
    """

    body: Mapping[str, Any]
    conversation: tuple[Message, ...]
    stream: bool = False
    stream_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The last text of the user."""
        return last_user(self.conversation)

    @property
    def usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options.get("include_usage"))

    @classmethod
    def parse(cls, raw: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ChatRequest:
        """Read the body of a request.

        Args:
            limits: of its images.

        Raises:
            ApiError: it is no request that can be reviewed; it names the field.
        """
        body = _object(raw)
        stream, options = body.pop("stream", None), body.pop("stream_options", None)
        if not isinstance(stream, bool | None):
            raise wrong("stream", "stream is neither true nor false", "give one of them")
        if not isinstance(options, dict | None):
            raise wrong("stream_options", "stream_options is no object", "leave it out")
        if body.get("n") not in (None, 1):
            raise wrong("n", "one choice is reviewed, not several", "leave n out, or send 1")
        for name, hint in _REFUSED.items():
            if body.get(name) not in (None, False):
                raise wrong(name, f"{name} cannot be had here", hint)
        if body.get("modalities") not in (None, ["text"]):
            raise wrong("modalities", "only text can be had here", "leave modalities out")
        tools = body.get("tools") or []
        if not isinstance(tools, list) or any(
            not isinstance(tool, dict) or tool.get("type") != "function" for tool in tools
        ):
            raise wrong("tools", "tools holds more than functions", "send functions only")
        said = _conversation(body.get("messages"), limits)
        return cls(body, said, bool(stream), options or {})


@dataclass
class ModelAnswer:
    """What the upstream's model has answered, as far as it has been read."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish: str = "stop"
    head: dict[str, Any] = field(default_factory=dict)
    """Id, time and model of the upstream's answer."""
    usage: dict[str, Any] | None = None

    def add(self, found: Any, part: Literal["message", "delta"]) -> str:
        """Read a completion (`part` is "message") or a chunk of one ("delta").

        Returns:
            The new text, without reasoning that stands in a field of its own.

        Raises:
            ApiError: it is none.
        """
        if not isinstance(found, dict) or not isinstance(found.get("choices"), list):
            raise garbage("it has no choices")
        for key in _HEAD:
            if isinstance(found.get(key), str | int):
                self.head.setdefault(key, found[key])
        if isinstance(found.get("usage"), dict):
            self.usage = _numbers(found["usage"])
        choices = [c for c in found["choices"] if isinstance(c, dict) and not c.get("index")]
        if part == "message" and not choices:
            raise garbage("it has no first choice")
        new = "".join(self._add(choice, part) for choice in choices[:1])
        size = len(self.text) + len(self.reasoning)
        if size + sum(len(call["function"]["arguments"]) for call in self.calls) > _LONGEST:
            raise garbage("it does not end")
        return new

    def _add(self, choice: Mapping[str, Any], part: str) -> str:
        message = choice.get(part)
        if not isinstance(message, dict):
            raise garbage(f"its choice has no {part}")
        text, thoughts = _content(message.get("content"))
        text += _content(message.get("refusal"))[0]
        self.text += text
        self.reasoning += thoughts + _reasoning(message)
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise garbage("its tool calls are no list")
        for place, call in enumerate(calls):
            self._add_call(call, place)
        if choice.get("finish_reason") in _FINISHES:
            self.finish = choice["finish_reason"]
        return text

    def _add_call(self, call: Any, place: int) -> None:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise garbage("a tool call is no function")
        at = call.get("index", place)
        if not isinstance(at, int) or not 0 <= at <= len(self.calls):
            raise garbage("a tool call has no place")
        if at == len(self.calls):
            self.calls.append(
                {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
        known, arguments = self.calls[at], function.get("arguments")
        if isinstance(call.get("id"), str) and _ID.fullmatch(call["id"]):
            known["id"] = call["id"]
        known["id"] = known["id"] or f"call_{at}"
        known["function"]["name"] += str(function.get("name") or "")
        known["function"]["arguments"] += (
            arguments if isinstance(arguments, str) else json.dumps(arguments) if arguments else ""
        )


@dataclass(frozen=True)
class Reply:
    """What a client may read.

    Args:
        text: the text that the guard let out.
        calls: the tool calls that it let out.
        finish: OpenAI's ``finish_reason``.
        action: what the guard did.
        review: the id of the review's record; None if nothing was reviewed.
    """

    text: str
    calls: Sequence[Mapping[str, Any]]
    finish: str
    action: Action
    review: str | None


def completion(reply: Reply, answer: ModelAnswer) -> dict[str, Any]:
    """Return a reply as a chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
    if reply.calls:
        message.update(content=reply.text or None, tool_calls=list(reply.calls))
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
    found = {**_head(answer), "object": "chat.completion", "choices": [choice]}
    return {**found, "usage": answer.usage, "ttsa_guard": _told(reply)}


def first_chunk(answer: ModelAnswer) -> dict[str, Any]:
    """Return the chunk at which a stream begins."""
    return _chunk(answer, {"role": "assistant", "content": ""})


def text_chunk(answer: ModelAnswer, text: str) -> dict[str, Any]:
    """Return a chunk with a piece of the answer."""
    return _chunk(answer, {"content": text})


def last_chunks(
    reply: Reply, answer: ModelAnswer, *, shown: str, usage: bool
) -> Iterator[dict[str, Any]]:
    """Yield the chunks with what is left of a reply, after the text `shown`, and with its end."""
    for piece in pieces(reply.text, shown=shown):
        yield text_chunk(answer, piece)
    if reply.calls:
        calls = [{"index": place, **call} for place, call in enumerate(reply.calls)]
        yield _chunk(answer, {"tool_calls": calls})
    yield {**_chunk(answer, {}, reply.finish), "ttsa_guard": _told(reply)}
    if usage:
        yield {**_chunk(answer, {}), "choices": [], "usage": answer.usage}


def event(data: Any) -> bytes:
    """Return data as a server-sent event."""
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise wrong(None, "the body is no JSON", "send one JSON object in UTF-8") from None
    if not isinstance(found, dict):
        raise wrong(None, "the body is no JSON object", "send one")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _conversation(messages: Any, limits: ImageLimits) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "messages is no list with messages in it", "send at least one")
    for place, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            hint = f"roles are {', '.join(ROLES)}"
            raise wrong(f"messages[{place}].role", f"message {place} has no known role", hint)
    try:
        said = [m for m in messages if m["role"] not in ("tool", "function")]
        turns = Message.conversation(said, limits=limits)
    except PromptError as error:
        raise wrong("messages", error.message, error.hint) from None
    return tuple(turn for turn in turns if turn.content or turn.images or turn.role != "assistant")


def _content(content: Any) -> tuple[str, str]:
    """Return the text and the reasoning of a message's content: a text, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise garbage("its content is no text")
    parts = [part for part in content if isinstance(part, dict)]
    text = "".join(p["text"] for p in parts if isinstance(p.get("text"), str))
    return text, "".join(_content(p["thinking"])[0] for p in parts if "thinking" in p)


def _reasoning(message: Mapping[str, Any]) -> str:
    """Return the reasoning in the fields that servers have for it. Some give it in several."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name]:
            return str(message[name])
    details = message.get("reasoning_details")
    parts = [p for p in details if isinstance(p, dict)] if isinstance(details, list) else []
    return "".join(str(p.get("text") or p.get("summary") or "") for p in parts)


def _numbers(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _numbers(value) if isinstance(value, dict) else value
        for key, value in usage.items()
        if isinstance(value, dict | int | float)
    }


def _head(answer: ModelAnswer) -> dict[str, Any]:
    for key, made in (
        ("id", f"chatcmpl-{uuid.uuid4().hex}"),
        ("created", int(time.time())),
        ("model", "upstream"),
    ):
        answer.head.setdefault(key, made)
    return answer.head


def _chunk(
    answer: ModelAnswer, delta: Mapping[str, Any], finish: str | None = None
) -> dict[str, Any]:
    choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish}
    return {**_head(answer), "object": "chat.completion.chunk", "choices": [choice]}


def _told(reply: Reply) -> dict[str, Any]:
    return {"action": reply.action, "review": reply.review}
