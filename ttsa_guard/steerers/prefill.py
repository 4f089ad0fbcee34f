"""Make the answer start with a safe opening and let the model go on.

This is cheap, and hard to beat where an opening decides how the answer goes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from itertools import product
from typing import ClassVar

from pydantic import Field

from ttsa_guard.messages import GenerationRequest
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.profile import ModelProfile, Opening, OpeningKind
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.objectives import find_derailment
from ttsa_guard.text import through_sentence

KINDS: tuple[OpeningKind, ...] = ("answer", "redirect", "refusal")
"""All kinds of openings, the most helpful first."""
_REFUSALS = 2
"""At most so many openings that only decline are tried."""
_WARM = 0.7
"""Temperature of all draws of an opening but the first."""


class PrefillOptions(Settings):
    """Configure the steerer `prefill`."""

    openings: int = Field(6, ge=1, description="openings tried, in one batch")
    draws: int = Field(2, ge=1, description="answers that are begun with each of them")
    always: bool = Field(
        False, description="also for an answer that began harmlessly and was flagged for its tone"
    )


class Prefill:
    """Propose answers that begin with the profile's openings, the best ones first.

    If none of them will do and declining may be right, it proposes answers that only decline. Such
    an answer ends after the sentence that its opening begins, because what a model adds to a
    refusal of its own accord helps nobody.
    """

    name = "prefill"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: PrefillOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield a batch of answers that offer something, then one of refusals."""
        if not (self.options.always or task.harmful or await _opening_is_at_fault(task)):
            return
        # What stands around the question is often what the model went wrong for.
        base = task.base.with_(prompt=task.asked[0]) if task.asked else task.base
        offering = mixed_openings(task.profile, self.options.openings, offering_kinds(task))
        draws = [(o, draw) for draw in range(self.options.draws) for o in offering]
        if affordable := draws[: task.usage.generations_left]:
            yield await _begun(task, base, affordable)
        most = min(_REFUSALS, task.usage.generations_left)
        refusing = mixed_openings(task.profile, most, ("refusal",))
        if refusing and not task.answerable:
            yield await _brief(task, base, refusing)


async def _begun(
    task: Task, base: GenerationRequest, draws: Sequence[tuple[Opening, int]]
) -> list[Candidate]:
    """Propose an answer for each draw: an opening, and how often it was drawn before."""
    requests = [
        base.with_(
            opening=task.after_shown(opening.text),
            seed=task.seed + i,
            temperature=_WARM if draw else base.temperature,
        )
        for i, (opening, draw) in enumerate(draws)
    ]
    candidates = await task.propose(requests, [f"opening {opening.text!r}" for opening, _ in draws])
    order = list(dict.fromkeys(opening.text for opening, _ in draws))
    return [
        replace(c, place=order.index(o.text)) for c, (o, _) in zip(candidates, draws, strict=True)
    ]


async def _brief(
    task: Task, base: GenerationRequest, openings: Sequence[Opening]
) -> list[Candidate]:
    """Propose answers that end with the sentence in which their opening ends."""
    begun = [task.after_shown(opening.text) for opening in openings]
    answers = await task.generate(
        [base.with_(opening=text, seed=task.seed + i) for i, text in enumerate(begun)]
    )
    texts = [
        through_sentence(answer.text, len(text))
        for answer, text in zip(answers, begun, strict=True)
    ]
    verdicts = await task.score(texts)
    origins = [f"opening {opening.text!r}" for opening in openings]
    return [
        Candidate(text, origin, verdict, place=place)
        for place, (text, origin, verdict) in enumerate(zip(texts, origins, verdicts, strict=True))
    ]


def offering_kinds(task: Task) -> tuple[OpeningKind, ...]:
    """Return the kinds of openings that offer something in this task."""
    if task.answerable:
        return ("answer",)
    return ("redirect",) if task.harmful else ("answer", "redirect")


async def _opening_is_at_fault(task: Task) -> bool:
    derailment = await find_derailment(task)
    return derailment is None or derailment.kept == task.shown


async def beginnings(task: Task) -> tuple[str, ...]:
    """Choose how answers to a changed message are made to begin.

    The first choice leaves the model free after what has been shown. The second, if there is one,
    adds a redirecting opening. It is for questions that may be unsafe themselves, where an
    alternative helps. A question can be answered if the flagged answer began harmlessly, or was
    flagged for its tone or a policy.
    """
    answerable = task.answerable or await find_derailment(task)
    redirects = [] if answerable else mixed_openings(task.profile, 1, ("redirect",))
    return task.shown, *(task.after_shown(o.text) for o in redirects)


async def propose_variants(
    task: Task,
    variants: Sequence[tuple[str, GenerationRequest]],
    openings: Sequence[str],
    *,
    more: Sequence[tuple[str, GenerationRequest]] = (),
) -> list[Candidate]:
    """Propose an answer to each variant with each opening, in one batch, within the budget.

    Args:
        variants: names and requests, better ones first.
        openings: see `beginnings`; better ones first.
        more: further names and requests for the same batch, with their own openings; they come with
            the first.
    """
    tried = list(product(variants, openings))[: task.usage.generations_left]
    requests = [
        request.with_(opening=opening, seed=task.seed + i, baseline=task.baseline)
        for i, ((_, request), opening) in enumerate(tried)
    ]
    names = [
        name if opening == openings[0] else f"{name} redirected" for (name, _), opening in tried
    ]
    added = more[: task.usage.generations_left - len(tried)]
    requests += [request for _, request in added]
    if not requests:
        return []
    candidates = await task.propose(requests, [*names, *(name for name, _ in added)])
    places = [openings.index(opening) for _, opening in tried]
    places += [0] * len(added)
    return [
        replace(candidate, place=place) for candidate, place in zip(candidates, places, strict=True)
    ]


def mixed_openings(
    profile: ModelProfile, n: int, kinds: Sequence[OpeningKind] = KINDS
) -> list[Opening]:
    """Return the first `n` openings of the profile, taken in turn from the `kinds`."""
    groups = [[o for o in profile.openings if o.kind == kind] for kind in kinds]
    in_turn = [
        group[i]
        for i in range(max(map(len, groups), default=0))
        for group in groups
        if i < len(group)
    ]
    return in_turn[:n]


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("prefill", Prefill, options=PrefillOptions)
