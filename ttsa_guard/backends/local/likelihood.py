"""How likely answers are after another prompt than the one they are generated from, measured while they grow."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from ttsa_guard.backends.local.batch import GrowingBatch, neighbours
from ttsa_guard.backends.local.prefix_cache import SharedModel
from ttsa_guard.backends.local.reference import Start, left_padded

SCORED_TOKENS = 2048
"""Tokens that are scored at once: more do not make better use of the hardware, and logits of many need much memory."""
_FIRST = 8
"""New tokens after which answers are measured for the first time; then after twice as many, and so on."""


@dataclass(frozen=True)
class LikelihoodQuery:
    """What one answer is measured by.

    Args:
        prompt: token ids.
        opening: token ids that the answer begins with.
        most: most new tokens after the opening.
        floor: see `Baseline`.
    """

    prompt: tuple[int, ...]
    opening: tuple[int, ...]
    most: int
    floor: float

    @property
    def least(self) -> float:
        """Log-likelihood that an answer must not fall below: it never rises, and no answer is longer than this allows for."""
        return self.floor * (len(self.opening) + self.most)


class Likelihoods:
    """Runs beside a decoder as its `OnStep`; the keys of what has been measured are kept, so every token is read once.

    Args:
        asked: by row of the batch; the others are not measured.
        ends: tokens that end an answer and are no part of it.

    `hopeless` are the rows that were told to end.
    """

    def __init__(self, model: SharedModel, asked: Mapping[int, LikelihoodQuery], ends: Sequence[int]) -> None:
        self._model, self._asked, self._ends = model, asked, frozenset(ends)
        self.hopeless: set[int] = set()
        self._sums = dict.fromkeys(asked, 0.0)
        self._counts = dict.fromkeys(asked, 0)
        nothing = model.embedded(torch.zeros(0, dtype=torch.long, device=model.device))
        rows = list(asked)
        starts = [Start(asked[row].prompt[:-1], nothing) for row in rows]
        order = neighbours(starts)
        self._slots = [rows[i] for i in order]
        # Padded to the longest opening, then as long as the longest answer goes on: they need not be of one row.
        longest = max(len(a.opening) for a in asked.values()) + max(a.most for a in asked.values())
        self._rows = GrowingBatch(model, [starts[i] for i in order], longest)
        self._steps, self._due = 0, _FIRST

    def __call__(self, new: Sequence[list[int]]) -> Collection[int]:
        """The rows that will be below their floor however they go on."""
        self._steps += 1
        if self._steps < self._due:
            return ()
        self._due *= 2
        self._measure(new)
        self.hopeless.update(row for row, a in self._asked.items() if self._sums[row] < a.least)
        return self.hopeless

    def means(self, new: Sequence[list[int]]) -> dict[int, float]:
        """Mean token log-likelihood of each answer, in nats, given all its new tokens; of an empty one it is 0."""
        self._measure(new)
        return {row: self._sums[row] / max(1, n) for row, n in self._counts.items()}

    @torch.no_grad()
    def _measure(self, new: Sequence[list[int]]) -> None:
        texts = {row: self._text(row, new[row]) for row in self._slots}
        keep = [slot for slot, row in enumerate(self._slots) if len(texts[row]) > 1 + self._counts[row]]
        if not keep:
            return
        if len(keep) < len(self._slots):
            self._slots = [self._slots[slot] for slot in keep]
            self._rows.retain(keep)
        ids = [torch.tensor(texts[row][self._counts[row] :], device=self._model.device) for row in self._slots]
        for row, total in zip(self._slots, self._sum(ids), strict=True):
            self._sums[row] += total
            self._counts[row] = len(texts[row]) - 1

    def _text(self, row: int, new: Sequence[int]) -> list[int]:
        """The last token of the prompt, then the answer."""
        asked = self._asked[row]
        return [asked.prompt[-1], *asked.opening, *(token for token in new if token not in self._ends)]

    def _sum(self, ids: Sequence[torch.Tensor]) -> list[float]:
        """Of the log-likelihoods of all tokens of each row but its first."""
        embeds, own = left_padded([self._model.embedded(i[:-1]) for i in ids])
        targets, _ = left_padded([i[1:, None] for i in ids])
        total = torch.zeros(len(ids), device=embeds.device)
        width = max(1, SCORED_TOKENS // len(ids))
        for piece in range(0, own.shape[1], width):
            at = slice(piece, piece + width)
            valid = own[:, at]
            logits = self._rows.forward(embeds[:, at], valid, valid.shape[1])
            chosen = logits.float().log_softmax(-1).gather(-1, targets[:, at])[..., 0]
            total += chosen.masked_fill(~valid, 0.0).sum(-1)
        return [value if math.isfinite(value) else -math.inf for value in total.tolist()]
