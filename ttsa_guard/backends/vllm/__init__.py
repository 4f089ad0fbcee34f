"""Use vLLM servers, one or many, as the backend.

Answers and steered candidates are generated over the servers' OpenAI-compatible HTTP protocol. Ray
Serve LLM answers the same requests. The weights are on the servers. This process holds the
tokenizer, the chat template and the table of input embeddings. The servers have to be started with
``--enable-prompt-embeds``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, field_validator

from ttsa_guard.backends.base import Continuation
from ttsa_guard.backends.vllm.checks import examine
from ttsa_guard.backends.vllm.protocol import (
    CHAT,
    Call,
    Choice,
    Growth,
    OtherPromptError,
    answered,
    log_probability,
    prompt_log_likelihood,
)
from ttsa_guard.backends.vllm.replicas import Replica, Replicas
from ttsa_guard.backends.vllm.texts import ChatPrompt, TextHalf
from ttsa_guard.errors import InputError, ModelError, PromptError
from ttsa_guard.hf.profiles import find_profile
from ttsa_guard.hf.source import Source
from ttsa_guard.messages import Generation, GenerationRequest, Message, Prompt, Scope
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
log = logging.getLogger(__name__)


class VLLMOptions(Settings):
    """Options of the backend ``vllm``."""

    model: str = Field(
        min_length=1, description="what the servers run: 'embedded', a Hugging Face name, or a path"
    )
    urls: tuple[str, ...] = Field(
        min_length=1, description="base addresses, one for each server: http://host:8000"
    )
    served_name: str | None = Field(
        None, description="what the servers call the model; default: as `model`"
    )
    key: str = Field(
        "VLLM_API_KEY",
        description="environment variable that holds the servers' key, if they want one",
    )
    timeout: float = Field(
        20.0, gt=0, description="seconds for 100 tokens from one server; then another one is asked"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the embeddings that are sent; auto: as the weights are stored"
    )
    profile: Path | None = Field(None, description="file made by 'ttsa-guard profile'")
    template_options: dict[str, Any] = Field(
        default_factory=dict, description="passed to the chat template"
    )

    @field_validator("urls", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("urls")
    @classmethod
    def _base(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if any("@" in url for url in urls):
            raise ValueError("no credentials in addresses: the key comes from the environment")
        if not all(url.startswith(("http://", "https://")) for url in urls):
            raise ValueError("an address begins with http:// or https://")
        bases = tuple(url.rstrip("/").removesuffix("/v1") for url in urls)
        if len(set(bases)) < len(bases):
            raise ValueError("an address is listed twice")
        return bases


class VLLMTexts:
    """One model on one or many servers, without its embeddings: it needs no torch.

    No server is asked anything before the first answer is wanted.

    Raises:
        ModelError: the tokenizer cannot be loaded.
    """

    def __init__(self, options: VLLMOptions) -> None:
        self.options = options
        self.name = options.model
        self._served = options.served_name or options.model
        self._local = self._read()
        self.profile = find_profile(options.profile, options.model)
        self._sends_parts = True
        key = os.environ.get(options.key, "").strip()
        self._servers = Replicas(
            [
                Replica(url, key=key, key_name=options.key, timeout=options.timeout)
                for url in options.urls
            ],
            lambda replica: examine(replica, self._local, self._served),
        )

    def _read(self) -> TextHalf:
        """Read what is needed of the model in this process."""
        from ttsa_guard.hf.light import LightTokenizer, context_of, ends_of

        path = Source.of(self.options.model).path
        tokenizer = LightTokenizer(path)
        ends, context = ends_of(path, tokenizer), context_of(path, tokenizer)
        return TextHalf(tokenizer, ends, context, self.options.template_options)

    @property
    def context_length(self) -> int:
        """The smallest context length, in tokens, of the servers that have been asked."""
        return min([self._local.context_length, *self._servers.contexts])

    @property
    def device(self) -> str:
        """The number of servers, in words."""
        return f"{len(self.options.urls)} x vLLM"

    @property
    def decoding(self) -> str:
        """How answers are decoded, in words."""
        return "by the servers"

    async def render(self, messages: Sequence[Message], *, scope: Scope = "user") -> Prompt:
        """Write the conversation in the model's chat template; see `Backend.render`."""
        return self._fitting(self._local.render(messages, scope=scope))

    async def render_reasoning(self, messages: Sequence[Message]) -> tuple[Prompt, str]:
        """Write the conversation for an answer with reasoning; see `Reasons.render_reasoning`."""
        prompt, opening = self._local.render_reasoning(messages)
        return self._fitting(prompt), opening

    def _fitting(self, prompt: Prompt) -> Prompt:
        if len(prompt) >= self.context_length:
            raise PromptError(
                f"the prompt has {len(prompt)} tokens, the model takes fewer than"
                f" {self.context_length}",
                hint="shorten the conversation",
            )
        return prompt

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Generate answers, each with an HTTP request of its own; see `Backend.generate`.

        The servers batch the requests. If one fails, another server is asked for that answer alone.
        At a temperature above 0, samples differ from those of other backends.
        """
        return await _all(self._answer(request) for request in requests)

    async def stream(
        self, request: GenerationRequest, on_text: Callable[[str], None]
    ) -> Generation:
        """Generate an answer and show it piece by piece; see `Streams.stream`.

        If a server fails in the middle, another one continues the answer.
        """
        growth = Growth(partial(self._generation, request), on_text)

        async def work(replica: Replica) -> Generation:
            if growth.ended:
                return growth.end()
            call = self._whole(request, [*self._local.encode(request.opening), *growth.ids])
            body = self._body(replica, request, call, done=len(growth.ids))
            growth.begin(call)
            async with aclosing(replica.events(call.path, {**body, "stream": True})) as events:
                async for event in events:
                    growth.add(event)
            return growth.end()

        return await self._servers.do(work)

    async def log_likelihoods(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        """Return the mean token log-likelihood of each text, in nats; see `ScoresText`."""
        return await _all(self._log_likelihood(prompt, text) for text in texts)

    async def close(self) -> None:
        """Close the connections to the servers."""
        await self._servers.close()

    async def _answer(self, request: GenerationRequest) -> Generation:
        opening = self._local.encode(request.opening)

        async def work(replica: Replica) -> Generation:
            choice = await self._asked(replica, request, opening)
            return self._generation(request, choice.token_ids, choice.finished)

        return await self._servers.do(work)

    async def _asked(
        self,
        replica: Replica,
        request: GenerationRequest,
        tail: Sequence[int],
        *,
        token: int | None = None,
    ) -> Choice:
        """Return what a server generates after the prompt and `tail`.

        Args:
            token: the id that it is made to generate, if any.
        """
        call = self._call(request, tail)
        while True:
            body = self._body(replica, request, call)
            if token is not None:
                body |= call.scoring(token)
            try:
                return answered(await replica.post(call.path, body), call)
            except (InputError, OtherPromptError):
                if call.path != CHAT:
                    raise
                log.warning(
                    "%s does not make our prompt of a chat; whole prompts are sent from now on",
                    replica.name,
                )
                self._sends_parts = False
                call = self._whole(request, tail)

    def _call(self, request: GenerationRequest, tail: Sequence[int]) -> Call:
        """Return the cheapest request for what comes after the prompt and `tail`."""
        return self._whole(request, tail)

    def _whole(self, request: GenerationRequest, tail: Sequence[int]) -> Call:
        """Return a request with the whole prompt."""
        return Call.of_ids(request.prompt, tail)

    def _body(
        self, replica: Replica, request: GenerationRequest, call: Call, *, done: int = 0
    ) -> dict[str, Any]:
        """Return the body of a request.

        It names all sampling settings, because a server takes missing ones from the model's
        generation_config.json.
        """
        room = replica.context - len(call.expected)
        if room < 1:
            raise ModelError(
                f"the prompt has {len(call.expected)} tokens, the server takes fewer than"
                f" {replica.context}",
                hint="shorten the conversation, or raise --max-model-len",
            )
        return {
            **call.prompt,
            "model": self._served,
            "max_tokens": max(1, min(request.max_new_tokens - done, room)),
            "temperature": request.temperature,
            "seed": request.seed,
            "top_p": 1,
            "top_k": 0,
            "min_p": 0,
            "repetition_penalty": 1,
            "stop_token_ids": self._local.ends,
            "return_token_ids": True,
        }

    def _generation(
        self, request: GenerationRequest, ids: Sequence[int], ended: bool
    ) -> Generation:
        end = next((i for i, token in enumerate(ids) if token in self._local.ends), len(ids))
        text = self._local.decode([*self._local.encode(request.opening), *ids[:end]])
        return Generation(text.strip(), end, ended)

    async def _log_likelihood(self, prompt: Prompt, text: str) -> float:
        ids = self._local.encode(text)

        async def work(replica: Replica) -> float:
            # the server needs room for one more token
            kept = ids[: replica.context - len(prompt) - 1]
            call = Call.of_ids(prompt, kept)
            body = {
                "model": self._served,
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": 0,
                "return_token_ids": True,
            }
            choice = answered(await replica.post(call.path, {**body, **call.prompt}), call)
            return prompt_log_likelihood(choice, call, last=len(kept))

        return await self._servers.do(work) if ids else 0.0


class VLLMBackend(VLLMTexts):
    """One model on one or many servers, to which embeddings are sent, too.

    No server is asked anything before the first answer is wanted.

    Raises:
        ModelError: the tokenizer or the embeddings cannot be loaded.
    """

    def __init__(self, options: VLLMOptions) -> None:
        super().__init__(options)
        self.token_norm = self._half.token_norm

    def _read(self) -> TextHalf:
        from ttsa_guard.backends.vllm.local import LocalHalf

        options = self.options
        self._half = LocalHalf(
            Source.of(options.model).path, options.dtype, options.template_options
        )
        return self._half

    @property
    def dtype(self) -> str:
        """The precision of the embeddings that are sent, for example "bfloat16"."""
        return str(self._half.dtype).removeprefix("torch.")

    async def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the embeddings of token ids, [len(ids), hidden], float32 on the CPU."""
        return self._half.embed(ids).float()

    async def objective(
        self,
        prompt: Prompt,
        soft_embeds: Sequence[torch.Tensor],
        continuations: Sequence[Continuation],
    ) -> torch.Tensor:
        """Evaluate objective i at soft embeddings i, [n]; see `ScoresSoftEmbeds.objective`.

        Servers do not score a prompt that has embeddings. But a server can be made to generate a
        given token, and tells how likely it was. So this sends one request for each token that has
        a weight. What several objectives have in common is asked once.
        """
        import torch

        points = [moved.detach().float().cpu().numpy().tobytes() for moved in soft_embeds]
        tokens = [c.tokens(self._half.tokenizer) for c in continuations]
        wanted = {
            (point, tuple(ids[: i + 1])): moved
            for point, moved, (ids, weights) in zip(points, soft_embeds, tokens, strict=True)
            for i, weight in enumerate(weights)
            if weight
        }
        found = await _all(
            self._log_probability(prompt, moved, ids) for (_, ids), moved in wanted.items()
        )
        known = dict(zip(wanted, found, strict=True))
        values = []
        for point, (ids, weights) in zip(points, tokens, strict=True):
            terms = [
                _term(weight, known[point, tuple(ids[: i + 1])])
                for i, weight in enumerate(weights)
                if weight
            ]
            values.append(sum(terms) / max(sum(map(abs, weights)), 1e-9))
        return torch.tensor(values, dtype=torch.float32)

    async def _log_probability(
        self, prompt: Prompt, soft_embeds: torch.Tensor, ids: tuple[int, ...]
    ) -> float:
        """Return the log-probability, in nats, of the last of `ids` after what stands before it."""
        request = GenerationRequest(
            prompt, soft_embeds=soft_embeds, max_new_tokens=1, temperature=0
        )

        async def work(replica: Replica) -> float:
            return log_probability(
                await self._asked(replica, request, ids[:-1], token=ids[-1]), ids[-1]
            )

        return await self._servers.do(work)

    def _call(self, request: GenerationRequest, tail: Sequence[int]) -> Call:
        """Return the cheapest request for what comes after the prompt and `tail`.

        If the server makes the same prompt of a chat message, only the soft embeddings are sent, in
        that message.
        """
        prompt, tail = request.prompt, tuple(tail)
        if request.soft_embeds is not None and isinstance(prompt, ChatPrompt) and self._sends_parts:
            begun = self._half.begun(prompt, tail)
            if begun is not None:
                soft_embeds = self._half.checked(prompt, request.soft_embeds)
                return Call.of_parts(prompt, soft_embeds, tail, begun, self._half.template_options)
        return self._whole(request, tail)

    def _whole(self, request: GenerationRequest, tail: Sequence[int]) -> Call:
        """Return a request with the whole prompt: token ids or, if some are soft, embeddings."""
        if request.soft_embeds is None:
            return super()._whole(request, tail)
        return Call.of_embeds(self._half.assemble(request.prompt, request.soft_embeds, tail))


def _term(weight: float, log_probability: float) -> float:
    """Return what a token adds to an objective; see `Continuation`."""
    if weight > 0:
        return weight * log_probability
    return -weight * math.log1p(-min(math.exp(log_probability), 1 - 1e-6))


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results, in order. At the first fault the other work is cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def made(options: VLLMOptions) -> VLLMTexts:
    """Make the backend: without torch and transformers, the one that sends texts alone."""
    whole = all(find_spec(package) for package in ("torch", "transformers"))
    return (VLLMBackend if whole else VLLMTexts)(options)


@hookimpl
def ttsa_register_backends(register: Register) -> None:
    """Register the backend ``vllm``."""
    register("vllm", made, options=VLLMOptions)
