"""The synchronous half of the transformers backend: tensors in, tensors and texts out. Runs on the model's worker thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ttsa_guard.backends.base import Continuation
from ttsa_guard.errors import ModelError
from ttsa_guard.messages import Generation, GenerationRequest, Prompt
from ttsa_guard.tokens import encodable


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a batch: input embeddings [n, hidden], target ids and weights of its last tokens."""

    rows: torch.Tensor
    targets: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


class Engine:
    """A causal language model and its tokenizer on one device."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.embedding = model.get_input_embeddings()
        self.device = self.embedding.weight.device
        self.dtype = self.embedding.weight.dtype
        self.ends = _end_tokens(model, tokenizer)
        with torch.no_grad():
            sample = torch.arange(min(8192, self.embedding.weight.shape[0]), device=self.device)
            self.token_norm = float(self.embedding(sample).float().norm(dim=-1).mean())

    # ------------------------------------------------------------------ embeddings

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = self.embedding(torch.tensor(list(ids), dtype=torch.long, device=self.device))
        return found

    def assemble(self, prompt: Prompt, rows: torch.Tensor | None, tail: Sequence[int] = ()) -> torch.Tensor:
        """Embeddings of the prompt with `rows` in its soft slots, then those of `tail`; [length, hidden].

        Raises:
            ModelError: `rows` has another shape than the slots, or is not finite.
        """
        base = self.embed([*prompt.ids, *tail])
        if rows is None:
            return base
        positions = prompt.soft_positions
        if rows.shape != (len(positions), base.shape[1]):
            raise ModelError(
                f"soft rows have shape {tuple(rows.shape)}, the prompt takes {(len(positions), base.shape[1])}",
                hint="rows are [number of soft tokens, hidden size]",
            )
        if not bool(torch.isfinite(rows).all()):
            raise ModelError("soft rows are not finite", hint="a step or probe size is too large, or a score was NaN")
        index = torch.tensor(positions, dtype=torch.long, device=self.device)
        return base.clone().index_copy(0, index, rows.to(self.device, self.dtype))

    # ------------------------------------------------------------------ generating

    def generate(self, requests: Sequence[GenerationRequest], stops: Sequence[threading.Event]) -> list[Generation]:
        """Answers in order. The event of a request ends its decoding at the next token."""
        answers: list[Generation] = []
        for start in range(0, len(requests), self.batch_size):
            batch = slice(start, start + self.batch_size)
            answers += self._generate_batch(requests[batch], stops[batch])
        return answers

    def stream(self, request: GenerationRequest, stop: threading.Event, on_text: Callable[[str], None]) -> Generation:
        """One answer; `on_text` is called on this thread with every new piece of it."""
        pieces = _Pieces(lambda ids: self._answer(request, self.encode(request.opening), ids), on_text)
        [answer] = self._generate_batch([request], [stop], pieces)
        pieces.end()
        return answer

    @torch.no_grad()
    def _generate_batch(
        self, requests: Sequence[GenerationRequest], stops: Sequence[threading.Event], streamer: BaseStreamer | None = None
    ) -> list[Generation]:
        if all(stop.is_set() for stop in stops):
            return [Generation(request.opening, 0, False) for request in requests]
        openings = [self.encode(r.opening) for r in requests]
        inputs = [self.assemble(r.prompt, r.rows, opening) for r, opening in zip(requests, openings, strict=True)]
        embeds, mask = _left_padded(inputs)
        room = self.context_length - embeds.shape[1]
        new = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=max(1, min(max(r.max_new_tokens for r in requests), room)),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self.ends[0],
            eos_token_id=self.ends,
            logits_processor=LogitsProcessorList([_RowSampler(requests, self.device)]),
            stopping_criteria=StoppingCriteriaList([_Stop(stops)]),
            streamer=streamer,
        )
        return [self._answer(r, o, row) for r, o, row in zip(requests, openings, new.tolist(), strict=True)]

    def _answer(self, request: GenerationRequest, opening: Sequence[int], new: list[int]) -> Generation:
        end = next((i for i, token in enumerate(new) if token in self.ends), None)
        kept = new[: min(len(new) if end is None else end, request.max_new_tokens)]
        text = str(self.tokenizer.decode([*opening, *kept], skip_special_tokens=True))
        return Generation(text.strip(), len(kept), finished=end is not None and end < request.max_new_tokens)

    @property
    def context_length(self) -> int:
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(encodable(text), add_special_tokens=False) if text else []
        return ids

    # ------------------------------------------------------------------ scoring

    def log_likelihoods(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        goals = [Continuation(((text, 1.0),)) for text in texts]
        with torch.no_grad():
            values = self.objective(prompt, [None] * len(goals), goals)
        return [float(v) for v in values]

    def objective(self, prompt: Prompt, rows: Sequence[torch.Tensor | None], goals: Sequence[Continuation]) -> torch.Tensor:
        """See `ScoresText.objective`; differentiable with respect to the rows unless gradients are off."""
        sequences = [self._goal(prompt, r, goal) for r, goal in zip(rows, goals, strict=True)]
        parts = [self._objective_batch(sequences[i : i + self.batch_size]) for i in range(0, len(sequences), self.batch_size)]
        values = torch.cat(parts) if parts else torch.zeros(0)
        if not bool(torch.isfinite(values).all()):
            raise ModelError("the model's log-likelihoods are not finite", hint="try dtype float32")
        return values

    def gradient(
        self, prompt: Prompt, rows: Sequence[torch.Tensor], goals: Sequence[Continuation]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        leaves = [r.detach().to(self.device, torch.float32).requires_grad_() for r in rows]
        with torch.enable_grad():
            values = self.objective(prompt, leaves, goals)
            gradients = torch.autograd.grad(values.sum(), leaves)
        return values.detach().cpu(), torch.stack([g.float().cpu() for g in gradients])

    def _goal(self, prompt: Prompt, rows: torch.Tensor | None, goal: Continuation) -> Row:
        ids, weights = self._weighted(goal)
        return Row(self.assemble(prompt, rows, ids), tuple(ids), tuple(weights))

    def _weighted(self, goal: Continuation) -> tuple[list[int], list[float]]:
        """Token ids of a continuation and the weight of the span in which each token ends."""
        ids: list[int] = []
        weights: list[float] = []
        bounds, position = [], 0
        for text, weight in goal.spans:
            position += len(text)
            bounds.append((position, weight))
        text = encodable("".join(t for t, _ in goal.spans))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for token, (_, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            ids.append(token)
            weights.append(next((w for bound, w in bounds if last <= bound), bounds[-1][1]))
        return ids, weights

    def _objective_batch(self, batch: Sequence[Row]) -> torch.Tensor:
        embeds, mask = _left_padded([s.rows for s in batch])
        longest = max(len(s.targets) for s in batch)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, logits_to_keep=longest + 1, use_cache=False
        ).logits[:, :-1]
        targets = torch.zeros(len(batch), longest, dtype=torch.long, device=self.device)
        weights = torch.zeros(len(batch), longest, device=self.device)
        for i, sequence in enumerate(batch):
            n = len(sequence.targets)
            targets[i, longest - n :] = torch.tensor(sequence.targets)
            weights[i, longest - n :] = torch.tensor(sequence.weights)
        chosen = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        unlikelihood = torch.log1p(-chosen.exp().clamp(max=1 - 1e-6))
        terms = torch.where(weights >= 0, weights * chosen, -weights * unlikelihood)
        return terms.sum(-1) / weights.abs().sum(-1).clamp(min=1e-9)

    @torch.no_grad()
    def token_log_probs(self, prompt: Prompt, rows: Sequence[torch.Tensor], positions: Sequence[int]) -> torch.Tensor:
        """See `ExposesLogProbs.token_log_probs`. Nothing that comes after the last of the tokens is computed."""
        asked = torch.tensor(positions, dtype=torch.long, device=self.device)
        targets = torch.tensor(prompt.ids, device=self.device)[asked]
        parts = []
        for start in range(0, len(rows), self.batch_size):
            embeds = torch.stack([self.assemble(prompt, r)[: max(positions)] for r in rows[start : start + self.batch_size]])
            logits = self.model(inputs_embeds=embeds, logits_to_keep=asked - 1, use_cache=False).logits
            chosen = logits.float().log_softmax(-1).gather(-1, targets.expand(len(embeds), -1)[..., None])
            parts.append(chosen[..., 0].cpu())
        return torch.cat(parts)


class _RowSampler(LogitsProcessor):
    """Sampling by the Gumbel-max trick with a generator for each row: greedy search over the noisy logits draws from the
    softmax, and a row's sample does not depend on the batch around it."""

    def __init__(self, requests: Sequence[GenerationRequest], device: torch.device) -> None:
        self.temperatures = [r.temperature for r in requests]
        self.generators = [torch.Generator(device).manual_seed(r.seed) for r in requests]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if not bool(torch.isfinite(scores.amax(-1)).all()):
            raise ModelError("the model's logits are not finite", hint="try dtype float32")
        noisy = scores.float().clone()
        for i, (temperature, generator) in enumerate(zip(self.temperatures, self.generators, strict=True)):
            if temperature > 0:
                noise = torch.empty_like(noisy[i]).exponential_(generator=generator).clamp_(min=1e-20).log_()
                noisy[i] = noisy[i] / temperature - noise
        return noisy  # type: ignore[return-value]


