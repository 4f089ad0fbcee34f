"""Combine the gradients of several objectives by PCGrad.

It is from *Gradient Surgery for Multi-Task Learning* (NeurIPS 2020).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch


def projected(gradients: Sequence[torch.Tensor], rng: random.Random) -> torch.Tensor:
    """Return the mean, [n], of flat gradients, each [n], without their conflicts.

    For each g_i, and over the others in random order: where g_i . g_j < 0, g_i <- g_i - (g_i . g_j
    / |g_j|^2) g_j, with g_j as it was at first. The paper is said to project conflicts in pairs;
    that it does exactly this is our reconstruction.
    """
    without_conflicts = []
    for i, gradient in enumerate(gradients):
        others = [g for j, g in enumerate(gradients) if j != i]
        for other in rng.sample(others, len(others)):
            product = gradient @ other
            if product < 0:
                gradient = gradient - product / (other @ other) * other
        without_conflicts.append(gradient)
    return torch.stack(without_conflicts).mean(0)


def averaged(gradients: Sequence[torch.Tensor], _: random.Random) -> torch.Tensor:
    """Return the plain mean, [n], of the gradients, each [n]: the control."""
    return torch.stack(list(gradients)).mean(0)
