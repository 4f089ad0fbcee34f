"""Make the answer start with a safe opening and let the model go on: cheap, and hard to beat where an opening decides."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from itertools import product
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ttsa_guard.messages import GenerationRequest
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.profile import ModelProfile, Opening, OpeningKind
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.goals import find_turn

KINDS: tuple[OpeningKind, ...] = ("answer", "redirect", "refusal")
_FITTING: Mapping[bool | None, tuple[OpeningKind, ...]] = {True: ("redirect", "refusal"), False: ("answer",), None: KINDS}
"""Openings by whether the answer was flagged for what it helps with."""


class PrefillOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    openings: int = Field(6, ge=1, description="openings tried, in one batch")
    always: bool = Field(False, description="also for an answer that began harmlessly and was flagged for its tone")


class Prefill:
    """One candidate for each of the model's likeliest safe openings, all in one batch."""

    name = "prefill"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: PrefillOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        most = min(self.options.openings, task.spend.generations_left)
        openings = mixed_openings(task.profile, most, _FITTING[task.harmful])
        if not openings or not (self.options.always or task.harmful or await _opening_is_at_fault(task)):
            return
        # What is around an unsafe question asks to answer it.
        base = task.base.having(prompt=task.asked[0]) if task.harmful and task.asked else task.base
        requests = [base.having(opening=task.after_shown(o.text), seed=task.seed + i) for i, o in enumerate(openings)]
        yield await task.propose(requests, [f"opening {o.text!r}" for o in openings])


async def _opening_is_at_fault(task: Task) -> bool:
    turn = await find_turn(task)
    return turn is None or turn.kept == task.shown


async def beginnings(task: Task) -> tuple[str, ...]:
    """How answers to a changed message are made to begin: as they like after what has been shown, and also with a redirecting
    opening where the flagged answer went wrong from its start.

    Where it began harmlessly, the question can be answered; otherwise it may itself be unsafe, and what helps then is an
    alternative.
    """
    redirects = [] if await find_turn(task) else mixed_openings(task.profile, 1, ("redirect",))
    return task.shown, *(task.after_shown(o.text) for o in redirects)


async def propose_begun(
    task: Task,
    variants: Sequence[tuple[str, GenerationRequest]],
    openings: Sequence[str],
    *,
    more: Sequence[tuple[str, GenerationRequest]] = (),
) -> list[Candidate]:
    """Answers to each of the variants, which are a name and a request, with each of the openings, and to `more` as they are: one
    batch, as far as the budget goes."""
    tried = list(product(variants, openings))[: task.spend.generations_left]
    requests = [
        request.having(opening=opening, seed=task.seed + i, baseline=task.baseline)
        for i, ((_, request), opening) in enumerate(tried)
    ]
    names = [name if opening == openings[0] else f"{name} redirected" for (name, _), opening in tried]
    added = more[: task.spend.generations_left - len(tried)]
    requests += [request for _, request in added]
    return await task.propose(requests, [*names, *(name for name, _ in added)]) if requests else []


def mixed_openings(profile: ModelProfile, n: int, kinds: Sequence[OpeningKind] = KINDS) -> list[Opening]:
    """The `n` first openings, taken in turn from the `kinds`."""
    groups = [[o for o in profile.openings if o.kind == kind] for kind in kinds]
    in_turn = [group[i] for i in range(max(map(len, groups), default=0)) for group in groups if i < len(group)]
    return in_turn[:n]


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("prefill", Prefill, options=PrefillOptions)
