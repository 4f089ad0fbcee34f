"""The default mode: climb a smooth goal, then let the moderator verify every point of the path.

Stage one moves the soft rows up the likelihood of a goal (`goals`), by exact gradients where the backend has them and by
symmetric differences elsewhere; neither generates a token. Stage two generates from points along all paths in one batch.
Whatever is generated is a candidate. The choice among those that pass is the guard's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from ttsa_guard.backends.base import Differentiable, ScoresSoftEmbeds, TakesEmbeddings
from ttsa_guard.messages import GenerationRequest, Prompt
from ttsa_guard.profile import OpeningKind
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.estimators import Antithetic, unit
from ttsa_guard.steerers.goals import Goal, continued, find_turn, opening_goal, pairs
from ttsa_guard.steerers.prefill import KINDS, mixed_openings

if TYPE_CHECKING:
    from ttsa_guard.steerers.embedding import EmbeddingOptions


class Slope(Protocol):
    """Ascent directions at points [n][T, d], one for each goal; [n, T, d]."""

    async def __call__(self, points: Sequence[torch.Tensor], goals: Sequence[Goal], /) -> torch.Tensor: ...


async def surrogate_rounds(task: Task, options: EmbeddingOptions) -> AsyncGenerator[list[Candidate], None]:
    """If the answer began harmlessly, a round of other continuations; then a round for each `options.round` steps: that
    stretch of every path, generated in one batch."""
    backend = task.backend
    assert isinstance(backend, TakesEmbeddings)
    prompt = await backend.render(task.messages, scope=options.rows or "user")
    turn = await find_turn(task)
    # A harmless beginning means that the question can be answered: then refusals and redirects are wrong answers.
    kinds: tuple[OpeningKind, ...] = ("answer",) if turn else KINDS
    goals = [opening_goal(task, o) for o in mixed_openings(task.profile, options.openings, kinds)]
    if turn and (n := min(options.continuations, task.usage.generations_left // 4)):  # most of the budget is for the paths
        candidates, turn = await continued(task, turn, n)
        yield candidates
    if turn:
        goals.insert(0, turn.goal(aversion=options.aversion))
    if not goals:
        return
    origin = await backend.embed(prompt.soft_ids)
    slope = _slope(task, prompt, options)
    size = (0.1 if options.step is None else options.step) * backend.token_norm
    base = task.base.with_(prompt=prompt, baseline=task.baseline)
    points = [origin] * len(goals)
    stretch: list[tuple[str, GenerationRequest]] = []
    for k in range(1, options.iterations + 1):
        with task.usage.timed("scoring"):
            directions = await slope(points, goals)
        points = [point + size * unit(d, options.normalise) for point, d in zip(points, directions, strict=True)]
        if k % options.every == 0 or k == options.iterations:
            for goal, point in zip(goals, points, strict=True):
                request = base.with_(soft_embeds=point, opening=goal.opening or task.shown, seed=task.seed + k)
                stretch.append((f"{goal.name}, step {k}", request))
        if stretch and (k % options.round == 0 or k == options.iterations):
            chosen = stretch[: task.usage.generations_left]
            if not chosen:
                return
            yield await task.propose([request for _, request in chosen], [name for name, _ in chosen])
            stretch = []


def _slope(task: Task, prompt: Prompt, options: EmbeddingOptions) -> Slope:
    """Exact gradients if wanted and there, else estimates; `direction: random` is the control."""
    generator = torch.Generator().manual_seed(task.seed)
    backend = task.backend

    async def exact(points: Sequence[torch.Tensor], goals: Sequence[Goal]) -> torch.Tensor:
        assert isinstance(backend, Differentiable)
        todo = pairs(goals)
        _, gradients = await backend.gradient(prompt, [points[i] for i, _ in todo], [c for _, c in todo])
        return torch.stack([gradients[[j for j, (k, _) in enumerate(todo) if k == i]].mean(0) for i in range(len(goals))])

    async def estimated(points: Sequence[torch.Tensor], goals: Sequence[Goal]) -> torch.Tensor:
        assert isinstance(backend, ScoresSoftEmbeds)
        assert isinstance(backend, TakesEmbeddings)
        probe = (0.3 if options.probe is None else options.probe) * backend.token_norm / points[0].shape[-1] ** 0.5
        found = []
        for point, goal in zip(points, goals, strict=True):
            estimator = Antithetic(options.probes, probe, generator)
            asked = estimator.ask(point)
            todo = [(x, c) for c in goal.continuations for x in asked]
            values = await backend.objective(prompt, [x for x, _ in todo], [c for _, c in todo])
            found.append(estimator.tell(values.view(len(goal.continuations), -1).mean(0)))
        return torch.stack(found)

    async def random(points: Sequence[torch.Tensor], _: Sequence[Goal]) -> torch.Tensor:
        return torch.randn(len(points), *points[0].shape, generator=generator)

    if options.direction == "random":
        return random
    return exact if options.gradient == "auto" and isinstance(backend, Differentiable) else estimated
