"""The reference backend: any Hugging Face chat model, in process, through ``generate(inputs_embeds=...)``."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ttsa_guard.backends import guided
from ttsa_guard.backends.base import Continuation, Guide
from ttsa_guard.backends.batching import Batcher
from ttsa_guard.backends.engine import Engine, Scored, mapped_errors
from ttsa_guard.devices import Device, Dtype, resolve_device, resolve_dtype
from ttsa_guard.errors import PromptError
from ttsa_guard.loading import EMBEDDED, Source, load
from ttsa_guard.messages import Generation, GenerationRequest, Message, Prompt, Scope, Soft, Tokens
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.profile import FILE, GENERIC, ModelProfile
from ttsa_guard.reasoning import CLOSE, OPEN
from ttsa_guard.tokens import markers, without_markers

T = TypeVar("T")
_MARK = "\ue000content\ue000"  # private use: in no template
_OPENED = re.compile(rf"{OPEN}\s*\Z")
"""How the prompts of models end that always reason."""
_SWITCH = "enable_thinking"
"""The variable with which templates of models that may reason take or leave it."""


class TransformersOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(EMBEDDED, min_length=1, description="'embedded', 'smollm2', a GGUF file, a folder, or a Hugging Face name")
    gguf_file: str | None = Field(None, description="in the folder or on the hub, for a model in that format")
    load: dict[str, Any] = Field(
        default_factory=dict, description="passed to from_pretrained: device_map, quantization_config, revision, ..."
    )
    device: Device = "auto"
    dtype: Dtype = "auto"
    batch_size: int = Field(32, ge=1, description="most answers decoded together")
    profile: Path | None = Field(None, description="file made by 'ttsa-guard profile'")
    template_options: dict[str, Any] = Field(default_factory=dict, description="passed to the chat template")


class TransformersBackend:
    """One model on one device. Backends with the same model, device and dtype in one process share weights and thread."""

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
        return str(self._engine.device)

    @property
    def dtype(self) -> str:
        return str(self._engine.dtype).removeprefix("torch.")

    @property
    def decoding(self) -> str:
        """How answers are decoded, in words; known once something was generated."""
        return self._engine.decoding

    async def render(self, messages: Sequence[Message], *, scope: Scope = "user") -> Prompt:
        return self._fitting(render(self._engine.tokenizer, messages, scope=scope, **self.options.template_options))

    async def render_reasoning(self, messages: Sequence[Message]) -> tuple[Prompt, str]:
        prompt, opening = render_reasoning(self._engine.tokenizer, messages, **self.options.template_options)
        return self._fitting(prompt), opening

    def _fitting(self, prompt: Prompt) -> Prompt:
        if len(prompt) >= self.context_length:
            raise PromptError(
                f"the prompt has {len(prompt)} tokens, the model takes fewer than {self.context_length}",
                hint="shorten the conversation",
            )
        return prompt

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return await self._loaded.generate(requests)

    async def stream(self, request: GenerationRequest, on_text: Callable[[str], None]) -> Generation:
        loop, stop = asyncio.get_running_loop(), threading.Event()
        try:
            return await self._run(self._engine.stream, request, stop, lambda text: loop.call_soon_threadsafe(on_text, text))
        finally:
            stop.set()

    async def embed(self, ids: Sequence[int]) -> torch.Tensor:
        return (await self._run(self._engine.embed, ids)).float().cpu()

    async def log_likelihoods(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        return await self._loaded.values([Scored(prompt, None, Continuation(((text, 1.0),))) for text in texts])

    async def objective(self, prompt: Prompt, rows: Sequence[torch.Tensor], goals: Sequence[Continuation]) -> torch.Tensor:
        return torch.tensor(await self._loaded.values([Scored(prompt, r, g) for r, g in zip(rows, goals, strict=True)]))

    async def gradient(
        self, prompt: Prompt, rows: Sequence[torch.Tensor], goals: Sequence[Continuation]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = await self._loaded.gradients([Scored(prompt, r, g) for r, g in zip(rows, goals, strict=True)])
        return torch.tensor([value for value, _ in found]), torch.stack([gradient for _, gradient in found])

    async def locate(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        return locate(self._engine.tokenizer, messages, **self.options.template_options)

    async def token_log_probs(self, prompt: Prompt, rows: Sequence[torch.Tensor], positions: Sequence[int]) -> torch.Tensor:
        return await self._run(self._engine.token_log_probs, prompt, rows, positions)

    @property
    def fingerprint(self) -> str:
        return self._loaded.fingerprint

    async def generate_guided(self, requests: Sequence[GenerationRequest], guide: Guide) -> list[Generation]:
        stop = threading.Event()
        try:
            return await self._run(guided.generate, self._engine, requests, guide, stop)
        finally:
            stop.set()

    async def close(self) -> None:
        """Nothing to do: the weights may be shared, and go when the last backend that uses them does."""

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        def guarded() -> T:
            with mapped_errors():
                return work(*args)

        return await asyncio.get_running_loop().run_in_executor(self._loaded.worker, guarded)


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, scope: Scope, **template_options: Any) -> Prompt:
    """The conversation as the model's template has it, with the rows of `scope` soft, and ready for an answer without reasoning.

    Raises:
        PromptError: empty, no chat template, or the template refuses the conversation.
    """
    _, encoded, (first, last) = _encoded(tokenizer, messages, scope, template_options)
    flags = [end > first and start < last for start, end in encoded["offset_mapping"]]
    return Prompt(_segments(encoded["input_ids"], flags))


def render_reasoning(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **template_options: Any
) -> tuple[Prompt, str]:
    """See `Reasons.render_reasoning`."""
    text = _templated(tokenizer, _turns(tokenizer, messages), template_options)
    opened = _OPENED.search(text)
    if not opened and _SWITCH not in str(tokenizer.chat_template):
        return render(tokenizer, messages, scope="user", **template_options), ""
    if opened:  # by the template: without this, the answer would only show how the block ends
        text = text[: opened.start()]
    return Prompt((Tokens(tuple(tokenizer(text, add_special_tokens=False)["input_ids"])),)), opened.group() if opened else ""


def locate(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **template_options: Any
) -> tuple[str, list[tuple[int, int]]]:
    """See `ExposesLogProbs.locate`."""
    text, encoded, (first, last) = _encoded(tokenizer, messages, "user", template_options)
    spans = [(min(max(start, first), last), min(max(end, first), last)) for start, end in encoded["offset_mapping"]]
    return text[first:last], [(start - first, end - first) for start, end in spans]


def _encoded(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], scope: Scope, template_options: dict[str, Any]
) -> tuple[str, BatchEncoding, tuple[int, int]]:
    """The conversation as text and as tokens with their offsets, and where `scope` stands in the text."""
    turns = _turns(tokenizer, messages)
    asked = max(i for i, t in enumerate(turns) if t["role"] == "user" and t["content"].strip())
    if _SWITCH in str(tokenizer.chat_template):
        template_options = {**template_options, _SWITCH: False}
    text = _templated(tokenizer, turns, template_options)
    if _OPENED.search(text):
        text = f"{text.rstrip()}\n\n{CLOSE}\n\n"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    first, last = 0, len(text)
    if scope == "user":
        other = [*turns[:asked], {"role": "user", "content": _MARK}, *turns[asked + 1 :]]
        marked = _templated(tokenizer, other, template_options)
        first, last = _content_span(text, marked, turns[asked]["content"].strip())
    return text, encoded, (first, last)


def _turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[dict[str, str]]:
    if not tokenizer.chat_template:
        raise PromptError(
            "the model has no chat template", hint="choose an instruction-tuned model, or set tokenizer.chat_template"
        )
    special = markers(tokenizer)
    turns = [{"role": m.role, "content": without_markers(special, m.content)} for m in messages]
    if not any(t["role"] == "user" and t["content"].strip() for t in turns):
        raise PromptError("the conversation has no user text", hint="give at least one non-empty user message")
    return turns


def _templated(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], options: dict[str, Any]) -> str:
    for conversation in (turns, _system_folded(turns)):
        try:
            return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, **options))
        except TemplateError as error:
            problem = error
    raise PromptError(f"the model's chat template refuses the conversation: {problem}", hint="roles must alternate")


def _system_folded(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """For templates without a system role: the system text in front of the first user text."""
    system = "\n\n".join(t["content"] for t in turns if t["role"] == "system")
    rest = [dict(t) for t in turns if t["role"] != "system"]
    if system and rest and rest[0]["role"] == "user":
        rest[0]["content"] = f"{system}\n\n{rest[0]['content']}"
    return rest


def _content_span(text: str, marked: str, content: str) -> tuple[int, int]:
    """Where `content` stands in `text`, found by means of the same text with a mark in its place: the words of the content
    may also occur in other turns and in the template itself."""
    before, _, after = marked.rpartition(_MARK)
    before = before.replace(_MARK, content)
    start = text.find(content, len(before)) if text.startswith(before) else -1
    if start < 0 or len(text) - start - len(content) < len(after):
        start = text.rfind(content)  # a template that looks into the content
    return (start, start + len(content)) if start >= 0 else (0, len(text))


def _segments(ids: Sequence[int], flags: Sequence[bool]) -> tuple[Tokens | Soft, ...]:
    segments: list[Tokens | Soft] = []
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or flags[i] != flags[start]:
            segments.append((Soft if flags[start] else Tokens)(tuple(ids[start:i])))
            start = i
    return tuple(segments)


# ---------------------------------------------------------------------- loading


def find_profile(path: Path | None, model: str) -> ModelProfile:
    """The named profile, else the one beside the weights, else the one in the cache, else the generic one."""
    if path is not None:
        return ModelProfile.load(path)
    for candidate in (beside(model), cached_profile(model)):
        if candidate.is_file():
            return ModelProfile.load(candidate)
    return GENERIC


def beside(model: str) -> Path:
    """Where a profile that comes with the model's weights is."""
    return Path(Source.of(model).path) / FILE


