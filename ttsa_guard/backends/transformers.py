"""The reference backend: any Hugging Face chat model, in process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from pydantic import Field

from ttsa_guard.backends.base import Continuation, ControlledDecoding
from ttsa_guard.backends.local import controlled
from ttsa_guard.backends.local.batching import Batcher
from ttsa_guard.backends.local.engine import Engine, ScoringRequest, mapped_errors
from ttsa_guard.config import EMBEDDED
from ttsa_guard.errors import PromptError
from ttsa_guard.hf.chat_template import locate, render, render_reasoning
from ttsa_guard.hf.devices import Device, Dtype, resolve_device, resolve_dtype
from ttsa_guard.hf.loading import load
from ttsa_guard.hf.profiles import find_profile
from ttsa_guard.hf.source import Source
from ttsa_guard.messages import (
    Calibration,
    Generation,
    GenerationRequest,
    Message,
    Prompt,
    Scope,
)
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings

T = TypeVar("T")


class TransformersOptions(Settings):
    """Options of the backend ``transformers``."""

    model: str = Field(
        EMBEDDED,
        min_length=1,
        description="'embedded', 'smollm2', a GGUF file, a folder, or a Hugging Face name",
    )
    gguf_file: str | None = Field(
        None, description="in the folder or on the hub, for a model in that format"
    )
    load: dict[str, Any] = Field(
        default_factory=dict,
        description="passed to from_pretrained: device_map, quantization_config, revision, ...",
    )
    device: Device = "auto"
    dtype: Dtype = "auto"
    batch_size: int = Field(32, ge=1, description="most answers decoded together")
    profile: Path | None = Field(None, description="file made by 'ttsa-guard profile'")
    template_options: dict[str, Any] = Field(
        default_factory=dict, description="passed to the chat template"
    )


class TransformersBackend:
    """One model on one device.

    Backends with the same model, device and precision in one process share the weights and the
    thread.

    Raises:
        ModelError: the model or the device cannot be used.
    """

    def __init__(self, options: TransformersOptions) -> None:
        device = resolve_device(options.device)
        self.name = options.model
        self.options = options
        self._loaded = _shared(options, device, resolve_dtype(options.dtype, device))
        self._engine = self._loaded.engine
        self.token_norm = self._engine.token_norm
        self.context_length = self._engine.context_length
        self.profile = find_profile(options.profile, options.model)

    @property
    def device(self) -> str:
        """The device, for example "cuda:0"."""
        return str(self._engine.device)

    @property
    def dtype(self) -> str:
        """The precision, for example "bfloat16"."""
        return str(self._engine.dtype).removeprefix("torch.")

    @property
    def decoding(self) -> str:
        """How answers are decoded, in words. It is known once something was generated."""
        return self._engine.decoding

    async def render(self, messages: Sequence[Message], *, scope: Scope = "user") -> Prompt:
        """Write the conversation in the model's chat template; see `Backend.render`."""
        return self._fitting(
            render(self._engine.tokenizer, messages, scope=scope, **self.options.template_options)
        )

    async def render_reasoning(self, messages: Sequence[Message]) -> tuple[Prompt, str]:
        """Write the conversation for an answer with reasoning; see `Reasons.render_reasoning`."""
        prompt, opening = render_reasoning(
            self._engine.tokenizer, messages, **self.options.template_options
        )
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
        """Generate answers, together with the requests of other callers; see `Backend.generate`."""
        return await self._loaded.generation_batcher(requests)

    async def stream(
        self, request: GenerationRequest, on_text: Callable[[str], None]
    ) -> Generation:
        """Generate an answer and show it piece by piece; see `Streams.stream`."""
        loop, stop = asyncio.get_running_loop(), threading.Event()
        try:
            return await self._run(
                self._engine.stream,
                request,
                stop,
                lambda text: loop.call_soon_threadsafe(on_text, text),
            )
        finally:
            stop.set()

    async def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the embeddings of token ids, [len(ids), hidden], float32 on the CPU."""
        return (await self._run(self._engine.embed, ids)).float().cpu()

    async def log_likelihoods(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        """Return the mean token log-likelihood of each text, in nats; see `ScoresText`."""
        return await self._loaded.values(
            [ScoringRequest(prompt, None, Continuation(((text, 1.0),))) for text in texts]
        )

    async def objective(
        self,
        prompt: Prompt,
        soft_embeds: Sequence[torch.Tensor],
        continuations: Sequence[Continuation],
    ) -> torch.Tensor:
        """Evaluate objective i at soft embeddings i, [n]; see `ScoresSoftEmbeds.objective`."""
        requests = _scoring(prompt, soft_embeds, continuations)
        return torch.tensor(await self._loaded.values(requests))

    async def gradient(
        self,
        prompt: Prompt,
        soft_embeds: Sequence[torch.Tensor],
        continuations: Sequence[Continuation],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values [n] and gradients [n, k, hidden]; see `Differentiable.gradient`."""
        requests = _scoring(prompt, soft_embeds, continuations)
        values, gradients = zip(*await self._loaded.gradients(requests), strict=True)
        return torch.tensor(values), torch.stack(gradients)

    async def locate(
        self, messages: Sequence[Message], *, turn: int | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """Find one message's text among the prompt's tokens; see `ExposesLogProbs.locate`."""
        options = self.options.template_options
        return locate(self._engine.tokenizer, messages, turn=turn, **options)

    async def token_log_probs(
        self, prompt: Prompt, soft_embeds: Sequence[torch.Tensor], positions: Sequence[int]
    ) -> torch.Tensor:
        """Return log-probabilities of prompt tokens; see `ExposesLogProbs.token_log_probs`."""
        return await self._run(self._engine.token_log_probs, prompt, soft_embeds, positions)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model's weights; see `controlled.fingerprint`."""
        return self._loaded.fingerprint

    async def generate_controlled(
        self, requests: Sequence[GenerationRequest], decoding: ControlledDecoding
    ) -> list[Generation]:
        """Generate answers drawn from the logits of `decoding`; see `ExposesLogits`."""
        stop = threading.Event()
        try:
            return await self._run(controlled.generate, self._engine, requests, decoding, stop)
        finally:
            stop.set()

    @property
    def attention_layers(self) -> int:
        """Number of layers whose attention can be calibrated; see `CalibratesAttention`."""
        return self._loaded.attention_layers

    async def attention_shares(self, prompt: Prompt, calibration: Calibration) -> list[float]:
        """Return the keys' share of attention, by layer; see `CalibratesAttention`."""
        return await self._run(self._engine.attention_shares, prompt, calibration)

    async def close(self) -> None:
        """Do nothing.

        The weights may be shared. They are freed with the last backend that uses them.
        """

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        def guarded() -> T:
            with mapped_errors():
                return work(*args)

        return await asyncio.get_running_loop().run_in_executor(self._loaded.worker, guarded)


class _Loaded:
    """A model and its thread, on which the work of all callers is done in batches."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.worker = ThreadPoolExecutor(1, thread_name_prefix=f"ttsa-{name}")
        self.generation_batcher = Batcher(engine.generate, self.worker)
        self.values: Batcher[ScoringRequest, float] = Batcher(engine.values, self.worker)
        self.gradients: Batcher[ScoringRequest, tuple[float, torch.Tensor]] = Batcher(
            engine.gradients, self.worker
        )

    @cached_property
    def fingerprint(self) -> str:
        # A controlled decoding may be changing the weights now. It runs on the worker thread and
        # restores them, so the work waits its turn there.
        return self.worker.submit(controlled.fingerprint, self.engine.model).result()

    @cached_property
    def attention_layers(self) -> int:
        # Finding out tries the model, on its thread.
        return self.worker.submit(lambda: self.engine.attention_layers).result()


def _scoring(
    prompt: Prompt,
    soft_embeds: Sequence[torch.Tensor],
    continuations: Sequence[Continuation],
) -> list[ScoringRequest]:
    pairs = zip(soft_embeds, continuations, strict=True)
    return [ScoringRequest(prompt, moved, continuation) for moved, continuation in pairs]


_loaded: WeakValueDictionary[tuple[Any, ...], _Loaded] = WeakValueDictionary()
_loading = threading.Lock()


def _shared(options: TransformersOptions, device: str, dtype: torch.dtype) -> _Loaded:
    """Return the model. It is loaded once, and freed with the last backend that uses it."""
    source = Source.of(options.model, options.gguf_file)
    if source.gguf_file and options.dtype == "auto":
        # Weights of a few bits lose nothing in bfloat16, and it halves the memory to be read.
        dtype = torch.bfloat16
    key = (source, device, dtype, options.batch_size, repr(sorted(options.load.items())))
    with _loading:
        found = _loaded.get(key)
        if found is None:
            model, tokenizer = load(source, device=device, dtype=dtype, more=options.load)
            with mapped_errors():
                found = _loaded[key] = _Loaded(
                    Engine(model, tokenizer, batch_size=options.batch_size), Path(source.path).name
                )
        return found


@hookimpl
def ttsa_register_backends(register: Register) -> None:
    """Register the backend ``transformers``."""
    register("transformers", TransformersBackend, options=TransformersOptions)
