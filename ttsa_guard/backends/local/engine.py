"""The synchronous half of the transformers backend: requests in, tensors and texts out.

It runs on the model's worker thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ttsa_guard.backends.base import Continuation
from ttsa_guard.backends.local.batch import SequenceBatch
from ttsa_guard.backends.local.decode import SharedDecoder, choose
from ttsa_guard.backends.local.likelihood import SCORED_TOKENS, LikelihoodQuery, Likelihoods
from ttsa_guard.backends.local.reference import Decoder, OnStep, Start
from ttsa_guard.errors import ModelError
from ttsa_guard.hf.tokens import encodable
from ttsa_guard.messages import Calibration, Generation, GenerationRequest, Prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ScoringRequest:
    """A continuation to score after a prompt.

    Args:
        soft_embeds: the soft embeddings of the prompt, [k, hidden]; None leaves the prompt as it
            is.
        continuation: the text after the prompt, with its weights.
    """

    prompt: Prompt
    soft_embeds: torch.Tensor | None
    continuation: Continuation


@dataclass(frozen=True, eq=False)
class ScoredSequence:
    """A sequence, the target ids of its last tokens, and their weights."""

    start: Start
    targets: tuple[int, ...]
    weights: tuple[float, ...]


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
        head = model.get_output_embeddings()
        if head is not None and self.device.type == "cpu":
            head.register_forward_pre_hook(_dense)
        with torch.no_grad():
            sample = torch.arange(min(8192, self.embedding.weight.shape[0]), device=self.device)
            self.token_norm = float(self.embedding(sample).float().norm(dim=-1).mean())

    # ------------------------------------------------------------------ embeddings

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the embeddings of token ids, [len(ids), hidden], in the model's precision."""
        with torch.no_grad():
            found: torch.Tensor = self.embedding(
                torch.tensor(list(ids), dtype=torch.long, device=self.device)
            )
        return found

    def start(
        self,
        prompt: Prompt,
        soft_embeds: torch.Tensor | None,
        tail: Sequence[int],
        *,
        keep: int = 1,
    ) -> Start:
        """Return the sequence of a prompt and the tokens `tail`.

        Args:
            soft_embeds: the embeddings for the prompt's soft slots, [k, hidden]; None leaves the
                prompt as it is.
            keep: at least this many of the last tokens are in the suffix. The others are a prefix,
                whose keys may be kept for later calls.

        Raises:
            ModelError: `soft_embeds` has another shape than the slots, or is not finite.
        """
        ids = [*prompt.ids, *tail]
        last = min(len(prompt.ids), len(ids) - keep)
        if soft_embeds is None:
            return Start(tuple(ids[:last]), self.embed(ids[last:]))
        at = prompt.soft_positions
        wanted = (len(at), self.embedding.weight.shape[1])
        if soft_embeds.shape != wanted:
            raise ModelError(
                f"soft embeddings have shape {tuple(soft_embeds.shape)}, the prompt takes {wanted}",
                hint="they are [number of soft tokens, hidden size]",
            )
        if not bool(torch.isfinite(soft_embeds).all()):
            raise ModelError(
                "soft embeddings are not finite",
                hint="a step or probe size is too large, or a score was NaN",
            )
        first = min(at[0], last) if at else 0
        index = torch.tensor(at, dtype=torch.long, device=self.device) - first
        moved = (
            self.embed(ids[first:])
            .clone()
            .index_copy(0, index, soft_embeds.to(self.device, self.dtype))
        )
        return Start(tuple(ids[:first]), moved)

    # ------------------------------------------------------------------ generating

    @cached_property
    def _chosen(self) -> tuple[Decoder, str]:
        decoder, problem = choose(self.model, self.ends)
        if problem:
            log.info("decoding with the model's own generate, since %s", problem)
        return decoder, problem

    @property
    def decoding(self) -> str:
        """How answers are decoded, in words.

        The first use tries it out. Before that, only the model's thread may read this.
        """
        problem = self._chosen[1]
        return f"by the model's own generate, since {problem}" if problem else "beginnings shared"

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        stops: Sequence[threading.Event],
        on_step: OnStep | None = None,
    ) -> list[Generation]:
        """Generate answers, in the order of the requests.

        Args:
            stops: an event for each request. It ends the decoding of its answer at the next token
                when it is set.
            on_step: is told the new tokens after each step, where no likelihood is measured.
        """
        answers: list[Generation] = []
        for first in range(0, len(requests), self.batch_size):
            batch = requests[first : first + self.batch_size]
            openings = [self.encode(r.opening) for r in batch]
            starts = self._starts(batch, openings, stops[first : first + self.batch_size])
            likelihoods = self._likelihoods(batch, openings, starts)
            new = self._chosen[0].decode(starts, likelihoods or on_step)
            answers += self._answers(batch, openings, new, likelihoods)
        return answers

    def stream(
        self, request: GenerationRequest, stop: threading.Event, on_text: Callable[[str], None]
    ) -> Generation:
        """Generate one answer. `on_text` is called on this thread with every new piece of it."""
        pieces = _Pieces(
            lambda ids: self.answer(request, self.encode(request.opening), ids), on_text
        )
        [answer] = self.generate([request.with_(baseline=None)], [stop], pieces.put)
        pieces.end()
        return answer

    def _starts(
        self,
        requests: Sequence[GenerationRequest],
        openings: Sequence[list[int]],
        stops: Sequence[threading.Event],
    ) -> list[Start]:
        return [
            replace(
                self._start(r, opening),
                max_new_tokens=max(
                    1, min(r.max_new_tokens, self.context_length - len(r.prompt) - len(opening))
                ),
                temperature=r.temperature,
                seed=r.seed,
                stop=stop,
            )
            for r, opening, stop in zip(requests, openings, stops, strict=True)
        ]

    def _start(self, request: GenerationRequest, opening: Sequence[int]) -> Start:
        """Return the sequence of a request.

        Raises:
            ModelError: it has a calibration, and the attention of this model cannot be calibrated.
        """
        calibration = request.calibration
        if not calibration or not calibration.gamma:
            return self.start(request.prompt, request.soft_embeds, opening)
        self._calibrating()
        start = self.start(
            request.prompt,
            request.soft_embeds,
            opening,
            keep=len(request.prompt) + len(opening) - min(calibration.queries),
        )
        return replace(start, calibration=calibration)

    def _answers(
        self,
        requests: Sequence[GenerationRequest],
        openings: Sequence[list[int]],
        new: Sequence[list[int]],
        likelihoods: Likelihoods | None,
    ) -> list[Generation]:
        answers = [
            self.answer(r, opening, ids)
            for r, opening, ids in zip(requests, openings, new, strict=True)
        ]
        if likelihoods is None:
            return answers
        for i, mean in likelihoods.means(new).items():
            # Tokens that spell a text in an unusual way are less likely than the text itself.
            # Such a text is scored again later, in its usual tokens.
            usual = self.encode(answers[i].text) == [*openings[i], *new[i][: answers[i].tokens]]
            answers[i] = replace(
                answers[i], log_likelihood=mean if usual or i in likelihoods.hopeless else None
            )
        return answers

    def _likelihoods(
        self,
        requests: Sequence[GenerationRequest],
        openings: Sequence[list[int]],
        starts: Sequence[Start],
    ) -> Likelihoods | None:
        decoder = self._chosen[0]
        if not isinstance(decoder, SharedDecoder):
            return None
        asked = {
            i: LikelihoodQuery(
                r.baseline.prompt.ids, tuple(opening), start.max_new_tokens, r.baseline.floor
            )
            for i, (r, opening, start) in enumerate(zip(requests, openings, starts, strict=True))
            if r.baseline
            and len(r.baseline.prompt) + len(opening) + start.max_new_tokens <= self.context_length
        }
        return Likelihoods(decoder.model, asked, self.ends) if asked else None

    def answer(
        self, request: GenerationRequest, opening: Sequence[int], new: list[int]
    ) -> Generation:
        """Return the answer of a request.

        Args:
            opening: the token ids of the opening.
            new: the new token ids, with an end token if the model has ended.
        """
        end = next((i for i, token in enumerate(new) if token in self.ends), None)
        kept = new[: min(len(new) if end is None else end, request.max_new_tokens)]
        text = str(self.tokenizer.decode([*opening, *kept], skip_special_tokens=True))
        return Generation(
            text.strip(), len(kept), finished=end is not None and end < request.max_new_tokens
        )

    @property
    def context_length(self) -> int:
        """Longest prompt plus answer, in tokens."""
        config = self.model.config.get_text_config()
        return int(
            getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        )

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without special tokens."""
        ids: list[int] = (
            self.tokenizer.encode(encodable(text), add_special_tokens=False) if text else []
        )
        return ids

    # ------------------------------------------------------------------ calibrated attention

    @property
    def attention_layers(self) -> int:
        """Number of layers whose attention can be calibrated; see `CalibratesAttention`."""
        config = self.model.config.get_text_config()
        return config.num_hidden_layers if isinstance(self._chosen[0], SharedDecoder) else 0

    def _calibrating(self) -> SharedDecoder:
        decoder, problem = self._chosen
        if not isinstance(decoder, SharedDecoder):
            raise ModelError(
                "the attention of this model cannot be calibrated",
                hint=f"its answers are decoded by its own generate, since {problem}",
            )
        return decoder

    @torch.no_grad()
    def attention_shares(self, prompt: Prompt, calibration: Calibration) -> list[float]:
        """Return the share of attention that the keys get in each layer.

        See `CalibratesAttention.attention_shares`.
        """
        found: dict[int, float] = {}
        start = self.start(prompt, None, (), keep=len(prompt) - min(calibration.queries))
        batch = SequenceBatch(
            self._calibrating().model,
            [replace(start, calibration=calibration)],
            watch=found.__setitem__,
        )
        embeds = start.suffix_embeds[None]
        batch.forward(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=self.device), 1)
        return [found[layer] for layer in sorted(found)]

    # ------------------------------------------------------------------ scoring

    def objective(self, asked: Sequence[ScoringRequest]) -> torch.Tensor:
        """Evaluate the objectives, [len(asked)], float32; see `ScoresSoftEmbeds.objective`.

        Each has its own prompt. The result is differentiable with respect to the soft embeddings,
        unless gradients are off.

        Raises:
            ModelError: a log-likelihood is not finite.
        """
        sequences = [self._sequence(a) for a in asked]
        batches = self._batches([len(s.start.suffix_embeds) for s in sequences])
        parts = [self._objective_batch([sequences[i] for i in batch]) for batch in batches]
        order = torch.tensor([i for batch in batches for i in batch])
        values = torch.cat(parts)[order.argsort()] if parts else torch.zeros(0)
        if not bool(torch.isfinite(values).all()):
            raise ModelError("the model's log-likelihoods are not finite", hint="try dtype float32")
        return values

    def values(
        self, asked: Sequence[ScoringRequest], _: Sequence[threading.Event] = ()
    ) -> list[float]:
        """Return the values of the objectives, in order, without gradients."""
        with torch.no_grad():
            return [float(v) for v in self.objective(asked)]

    def gradients(
        self, asked: Sequence[ScoringRequest], _: Sequence[threading.Event] = ()
    ) -> list[tuple[float, torch.Tensor]]:
        """Return, for each objective, its value and its gradient.

        The gradient is with respect to the objective's soft embeddings, [k, hidden].
        """
        leaves = [
            a.soft_embeds.detach().to(self.device, torch.float32).requires_grad_()
            for a in asked
            if a.soft_embeds is not None
        ]
        with torch.enable_grad():
            values = self.objective(
                [replace(a, soft_embeds=leaf) for a, leaf in zip(asked, leaves, strict=True)]
            )
            gradients = torch.autograd.grad(values.sum(), leaves)
        return [
            (float(v), g.float().cpu()) for v, g in zip(values.detach(), gradients, strict=True)
        ]

    def _sequence(self, asked: ScoringRequest) -> ScoredSequence:
        ids, weights = asked.continuation.tokens(self.tokenizer)
        return ScoredSequence(
            self.start(asked.prompt, asked.soft_embeds, ids, keep=len(ids) + 1),
            tuple(ids),
            tuple(weights),
        )

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return which sequences to score together, as lists of indices.

        They are of similar length, because the shorter ones are padded to the longest.
        """
        batches: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            most = min(self.batch_size, SCORED_TOKENS // lengths[i])
            if not batches or len(batches[-1]) >= most:
                batches.append([])
            batches[-1].append(i)
        return batches

    def _objective_batch(self, batch: Sequence[ScoredSequence]) -> torch.Tensor:
        """Evaluate the objectives of one batch, [batch]."""
        longest = max(len(s.targets) for s in batch)
        logits = self._chosen[0].logits([s.start for s in batch], longest + 1)[:, :-1]
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
    def token_log_probs(
        self, prompt: Prompt, soft_embeds: Sequence[torch.Tensor], positions: Sequence[int]
    ) -> torch.Tensor:
        """Return log-probabilities of the prompt's tokens, [len(soft_embeds), len(positions)].

        See `ExposesLogProbs.token_log_probs`. Nothing after the last of the positions is computed.
        """
        asked = torch.tensor(positions, dtype=torch.long, device=self.device)
        targets = torch.tensor(prompt.ids, device=self.device)[asked]
        parts = []
        for start in range(0, len(soft_embeds), self.batch_size):
            batch = [
                self.start(prompt, r, ()) for r in soft_embeds[start : start + self.batch_size]
            ]
            embeds = torch.stack(
                [
                    torch.cat([self.embed(b.prefix_ids), b.suffix_embeds])[: max(positions)]
                    for b in batch
                ]
            )
            logits = self.model(
                inputs_embeds=embeds, logits_to_keep=asked - 1, use_cache=False
            ).logits
            chosen = (
                logits.float()
                .log_softmax(-1)
                .gather(-1, targets.expand(len(embeds), -1)[..., None])
            )
            parts.append(chosen[..., 0].cpu())
        return torch.cat(parts)


class _Pieces:
    """Passes on what a new token adds to the text of the answer.

    The end of a growing text may still change: spaces are stripped, and a character may take
    several tokens.
    """

    def __init__(
        self, answer: Callable[[list[int]], Generation], on_text: Callable[[str], None]
    ) -> None:
        self._answer, self._on_text = answer, on_text
        self._ids: list[int] = []
        self._sent = ""

    def put(self, new: Sequence[list[int]]) -> tuple[()]:
        """Pass on what is new in the text; `new` holds the token ids of the only sequence."""
        self._ids = new[0]
        text = self._answer(self._ids).text
        if not text.endswith("\ufffd"):
            self._send(text)
        return ()

    def end(self) -> None:
        """Pass on the rest of the text."""
        self._send(self._answer(self._ids).text)

    def _send(self, text: str) -> None:
        if len(text) > len(self._sent):
            self._on_text(text[len(self._sent) :])
            self._sent = text


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn errors of torch into `ModelError`.

    Their messages carry shapes and sizes, and never texts.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "the device is out of memory", hint="lower backend.options.batch_size or max_new_tokens"
        ) from error
    except (RuntimeError, IndexError, ValueError) as error:
        raise ModelError(
            f"the model failed: {type(error).__name__}", hint="run ttsa-guard doctor"
        ) from error


def _dense(_head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Copy what the output layer reads.

    It reads the last tokens of a batch, which is a view. PyTorch 2.13 multiplies that in bfloat16
    on a CPU some hundred times slower than a copy: for 13 sequences, 1.3 s instead of 6 ms.
    """
    return (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end an answer, with the tokenizer's own first."""
    found = model.generation_config.eos_token_id
    ends = [found] if isinstance(found, int) else list(found or [])
    own = tokenizer.eos_token_id
    if isinstance(own, int):
        ends = [own, *(e for e in ends if e != own)]
    if not ends:
        raise ModelError(
            "the model has no end-of-text token",
            hint="set eos_token in its tokenizer configuration",
        )
    return ends
