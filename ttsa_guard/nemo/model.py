"""A backend as the host's chat model, so that one copy of the weights serves chat and steering."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from nemoguardrails.types import ChatMessage, LLMResponse, LLMResponseChunk, UsageInfo

from ttsa_guard.backends.base import Backend
from ttsa_guard.config import GenerationConfig
from ttsa_guard.messages import GenerationRequest, Message, Prompt, own_seed

log = logging.getLogger(__name__)
ENGINE = "ttsa_guard"


class BackendModel:
    """The host's ``LLMModel`` over a backend.

    Args:
        backend: the model.
        name: what the host calls it.
        generation: limits that hold unless a call names others (``max_tokens``, ``temperature``).
        seed: of a call that names none.
    """

    def __init__(self, backend: Backend, *, name: str = "", generation: GenerationConfig | None = None, seed: int = 0) -> None:
        self.backend = backend
        self.generation = generation or GenerationConfig()
        self.seed = seed
        self._name = name or backend.name

    @property
    def model_name(self) -> str:
        return self._name

    @property
    def provider_name(self) -> str:
        return ENGINE

    @property
    def provider_url(self) -> None:
        return None

    async def generate_async(
        self, prompt: str | Sequence[ChatMessage], *, stop: str | Sequence[str] | None = None, **parameters: Any
    ) -> LLMResponse:
        """One answer, cut off before the first of the `stop` texts.

        Raises:
            PromptError, ModelError: as the backend does.
        """
        conversation = Message.conversation(prompt if isinstance(prompt, str) else [_as_mapping(m) for m in prompt])
        rendered = await self.backend.render(conversation)
        [answer] = await self.backend.generate([self._request(rendered, own_seed(self.seed, conversation), parameters)])
        text = _cut(answer.text, [stop] if isinstance(stop, str) else stop or ())
        usage = UsageInfo(len(rendered), answer.tokens, len(rendered) + answer.tokens)
        ended = answer.finished or text != answer.text
        return LLMResponse(text, model=self._name, finish_reason="stop" if ended else "length", usage=usage)

    async def stream_async(
        self, prompt: str | Sequence[ChatMessage], *, stop: str | Sequence[str] | None = None, **parameters: Any
    ) -> AsyncGenerator[LLMResponseChunk, None]:
        """The same answer as one chunk: backends do not stream, and no part of an answer leaves before its review."""
        answer = await self.generate_async(prompt, stop=stop, **parameters)
        yield LLMResponseChunk(answer.content, model=self._name, finish_reason=answer.finish_reason, usage=answer.usage)

    def _request(self, prompt: Prompt, seed: int, parameters: dict[str, Any]) -> GenerationRequest:
        defaults = self.generation
        known = {"max_tokens": defaults.max_new_tokens, "temperature": defaults.temperature, "seed": seed}
        unknown = sorted(parameters.keys() - known.keys())
        if unknown:
            log.warning("the backend does not know these generation parameters: %s", ", ".join(unknown))
        given = {key: value for key, value in parameters.items() if value is not None}
        asked: dict[str, Any] = {**known, **given}
        return GenerationRequest(prompt, max_new_tokens=asked["max_tokens"], temperature=asked["temperature"], seed=asked["seed"])


def _as_mapping(message: Any) -> Any:
    return message.to_dict() if isinstance(message, ChatMessage) else message


def _cut(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
