"""A backend as the host's chat model, so that one copy of the weights serves chat and steering."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from nemoguardrails.types import ChatMessage, LLMResponse, LLMResponseChunk, UsageInfo

from ttsa_guard.backends.base import Backend, Streams
from ttsa_guard.budget import answered
from ttsa_guard.config import GenerationConfig
from ttsa_guard.forks import refuse_after_fork
from ttsa_guard.messages import Generation, GenerationRequest, Message, own_seed

log = logging.getLogger(__name__)
ENGINE = "ttsa_guard"


class BackendModel:
    """The host's ``LLMModel`` over a backend.

    Args:
        backend: the model.
        name: what the host calls it.
        generation: limits that hold unless a call names others (``max_tokens``, ``temperature``).
        seed: of a call that names none.
        seconds: time limit of one answer; None: no limit.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        name: str = "",
        generation: GenerationConfig | None = None,
        seed: int = 0,
        seconds: float | None = None,
    ) -> None:
        self.backend = backend
        self.generation = generation or GenerationConfig()
        self.seed = seed
        self.seconds = seconds
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
            PromptError, ModelError: as the backend does, or there is no answer in time.
        """
        request, answer = await answered(self.seconds, self._answer(prompt, parameters))
        text = _cut(answer.text, _listed(stop))
        return LLMResponse(text, model=self._name, **_ending(request, answer, text))

    async def stream_async(
        self, prompt: str | Sequence[ChatMessage], *, stop: str | Sequence[str] | None = None, **parameters: Any
    ) -> AsyncGenerator[LLMResponseChunk, None]:
        """The same answer in pieces; in one if the backend does not stream."""
        request, stops = await self._request(prompt, parameters), _listed(stop)
        held = max(map(len, stops), default=1) - 1  # so much of the end may be the beginning of a stop text
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        work = asyncio.ensure_future(answered(self.seconds, self._stream(request, pieces.put_nowait)))
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        text = sent = ""
        try:
            while (piece := await pieces.get()) is not None:
                text += piece
                cut = _cut(text, stops)
                ready = cut if cut != text else text[: max(0, len(text) - held)]
                if len(ready) > len(sent):
                    yield LLMResponseChunk(ready[len(sent) :], model=self._name)
                    sent = ready
            answer = await work
            text = _cut(answer.text, stops)
            yield LLMResponseChunk(text[len(sent) :], model=self._name, **_ending(request, answer, text))
        finally:
            work.cancel()

    async def _answer(self, prompt: Any, parameters: dict[str, Any]) -> tuple[GenerationRequest, Generation]:
        request = await self._request(prompt, parameters)
        [answer] = await self.backend.generate([request])
        return request, answer

    async def _stream(self, request: GenerationRequest, on_text: Callable[[str], None]) -> Generation:
        if isinstance(self.backend, Streams):
            return await self.backend.stream(request, on_text)
        [answer] = await self.backend.generate([request])
        return answer

    async def _request(self, prompt: str | Sequence[ChatMessage], parameters: dict[str, Any]) -> GenerationRequest:
        refuse_after_fork(self.backend)
        conversation = Message.conversation(prompt if isinstance(prompt, str) else [_as_mapping(m) for m in prompt])
        defaults, seed = self.generation, own_seed(self.seed, conversation)
        known = {"max_tokens": defaults.max_new_tokens, "temperature": defaults.temperature, "seed": seed}
        unknown = sorted(parameters.keys() - known.keys())
        if unknown:
            log.warning("the backend does not know these generation parameters: %s", ", ".join(unknown))
        asked: dict[str, Any] = {**known, **{key: value for key, value in parameters.items() if value is not None}}
        return GenerationRequest(
            await self.backend.render(conversation),
            max_new_tokens=asked["max_tokens"],
            temperature=asked["temperature"],
            seed=asked["seed"],
        )


def _ending(request: GenerationRequest, answer: Generation, text: str) -> dict[str, Any]:
    """What the host wants to know of an answer of which `text` was kept."""
    usage = UsageInfo(len(request.prompt), answer.tokens, len(request.prompt) + answer.tokens)
    return {"finish_reason": "stop" if answer.finished or text != answer.text else "length", "usage": usage}


def _listed(stop: str | Sequence[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop or ())


def _as_mapping(message: Any) -> Any:
    return message.to_dict() if isinstance(message, ChatMessage) else message


def _cut(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
