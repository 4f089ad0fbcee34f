"""The distribution that answers are drawn from: the regulated model times the reward model.

Known of *ProSocialAlign* (arXiv 2512.06515): generation is lexicographic, harm is removed first and prosocial quality
maximised in what is left; the reward model's scores are combined with the base model's at every step. The equation is not
known to us. Ours is that of the code of *GenARM* and *PARM*, a weighted geometric mean:

    pi(y_t | x, y_<t)  ~  ( pi_safe(y_t | x, y_<t) * pi_p(y_t | x, y_<t)^alpha ) ^ (1 / (1 + alpha))

pi_safe has the weights theta - lambda h (`harm_vector`), pi_p these with the update dW(p) (`adapter`); they run as two halves of
one batch, which is one pass over the weights that they share. The exponent makes a temperature mean what it does without a
reward model.
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
    """A `ttsa_guard.backends.base.Guide`.

    Args:
        harm: subtracted from the weights, `strength` times; None: the weights stay.
        reward: the reward model's adapter; None: nothing is multiplied.
        alpha: its weight; 0 is decoding without it, bit for bit.
        prefer: weights of the attributes.
    """

    harm: HarmVector | None
    reward: Stored | None
    strength: float
    alpha: float
    prefer: Mapping[str, float]

    @contextmanager
    def over(self, model: Any) -> Iterator[DecodingStep]:
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
                safe, preferred = cached(*(torch.cat([x, x]) for x in (embeds, valid, at))).float().chunk(2)
                return (safe + self.alpha * preferred) / (1 + self.alpha)

            yield step
