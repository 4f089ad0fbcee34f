"""Steer the input embeddings of the prompt toward a safe answer.

No weight changes, and nothing is trained. The search has two stages. Stage one moves the soft
embeddings up the likelihood of smooth objectives (see `objectives`), by exact gradients where the
backend has them and by symmetric differences elsewhere; neither generates a token. Stage two
generates answers from points along all paths in one batch. Every answer is a candidate, which the
moderators verify; the guard chooses among those that pass. The published algorithm, which descends
the moderation score itself, is the steerer `tsa`.

Shapes: T soft tokens, d hidden size, n objectives.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator

from ttsa_guard.backends.base import Differentiable, ScoresSoftEmbeds, TakesEmbeddings
from ttsa_guard.messages import GenerationRequest, Prompt
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.profile import OpeningKind
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.estimators import Antithetic, unit
from ttsa_guard.steerers.moving import MovingOptions
from ttsa_guard.steerers.objectives import (
    Derailment,
    Objective,
    continue_kept,
    find_derailment,
    numbered_continuations,
    opening_objective,
)
from ttsa_guard.steerers.prefill import KINDS, mixed_openings


class EmbeddingOptions(MovingOptions):
    """Configure the steerer `embedding`. Lengths are multiples of the mean token-embedding norm."""

    step: float = Field(0.1, ge=0, description="length of a step")
    probe: float = Field(0.3, ge=0, description="length of a probe, where gradients are estimated")
    probes: int = Field(8, ge=1, description="pairs of probes in an iteration")
    gradient: Literal["auto", "estimated"] = Field(
        "auto", description="auto: exact where the backend can"
    )
    openings: int = Field(
        4, ge=0, description="safe openings to climb toward, besides turning away from a derailment"
    )
    continuations: int = Field(8, ge=0, description="other continuations of a harmless beginning")
    aversion: float = Field(1.0, ge=0, description="weight of the words to turn away from")
    every: int = Field(2, ge=1, description="steps between two candidates of a path")
    round: int = Field(6, ge=1, description="steps between two batches of candidates")

    @model_validator(mode="before")
    @classmethod
    def _mode_is_gone(cls, options: Any) -> Any:
        if isinstance(options, dict) and "mode" in options:
            problem = "for the published algorithm write 'use: tsa'; for the default leave it out"
            raise ValueError(f"this steerer has no option 'mode' any more: {problem}")
        return options


class Embedding:
    """Climb smooth objectives with the soft embeddings; propose answers from the paths."""

    name = "embedding"

    def __init__(self, options: EmbeddingOptions) -> None:
        self.options = options
        climbs = options.direction == "estimate"
        self.needs: tuple[type, ...] = (
            (TakesEmbeddings, ScoresSoftEmbeds) if climbs else (TakesEmbeddings,)
        )

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield other continuations of a harmless beginning, then answers from the paths."""
        options = self.options
        prompt = await task.backend.render(task.messages, scope=options.scope)
        derailment = await find_derailment(task)
        objectives = self._openings(task, derailment)
        # A quarter of the budget at most: the rest is for the paths.
        if derailment and (n := min(options.continuations, task.usage.generations_left // 4)):
            candidates, derailment = await continue_kept(task, derailment, n)
            yield candidates
        if derailment:
            objectives.insert(0, derailment.objective(aversion=options.aversion))
        if not objectives:
            return
        paths = _Paths(task, prompt, objectives, options)
        await paths.start()
        waiting: list[tuple[str, GenerationRequest]] = []
        for k in range(1, options.iterations + 1):
            await paths.step()
            last = k == options.iterations
            if last or k % options.every == 0:
                waiting += paths.requests(k)
            if waiting and (last or k % options.round == 0):
                affordable = waiting[: task.usage.generations_left]
                if not affordable:
                    return
                yield await task.propose(
                    [request for _, request in affordable], [origin for origin, _ in affordable]
                )
                waiting = []

    def _openings(self, task: Task, derailment: Derailment | None) -> list[Objective]:
        # After a harmless beginning the question can be answered; then anything else is wrong.
        kinds: tuple[OpeningKind, ...] = ("answer",) if derailment else KINDS
        return [
            opening_objective(task, opening)
            for opening in mixed_openings(task.profile, self.options.openings, kinds)
        ]


class _Paths:
    """Move one set of soft embeddings for each objective; all start at the prompt as it is."""

    def __init__(
        self, task: Task, prompt: Prompt, objectives: Sequence[Objective], options: EmbeddingOptions
    ) -> None:
        self._task, self._prompt = task, prompt
        self._objectives, self._options = objectives, options
        self._backend = cast(TakesEmbeddings, task.backend)
        self._base = task.base.with_(prompt=prompt, baseline=task.baseline)
        self._generator = torch.Generator().manual_seed(task.seed)
        self._points: list[torch.Tensor] = []
        """The present soft embeddings of each objective, n of [T, d]."""

    async def start(self) -> None:
        """Put every path at the prompt's own embeddings."""
        self._points = [await self._backend.embed(self._prompt.soft_ids)] * len(self._objectives)

    async def step(self) -> None:
        """Move every path by one step."""
        length = self._options.step * self._backend.token_norm
        with self._task.usage.timed("scoring"):
            directions = await self._directions()
        self._points = [
            point + length * unit(direction, self._options.normalise)
            for point, direction in zip(self._points, directions, strict=True)
        ]

    def requests(self, k: int) -> list[tuple[str, GenerationRequest]]:
        """Return an origin and a request for the present point of each path, after step `k`."""
        return [
            (
                f"{objective.name}, step {k}",
                self._base.with_(
                    soft_embeds=point,
                    opening=objective.opening or self._task.shown,
                    seed=self._task.seed + k,
                ),
            )
            for objective, point in zip(self._objectives, self._points, strict=True)
        ]

    async def _directions(self) -> torch.Tensor:
        """Return a direction for each path, [n, T, d]."""
        options, backend = self._options, self._task.backend
        if options.direction == "random":
            return torch.randn(len(self._points), *self._points[0].shape, generator=self._generator)
        if options.gradient == "auto" and isinstance(backend, Differentiable):
            return await exact_directions(backend, self._prompt, self._points, self._objectives)
        probe = options.probe * self._backend.token_norm / self._points[0].shape[-1] ** 0.5
        estimator = Antithetic(options.probes, probe, self._generator)
        return await estimated_directions(
            cast(ScoresSoftEmbeds, backend), self._prompt, self._points, self._objectives, estimator
        )


async def exact_directions(
    backend: Differentiable,
    prompt: Prompt,
    points: Sequence[torch.Tensor],
    objectives: Sequence[Objective],
) -> torch.Tensor:
    """Return the exact gradient of each objective at its point.

    Args:
        points: soft embeddings, n of [T, d].
        objectives: n objectives.

    Returns:
        [n, T, d]: the gradients of an objective's continuations, averaged.
    """
    numbered = numbered_continuations(objectives)
    _, gradients = await backend.gradient(
        prompt, [points[i] for i, _ in numbered], [c for _, c in numbered]
    )
    owners = torch.tensor([i for i, _ in numbered])
    return torch.stack([gradients[owners == i].mean(0) for i in range(len(objectives))])


async def estimated_directions(
    backend: ScoresSoftEmbeds,
    prompt: Prompt,
    points: Sequence[torch.Tensor],
    objectives: Sequence[Objective],
    estimator: Antithetic,
) -> torch.Tensor:
    """Return an estimated gradient of each objective at its point; see `exact_directions`."""
    directions = []
    for point, objective in zip(points, objectives, strict=True):
        probed = estimator.ask(point)
        evaluated = [(x, c) for c in objective.continuations for x in probed]
        values = await backend.objective(
            prompt, [x for x, _ in evaluated], [c for _, c in evaluated]
        )
        directions.append(estimator.tell(values.view(len(objective.continuations), -1).mean(0)))
    return torch.stack(directions)


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("embedding", Embedding, options=EmbeddingOptions)
