"""Draw answers from the product of the regulated model's distribution and the reward model's.

This is known of *ProSocialAlign* (arXiv 2512.06515): generation is lexicographic, so harm is
removed first and prosocial quality is maximised in what is left; and the scores of the reward
model are combined with those of the base model at every step. The equation is not known to us.
Ours is a weighted geometric mean, as in the code of *GenARM* and *PARM*:

    pi(y_t | x, y_<t)  ~  ( pi_safe(y_t | x, y_<t) * pi_p(y_t | x, y_<t)^alpha ) ^ (1 / (1 + alpha))

pi_safe has the weights theta - lambda h (see `harm_vector`), and pi_p has these with the update
dW(p) (see `adapter`). They run as two halves of one batch, which takes one pass over the weights
that they share. The exponent makes a temperature mean what it means without a reward model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ttsa_guard.backends.base import DecodingStep
from ttsa_guard.backends.local.controlled import Cached
from ttsa_guard.steerers.prosocial.adapter import Stored
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector
from ttsa_guard.steerers.prosocial.preferences import vector


@dataclass(frozen=True, eq=False)
class Product:
    """Decode from the product; this is a `ttsa_guard.backends.base.ControlledDecoding`.

    Args:
        harm: the harm vector to subtract from the weights; None leaves the weights as they are.
        reward: the adapter of the reward model; None multiplies by nothing.
        strength: lambda, how many times the harm vector is subtracted.
        alpha: the weight of the reward model; 0 is decoding without it, bit for bit.
        prefer: the weights of the attributes.
    """

    harm: HarmVector | None
    reward: Stored | None
    strength: float
    alpha: float
    prefer: Mapping[str, float]

    @contextmanager
    def over(self, model: Any) -> Iterator[DecodingStep]:
        """Give the decoding step of one batch; see `ControlledDecoding.over`."""
        with ExitStack() as stack:
            if self.harm:
                stack.enter_context(self.harm.subtracted(model, self.strength))
            cached = Cached(model)
            if not self.reward or not self.alpha:
                yield cached
                return
            adapter = self.reward.on(model)
            adapter.prefer(vector(self.prefer))
            stack.enter_context(adapter.beside(model))

            def step(embeds: torch.Tensor, valid: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
                """Return the logits of the product, [batch, vocabulary]; see `DecodingStep`."""
                safe, preferred = (
                    cached(*(torch.cat([x, x]) for x in (embeds, valid, at))).float().chunk(2)
                )
                return (safe + self.alpha * preferred) / (1 + self.alpha)

            yield step
