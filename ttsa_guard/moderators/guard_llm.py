"""Generative guard models as moderators: the odds of the verdict's first token, in one forward pass, without sampling.

Continuous scores from models that were made to say "safe" or "unsafe": the Llama Guard 3 model card itself defines its score
in this way. How each family is asked is in ``guards.yaml``.
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
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from ttsa_guard import weights
from ttsa_guard.devices import Device, Dtype, resolve_device, resolve_dtype
from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.moderators.categories import CategoryOptions
from ttsa_guard.moderators.recipes import Recipe, recipe_for
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.tokens import markers, without_markers
from ttsa_guard.verdict import Verdict


class GuardLLMOptions(CategoryOptions):
    model: str = Field(min_length=1, description="a Hugging Face name, or a path")
    recipe: str | dict[str, Any] | None = Field(None, description="a known one, a YAML file, or its fields; default: by name")
    batch_size: int = Field(8, ge=1, description="prompts judged together")
    device: Device = "auto"
    dtype: Dtype = "auto"


@dataclass(frozen=True)
class _Place:
    """A place in the reply where the model chooses: what stands before it, and the choices with their first tokens."""

    path: tuple[str, ...]
    prefill: str
    tokens: tuple[int, ...]
    choices: tuple[str, ...]


class GuardLLM:
    """Scores an answer, in the light of what the user said, with a guard model; a long answer with its worst part.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: no recipe fits the model, or its tokenizer cannot tell the recipe's verdicts apart.
    """

    name = "guard_llm"

    def __init__(self, options: GuardLLMOptions) -> None:
        self.options = options
        self.recipe = recipe_for(options.model, options.recipe)
        device = resolve_device(options.device)
        self._tokenizer, self._model = _load(options.model, device, resolve_dtype(options.dtype, device))
        self._markers = markers(self._tokenizer, *self.recipe.markers)
        self._places = _places(self.recipe, self._tokenizer)
        self._context = int(getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or 4096)
        self._last_only = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._lock = threading.Lock()

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """One verdict for each text, which answers the prompt at its place."""
        found = await asyncio.to_thread(self.scores, texts, prompts)
        return [self.options.judge(self.name, scores) for scores in found]

    def scores(self, texts: Sequence[str], prompts: Sequence[str]) -> list[Mapping[str, float]]:
        """For each text and category the probability of a harmful verdict among the recipe's verdicts.

        Raises:
            ModelError: a probability is not a number.
        """
        jobs = [
            (i, view, part)
            for i, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
            for view in self.recipe.views
            for part in self._parts(text, prompt, view)
        ]
        inputs = [self._ids(*part, view, place) for _, view, part in jobs for place in self._places]
        with self._lock, torch.no_grad():
            logits = self._last_logits(inputs)
        found: list[dict[str, float]] = [dict.fromkeys(self.recipe.views, 0.0) for _ in texts]
        size = len(self._places)
        for n, (i, view, _) in enumerate(jobs):
            score = self._marginal(logits[n * size : (n + 1) * size])
            found[i][view] = max(found[i][view], score)
        return list(found)

    def _marginal(self, logits: torch.Tensor) -> float:
        """The harm of the verdict, over all ways to fill the fields before it; logits [places, vocabulary]."""
        chances: dict[tuple[str, ...], float] = {(): 1.0}
        harm = 0.0
        for place, row in zip(self._places, logits, strict=True):
            for choice, chance in zip(place.choices, row[list(place.tokens)].softmax(-1).tolist(), strict=True):
                chosen = (*place.path, choice)
                chances[chosen] = chances[place.path] * chance
                if len(place.path) == len(self.recipe.before):
                    harm += chances[chosen] * self.recipe.harmful.get(choice, 0.0)
        if not 0 <= harm <= 1 + 1e-6:
            raise ModelError("the guard model's logits are not finite", hint="try dtype float32")
        return min(harm, 1.0)

    # ------------------------------------------------------------------ prompts

    def render(self, prompt: str, answer: str, view: str | None = None) -> str:
        """What the model reads before its reply to `view` (default: the first); no text can bring markers into it."""
        recipe = self.recipe
        asked = recipe.views[view or next(iter(recipe.views))]
        prompt, answer = without_markers(self._markers, prompt), without_markers(self._markers, answer)
        if recipe.raw:
            return recipe.user_turn(prompt, answer)
        if recipe.prompt is not None:
            turns = [("user", recipe.user_turn(prompt, answer))]
        else:
            turns = [("user", prompt), ("assistant", answer)]
        messages = [{"role": r, "content": [{"type": "text", "text": t}] if recipe.parts else t} for r, t in turns]
        options = {**recipe.options, **asked}
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))

    def _parts(self, answer: str, prompt: str, view: str) -> list[tuple[str, str]]:
        """(prompt, part of the answer) pairs that fit the model; of a long prompt, its end."""
        longest = max(len(self._tokenize(place.prefill)) for place in self._places)
        room = self._context - len(self._tokenize(self.render("", "", view))) - longest - 8
        if room < 16:
            raise ModelError("the guard model's context is too short for its own instructions", hint="choose another model")
        prompt = self._tokenizer.decode(self._tokenize(without_markers(self._markers, prompt))[-room // 2 :]) if prompt else ""
        ids = self._tokenize(without_markers(self._markers, answer))
        size = room - len(self._tokenize(prompt))
        if len(ids) <= size:
            return [(prompt, answer)]
        step = max(1, size * 3 // 4)
        return [(prompt, self._tokenizer.decode(ids[start : start + size])) for start in range(0, len(ids), step)]

    def _ids(self, prompt: str, answer: str, view: str, place: _Place) -> list[int]:
        return self._tokenize(self.render(prompt, answer, view) + place.prefill)

    def _tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    # ------------------------------------------------------------------ the model

    def _last_logits(self, inputs: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits after each input, [inputs, vocabulary], in batches of similar length."""
        rows: list[torch.Tensor | None] = [None] * len(inputs)
        order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))
        for start in range(0, len(order), self.options.batch_size):
            chosen = order[start : start + self.options.batch_size]
            for i, row in zip(chosen, self._forward([inputs[i] for i in chosen]), strict=True):
                rows[i] = row
        return torch.stack([row for row in rows if row is not None]) if rows else torch.zeros(0, 0)

    def _forward(self, batch: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in batch], device=self._model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch], device=self._model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        keep = {"logits_to_keep": 1} if self._last_only else {}
        logits = self._model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **keep).logits
        yield from logits[:, -1].float().cpu()


