"""Sample with a random generator for each sequence.

This way the sample of a sequence does not depend on the batch around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ttsa_guard.errors import ModelError


class SequenceSampler:
    """Samples by the Gumbel-max trick: the largest of the noisy logits is a draw from the softmax.

    Args:
        temperatures: of the sequences; 0 is greedy.
        seeds: of the sequences.
    """

    def __init__(
        self, temperatures: Sequence[float], seeds: Sequence[int], device: torch.device
    ) -> None:
        self._temperatures = torch.tensor(temperatures, device=device)[:, None]
        self._generators = [
            torch.Generator(device).manual_seed(s) if t > 0 else None
            for t, s in zip(temperatures, seeds, strict=True)
        ]

    def noisy(self, logits: torch.Tensor) -> torch.Tensor:
        """Divide the logits by the temperatures, and add noise.

        Logits of greedy sequences stay as they are.

        Args:
            logits: [batch, vocabulary]. The result has the same shape.

        Raises:
            ModelError: the logits of a sequence are not finite.
        """
        logits = logits.float()
        if not bool(torch.isfinite(logits.amax(-1)).all()):
            raise ModelError("the model's logits are not finite", hint="try dtype float32")
        if not any(self._generators):
            return logits
        uniform = torch.ones_like(logits)
        for noise, generator in zip(uniform, self._generators, strict=True):
            if generator:
                noise.uniform_(generator=generator)
        # These are exponential draws. None is 0 or infinite, or the noise would be infinite. The
        # method `exponential_` takes five times as long.
        draws = uniform.clamp_(2**-25, 1 - 2**-24).log_().neg_()
        hot = self._temperatures > 0
        return torch.where(hot, logits / self._temperatures.where(hot, 1.0) - draws.log_(), logits)

    def retain(self, keep: Sequence[int]) -> None:
        """Drop all sequences but those at the indices `keep`."""
        self._temperatures = self._temperatures[list(keep)]
        self._generators = [self._generators[i] for i in keep]
