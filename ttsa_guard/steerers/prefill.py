"""Make the answer start with a safe opening and let the model go on: cheap, and hard to beat where an opening decides."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.profile import ModelProfile, Opening
from ttsa_guard.steerers.base import Candidate, Task


class PrefillOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    openings: int = Field(8, ge=1, description="openings tried, in one batch")


class Prefill:
    """One candidate for each of the model's likeliest safe openings, all in one batch."""

    name = "prefill"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: PrefillOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        openings = mixed_openings(task.profile, min(self.options.openings, task.spend.generations_left))
        if not openings:
            return
        requests = [task.base.having(opening=o.text, seed=task.seed + i) for i, o in enumerate(openings)]
        yield await task.propose(requests, [f"opening {o.text!r}" for o in openings])


def mixed_openings(profile: ModelProfile, n: int) -> list[Opening]:
    """The `n` first openings, taken in turn from answers, redirects and refusals."""
    kinds = [[o for o in profile.openings if o.kind == kind] for kind in ("answer", "redirect", "refusal")]
    in_turn = [kind[i] for i in range(max(map(len, kinds), default=0)) for kind in kinds if i < len(kind)]
    return in_turn[:n]


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("prefill", Prefill, options=PrefillOptions)
