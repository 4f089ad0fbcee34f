"""Decode with our own loop over a transformers model.

A prefix that several sequences share is computed once and read once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ttsa_guard.backends.local.batch import GrowingBatch, SequenceBatch, neighbours
from ttsa_guard.backends.local.prefix_cache import SharedModel
from ttsa_guard.backends.local.reference import (
    Decoder,
    OnStep,
    ReferenceDecoder,
    Start,
    left_padded,
)
from ttsa_guard.backends.local.sampling import SequenceSampler


class SharedDecoder:
    """Decodes with shared prefixes.

    A prefix is computed once for all sequences that have it, and is kept for later calls. Sequences
    leave the batch when they are finished. It works for the models that `SharedModel` is for;
    `choose` finds that out.
    """

    def __init__(self, model: Any, ends: Sequence[int]) -> None:
        self.model = SharedModel(model)
        self._ends = frozenset(ends)

    @torch.no_grad()
    def decode(self, starts: Sequence[Start], on_step: OnStep | None = None) -> list[list[int]]:
        """Return the new token ids of every sequence; see `Decoder.decode`."""
        order = neighbours(starts)
        new: list[list[int]] = [[] for _ in starts]
        batch = _Batch(self.model, [starts[i] for i in order], [new[i] for i in order])
        while batch.step(self._ends):
            if on_step and (ended := on_step(new)):
                batch.end(order.index(i) for i in ended)
        return new

    def logits(self, starts: Sequence[Start], keep: int) -> torch.Tensor:
        """Return the logits at the last `keep` positions; see `Decoder.logits`."""
        order = neighbours(starts)
        found = SequenceBatch(self.model, [starts[i] for i in order]).forward(
            *left_padded([starts[i].suffix_embeds for i in order]), keep
        )
        return found[[order.index(i) for i in range(len(starts))]]


class _Batch:
    """Sequences that are being decoded.

    The new tokens of each are appended to its list in `new`.
    """

    def __init__(
        self, model: SharedModel, starts: Sequence[Start], new: Sequence[list[int]]
    ) -> None:
        self._model, self._starts, self._new = model, starts, new
        self._embeds, self._own = left_padded([s.suffix_embeds for s in starts])
        self._batch = GrowingBatch(
            model, starts, self._own.shape[1] + max(s.max_new_tokens for s in starts)
        )
        self._slots = list(range(len(starts)))
        self._running = set(self._slots)
        self._sampler = SequenceSampler(
            [s.temperature for s in starts], [s.seed for s in starts], model.device
        )

    def step(self, ends: frozenset[int]) -> bool:
        """Append one token to every sequence that is running; return False if none is."""
        self.end([i for i in self._running if self._starts[i].stop.is_set()])
        if not self._running:
            return False
        self._leave()
        logits = self._batch.forward(self._embeds, self._own, 1)[:, -1]
        tokens = self._sampler.noisy(logits).argmax(-1)
        for i, token in zip(self._slots, tokens.tolist(), strict=True):
            if i in self._running:
                self._new[i].append(token)
                if token in ends or len(self._new[i]) >= self._starts[i].max_new_tokens:
                    self._running.discard(i)
        self._embeds = self._model.embedded(tokens)[:, None]
        self._own = torch.ones_like(tokens[:, None], dtype=torch.bool)
        return True

    def end(self, indices: Iterable[int]) -> None:
        """End the sequences at these indices."""
        self._running.difference_update(indices)

    def _leave(self) -> None:
        """Drop finished sequences from the batch, if at least one in eight is finished."""
        keep = [slot for slot, i in enumerate(self._slots) if i in self._running]
        if (len(self._slots) - len(keep)) * 8 >= len(self._slots):
            self._slots = [self._slots[slot] for slot in keep]
            self._embeds, self._own = self._embeds[keep], self._own[keep]
            self._batch.retain(keep)
            self._sampler.retain(keep)


def choose(model: Any, ends: Sequence[int]) -> tuple[Decoder, str]:
    """Choose a decoder for `model`, by a trial.

    Returns:
        A `SharedDecoder` and "", if the model can take it and agrees with the model's own
        `generate`. Otherwise a `ReferenceDecoder`, and the reason.
    """
    reference = ReferenceDecoder(model, ends)
    problem = _unfit(model.config.get_text_config())
    if not problem:
        shared = SharedDecoder(model, ends)
        try:
            problem = _disagreement(shared, reference, model)
        # the model's code was not written for such calls, so it may raise anything
        except Exception as error:
            problem = f"a trial ended in {type(error).__name__}"
    return (reference, problem) if problem else (SharedDecoder(model, ends), "")


def _unfit(config: Any) -> str:
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        return f"it has layers of kind {', '.join(sorted(kinds - {'full_attention'}))}"
    if (
        not kinds
        and getattr(config, "sliding_window", None)
        and getattr(config, "use_sliding_window", True)
    ):
        return "it has sliding-window attention"
    return ""


@torch.no_grad()
def _disagreement(shared: SharedDecoder, reference: ReferenceDecoder, model: Any) -> str:
    """Return how the two decoders disagree; "" if they agree.

    Compared are the logits of sequences of several lengths with a shared prefix, and in float32 the
    tokens that follow.
    """
    embedding = model.get_input_embeddings()
    ids = (torch.arange(24, device=embedding.weight.device) * 7919) % embedding.weight.shape[0]
    fixed = tuple(ids[:12].tolist())
    starts = [Start(fixed, embedding(ids[12:n]), max_new_tokens=6) for n in (15, 24, 13)]
    ours, theirs = shared.logits(starts, 1).float(), reference.logits(starts, 1).float()
    exact = embedding.weight.dtype == torch.float32
    if not bool((ours - theirs).abs().max() <= (1e-3 if exact else 0.1) * theirs.abs().max()):
        return "its logits differ in a trial"
    if exact and shared.decode(starts) != reference.decode(starts):
        return "its tokens differ in a trial"
    return ""
