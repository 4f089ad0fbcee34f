"""Gradients of several objectives as one: PCGrad, *Gradient Surgery for Multi-Task Learning* (NeurIPS 2020)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch


def projected(gradients: Sequence[torch.Tensor], rng: random.Random) -> torch.Tensor:
    """The mean of the flat gradients [n], each without what speaks against another.

    For each g_i, over the others in random order: where g_i . g_j < 0, g_i <- g_i - (g_i . g_j / |g_j|^2) g_j, with g_j as
    it was at first. That *ProSocialAlign* does just this is our reconstruction: it is said to project conflicts in pairs.
    """
    mended = []
    for i, gradient in enumerate(gradients):
        others = [g for j, g in enumerate(gradients) if j != i]
        for other in rng.sample(others, len(others)):
            product = gradient @ other
            if product < 0:
                gradient = gradient - product / (other @ other) * other
        mended.append(gradient)
    return torch.stack(mended).mean(0)


def averaged(gradients: Sequence[torch.Tensor], _: random.Random) -> torch.Tensor:
    """The mean: the control."""
    return torch.stack(list(gradients)).mean(0)
