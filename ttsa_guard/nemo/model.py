"""A backend as the host's chat model, so that one copy of the weights serves chat and steering."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from nemoguardrails.types import ChatMessage, LLMResponse, LLMResponseChunk, UsageInfo

from ttsa_guard.backends.base import Backend
from ttsa_guard.backends.plain import plain_answer
from ttsa_guard.budget import answered
from ttsa_guard.config import GenerationConfig
from ttsa_guard.errors import ModelError, TTSAError
from ttsa_guard.images import DEFAULT_LIMITS, ImageLimits
from ttsa_guard.messages import Generation, GenerationRequest, Message, Prompt, own_seed
from ttsa_guard.nemo.names import ENGINE
from ttsa_guard.reasoning import shown_so_far, split_reasoning

log = logging.getLogger(__name__)


class BackendModel:
    """The host's ``LLMModel`` over a backend.

    Args:
        backend: the model.
        name: what the host calls it.
        generation: limits that hold unless a call names others (``max_tokens``, ``temperature``).
        seed: of a call that names none.
        seconds: time limit of one answer; None: no limit.
        images: limits of the images in a conversation.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        name: str = "",
        generation: GenerationConfig | None = None,
        seed: int = 0,
        seconds: float | None = None,
        images: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        self.backend = backend
        self.generation = generation or GenerationConfig()
        self.seed = seed
        self.seconds = seconds
        self.images = images
        self._name = name or backend.name

    @property
    def model_name(self) -> str:
        """What the host calls the model."""
        return self._name

    @property
    def provider_name(self) -> str:
        """The engine's name in configurations."""
        return ENGINE

    @property
    def provider_url(self) -> None:
        """None: the model runs in the process, or its servers are the backend's own matter."""
        return None

    async def generate_async(
        self,
        prompt: str | Sequence[ChatMessage],
        *,
        stop: str | Sequence[str] | None = None,
        **parameters: Any,
    ) -> LLMResponse:
        """Give one answer, cut off before the first of the `stop` texts.

        Raises:
            PromptError, ModelError: as the backend does, or there is no answer in time.
        """
        request, answer = await self._answer(prompt, parameters)
        reasoning, said = split_reasoning(answer.text)
        text = _cut(said, _listed(stop))
        return LLMResponse(
            text,
            reasoning=reasoning or None,
            model=self._name,
            **_ending(request, answer, said, text),
        )

    async def stream_async(
        self,
        prompt: str | Sequence[ChatMessage],
        *,
        stop: str | Sequence[str] | None = None,
        **parameters: Any,
    ) -> AsyncGenerator[LLMResponseChunk, None]:
        """Give the same answer in pieces; in one if the backend does not stream."""
        stops = _listed(stop)
        # so much of the end may be the beginning of a stop text
        held = max(map(len, stops), default=1) - 1
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        work = asyncio.ensure_future(self._answer(prompt, parameters, pieces.put_nowait))
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        text = sent = ""
        try:
            while (piece := await pieces.get()) is not None:
                text += piece
                said = shown_so_far(text)
                cut = _cut(said, stops)
                ready = cut if cut != said else said[: max(0, len(said) - held)]
                if len(ready) > len(sent):
                    yield LLMResponseChunk(ready[len(sent) :], model=self._name)
                    sent = ready
            request, answer = await work
            reasoning, said = split_reasoning(answer.text)
            text = _cut(said, stops)
            yield LLMResponseChunk(
                text[len(sent) :],
                model=self._name,
                delta_reasoning=reasoning or None,
                **_ending(request, answer, said, text),
            )
        finally:
            work.cancel()

    async def _answer(
        self,
        prompt: str | Sequence[ChatMessage],
        parameters: dict[str, Any],
        on_text: Callable[[str], None] | None = None,
    ) -> tuple[GenerationRequest, Generation]:
        conversation = Message.conversation(
            prompt if isinstance(prompt, str) else [_as_mapping(m) for m in prompt],
            limits=self.images,
        )
        defaults, seed = self.generation, own_seed(self.seed, conversation)
        known = {
            "max_tokens": defaults.max_new_tokens,
            "temperature": defaults.temperature,
            "seed": seed,
        }
        unknown = sorted(parameters.keys() - known.keys())
        if unknown:
            names = ", ".join(unknown)
            log.warning("the backend does not know these generation parameters: %s", names)
        given = {key: value for key, value in parameters.items() if value is not None}
        asked: dict[str, Any] = {**known, **given}

        def request_for(rendered: Prompt) -> GenerationRequest:
            return GenerationRequest(
                rendered,
                max_new_tokens=asked["max_tokens"],
                temperature=asked["temperature"],
                seed=asked["seed"],
            )

        return await answered(self.seconds, self._plain(conversation, request_for, on_text))

    async def _plain(
        self,
        conversation: Sequence[Message],
        request_for: Callable[[Prompt], GenerationRequest],
        on_text: Callable[[str], None] | None,
    ) -> tuple[GenerationRequest, Generation]:
        try:
            return await plain_answer(self.backend, conversation, request_for, on_text)
        except Exception as error:
            fault = self._told(error)
        raise fault  # out here it has no context, which would hold the original

    def _told(self, error: Exception) -> Exception:
        """Return what may be told of an error of the backend.

        Its message may quote a text, and the host logs messages. Errors of our own backends quote
        none.
        """
        modules = (type(self.backend).__module__, __name__)
        package, ours = (module.partition(".")[0] for module in modules)
        if isinstance(error, TTSAError) and package == ours:
            return error
        return ModelError(
            f"the backend failed with {type(error).__name__}", hint="see the backend's own log"
        )


def _ending(request: GenerationRequest, answer: Generation, said: str, text: str) -> dict[str, Any]:
    """Return how and with what usage an answer ended.

    Args:
        said: the whole answer.
        text: what is left of it before the first stop text.
    """
    usage = UsageInfo(len(request.prompt), answer.tokens, len(request.prompt) + answer.tokens)
    reason = "stop" if answer.finished or text != said else "length"
    return {"finish_reason": reason, "usage": usage}


def _listed(stop: str | Sequence[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop or ())


def _as_mapping(message: Any) -> Any:
    return message.to_dict() if isinstance(message, ChatMessage) else message


def _cut(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
