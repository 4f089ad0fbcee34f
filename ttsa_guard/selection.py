"""Which candidate is shown to the gate: the acceptable ones, helpful before unhelpful, the least distorted first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ttsa_guard.quality import Flaw, Quality
from ttsa_guard.record import CandidateRecord
from ttsa_guard.steerers.base import Candidate
from ttsa_guard.verdict import Verdict


@dataclass(frozen=True, eq=False)
class Judged:
    """A candidate with everything that decides about it."""

    candidate: Candidate
    steerer: str
    log_likelihood: float | None
    """Mean token log-likelihood under the unsteered prompt, in nats; None if unknown."""
    flaws: tuple[Flaw, ...]
    helpful: bool

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        steerer: str,
        quality: Quality,
        *,
        asked: str,
        answer: str,
        shown: str,
        log_likelihood: float | None,
        refuses: bool,
    ) -> Judged:
        """Judge a candidate for the flagged `answer` to the user text `asked`; it has to begin with what was `shown` already,
        and one that `refuses` and says no more is not helpful."""
        whole = candidate.finished or candidate.request is not None  # a draft is continued before it leaves
        flaws = quality.flaws(candidate.text, log_likelihood=log_likelihood, finished=whole, asked=asked)
        if candidate.text.strip() == answer.strip():
            flaws = (*flaws, "unchanged")
        if not candidate.text.startswith(shown):
            flaws = (*flaws, "takes back")
        known = log_likelihood if log_likelihood is not None and math.isfinite(log_likelihood) else None
        helpful = not candidate.verdict.flagged and not flaws and not refuses
        return cls(candidate, steerer, known, flaws, helpful)

    @property
    def acceptable(self) -> bool:
        return not self.candidate.verdict.flagged and not self.flaws

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Helpful ones first, then better openings, then the likeliest under the unsteered model: the least distortion."""
        likely = self.log_likelihood if self.log_likelihood is not None else -self.candidate.verdict.score
        return self.helpful, -self.candidate.place, likely

    def record(self, *, texts: bool) -> CandidateRecord:
        candidate = self.candidate
        return CandidateRecord(
            steerer=self.steerer,
            origin=candidate.origin,
            score=candidate.verdict.score,
            passed=self.acceptable,
            helpful=self.helpful,
            log_likelihood=self.log_likelihood,
            flaws=self.flaws,
            text=candidate.text if texts else None,
        )


def best_first(judged: Sequence[Judged]) -> list[Judged]:
    """The acceptable candidates, best first, no text twice."""
    ranked = sorted((j for j in judged if j.acceptable), key=lambda j: j.rank, reverse=True)
    distinct: dict[str, Judged] = {}
    for j in ranked:
        distinct.setdefault(j.candidate.text, j)
    return list(distinct.values())


def refusal(verdict: Verdict) -> float:
    """The category "refusal", also of a panel's member ("NAME/refusal"); 0 if no moderator gives it."""
    return max((score for name, score in verdict.categories.items() if name.rpartition("/")[2] == "refusal"), default=0.0)
