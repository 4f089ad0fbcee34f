"""Decode without a doctor, straight from the two faces, which is a control."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ttsa_guard.backends.base import DecodingStep
from ttsa_guard.backends.local.controlled import Cached
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector


@dataclass(frozen=True, eq=False)
class Contrast:
    """Decode from log pi + beta (log pi_pos - log pi_neg), whose faces are theta -+ c h.

    A token takes three passes. It is a `ttsa_guard.backends.base.ControlledDecoding`.

    Args:
        harm: h.
        strength: c.
        beta: the weight of the difference.
    """

    harm: HarmVector
    strength: float
    beta: float

    @contextmanager
    def over(self, model: Any) -> Iterator[DecodingStep]:
        """Give the decoding step of one batch; see `ControlledDecoding.over`."""
        positive, negative = copy.deepcopy(model), copy.deepcopy(model)
        self.harm.subtract(positive, self.strength)
        self.harm.subtract(negative, -self.strength)
        plain, pos, neg = (Cached(m) for m in (model, positive, negative))

        def step(embeds: torch.Tensor, valid: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            given = (embeds, valid, at)
            likelier = pos(*given).float().log_softmax(-1) - neg(*given).float().log_softmax(-1)
            return plain(*given).float() + self.beta * likelier

        yield step
