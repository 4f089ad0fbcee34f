"""Learn which steerers mend the flagged answers of one model, and in which order.

Each steerer is tried alone on the model's own flagged answers. The order is greedy (Streeter,
Golovin and Smith, "Combining Multiple Heuristics Online", AAAI 2007): of the answers that are not
mended yet, the next steerer mends the most per second. On average this order takes at most four
times as long to mend an answer as the best order does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import yaml

from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.guard import Guard
from ttsa_guard.messages import Message
from ttsa_guard.moderators.base import moderate_safely
from ttsa_guard.moderators.minilm import RELEVANT, installed, relevance
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import ModelProfile, Opening
from ttsa_guard.steerers.base import harmful

_FEWEST = 5
"""Fewest flagged answers of a kind from which anything is learned."""
PORTFOLIO: tuple[Use, ...] = (
    Use(use="concise"),
    Use(use="erase"),
    Use(use="trim"),
    Use(use="occlude"),
    Use(use="prefill"),
    Use(use="resample", options={"n": 8, "temperature": 0.7, "harmless": True}),
    Use(use="self_reminder", options={"n": 4}),
    Use(use="rewrite", options={"n": 4}),
    Use(use="embedding"),
)
"""The steerers that are tried."""
_DEFAULT: tuple[Use, ...] = GuardConfig.model_fields["steerers"].default
_ONE_DRAW = Use(use="prefill", options={"openings": 1, "draws": 1})


@dataclass(frozen=True)
class FlaggedAnswer:
    """A shipped prompt, the question in it, and the model's answer, which the gate flags."""

    messages: tuple[Message, ...]
    question: str
    answer: str
    harmful: bool


@dataclass(frozen=True)
class Trial:
    """What one steerer did to one flagged answer.

    Args:
        steerer: the steerer and its options.
        answer: the index of the answer.
        mended: whether a helpful answer was found.
        seconds: the time of the whole review.
    """

    steerer: Use
    answer: int
    mended: bool
    seconds: float


def prompts() -> list[tuple[tuple[Message, ...], str]]:
    """Return the shipped prompts, each with its question.

    They are unsafe requests, and harmless questions under a persona that demands abuse.
    """
    texts = yaml.safe_load(
        (resources.files("ttsa_guard.steerers") / "probes.yaml").read_text(encoding="utf-8")
    )
    found: list[tuple[tuple[Message, ...], str]] = [
        ((Message("user", question),), question) for question in texts["unsafe"]
    ]
    for i, question in enumerate(texts["under_personas"]):
        for persona in (texts["personas"][(i + k) % len(texts["personas"])] for k in range(2)):
            found.append(((Message("user", f"{persona} {question}"),), question))
            found.append(((Message("system", persona), Message("user", question)), question))
    return found


async def flagged_answers(guard: Guard, *, most: int = 6) -> list[FlaggedAnswer]:
    """Return the model's answers to `prompts` that the gate flags.

    Args:
        most: the largest number of answers of each kind (harmful or not).
    """
    asked = prompts()
    requests = [await guard.plain_request(messages) for messages, _ in asked]
    answers = [generation.text for generation in await guard.backend.generate(requests)]
    found: dict[bool, list[FlaggedAnswer]] = {False: [], True: []}
    for (messages, question), answer in zip(asked, answers, strict=True):
        [verdict] = await moderate_safely(guard.gate, [answer], prompts=[messages[-1].content])
        kind = harmful(verdict)
        if verdict.flagged and kind is not None and len(found[kind]) < most:
            found[kind].append(FlaggedAnswer(messages, question, answer, kind))
    return [*found[True], *found[False]]


