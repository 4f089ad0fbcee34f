"""Where to move the soft rows: ask/tell mathematics on tensors, without models or moderators.

Shapes: T soft tokens, d hidden size, n probes. Every generator is given by the caller, so runs can be repeated.
"""

from __future__ import annotations

from typing import Literal

import torch

Normalise = Literal["per_token", "matrix"]


def unit(direction: torch.Tensor, normalise: Normalise) -> torch.Tensor:
    """`direction` [..., T, d] with every row ("per_token") or the whole matrix ("matrix") at norm 1; zeros stay zeros.

    The paper prints one norm for the matrix, its authors' code normalises rows; the two differ by a factor sqrt(T).
    """
    axes = (-1,) if normalise == "per_token" else (-2, -1)
    norm = direction.norm(dim=axes, keepdim=True)
    return torch.where(norm > 0, direction / norm.clamp(min=torch.finfo(norm.dtype).tiny), torch.zeros_like(direction))


def floor_cosine(point: torch.Tensor, origin: torch.Tensor, floor: float) -> torch.Tensor:
    """`point` [T, d] moved to the boundary cos(point, origin) = `floor` if it is beyond (arXiv 2604.26167, Algorithm 1, step 9).

    As matrices flattened to vectors: the part across the origin is shortened until the cosine is reached, then the
    whole is scaled back to the norm that `point` had.
    """
    flat, along = point.flatten(), origin.flatten() / origin.norm().clamp(min=1e-12)
    projection = flat @ along
    if not flat.any() or projection / flat.norm().clamp(min=1e-12) >= floor:
        return point
    across = flat - projection * along
    reach = projection.clamp(min=1e-6) if projection > 0 else flat.norm() * floor
    across = across / across.norm().clamp(min=1e-12) * reach * (1 / floor**2 - 1) ** 0.5
    moved = reach * along + across
    scaled: torch.Tensor = moved / moved.norm() * flat.norm()
    return scaled.view_as(point)


class OneSided:
    """Zeroth-order descent by one-sided differences (arXiv 2604.26167, Algorithm 1, steps 5 to 9).

    Args:
        origin: X_0, [T, d].
        probes: N, how many directions an iteration tries.
        probe: mu, the factor on the standard-normal directions.
        step: eta, the length of a step after normalisation.
        cosine: kappa, the lowest cosine to `origin`.
    """

    def __init__(
        self,
        origin: torch.Tensor,
        *,
        probes: int,
        probe: float,
        step: float,
        cosine: float,
        normalise: Normalise,
        generator: torch.Generator,
    ) -> None:
        self.origin = self.point = origin
        self.probes, self.probe, self.step, self.cosine = probes, probe, step, cosine
        self.normalise = normalise
        self._generator = generator
        self._directions = torch.zeros(0)

    def ask(self) -> torch.Tensor:
        """The points to score, [N, T, d]: X_k + mu U_i (step 5)."""
        self._directions = torch.randn(self.probes, *self.origin.shape, generator=self._generator)
        return self.point + self.probe * self._directions

    def tell(self, base: float, scores: torch.Tensor) -> None:
        """Move, given the score at X_k and those of the asked points, [N] (steps 6 to 9)."""
        slopes = (scores - base) / (self.probe or 1.0)
        gradient = (slopes[:, None, None] * self._directions).mean(0)
        self._move(gradient)

    def _move(self, gradient: torch.Tensor) -> None:
        moved = self.point - self.step * unit(gradient, self.normalise)
        self.point = floor_cosine(moved, self.origin, self.cosine)


class RandomDirection(OneSided):
    """The control: steps of the same length in a random direction, without probes."""

    def ask(self) -> torch.Tensor:
        return self.origin.new_zeros(0, *self.origin.shape)

    def tell(self, base: float, scores: torch.Tensor) -> None:
        self._move(torch.randn(self.origin.shape, generator=self._generator))


class Antithetic:
    """Gradient of a smooth function from symmetric differences: mean of (f(x + mu u) - f(x - mu u)) / (2 mu) u."""

    def __init__(self, pairs: int, probe: float, generator: torch.Generator) -> None:
        self.pairs, self.probe = pairs, probe
        self._generator = generator
        self._directions = torch.zeros(0)

    def ask(self, point: torch.Tensor) -> torch.Tensor:
        """Points to evaluate around `point` [T, d]: [2 * pairs, T, d]."""
        self._directions = torch.randn(self.pairs, *point.shape, generator=self._generator)
        return torch.cat([point + self.probe * self._directions, point - self.probe * self._directions])

    def tell(self, values: torch.Tensor) -> torch.Tensor:
        """The gradient estimate [T, d] from the values of the asked points, [2 * pairs]."""
        ahead, behind = values.chunk(2)
        slopes = (ahead - behind) / (2 * self.probe or 1.0)
        return (slopes[:, None, None] * self._directions).mean(0)