def _places(recipe: Recipe, tokenizer: Any) -> tuple[_Place, ...]:
    """Every place at which the model chooses, with all that it may have chosen before."""
    found: list[_Place] = []
    blanks = [*((b.text, b.values) for b in recipe.before), (recipe.prefill, (*recipe.harmful, *recipe.harmless))]
    for depth, (text, choices) in enumerate(blanks):
        for path in product(*(values for _, values in blanks[:depth])):
            before = "".join(t + value for (t, _), value in zip(blanks, path, strict=False)) + text
            found.append(_Place(path, before, _first_tokens(tokenizer, before, choices), tuple(choices)))
    return tuple(found)


def _first_tokens(tokenizer: Any, before: str, choices: Sequence[str]) -> tuple[int, ...]:
    """The first token of each choice where it follows `before`.

    Raises:
        ConfigError: two choices begin with the same token, or a choice melts into what stands before it.
    """
    stem = tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
    wholes = [tokenizer(before + choice, add_special_tokens=False)["input_ids"] for choice in choices]
    tokens = tuple(whole[len(stem)] if whole[: len(stem)] == stem and len(whole) > len(stem) else -1 for whole in wholes)
    if -1 in tokens or len(set(tokens)) != len(tokens):
        raise ConfigError(
            f"the guard model's tokenizer cannot tell {', '.join(map(repr, choices))} apart after {before[-20:]!r}",
            hint="move spaces between prefill and verdicts, or drop variants, in a recipe of your own",
        )
    return tokens


def _load(name: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    safely = weights.checked(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **safely)
    except Exception as error:
        where = "give a local folder, or a name on the Hugging Face hub; some guard models need an accepted licence and HF_TOKEN"
        hint = weights.hint(error, where)
        raise ModelError(f"guard model {name!r} cannot be loaded: {type(error).__name__}", hint=hint) from error
    return tokenizer, model.eval().requires_grad_(False).to(device)


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: guard_llm``."""
    register("guard_llm", GuardLLM, options=GuardLLMOptions)
