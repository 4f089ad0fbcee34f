"""Use any server that speaks OpenAI's chat completions as the backend: text in, text out.

The protocol is that of https://platform.openai.com/docs/api-reference/chat. The model, its
tokenizer and its chat template are the service's own, so this process loads no model and needs
neither torch nor transformers. What needs tokens, likelihoods or embeddings does not work with it;
steerers that ask for text do, such as `ask_again`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from ttsa_guard.errors import AccessError, InputError, ModelError, ModeratorError, PromptError
from ttsa_guard.messages import Generation, GenerationRequest, Message, Prompt, Scope
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.reasoning import CLOSE, OPEN, split_reasoning
from ttsa_guard.service import Http, base_address, key_hint
from ttsa_guard.settings import Settings

log = logging.getLogger(__name__)
CONTINUE = (
    "Your last message broke off. Continue it from exactly where it ends. Do not repeat any of it,"
    " and do not comment on it."
)
"""What the model is told after the beginning of its answer: the protocol cannot begin an answer."""
_LARGEST = 2**24
"""Largest answer, in bytes."""
_CHARACTERS = 4
"""Characters of a token, where a service does not count them."""
_REPLACED = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}
"""What is sent instead of a field that the service refuses; None: nothing."""


class ChatCompletionsOptions(Settings):
    """Options of the backend ``chat_completions``."""

    model: str = Field(min_length=1, description="what the service calls the model")
    url: str = Field(
        description="base address of the service, such as https://api.openai.com/v1",
    )
    key: str | None = Field(
        None,
        description=(
            "environment variable that holds the service's key, such as OPENAI_API_KEY; default:"
            " no key is sent"
        ),
    )
    timeout: float = Field(30.0, gt=0, description="seconds for one try of one answer")
    tries: int = Field(2, ge=1, description="at most, for faults that may pass")
    requests_per_second: float | None = Field(None, gt=0, description="what your plan allows")
    connections: int = Field(32, ge=1, description="answers that are asked for at a time, at most")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of every request besides ours, or instead of them",
    )

    @field_validator("url")
    @classmethod
    def _base(cls, url: str) -> str:
        try:
            return base_address(url)
        except ValueError as error:
            raise ValueError(
                f"it {error}; give one such as https://api.openai.com/v1, and the name of the"
                " variable with its key as `key`"
            ) from None


@dataclass(frozen=True)
class ConversationPrompt(Prompt):
    """A conversation that the service renders itself, so that it has no token ids here.

    Args:
        turns: the messages.
        reasoned: whether the model's reasoning is wanted with the answer.
    """

    turns: tuple[Message, ...] = ()
    reasoned: bool = False


class ChatCompletionsBackend:
    """A model behind an API. Nothing is asked before the first answer is wanted."""

    context_length = 0
    text_only: Literal[True] = True

    def __init__(self, options: ChatCompletionsOptions, *, http: Http | None = None) -> None:
        self.options = options
        self.name = options.model
        key = os.environ.get(options.key, "").strip() if options.key else ""
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = http or Http(
            timeout=options.timeout,
            tries=options.tries,
            requests_per_second=options.requests_per_second,
            connections=options.connections,
            largest=_LARGEST,
        )
        self._names: dict[str, str | None] = {name: name for name in _REPLACED}

    async def render(self, messages: Sequence[Message], *, scope: Scope = "user") -> Prompt:
        """Return the conversation as it is; see `Backend.render`."""
        return _prompt(messages)

    async def render_reasoning(self, messages: Sequence[Message]) -> tuple[Prompt, str]:
        """Return the conversation, for an answer with reasoning if the service shows any."""
        return _prompt(messages, reasoned=True), ""

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Ask for one answer to each request, all at once; see `Backend.generate`.

        Where the service fails in some of them only, those answers are empty. An empty answer is
        never a good one, so the others are of use.

        Raises:
            ModelError: the service failed in all of them. Its words are not repeated.
        """
        found = await asyncio.gather(*map(self._answer, requests), return_exceptions=True)
        failed = [one for one in found if isinstance(one, BaseException)]
        for error in failed:
            if not isinstance(error, ModelError) or len(failed) == len(found):
                raise error
        if failed:
            log.warning("%d of %d answers failed, and count as empty", len(failed), len(found))
        return [one if isinstance(one, Generation) else Generation("", 0, True) for one in found]

    async def close(self) -> None:
        """Close the connections to the service."""
        await self._http.close()

    async def _answer(self, request: GenerationRequest) -> Generation:
        """Ask for one answer, again without a field that the service does not know.

        Raises:
            ModelError: there is none.
        """
        while True:
            names = dict(self._names)
            try:
                found = await self._http.post(
                    f"{self.options.url}/chat/completions",
                    self._body(request, names),
                    headers=self._headers,
                )
            except InputError as error:
                if not self._learnt(error.said, names):
                    raise self._explained(error) from None
            except ModeratorError as error:
                raise self._explained(error) from None
            else:
                return _generation(found, request)

    def _body(self, request: GenerationRequest, names: Mapping[str, str | None]) -> dict[str, Any]:
        assert isinstance(request.prompt, ConversationPrompt)
        messages = [{"role": m.role, "content": m.content} for m in request.prompt.turns]
        if request.opening:
            messages.append({"role": "assistant", "content": request.opening})
            messages.append({"role": "user", "content": CONTINUE})
        sampling = {
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        known = {name: sampling[field] for field, name in names.items() if name}
        return {"model": self.name, "messages": messages, **known, **self.options.parameters}

    def _learnt(self, said: bytes, sent: Mapping[str, str | None]) -> bool:
        """Note the field that the service refuses.

        Returns:
            Whether there is one of ours, so that the request can be sent without it.
        """
        for refused in _refused(said):
            for field, name in sent.items():
                if name == refused and field not in self.options.parameters:
                    self._names[field] = _REPLACED[field] if name == field else None
                    return True
        return False

    def _explained(self, error: ModeratorError) -> ModelError:
        hint = error.hint
        if isinstance(error, AccessError):
            name = self.options.key
            access = key_hint(name) if name else "name the variable with its key as `key`"
            hint = f"{access}, and see the address and the model's name"
        elif isinstance(error, InputError):
            hint = "see the model's name and `parameters`; the conversation may be too long for it"
        return ModelError(f"{self.name}: {error.message}", hint=hint)


def _prompt(messages: Sequence[Message], *, reasoned: bool = False) -> Prompt:
    if not any(m.content.strip() for m in messages):
        raise PromptError(
            "the conversation is empty", hint="give at least one non-empty user message"
        )
    return ConversationPrompt((), tuple(messages), reasoned)


def _generation(found: Any, request: GenerationRequest) -> Generation:
    """Read an answer of the service.

    Raises:
        ModelError: it is none.
    """
    try:
        choice = found["choices"][0]
        message = choice["message"]
        text = _text(message.get("content")) or _text(message.get("refusal"))
        apart = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
        ending = choice.get("finish_reason")
        tokens = (found.get("usage") or {}).get("completion_tokens")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ModelError(
            "the service's answer is no chat completion", hint="see its address; is it that server?"
        ) from None
    inline, text = split_reasoning(text)
    text = "" if ending == "content_filter" else _after(request.opening, text)
    if not isinstance(tokens, int) or tokens < 0:
        tokens = math.ceil(len(apart + inline + text) / _CHARACTERS)
    thoughts = "\n".join(filter(None, [apart, inline]))
    if thoughts and isinstance(request.prompt, ConversationPrompt) and request.prompt.reasoned:
        text = f"{OPEN}{thoughts}{CLOSE}{text}"
    return Generation(text, tokens, ending != "length")


def _text(content: Any) -> str:
    """Return the text of a field that holds a text, a list of parts, or nothing.

    Raises:
        TypeError: it holds something else.
    """
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part.get("type") == "text")


def _after(opening: str, text: str) -> str:
    """Return the whole answer: some models repeat its beginning, and most drop the blank."""
    if not opening or text.startswith(opening):
        return text.strip()
    return f"{opening.rstrip()} {text.strip()}".strip()


def _refused(said: bytes) -> Iterator[str]:
    """Yield the names of fields that a service complains of, in the forms of OpenAI and FastAPI."""
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        return
    waiting = [found]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            if isinstance(part.get("param"), str):
                yield part["param"]
            if isinstance(part.get("loc"), list) and part["loc"]:
                yield str(part["loc"][-1])
            waiting += part.values()


@hookimpl
def ttsa_register_backends(register: Register) -> None:
    """Register the backend."""
    register("chat_completions", ChatCompletionsBackend, options=ChatCompletionsOptions)