def cached_profile(model: str) -> Path:
    """Where ``ttsa-guard profile MODEL`` keeps what it found."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ttsa_guard" / re.sub(r"[^\w.-]+", "_", model) / FILE


class _Loaded:
    """A model with its thread, on which the work of all callers meets in batches."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.worker = ThreadPoolExecutor(1, thread_name_prefix=f"ttsa-{name}")
        self.generate = Batcher(engine.generate, self.worker)
        self.values: Batcher[Scored, float] = Batcher(engine.values, self.worker)
        self.gradients: Batcher[Scored, tuple[float, torch.Tensor]] = Batcher(engine.gradients, self.worker)

    @cached_property
    def fingerprint(self) -> str:
        # On the thread, for a guide may just have changed the weights.
        return self.worker.submit(guided.fingerprint, self.engine.model).result()


_loaded: WeakValueDictionary[tuple[Any, ...], _Loaded] = WeakValueDictionary()
_loading = threading.Lock()


def _shared(options: TransformersOptions, device: str, dtype: torch.dtype) -> _Loaded:
    """The model, loaded at most once at a time; it is freed with the last backend that holds it."""
    source = Source.of(options.model, options.gguf_file)
    if source.gguf_file and options.dtype == "auto":
        dtype = torch.bfloat16  # weights of a few bits lose nothing, and half the memory is to be read
    key = (source, device, dtype, options.batch_size, repr(sorted(options.load.items())))
    with _loading:
        found = _loaded.get(key)
        if found is None:
            model, tokenizer = load(source, device=device, dtype=dtype, more=options.load)
            with mapped_errors():
                found = _loaded[key] = _Loaded(Engine(model, tokenizer, batch_size=options.batch_size), Path(source.path).name)
        return found


@hookimpl
def ttsa_register_backends(register: Register) -> None:
    register("transformers", TransformersBackend, options=TransformersOptions)
