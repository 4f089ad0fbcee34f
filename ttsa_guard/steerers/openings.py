"""Collect a model's profile: how its safe answers begin, and how likely its own answers are. Needed once for each model."""

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

WORDS = 4
SHARED_BY = 3
PER_KIND = 6


@dataclass(frozen=True)
class _Sample:
    question: str
    text: str
    kind: OpeningKind
    log_likelihood: float | None


def default_probes() -> tuple[list[str], list[str]]:
    """The shipped (harmless, unsafe) questions."""
    found = yaml.safe_load((resources.files(__package__) / "probes.yaml").read_text(encoding="utf-8"))
    return found["harmless"], found["unsafe"]


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
        moderator: decides what is safe; its category "refusal" tells refusals from other answers.
        samples: answers for each question. A quarter of them is drawn at temperature 0.1, as answers usually are, and
            gives the likelihoods; the others are drawn at 0.9, so that rarer openings are found too.
        on_progress: called with the questions done and their total.

    Raises:
        ModelError: not one safe answer was found.
    """
    found: list[_Sample] = []
    questions = [*((q, False) for q in harmless), *((q, True) for q in unsafe)]
    for done, (question, is_unsafe) in enumerate(questions, 1):
        prompt = await backend.render(Message.conversation(question))
        base = GenerationRequest(prompt, max_new_tokens=max_new_tokens)
        usual = math.ceil(samples / 4)
        first = seed + done * samples  # other noise for each question
        requests = [base.with_(seed=first + i, temperature=0.1 if i < usual else 0.9) for i in range(samples)]
        texts = [g.text for g in await backend.generate(requests)]
        verdicts = await moderate_safely(moderator, texts, prompts=[question] * len(texts))
        likelihoods: list[float | None] = [None] * samples
        if isinstance(backend, ScoresText):
            likelihoods[:usual] = await backend.log_likelihoods(prompt, texts[:usual])
        for text, verdict, likelihood in zip(texts, verdicts, likelihoods, strict=True):
            if text and not verdict.flagged:
                refusal = verdict.categories.get("refusal", 0.0) >= 0.5
                kind: OpeningKind = "refusal" if refusal else "redirect" if is_unsafe else "answer"
                found.append(_Sample(question, text, kind, likelihood))
        on_progress(done, len(questions))
    if not found:
        raise ModelError("no safe answer was sampled", hint="check the model and the moderator with ttsa-guard check")
    return ModelProfile(model=backend.name, openings=openings(found), floor=_floor(found))


def openings(samples: Sequence[_Sample]) -> tuple[Opening, ...]:
    """The commonest beginnings of each kind, commonest first.

    A beginning counts once for each question, and only if answers to several questions share it: that keeps the
    questions' own words out of it.
    """
    result: list[Opening] = []
    for kind in ("answer", "redirect", "refusal"):
        questions: defaultdict[str, set[str]] = defaultdict(set)
        for sample in (s for s in samples if s.kind == kind):
            for beginning in _beginnings(sample.text):
                questions[beginning].add(sample.question)
        enough = min(SHARED_BY, len({s.question for s in samples if s.kind == kind}))
        shared = {text: len(asked) for text, asked in questions.items() if len(asked) >= enough}
        longest = [text for text in shared if not any(_extends(other, text, shared) for other in shared)]
        longest.sort(key=lambda text: (-shared[text], text))
        result += [Opening(text=text, kind=kind, count=shared[text]) for text in longest[:PER_KIND]]
    return tuple(result)


def _beginnings(text: str) -> list[str]:
    """The first 1, 2, ... `WORDS` words, not past the first punctuation mark that ends a clause."""
    found: list[str] = []
    words = text.split()[:WORDS]
    for i, word in enumerate(words, 1):
        found.append(" ".join(words[:i]))
        if word[-1] in ".!?:":
            break
    return found


def _extends(other: str, text: str, shared: Mapping[str, int]) -> bool:
    """`other` is `text` with more words, and at least half as common: then the longer one says it better."""
    return other.startswith(text + " ") and 2 * shared[other] >= shared[text]


def _floor(samples: Sequence[_Sample]) -> float | None:
    """1st percentile of the likelihoods (nearest rank)."""
    known = sorted(s.log_likelihood for s in samples if s.log_likelihood is not None)
    return round(known[max(0, math.ceil(0.01 * len(known)) - 1)], 4) if known else None
