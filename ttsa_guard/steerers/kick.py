"""Random steps of the input embeddings, long enough to change the answer, then the way back: no gradient, no goal.

The smallest part of a step that is still safe keeps the most of what was asked. Without the way back this is the control that a
search along any direction has to beat.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar

import torch
from pydantic import Field

from ttsa_guard.backends.base import TakesEmbeddings
from ttsa_guard.messages import GenerationRequest
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.estimators import unit
from ttsa_guard.steerers.prefill import beginnings

_RETURNING = 2
"""Safe kicks that go the way back."""


class KickOptions(Settings):
    kicks: int = Field(8, ge=1, description="random directions in the first batch")
    length: float = Field(1.25, ge=0, description="of every row's step, in mean token norms")
    shrink: int = Field(4, ge=0, description="halvings of the way back of two safe ones, a batch each; 0: the control")


class Kick:
    """A batch of answers from kicked rows of the user's message; then bisection for the least of the safe kicks."""

    name = "kick"
    needs: ClassVar[tuple[type, ...]] = (TakesEmbeddings,)

    def __init__(self, options: KickOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        backend = task.backend
        assert isinstance(backend, TakesEmbeddings)
        base = task.base.with_(prompt=await backend.render(task.messages, scope="user"))
        origin = await backend.embed(base.prompt.soft_ids)
        openings = await beginnings(task)
        size = self.options.length * backend.token_norm
        generator = torch.Generator().manual_seed(task.seed)
        kicks = [size * unit(torch.randn(origin.shape, generator=generator), "per_token") for _ in range(self.options.kicks)]
        tried = [(kick, base.with_(opening=openings[i % len(openings)], seed=task.seed + i)) for i, kick in enumerate(kicks)]

        async def answers(tried: Sequence[tuple[torch.Tensor, GenerationRequest]], shares: Sequence[float]) -> list[Candidate]:
            """To the requests, each with so much of its kick."""
            asked = list(zip(tried, shares, strict=True))[: task.usage.generations_left]
            requests = [request.with_(soft_embeds=origin + share * kick) for (kick, request), share in asked]
            return await task.propose(requests, [f"{share:.4g} of a kick" for _, share in asked]) if asked else []

        candidates = await answers(tried, [1.0] * len(tried))
        yield candidates
        safe = [t for t, c in zip(tried, candidates, strict=False) if not c.verdict.flagged][:_RETURNING]
        flagged, passed = [0.0] * len(safe), [1.0] * len(safe)
        for _ in range(self.options.shrink):
            shares = [(low + high) / 2 for low, high in zip(flagged, passed, strict=True)]
            candidates = await answers(safe, shares)
            if not candidates:
                return
            yield candidates
            for i, candidate in enumerate(candidates):
                (flagged if candidate.verdict.flagged else passed)[i] = shares[i]


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("kick", Kick, options=KickOptions)
