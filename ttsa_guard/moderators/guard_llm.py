"""Generative guard models as moderators: the odds of the verdict's first token, in one forward
pass, without sampling.

Continuous scores from models that were made to say "safe" or "unsafe": the Llama Guard 3 model card
itself defines its score in this way. How each family is asked is in ``guards.yaml``. The weights
are in this process, from the usual files or a GGUF file, or on a server
(`moderators.guard_server`); the prompts and the scores are the same.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from pydantic import Field, field_validator
from transformers import AutoConfig

from ttsa_guard.errors import ConfigError, ModelError, ModeratorError
from ttsa_guard.hf.devices import Device, Dtype, resolve_device, resolve_dtype
from ttsa_guard.hf.loading import load, load_tokenizer
from ttsa_guard.hf.source import Source
from ttsa_guard.hf.tokens import markers, without_markers
from ttsa_guard.moderators.categories import CategoryOptions
from ttsa_guard.moderators.guard_server import GuardServer, Question, ServerOptions, address
from ttsa_guard.moderators.recipes import Recipe, recipe_for
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.verdict import Verdict


class GuardLLMOptions(CategoryOptions):
    """Which guard model it is, and where it runs."""

    model: str = Field(
        min_length=1,
        description=(
            "a Hugging Face name, a folder or a GGUF file; for a server, whose tokenizer it is"
        ),
    )
    gguf_file: str | None = Field(None, description="the GGUF file in that folder or repository")
    recipe: str | dict[str, Any] | None = Field(
        None, description="a known one, a YAML file, or its fields; default: by name"
    )
    context: int | None = Field(
        None, ge=64, description="tokens that the model takes; default: as its configuration says"
    )
    batch_size: int = Field(8, ge=1, description="prompts judged together")
    device: Device = "auto"
    dtype: Dtype = "auto"
    base_url: str | None = Field(
        None, description="OpenAI-compatible server that has the weights: http://host:8000/v1"
    )
    server: ServerOptions = Field(
        ServerOptions(), description="limits of that server, and the name of its key"
    )

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return value and address(value)


_Job = tuple[int, str, list[Question]]
"""Whose text, which view, and a question for each place."""


@dataclass(frozen=True)
class _Place:
    """A place in the reply where the model chooses: what stands before it, and the choices with
    their first tokens.
    """

    path: tuple[str, ...]
    prefill: str
    tokens: tuple[int, ...]
    choices: tuple[str, ...]


class GuardLLM:
    """Scores an answer, in the light of what the user said, with a guard model.

    A long answer with its worst part.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: no recipe fits the model, or its tokenizer cannot tell the recipe's verdicts
            apart.
    """

    name = "guard_llm"

    def __init__(self, options: GuardLLMOptions) -> None:
        self.options = options
        self._tokenizer: Any
        source = Source.of(options.model, options.gguf_file)
        self.recipe = recipe_for(source.gguf_file or options.model, options.recipe)
        self._server = (
            GuardServer(options.base_url, options.model, options.server)
            if options.base_url
            else None
        )
        if self._server:
            if options.server.endpoint == "chat" and (self.recipe.raw or self.recipe.before):
                raise ConfigError(
                    "this guard model cannot be asked by chat: its reply is more than a verdict, or"
                    " it has no chat template",
                    hint="server: {endpoint: completions}",
                )
            self._tokenizer, configured = load_tokenizer(source), _configuration(source)
        else:
            device = resolve_device(options.device)
            self._tokenizer, self._model = _load(
                source, device, resolve_dtype(options.dtype, device)
            )
            configured = self._model.config.get_text_config()
            self._last_only = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._context = options.context or int(
            getattr(configured, "max_position_embeddings", None) or 4096
        )
        self._markers = markers(self._tokenizer, *self.recipe.markers)
        self._places = _places(self.recipe, self._tokenizer)
        self._lock = threading.Lock()

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Return one verdict for each text, which answers the prompt at its place."""
        if self._server:
            return await self._served(self._server, texts, prompts)
        found = await asyncio.to_thread(self.scores, texts, prompts)
        return [self.options.judge(self.name, scores) for scores in found]

    def scores(self, texts: Sequence[str], prompts: Sequence[str]) -> list[Mapping[str, float]]:
        """Return for each text and category the probability of a harmful verdict among the recipe's
        verdicts, by the local model.

        Raises:
            ModelError: a probability is not a number.
        """
        jobs = [
            job
            for i, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
            for job in self._jobs(i, text, prompt)
        ]
        inputs = [question.ids for _, _, asked in jobs for question in asked]
        with self._lock, torch.no_grad():
            logits = self._last_logits(inputs)
        size = len(self._places)
        values = [
            [
                row[list(place.tokens)].tolist()
                for place, row in zip(self._places, logits[n * size : (n + 1) * size], strict=True)
            ]
            for n in range(len(jobs))
        ]
        return [
            self._worst(
                [(view, v) for (owner, view, _), v in zip(jobs, values, strict=True) if owner == i]
            )
            for i in range(len(texts))
        ]

    async def _served(
        self, server: GuardServer, texts: Sequence[str], prompts: Sequence[str]
    ) -> list[Verdict]:
        jobs = [
            await asyncio.to_thread(self._jobs, i, *pair)
            for i, pair in enumerate(zip(texts, prompts, strict=True))
        ]
        return await asyncio.gather(*(self._asked(server, found) for found in jobs))

    async def _asked(self, server: GuardServer, jobs: Sequence[_Job]) -> Verdict:
        try:
            values = await server.log_probabilities(
                [question for _, _, asked in jobs for question in asked], self._tokenizer
            )
        except ModeratorError as error:
            return Verdict.failure(self.name, error.message)
        size = len(self._places)
        return self.options.judge(
            self.name,
            self._worst(
                [(view, values[n * size : (n + 1) * size]) for n, (_, view, _) in enumerate(jobs)]
            ),
        )

    async def close(self) -> None:
        """Let go of the connections to the server."""
        if self._server:
            await self._server.close()

    def _jobs(self, owner: int, text: str, prompt: str) -> list[_Job]:
        """Return the questions of every view and every part of a text."""
        return [
            (owner, view, [self._question(*part, view, place) for place in self._places])
            for view in self.recipe.views
            for part in self._parts(text, prompt, view)
        ]

    def _worst(self, found: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> dict[str, float]:
        """Return the worst part of a text, by view."""
        scores = dict.fromkeys(self.recipe.views, 0.0)
        for view, values in found:
            scores[view] = max(scores[view], self._marginal(values))
        return scores

    def _marginal(self, values: Sequence[Sequence[float]]) -> float:
        """Return the harm of the verdict over all ways to fill the fields before it.

        It is worked out from the log-odds of the choices of each place.
        """
        chances: dict[tuple[str, ...], float] = {(): 1.0}
        harm = 0.0
        for place, row in zip(self._places, values, strict=True):
            for choice, chance in zip(
                place.choices, torch.tensor(row).softmax(-1).tolist(), strict=True
            ):
                chosen = (*place.path, choice)
                chances[chosen] = chances[place.path] * chance
                if len(place.path) == len(self.recipe.before):
                    harm += chances[chosen] * self.recipe.harmful.get(choice, 0.0)
        if not 0 <= harm <= 1 + 1e-6:
            raise ModelError("the guard model's logits are not finite", hint="try dtype float32")
        return min(harm, 1.0)

    # ------------------------------------------------------------------ prompts

    def render(self, prompt: str, answer: str, view: str | None = None) -> str:
        """Return what the model reads before its reply to `view` (default: the first).

        No text can bring markers into it.
        """
        if self.recipe.raw:
            return self.recipe.user_turn(
                without_markers(self._markers, prompt), without_markers(self._markers, answer)
            )
        messages = self._messages(prompt, answer)
        template = self._template(view or next(iter(self.recipe.views)))
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **template
            )
        )

    def _messages(self, prompt: str, answer: str) -> list[dict[str, Any]]:
        prompt, answer = (
            without_markers(self._markers, prompt),
            without_markers(self._markers, answer),
        )
        if self.recipe.prompt is not None:
            turns = [("user", self.recipe.user_turn(prompt, answer))]
        else:
            turns = [("user", prompt), ("assistant", answer)]
        return [
            {"role": r, "content": [{"type": "text", "text": t}] if self.recipe.parts else t}
            for r, t in turns
        ]

    def _template(self, view: str) -> dict[str, Any]:
        """Return what the chat template takes besides the messages."""
        return {**self.recipe.options, **self.recipe.views[view]}

    def _parts(self, answer: str, prompt: str, view: str) -> list[tuple[str, str]]:
        """Return pairs of prompt and part of the answer that fit; of a long prompt, its end."""
        longest = max(len(self._tokenize(place.prefill)) for place in self._places)
        room = self._context - len(self._tokenize(self.render("", "", view))) - longest - 8
        if room < 16:
            raise ModelError(
                "the guard model's context is too short for its own instructions",
                hint="choose another model",
            )
        prompt = (
            self._tokenizer.decode(
                self._tokenize(without_markers(self._markers, prompt))[-room // 2 :]
            )
            if prompt
            else ""
        )
        ids = self._tokenize(without_markers(self._markers, answer))
        size = room - len(self._tokenize(prompt))
        if len(ids) <= size:
            return [(prompt, answer)]
        step = max(1, size * 3 // 4)
        return [
            (prompt, self._tokenizer.decode(ids[start : start + size]))
            for start in range(0, len(ids), step)
        ]

    def _question(self, prompt: str, answer: str, view: str, place: _Place) -> Question:
        ids = self._tokenize(self.render(prompt, answer, view) + place.prefill)
        return Question(
            ids, place.tokens, place.prefill, self._messages(prompt, answer), self._template(view)
        )

    def _tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    # ------------------------------------------------------------------ the model

    def _last_logits(self, inputs: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return logits after each input, [inputs, vocabulary], in batches of similar length."""
        rows: list[torch.Tensor | None] = [None] * len(inputs)
        order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))
        for start in range(0, len(order), self.options.batch_size):
            chosen = order[start : start + self.options.batch_size]
            for i, row in zip(chosen, self._forward([inputs[i] for i in chosen]), strict=True):
                rows[i] = row
        return torch.stack([row for row in rows if row is not None]) if rows else torch.zeros(0, 0)

    def _forward(self, batch: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        longest = max(map(len, batch))
        ids = torch.tensor(
            [[0] * (longest - len(row)) + list(row) for row in batch], device=self._model.device
        )
        mask = torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in batch],
            device=self._model.device,
        )
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        keep = {"logits_to_keep": 1} if self._last_only else {}
        logits = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **keep
        ).logits
        yield from logits[:, -1].float().cpu()


def _places(recipe: Recipe, tokenizer: Any) -> tuple[_Place, ...]:
    """Yield every place at which the model chooses, with all that it may have chosen before."""
    found: list[_Place] = []
    blanks = [
        *((b.text, b.values) for b in recipe.before),
        (recipe.prefill, (*recipe.harmful, *recipe.harmless)),
    ]
    for depth, (text, choices) in enumerate(blanks):
        for path in product(*(values for _, values in blanks[:depth])):
            before = "".join(t + value for (t, _), value in zip(blanks, path, strict=False)) + text
            found.append(
                _Place(path, before, _first_tokens(tokenizer, before, choices), tuple(choices))
            )
    return tuple(found)


def _first_tokens(tokenizer: Any, before: str, choices: Sequence[str]) -> tuple[int, ...]:
    """Return the first token of each choice where it follows `before`.

    Raises:
        ConfigError: two choices begin with the same token, or a choice melts into what stands
            before it.
    """
    stem = tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
    wholes = [
        tokenizer(before + choice, add_special_tokens=False)["input_ids"] for choice in choices
    ]
    tokens = tuple(
        whole[len(stem)] if whole[: len(stem)] == stem and len(whole) > len(stem) else -1
        for whole in wholes
    )
    if -1 in tokens or len(set(tokens)) != len(tokens):
        raise ConfigError(
            f"the guard model's tokenizer cannot tell {', '.join(map(repr, choices))} apart after"
            f" {before[-20:]!r}",
            hint=(
                "move spaces between prefill and verdicts, or drop variants, in a recipe of"
                " your own"
            ),
        )
    return tokens


def _load(source: Source, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    model, tokenizer = load(source, device=device, dtype=dtype)
    return tokenizer, model.eval().requires_grad_(False)


def _configuration(source: Source) -> Any:
    """Read the configuration of the model, without its weights.

    None where only a tokenizer is to be had.
    """
    try:
        return AutoConfig.from_pretrained(
            source.path, trust_remote_code=False, **source.options
        ).get_text_config()
    except (OSError, ValueError):
        return None


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: guard_llm``."""
    register("guard_llm", GuardLLM, options=GuardLLMOptions)