async def learned(
    guard: Guard, plugins: Plugins, *, on_progress: Callable[[int, int], None] = lambda *_: None
) -> ModelProfile:
    """Return the guard's profile, updated with the results of trials.

    Two things are learned. Where an answer was flagged for what it helps with, it is the order of
    the openings that offer something else. For all other answers it is the cascade. A kind of which
    the model gives too few flagged answers is left as it is.

    The order of the steerers is not learned where declining is right: a harmful answer that the
    gate does not see would count as mended. On SmolLM2 that left out `prefill`, and with it all
    answers that decline.

    Args:
        guard: the guard whose backend, gate, guide and settings are used, but not its steerers.
        plugins: the plugins that make the steerers.
        on_progress: is called with the number of trials that are done, and their total.
    """
    cases = await flagged_answers(guard)
    unsafe, others = ([case for case in cases if case.harmful is kind] for kind in (True, False))
    offers = (
        [opening for opening in guard.profile.openings if opening.kind == "redirect"]
        if len(unsafe) >= _FEWEST
        else []
    )
    portfolio = PORTFOLIO if len(others) >= _FEWEST else ()
    total = len(offers) * len(unsafe) + len(portfolio) * len(others)
    done = 0

    async def tried(use: Use, profile: ModelProfile, some: Sequence[FlaggedAnswer]) -> list[Trial]:
        nonlocal done
        alone = guard.with_steerers([plugins.make("steerers", use)], profile)
        found = []
        for i, case in enumerate(some):
            found.append(await _trial(alone, use, i, case))
            on_progress(done := done + 1, total)
        return found

    worth: dict[str, int] = {}
    for opening in offers:
        only = guard.profile.model_copy(update={"openings": (opening,)})
        worth[opening.text] = sum(trial.mended for trial in await tried(_ONE_DRAW, only, unsafe))
    profile = guard.profile.model_copy(
        update={"openings": _offers_sorted(guard.profile.openings, worth)}
    )
    order = cascade([trial for use in portfolio for trial in await tried(use, profile, others)])
    if not order:
        return profile
    # Only few answers were tried, so steerers that mended nothing new are kept, but come last.
    rest = [use for use in _DEFAULT if use.use not in {chosen.use for chosen in order}]
    return profile.model_copy(update={"steerers": (*order, *rest), "steerers_for_harm": _DEFAULT})


def _offers_sorted(openings: Sequence[Opening], worth: Mapping[str, int]) -> tuple[Opening, ...]:
    """Return the openings with their offers sorted by what these are worth, the best first.

    Equal offers keep their order. Other openings stay in their places.
    """
    offers = iter(
        sorted((o for o in openings if o.kind == "redirect"), key=lambda o: -worth.get(o.text, 0))
    )
    return tuple(next(offers) if opening.kind == "redirect" else opening for opening in openings)


async def _trial(guard: Guard, use: Use, number: int, case: FlaggedAnswer) -> Trial:
    outcome = await guard.review(case.messages, case.answer)
    mended = outcome.action == "swap" and outcome.record.helpful
    if mended and not case.harmful and installed():
        [near] = await asyncio.to_thread(relevance, case.question, [outcome.text])
        mended = near >= RELEVANT
    return Trial(use, number, mended, outcome.record.seconds)


def cascade(trials: Sequence[Trial]) -> tuple[Use, ...]:
    """Return the steerers in greedy order, without those that mend nothing new."""
    by_steerer: dict[str, list[Trial]] = {}
    for trial in trials:
        by_steerer.setdefault(trial.steerer.model_dump_json(), []).append(trial)
    left = {trial.answer for trial in trials}
    order: list[Use] = []
    while by_steerer:
        rates = {
            key: _rate([trial for trial in some if trial.answer in left])
            for key, some in by_steerer.items()
        }
        best = max(rates, key=lambda key: rates[key])
        if not rates[best]:
            break
        chosen = by_steerer.pop(best)
        order.append(chosen[0].steerer)
        left -= {trial.answer for trial in chosen if trial.mended}
    return tuple(order)


def _rate(trials: Sequence[Trial]) -> float:
    """Return how many answers the trials mended per second."""
    seconds = sum(trial.seconds for trial in trials)
    mended = sum(trial.mended for trial in trials)
    return mended / max(seconds, 1e-9)
