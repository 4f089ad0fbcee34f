"""Make the answer start with a safe opening and let the model go on: cheap, and hard to beat where an opening decides."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import ClassVar

from pydantic import Field

from ttsa_guard.messages import GenerationRequest
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.profile import ModelProfile, Opening, OpeningKind
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.goals import find_turn
from ttsa_guard.text import through_sentence

KINDS: tuple[OpeningKind, ...] = ("answer", "redirect", "refusal")
_OFFERING: Mapping[bool | None, tuple[OpeningKind, ...]] = {
    True: ("redirect",),
    False: ("answer",),
    None: ("answer", "redirect"),
}
"""Openings that say more than no, by whether the answer was flagged for what it helps with."""
_REFUSALS = 2
_WARM = 0.7
"""Temperature of all draws of an opening but the first."""


class PrefillOptions(Settings):
    openings: int = Field(6, ge=1, description="openings tried, in one batch")
    draws: int = Field(2, ge=1, description="answers that are begun with each of them")
    always: bool = Field(False, description="also for an answer that began harmlessly and was flagged for its tone")


class Prefill:
    """A batch of answers that begin with the profile's openings, best ones first; where none of them will do and declining may be
    right, one that only declines.

    A refusal ends after the sentence that its opening begins: what a model adds to that of its own accord helps nobody.
    """

    name = "prefill"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: PrefillOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        if not (self.options.always or task.harmful or await _opening_is_at_fault(task)):
            return
        # What is around an unsafe question asks to answer it.
        base = task.base.with_(prompt=task.asked[0]) if task.harmful and task.asked else task.base
        offering = mixed_openings(task.profile, self.options.openings, _OFFERING[task.harmful])
        begun = [(o, draw) for draw in range(self.options.draws) for o in offering][: task.usage.generations_left]
        if begun:
            yield await self._begun(task, base, begun)
        refusing = mixed_openings(task.profile, _REFUSALS, ("refusal",))[: task.usage.generations_left]
        if refusing and task.harmful is not False:
            yield await _brief(task, base, refusing)

    async def _begun(self, task: Task, base: GenerationRequest, begun: Sequence[tuple[Opening, int]]) -> list[Candidate]:
        requests = [
            base.with_(
                opening=task.after_shown(opening.text), seed=task.seed + i, temperature=_WARM if draw else base.temperature
            )
            for i, (opening, draw) in enumerate(begun)
        ]
        candidates = await task.propose(requests, [f"opening {opening.text!r}" for opening, _ in begun])
        order = list(dict.fromkeys(opening.text for opening, _ in begun))
        return [replace(c, place=order.index(o.text)) for c, (o, _) in zip(candidates, begun, strict=True)]


async def _brief(task: Task, base: GenerationRequest, openings: Sequence[Opening]) -> list[Candidate]:
    """Answers that end with the sentence in which their opening ends."""
    begun = [task.after_shown(opening.text) for opening in openings]
    answers = await task.generate([base.with_(opening=text, seed=task.seed + i) for i, text in enumerate(begun)])
    texts = [through_sentence(answer.text, len(text)) for answer, text in zip(answers, begun, strict=True)]
    verdicts = await task.score(texts)
    origins = [f"opening {opening.text!r}" for opening in openings]
    return [
        Candidate(text, origin, verdict, place=place)
        for place, (text, origin, verdict) in enumerate(zip(texts, origins, verdicts, strict=True))
    ]


async def _opening_is_at_fault(task: Task) -> bool:
    turn = await find_turn(task)
    return turn is None or turn.kept == task.shown


async def beginnings(task: Task) -> tuple[str, ...]:
    """How answers to a changed message are made to begin: as they like after what has been shown, and also with a redirecting
    opening where the flagged answer went wrong from its start.

    Where it began harmlessly, or was flagged for its tone or a policy, the question can be answered; otherwise it may itself be
    unsafe, and what helps then is an alternative.
    """
    answered = task.harmful is False or await find_turn(task)
    redirects = [] if answered else mixed_openings(task.profile, 1, ("redirect",))
    return task.shown, *(task.after_shown(o.text) for o in redirects)


async def propose_begun(
    task: Task,
    variants: Sequence[tuple[str, GenerationRequest]],
    openings: Sequence[str],
    *,
    more: Sequence[tuple[str, GenerationRequest]] = (),
) -> list[Candidate]:
    """Answers to each of the variants, which are a name and a request, with each of the openings, better ones first, and to
    `more` as they are: one batch, as far as the budget goes."""
    tried = list(product(variants, openings))[: task.usage.generations_left]
    requests = [
        request.with_(opening=opening, seed=task.seed + i, baseline=task.baseline)
        for i, ((_, request), opening) in enumerate(tried)
    ]
    names = [name if opening == openings[0] else f"{name} redirected" for (name, _), opening in tried]
    added = more[: task.usage.generations_left - len(tried)]
    requests += [request for _, request in added]
    if not requests:
        return []
    candidates = await task.propose(requests, [*names, *(name for name, _ in added)])
    places = [openings.index(opening) for _, opening in tried] + [0] * len(added)
    return [replace(candidate, place=place) for candidate, place in zip(candidates, places, strict=True)]


def mixed_openings(profile: ModelProfile, n: int, kinds: Sequence[OpeningKind] = KINDS) -> list[Opening]:
    """The `n` first openings, taken in turn from the `kinds`."""
    groups = [[o for o in profile.openings if o.kind == kind] for kind in kinds]
    in_turn = [group[i] for i in range(max(map(len, groups), default=0)) for group in groups if i < len(group)]
    return in_turn[:n]


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("prefill", Prefill, options=PrefillOptions)
