"""Move the input embeddings by random steps, then go part of the way back.

The steps are long enough to change the answer. There is no gradient and no objective. The smallest
part of a step that is still safe keeps the most of what was asked. Without the way back this is the
control that a search along any direction has to beat.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from pydantic import AliasChoices, Field

from ttsa_guard.backends.base import TakesEmbeddings
from ttsa_guard.messages import GenerationRequest
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.estimators import unit
from ttsa_guard.steerers.prefill import beginnings

_RETURNING = 2
"""At most so many safe perturbations go the way back."""


class RandomPerturbationOptions(Settings):
    """Configure the steerer `random_perturbation`."""

    directions: int = Field(
        8,
        ge=1,
        validation_alias=AliasChoices("directions", "kicks"),  # `kicks` is its old name
        description="random directions in the first batch",
    )
    length: float = Field(
        1.25, ge=0, description="length of every token's step, in mean token norms"
    )
    shrink: int = Field(
        4,
        ge=0,
        description=(
            "times that the way back of two safe ones is halved, a batch each; 0: the control"
        ),
    )


@dataclass(frozen=True, eq=False)
class _Perturbation:
    """Hold a step [T, d] from the prompt's embeddings `origin` [T, d], and its request."""

    origin: torch.Tensor
    step: torch.Tensor
    request: GenerationRequest

    def scaled(self, share: float) -> GenerationRequest:
        return self.request.with_(soft_embeds=self.origin + share * self.step)


class RandomPerturbation:
    """Propose answers to a randomly moved message; then bisect for the least of the safe steps."""

    name = "random_perturbation"
    needs: ClassVar[tuple[type, ...]] = (TakesEmbeddings,)

    def __init__(self, options: RandomPerturbationOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one batch of answers to whole steps, then one for each halving of the way back."""
        perturbations = await self._perturbations(task)
        candidates = await _propose(task, perturbations, [1.0] * len(perturbations))
        yield candidates
        safe = [
            p for p, c in zip(perturbations, candidates, strict=False) if not c.verdict.flagged
        ][:_RETURNING]
        # The largest share of each step that was flagged, and the smallest that passed.
        flagged, passed = [0.0] * len(safe), [1.0] * len(safe)
        for _ in range(self.options.shrink):
            shares = [(low + high) / 2 for low, high in zip(flagged, passed, strict=True)]
            candidates = await _propose(task, safe, shares)
            if not candidates:
                return
            yield candidates
            for i, candidate in enumerate(candidates):
                (flagged if candidate.verdict.flagged else passed)[i] = shares[i]

    async def _perturbations(self, task: Task) -> list[_Perturbation]:
        backend = cast(TakesEmbeddings, task.backend)
        base = task.base.with_(prompt=await task.backend.render(task.messages, scope="user"))
        origin = await backend.embed(base.prompt.soft_ids)
        openings = await beginnings(task)
        length = self.options.length * backend.token_norm
        generator = torch.Generator().manual_seed(task.seed)
        return [
            _Perturbation(
                origin,
                length * unit(torch.randn(origin.shape, generator=generator), "per_token"),
                base.with_(opening=openings[i % len(openings)], seed=task.seed + i),
            )
            for i in range(self.options.directions)
        ]


async def _propose(
    task: Task, perturbations: Sequence[_Perturbation], shares: Sequence[float]
) -> list[Candidate]:
    """Propose an answer to a share in [0, 1] of each perturbation, as far as the budget goes."""
    affordable = list(zip(perturbations, shares, strict=True))[: task.usage.generations_left]
    if not affordable:
        return []
    requests = [perturbation.scaled(share) for perturbation, share in affordable]
    return await task.propose(
        requests, [f"{share:.4g} of a perturbation" for _, share in affordable]
    )


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("random_perturbation", RandomPerturbation, options=RandomPerturbationOptions)
