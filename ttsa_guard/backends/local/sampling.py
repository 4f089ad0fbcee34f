"""Sampling with a random generator for each row, so that a row's sample does not depend on the batch around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ttsa_guard.errors import ModelError


class RowSampler:
    """The Gumbel-max trick: the largest of the noisy logits is a draw from the softmax.

    Args:
        temperatures: of the rows; 0 is greedy.
        seeds: of the rows.
    """

    def __init__(self, temperatures: Sequence[float], seeds: Sequence[int], device: torch.device) -> None:
        self._temperatures = torch.tensor(temperatures, device=device)[:, None]
        self._generators = [
            torch.Generator(device).manual_seed(s) if t > 0 else None for t, s in zip(temperatures, seeds, strict=True)
        ]

    def noisy(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [batch, vocabulary] over the temperatures, with noise; those of greedy rows as they are.

        Raises:
            ModelError: a row is not finite.
        """
        logits = logits.float()
        if not bool(torch.isfinite(logits.amax(-1)).all()):
            raise ModelError("the model's logits are not finite", hint="try dtype float32")
        if not any(self._generators):
            return logits
        uniform = torch.ones_like(logits)
        for row, generator in zip(uniform, self._generators, strict=True):
            if generator:
                row.uniform_(generator=generator)
        # Exponential draws, none of them 0 or infinite, which the noise would be too; `exponential_` takes five times as long.
        draws = uniform.clamp_(2**-25, 1 - 2**-24).log_().neg_()
        hot = self._temperatures > 0
        return torch.where(hot, logits / self._temperatures.where(hot, 1.0) - draws.log_(), logits)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._temperatures = self._temperatures[list(rows)]
        self._generators = [self._generators[i] for i in rows]
