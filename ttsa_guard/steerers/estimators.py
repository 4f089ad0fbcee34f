"""Decide where to move the soft embeddings.

This is ask/tell mathematics on tensors, without models or moderators.

Shapes: T soft tokens, d hidden size, n probes. The caller gives every random generator, so runs
can be repeated.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

Normalise = Literal["per_token", "matrix"]
"""It says what is scaled to norm 1: the direction of each token, or the whole matrix."""


def unit(direction: torch.Tensor, normalise: Normalise) -> torch.Tensor:
    """Scale `direction` [..., T, d] so that each token, or the whole matrix, has norm 1.

    Zeros stay zeros. The paper prints one norm for the matrix, but the code of its authors
    normalises the tokens; the two differ by a factor sqrt(T).
    """
    axes = (-1,) if normalise == "per_token" else (-2, -1)
    norm = direction.norm(dim=axes, keepdim=True)
    return torch.where(
        norm > 0,
        direction / norm.clamp(min=torch.finfo(norm.dtype).tiny),
        torch.zeros_like(direction),
    )


def clip_tokens(direction: torch.Tensor, longest: float) -> torch.Tensor:
    """Shorten the tokens of `direction` [..., T, d] that are longer than `longest` to it."""
    clipped: torch.Tensor = direction * (
        longest / direction.norm(dim=-1, keepdim=True).clamp(min=longest)
    )
    return clipped


def floor_cosine(point: torch.Tensor, origin: torch.Tensor, floor: float) -> torch.Tensor:
    """Move `point` to the boundary cos(point, origin) = `floor` if it is beyond.

    This is step 9 of arXiv 2604.26167, Algorithm 1. Both are flattened to vectors. The part of
    `point` across `origin` is shortened until the cosine is reached; then the whole is scaled back
    to the norm that `point` had.

    Args:
        point: [T, d].
        origin: [T, d].
        floor: the lowest cosine, in (0, 1).

    Returns:
        [T, d]; `point` itself if it is within the boundary.
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
    """Descend by one-sided differences (arXiv 2604.26167, Algorithm 1, steps 5 to 9).

    Args:
        origin: X_0, [T, d].
        probes: N, the number of directions that an iteration tries.
        probe: mu, the factor on the standard-normal directions.
        step: eta, the length of a step after normalisation.
        cosine: kappa, the lowest cosine to `origin`.
        normalise: what is scaled to norm 1 before a step, see `unit`.
        generator: the source of the directions.
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
        """Return the points to score, [N, T, d]: X_k + mu U_i (step 5)."""
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
    """Step by the same length in a random direction, without probes: the control."""

    def ask(self) -> torch.Tensor:
        """Return no points, [0, T, d]."""
        return self.origin.new_zeros(0, *self.origin.shape)

    def tell(self, base: float, scores: torch.Tensor) -> None:
        """Move in a random direction; the scores do not count."""
        self._move(torch.randn(self.origin.shape, generator=self._generator))


class Antithetic:
    """Estimate the gradient of a smooth function f by symmetric differences.

    The estimate is the mean of (f(x + mu u) - f(x - mu u)) / (2 mu) u over random directions u.

    Args:
        pairs: the number of directions.
        probe: mu, the factor on the standard-normal directions.
        generator: the source of the directions.
        free: which tokens may move, bool [T]; the others get no noise, so their gradient is zero.
            None means all.
    """

    def __init__(
        self, pairs: int, probe: float, generator: torch.Generator, free: torch.Tensor | None = None
    ) -> None:
        self.pairs, self.probe, self.free = pairs, probe, free
        self._generator = generator
        self._directions = torch.zeros(0)

    def ask(self, point: torch.Tensor) -> torch.Tensor:
        """Return the points to evaluate around `point` [T, d]: [2 * pairs, T, d]."""
        self._directions = _noise(self.pairs, point, self._generator, self.free)
        return torch.cat(
            [point + self.probe * self._directions, point - self.probe * self._directions]
        )

    def value(self, values: torch.Tensor) -> float:
        """Approximate f at the point itself by the mean of `values` [2 * pairs]."""
        return float(values.mean())

    def changes(self, values: torch.Tensor) -> torch.Tensor:
        """Return how much f changes along each direction, [pairs], given `values` [2 * pairs]."""
        ahead, behind = values.chunk(2)
        return ahead - behind

    def tell(self, values: torch.Tensor) -> torch.Tensor:
        """Return the estimate [T, d], given the values of the asked points, [2 * pairs]."""
        slopes = self.changes(values) / (2 * self.probe or 1.0)
        return (slopes[:, None, None] * self._directions).mean(0)


class Forward:
    """Estimate the gradient of a smooth function f by one-sided differences.

    The estimate is the mean of (f(x + mu u) - f(x)) / mu u over random directions u. The arguments
    are those of `Antithetic`, but each of the `probes` is one point.
    """

    def __init__(
        self,
        probes: int,
        probe: float,
        generator: torch.Generator,
        free: torch.Tensor | None = None,
    ) -> None:
        self.probes, self.probe, self.free = probes, probe, free
        self._generator = generator
        self._directions = torch.zeros(0)

    def ask(self, point: torch.Tensor) -> torch.Tensor:
        """Return `point` [T, d] itself and the points around it to evaluate, [1 + probes, T, d]."""
        self._directions = _noise(self.probes, point, self._generator, self.free)
        return torch.cat([point[None], point + self.probe * self._directions])

    def value(self, values: torch.Tensor) -> float:
        """Return f at the point itself, given `values` [1 + probes]."""
        return float(values[0])

    def changes(self, values: torch.Tensor) -> torch.Tensor:
        """Return how much f changes along each direction, [probes], given `values` [1 + probes]."""
        return values[1:] - values[0]

    def tell(self, values: torch.Tensor) -> torch.Tensor:
        """Return the estimate [T, d], given the values of the asked points, [1 + probes]."""
        slopes = self.changes(values) / (self.probe or 1.0)
        return (slopes[:, None, None] * self._directions).mean(0)


def _noise(
    n: int, point: torch.Tensor, generator: torch.Generator, free: torch.Tensor | None
) -> torch.Tensor:
    """Draw standard-normal noise, [n, T, d]; tokens that are not `free`, bool [T], get none."""
    noise = torch.randn(n, *point.shape, generator=generator)
    return noise if free is None else noise * free[:, None]


def signal_to_noise(changes: torch.Tensor) -> float:
    """Return abs(mean) / std of the `changes` [n] that the probes made.

    It is 0 for fewer than two of them. An estimate with less than about 1 is mostly noise.
    """
    return float(changes.mean().abs() / (changes.std() + 1e-8)) if len(changes) > 1 else 0.0


class Climb:
    """Climb without gradients and keep the best point, until progress ends (arXiv 2605.23180).

    Args:
        origin: the point where it starts, [T, d].
        estimator: it estimates the gradient; only its `free` tokens move.
        step: the factor on the direction.
        clip: the longest step of a token, before that factor; None means that the direction of
            every token that moves has norm 1.
        cosine: the lowest cosine of the free tokens to where they started.
        gate: the search ends if its first value is below this.
        signal: a step is skipped if `signal_to_noise` is below this; 0 skips none.
        patience: the search ends after so many iterations without a better value (0: it does not),
            and after so many skipped steps in a row (0: after 3).
    """

    def __init__(
        self,
        origin: torch.Tensor,
        estimator: Forward | Antithetic,
        *,
        step: float,
        clip: float | None,
        cosine: float,
        gate: float,
        signal: float,
        patience: int,
    ) -> None:
        self.origin = self.point = self.best = origin
        self.estimator = estimator
        self.step, self.clip, self.cosine = step, clip, cosine
        self.gate, self.signal, self.patience = gate, signal, patience
        self.value = -math.inf
        """It is the value at `best`."""
        self.ended: Literal["gate", "signal", "patience", "not finite"] | None = None
        self._stale = self._weak = 0

    def ask(self) -> torch.Tensor:
        """Return the points to evaluate, [n, T, d]."""
        return self.estimator.ask(self.point)

    def tell(self, values: torch.Tensor) -> None:
        """Move, given the values of the asked points, [n]; or set `ended`, then ask no more."""
        value = self.estimator.value(values)
        if self.value == -math.inf and not value >= self.gate:
            self.ended = "gate"
            return
        self._stale += 1
        if value > self.value:
            self.best, self.value, self._stale = self.point, value, 0
        if signal_to_noise(self.estimator.changes(values)) < self.signal:
            self._weak += 1
            if self._weak >= (self.patience or 3):
                self.ended = "signal"
            return
        self._weak = 0
        self._move(self.estimator.tell(values))
        if not bool(torch.isfinite(self.point).all()):
            self.ended = "not finite"
        elif self.patience and self._stale >= self.patience:
            self.ended = "patience"

    def _move(self, gradient: torch.Tensor) -> None:
        direction = (
            unit(gradient, "per_token") if self.clip is None else clip_tokens(gradient, self.clip)
        )
        moved = self.point + self.step * direction
        # Only the free tokens are projected, because the projection rescales all that it is given.
        free = slice(None) if self.estimator.free is None else self.estimator.free
        moved[free] = floor_cosine(moved[free], self.origin[free], self.cosine)
        self.point = moved
