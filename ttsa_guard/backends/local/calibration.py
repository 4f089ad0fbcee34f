"""Attend with scores that a `Calibration` raises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ttsa_guard.messages import Calibration

_MOST_SCORES = 2**24  # elements of one product; larger ones are done in slices of queries

Watch = Callable[[int, float], None]
"""Gets the index of a layer, and the mean share of attention that its calibrated keys have."""


@dataclass(frozen=True, eq=False)
class CalibratedScores:
    """The scores of neighbouring sequences that are raised in one pass.

    Args:
        calibration: says how, and in which layers.
        queries: which of the pass's tokens are calibrated queries, [batch, queries].
        keys: which keys are calibrated, [batch, keys]; those of a shared prefix come first.
        watch: is told the attention that the keys get from the queries, in all layers.
    """

    calibration: Calibration
    queries: torch.Tensor
    keys: torch.Tensor
    watch: Watch | None = None

    def of(self, layer: int) -> bool:
        """Return whether the attention of this layer is computed here."""
        return self.watch is not None or layer in self.calibration.layers

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        allowed: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Return the output of the attention, [batch, heads, queries, head size].

        Args:
            q: [batch, heads, queries, head size].
            k, v: [batch, kv heads, keys, head size].
            allowed: which keys a query sees, [batch, queries, keys].
            scale: the factor of all scores.
        """
        width = max(1, _MOST_SCORES // (len(q) * q.shape[1] * k.shape[2]))
        outputs, shares = [], []
        for start in range(0, q.shape[2], width):
            at = slice(start, start + width)
            weights = self._weights(
                layer, q[:, :, at], k, allowed[:, at], self.queries[:, at], scale
            )
            outputs.append((weights.to(v.dtype) @ v[:, :, None]).flatten(1, 2))
            if self.watch:
                shares.append(weights.masked_fill(~self.keys[:, None, None, None], 0.0).sum(-1))
        if self.watch:
            share = torch.cat(shares, 3).mean((1, 2))
            self.watch(layer, float(share[self.queries].mean()))
        return torch.cat(outputs, 2)

    def _weights(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        allowed: torch.Tensor,
        queries: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Return the weights of the keys, [batch, kv heads, heads a kv head, queries, keys]."""
        batch, heads, n, size = q.shape
        q = (q * scale).view(batch, k.shape[1], heads // k.shape[1], n, size)
        scores = (q @ k[:, :, None].transpose(-1, -2)).float()
        scores = scores.masked_fill(~allowed[:, None, None], float("-inf"))
        if layer in self.calibration.layers:
            raised = queries[:, None, None, :, None] & self.keys[:, None, None, None]
            scores = torch.where(raised, self._raised(scores, scale), scores)
        return scores.softmax(-1)

    def _raised(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        # The product of query and key is the score without its scale. Below zero, where the score
        # of a key that is not seen is, too, the published term is zero.
        raised = scores + self.calibration.gamma / scale * scores.clamp(min=0).square()
        if not self.calibration.constant:
            return raised
        before, after = (
            s.masked_fill(~self.keys[:, None, None, None], float("-inf")).logsumexp(-1, True)
            for s in (scores, raised)
        )
        return scores + (after - before).nan_to_num(0.0)  # a query may see none of the keys
