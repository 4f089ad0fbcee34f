"""Collect a model's profile: how its safe answers begin, and how likely its own answers are. Needed once for each model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

import yaml

from ttsa_guard.backends.base import Backend, ScoresText
from ttsa_guard.errors import ModelError
from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.moderators.base import Moderator, moderate_safely
from ttsa_guard.profile import ModelProfile, Opening, OpeningKind

WORDS = 4
PER_KIND = 6


@dataclass(frozen=True)
class _Sample:
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
    samples: int = 8,
    temperature: float = 0.8,
    max_new_tokens: int = 64,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ModelProfile:
    """Sample answers to plain questions, keep the safe ones, and count how they begin.

    Args:
        moderator: decides what is safe; its category "refusal" tells refusals from other answers.
        samples: answers for each question.
        on_progress: called with the questions done and their total.

    Raises:
        ModelError: not one safe answer was found.
    """
    found: list[_Sample] = []
    questions = [*((q, False) for q in harmless), *((q, True) for q in unsafe)]
    for done, (question, is_unsafe) in enumerate(questions, 1):
        prompt = await backend.render(Message.conversation(question))
        base = GenerationRequest(prompt, max_new_tokens=max_new_tokens, temperature=temperature)
        drawn = await backend.generate([base.having(seed=seed + i) for i in range(samples)])
        texts = [g.text for g in drawn if g.text]
        verdicts = await moderate_safely(moderator, texts, prompts=[question] * len(texts))
        scores = await backend.log_likelihoods(prompt, texts) if isinstance(backend, ScoresText) and texts else [None] * len(texts)
        for text, verdict, score in zip(texts, verdicts, scores, strict=True):
            if not verdict.flagged:
                refusal = verdict.categories.get("refusal", 0.0) >= 0.5
                kind: OpeningKind = "refusal" if refusal else "redirect" if is_unsafe else "answer"
                found.append(_Sample(text, kind, score))
        on_progress(done, len(questions))
    if not found:
        raise ModelError("no safe answer was sampled", hint="check the model and the moderator with ttsa-guard check")
    return ModelProfile(model=backend.name, openings=openings(found), floor=_floor(found))


def openings(samples: Sequence[_Sample]) -> tuple[Opening, ...]:
    """The commonest first words of each kind, commonest first; only beginnings that several answers share."""
    result: list[Opening] = []
    for kind in ("answer", "redirect", "refusal"):
        begun = Counter(begin for s in samples if s.kind == kind if (begin := _beginning(s.text)))
        shared = [(text, n) for text, n in begun.most_common(PER_KIND) if n > 1]
        result += [Opening(text=text, kind=kind, count=n) for text, n in shared]
    return tuple(result)


def _beginning(text: str) -> str:
    """At most `WORDS` words and never past the first punctuation mark that ends a clause."""
    words: list[str] = []
    for word in text.split()[:WORDS]:
        words.append(word)
        if word[-1] in ".!?:":
            break
    return " ".join(words)


def _floor(samples: Sequence[_Sample]) -> float | None:
    """1st percentile of the likelihoods (nearest rank)."""
    known = sorted(s.log_likelihood for s in samples if s.log_likelihood is not None)
    return round(known[max(0, math.ceil(0.01 * len(known)) - 1)], 4) if known else None
