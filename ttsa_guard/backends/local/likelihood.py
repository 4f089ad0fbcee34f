"""Measure, while answers grow, how likely they are after another prompt than their own."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from ttsa_guard.backends.local.batch import GrowingBatch, neighbours
from ttsa_guard.backends.local.prefix_cache import SharedModel
from ttsa_guard.backends.local.reference import Start, left_padded

SCORED_TOKENS = 2048
"""Tokens that are scored at once.

More would not use the hardware better, and their logits need much memory.
"""
_FIRST = 8
"""New tokens after which answers are measured for the first time.

They are measured again after twice as many, and so on.
"""


@dataclass(frozen=True)
class LikelihoodQuery:
    """How one answer is measured.

    Args:
        prompt: token ids of the prompt.
        opening: token ids that the answer begins with.
        most: the largest number of new tokens after the opening.
        floor: the lowest mean token log-likelihood, in nats; see `Baseline`.
    """

    prompt: tuple[int, ...]
    opening: tuple[int, ...]
    most: int
    floor: float

    @property
    def least(self) -> float:
        """The log-likelihood, in nats, that an answer must not fall below.

        The sum over the tokens never rises, and no answer is longer than this allows for.
        """
        return self.floor * (len(self.opening) + self.most)


class Likelihoods:
    """Measures the answers of a batch while a decoder runs, as its `OnStep`.

    The keys of measured tokens are kept, so every token is read once. `hopeless` holds the answers
    that were told to end.

    Args:
        asked: the queries, by index in the batch. Other answers are not measured.
        ends: tokens that end an answer and are no part of it.
    """

    def __init__(
        self, model: SharedModel, asked: Mapping[int, LikelihoodQuery], ends: Sequence[int]
    ) -> None:
        self._model, self._asked, self._ends = model, asked, frozenset(ends)
        self.hopeless: set[int] = set()
        self._sums = dict.fromkeys(asked, 0.0)
        self._counts = dict.fromkeys(asked, 0)
        nothing = model.embedded(torch.zeros(0, dtype=torch.long, device=model.device))
        indices = list(asked)
        starts = [Start(asked[i].prompt[:-1], nothing) for i in indices]
        order = neighbours(starts)
        self._slots = [indices[i] for i in order]
        # Sequences are padded to the longest opening and then grow as long as the longest answer.
        # Both maxima need not come from the same sequence.
        longest = max(len(a.opening) for a in asked.values()) + max(a.most for a in asked.values())
        self._batch = GrowingBatch(model, [starts[i] for i in order], longest)
        self._steps, self._due = 0, _FIRST

    def __call__(self, new: Sequence[list[int]]) -> Collection[int]:
        """Return the indices of the answers that will be below their floor whatever follows."""
        self._steps += 1
        if self._steps < self._due:
            return ()
        self._due *= 2
        self._measure(new)
        self.hopeless.update(i for i, a in self._asked.items() if self._sums[i] < a.least)
        return self.hopeless

    def means(self, new: Sequence[list[int]]) -> dict[int, float]:
        """Return the mean token log-likelihood of each answer, in nats, by index.

        It is 0 for an empty answer.

        Args:
            new: all new tokens of each answer.
        """
        self._measure(new)
        return {i: self._sums[i] / max(1, n) for i, n in self._counts.items()}

    @torch.no_grad()
    def _measure(self, new: Sequence[list[int]]) -> None:
        texts = {i: self._text(i, new[i]) for i in self._slots}
        keep = [slot for slot, i in enumerate(self._slots) if len(texts[i]) > 1 + self._counts[i]]
        if not keep:
            return
        if len(keep) < len(self._slots):
            self._slots = [self._slots[slot] for slot in keep]
            self._batch.retain(keep)
        ids = [
            torch.tensor(texts[i][self._counts[i] :], device=self._model.device)
            for i in self._slots
        ]
        for i, total in zip(self._slots, self._sum(ids), strict=True):
            self._sums[i] += total
            self._counts[i] = len(texts[i]) - 1

    def _text(self, i: int, new: Sequence[int]) -> list[int]:
        """Return the last token of the prompt, and the tokens of the answer."""
        asked = self._asked[i]
        return [
            asked.prompt[-1],
            *asked.opening,
            *(token for token in new if token not in self._ends),
        ]

    def _sum(self, ids: Sequence[torch.Tensor]) -> list[float]:
        """Return the sum of the log-likelihoods of the tokens of each sequence, in nats.

        The first token of a sequence is not counted.
        """
        embeds, own = left_padded([self._model.embedded(i[:-1]) for i in ids])
        targets, _ = left_padded([i[1:, None] for i in ids])
        total = torch.zeros(len(ids), device=embeds.device)
        width = max(1, SCORED_TOKENS // len(ids))
        for piece in range(0, own.shape[1], width):
            at = slice(piece, piece + width)
            valid = own[:, at]
            logits = self._batch.forward(embeds[:, at], valid, valid.shape[1])
            chosen = logits.float().log_softmax(-1).gather(-1, targets[:, at])[..., 0]
            total += chosen.masked_fill(~valid, 0.0).sum(-1)
        return [value if math.isfinite(value) else -math.inf for value in total.tolist()]
