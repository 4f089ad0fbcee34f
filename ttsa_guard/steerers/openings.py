"""Collect a model's profile: how its safe answers begin, and how likely its own answers are.

This is needed once for each model.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import yaml

from ttsa_guard.backends.base import Backend, ScoresText
from ttsa_guard.errors import ModelError
from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.moderators.base import Moderator, moderate_safely
from ttsa_guard.profile import ModelProfile, Opening, OpeningKind
from ttsa_guard.verdict import Verdict

WORDS = 4
"""An opening has at most so many words."""
SHARED_BY = 3
"""Answers to so many questions have to begin alike, where there are so many."""
PER_KIND = 6
"""The profile keeps at most so many openings of a kind."""


@dataclass(frozen=True)
class _Sample:
    """Hold one safe answer to one question; the likelihood is the mean of its tokens, in nats."""

    question: str
    text: str
    kind: OpeningKind
    log_likelihood: float | None


def default_probes() -> tuple[list[str], list[str]]:
    """Return the shipped questions: harmless ones and unsafe ones."""
    probes = yaml.safe_load(
        (resources.files(__package__) / "probes.yaml").read_text(encoding="utf-8")
    )
    return probes["harmless"], probes["unsafe"]


async def collect(
    backend: Backend,
    moderator: Moderator,
    *,
    harmless: Sequence[str],
    unsafe: Sequence[str],
    samples: int = 16,
    max_new_tokens: int = 64,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> ModelProfile:
    """Sample answers to plain questions, keep the safe ones, and count how they begin.

    Args:
        moderator: it decides what is safe; its category "refusal" tells refusals from other
            answers.
        harmless: questions that can be answered.
        unsafe: questions to which a safe answer offers an alternative or declines.
        samples: the number of answers to each question. A quarter of them is drawn at temperature
            0.1, as answers usually are, and gives the likelihoods. The others are drawn at 0.9, so
            that rarer openings are found too.
        on_progress: a function that is called with the number of questions done and their total.

    Raises:
        ModelError: not one safe answer was found.
    """
    safe: list[_Sample] = []
    questions = [*((q, False) for q in harmless), *((q, True) for q in unsafe)]
    for done, (question, is_unsafe) in enumerate(questions, 1):
        prompt = await backend.render(Message.conversation(question))
        base = GenerationRequest(prompt, max_new_tokens=max_new_tokens, seed=seed + done * samples)
        texts, likelihoods = await _sampled(backend, base, samples)
        verdicts = await moderate_safely(moderator, texts, prompts=[question] * len(texts))
        for text, verdict, likelihood in zip(texts, verdicts, likelihoods, strict=True):
            if text and not verdict.flagged:
                safe.append(_Sample(question, text, _kind(verdict, is_unsafe), likelihood))
        on_progress(done, len(questions))
    if not safe:
        raise ModelError(
            "no safe answer was sampled",
            hint="check the model and the moderator with ttsa-guard check",
        )
    return ModelProfile(model=backend.name, openings=openings(safe), floor=_floor(safe))


async def _sampled(
    backend: Backend, base: GenerationRequest, n: int
) -> tuple[list[str], list[float | None]]:
    """Draw `n` answers; measure the likelihoods of those that are drawn as answers usually are."""
    usual = math.ceil(n / 4)
    requests = [
        base.with_(seed=base.seed + i, temperature=0.1 if i < usual else 0.9) for i in range(n)
    ]
    texts = [generation.text for generation in await backend.generate(requests)]
    likelihoods: list[float | None] = [None] * n
    if isinstance(backend, ScoresText):
        likelihoods[:usual] = await backend.log_likelihoods(base.prompt, texts[:usual])
    return texts, likelihoods


def _kind(verdict: Verdict, is_unsafe: bool) -> OpeningKind:
    """Tell what a safe answer does, from its verdict and its question."""
    if verdict.categories.get("refusal", 0.0) >= 0.5:
        return "refusal"
    return "redirect" if is_unsafe else "answer"


def openings(samples: Sequence[_Sample]) -> tuple[Opening, ...]:
    """Return the commonest beginnings of each kind, the commonest first.

    A beginning counts once for each question, and only if answers to several questions share it.
    That keeps the questions' own words out of it.
    """
    common: list[Opening] = []
    for kind in ("answer", "redirect", "refusal"):
        questions: defaultdict[str, set[str]] = defaultdict(set)
        for sample in (s for s in samples if s.kind == kind):
            for beginning in _beginnings(sample.text):
                questions[beginning].add(sample.question)
        enough = min(SHARED_BY, len({s.question for s in samples if s.kind == kind}))
        shared = {text: len(asked) for text, asked in questions.items() if len(asked) >= enough}
        longest = [
            text for text in shared if not any(_extends(other, text, shared) for other in shared)
        ]
        longest.sort(key=lambda text: (-shared[text], text))
        common += [Opening(text=text, kind=kind, count=shared[text]) for text in longest[:PER_KIND]]
    return tuple(common)


def _beginnings(text: str) -> list[str]:
    """Return the first 1, 2, ... `WORDS` words, up to the first mark that ends a clause."""
    beginnings: list[str] = []
    words = text.split()[:WORDS]
    for i, word in enumerate(words, 1):
        beginnings.append(" ".join(words[:i]))
        if word[-1] in ".!?:":
            break
    return beginnings


def _extends(other: str, text: str, shared: Mapping[str, int]) -> bool:
    """Say whether `other` is `text` with more words and at least half as common, so better."""
    return other.startswith(text + " ") and 2 * shared[other] >= shared[text]


def _floor(samples: Sequence[_Sample]) -> float | None:
    """Return the 1st percentile of the likelihoods (nearest rank); None if none is known."""
    known = sorted(s.log_likelihood for s in samples if s.log_likelihood is not None)
    return round(known[max(0, math.ceil(0.01 * len(known)) - 1)], 4) if known else None