class _Pieces(BaseStreamer):
    """Passes on what a new token adds to the text of the answer.

    The end of a growing text may still change: spaces are stripped, and a character may take several tokens.
    """

    def __init__(self, answer: Callable[[list[int]], Generation], on_text: Callable[[str], None]) -> None:
        self._answer, self._on_text = answer, on_text
        self._ids: list[int] = []
        self._sent = ""

    def put(self, value: torch.Tensor) -> None:
        self._ids += value.flatten().tolist()
        text = self._answer(self._ids).text
        if not text.endswith("\ufffd"):
            self._send(text)

    def end(self) -> None:
        self._send(self._answer(self._ids).text)

    def _send(self, text: str) -> None:
        if len(text) > len(self._sent):
            self._on_text(text[len(self._sent) :])
            self._sent = text


class _Stop(StoppingCriteria):
    def __init__(self, stops: Sequence[threading.Event]) -> None:
        self.stops = stops

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        return torch.tensor([stop.is_set() for stop in self.stops], device=input_ids.device)  # type: ignore[return-value]


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Errors of torch become `ModelError`; their messages carry shapes and sizes, never texts."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError("the device is out of memory", hint="lower backend.options.batch_size or max_new_tokens") from error
    except (RuntimeError, IndexError, ValueError) as error:
        raise ModelError(f"the model failed: {type(error).__name__}", hint="run ttsa-guard doctor") from error


def _left_padded(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero rows in front (never NaN: zero attention times NaN is NaN), and the attention mask; [batch, length, ...]."""
    longest = max(len(r) for r in rows)
    padded = torch.stack([torch.nn.functional.pad(r, (0, 0, longest - len(r), 0)) for r in rows])
    mask = torch.stack([torch.arange(longest, device=r.device) >= longest - len(r) for r in rows]).long()
    return padded, mask


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer, the tokenizer's own first."""
    found = model.generation_config.eos_token_id
    ends = [found] if isinstance(found, int) else list(found or [])
    own = tokenizer.eos_token_id
    if isinstance(own, int):
        ends = [own, *(e for e in ends if e != own)]
    if not ends:
        raise ModelError("the model has no end-of-text token", hint="set eos_token in its tokenizer configuration")
    return ends
