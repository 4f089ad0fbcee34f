"""Choose which candidate is shown to the gate.

The order is: acceptable ones only, helpful before unhelpful, and of those that are about as likely
as the likeliest one, first what takes up most of the question.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from ttsa_guard.quality import Flaw, Quality, echoes, repetition
from ttsa_guard.record import CandidateRecord
from ttsa_guard.steerers.base import Candidate
from ttsa_guard.text import WORD
from ttsa_guard.verdict import Verdict

_REPEATED = 1.75
"""Log-likelihood, in nats a token, that an answer loses if all of its word 4-grams are repeated.

What repeats itself is likelier than it is good. Of 99 answers of SmolLM2 with a log-likelihood
above -1.1, readers called 80 % good. The likelihood told those with an AUC of 0.69; less this, with
one of 0.84.
"""
AS_LIKELY = 0.5
"""How far below the likeliest candidate, in nats a token, another one is about as likely.

A likelihood tells good answers from bad ones, but the likeliest of some good ones is the blandest.
Of seven answers of SmolLM2 to the question of each of 65 prompts, a reader called 72 % of the
likeliest good and 25 % helpful, and 80 and 35 % of those that are chosen so. From 0.3 to 0.8 it
makes no difference.
"""


@dataclass(frozen=True, eq=False)
class Judged:
    """A candidate with everything that decides about it."""

    candidate: Candidate
    steerer: str
    log_likelihood: float | None
    """Mean token log-likelihood under the unsteered prompt, in nats; None if it is not known."""
    flaws: tuple[Flaw, ...]
    helpful: bool
    again: bool
    """Whether it says what the model said earlier in the conversation. A small model does so if it
    does not understand a question; but the same question may get the same answer."""
    covers: float = 0.0
    """Share of the question's words that it has, in [0, 1]; 0 if they are not known."""

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        steerer: str,
        quality: Quality,
        *,
        asked: str,
        about: Collection[str],
        earlier: str,
        answer: str,
        shown: str,
        log_likelihood: float | None,
        refuses: bool,
    ) -> Judged:
        """Judge a candidate.

        Args:
            asked: the user text.
            about: the words of the question, in lower case; empty if they are not known.
            earlier: what the model said before in the conversation.
            answer: the flagged answer. A candidate with the same text is not acceptable.
            shown: the part of the answer that the user has read already. The candidate has to begin
                with it.
            log_likelihood: mean token log-likelihood under the unsteered prompt, in nats; None if
                it is not known.
            refuses: whether the candidate declines and says little besides; then it is not helpful.
        """
        # A draft with a request is continued before it leaves, so its end is no flaw yet.
        whole = candidate.finished or candidate.request is not None
        flaws = quality.flaws(
            candidate.text, log_likelihood=log_likelihood, finished=whole, asked=asked
        )
        if candidate.text.strip() == answer.strip():
            flaws = (*flaws, "unchanged")
        if not candidate.text.startswith(shown):
            flaws = (*flaws, "takes back")
        if log_likelihood is not None and not math.isfinite(log_likelihood):
            log_likelihood = None
        helpful = not candidate.verdict.flagged and not flaws and not refuses
        again = echoes(candidate.text, earlier)
        has = set(WORD.findall(candidate.text.lower())).intersection(about)
        covers = len(has) / len(about) if about else 0.0
        return cls(candidate, steerer, log_likelihood, flaws, helpful, again, covers)

    @property
    def acceptable(self) -> bool:
        """Whether the guide passes the candidate and it has no flaws."""
        return not self.candidate.verdict.flagged and not self.flaws

    @property
    def group(self) -> tuple[bool, bool, int]:
        """The first key of the order; higher is better.

        Helpful candidates come first, then what was not said before, then those with better
        openings.
        """
        return self.helpful, not self.again, -self.candidate.place

    @property
    def likely(self) -> float:
        """How likely the unsteered model finds it, in nats a token, less if it repeats itself."""
        likely = self.log_likelihood
        if likely is None:
            likely = -self.candidate.verdict.score
        return likely - _REPEATED * repetition(WORD.findall(self.candidate.text.lower()))

    def record(self, *, texts: bool) -> CandidateRecord:
        """Return the candidate as a record, with its text if `texts` is set."""
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
    """Return the acceptable candidates, best first, and no text twice."""
    ranked = sorted((j for j in judged if j.acceptable), key=lambda j: j.group, reverse=True)
    distinct: dict[str, Judged] = {}
    for _, group in groupby(ranked, key=lambda j: j.group):
        for j in _chosen_first(list(group)):
            distinct.setdefault(j.candidate.text, j)
    return list(distinct.values())


def _chosen_first(alike: list[Judged]) -> list[Judged]:
    """Sort candidates of one group.

    Those that are about as likely as the likeliest come first, and what takes up most of the
    question first among them. Without likelihoods, the scores of the guide decide.
    """
    measured = all(j.log_likelihood is not None for j in alike)
    least = max(j.likely for j in alike) - AS_LIKELY if measured else math.inf

    def key(j: Judged) -> tuple[bool, float, float]:
        as_likely = j.likely >= least
        return as_likely, j.covers if as_likely else 0.0, j.likely

    return sorted(alike, key=key, reverse=True)


def refusal(verdict: Verdict) -> float:
    """Return the score of the category "refusal", in [0, 1].

    It is the highest one if several members of a panel give it ("NAME/refusal"), and 0 if none
    does.
    """
    scores = verdict.categories.items()
    return max((s for name, s in scores if name.rpartition("/")[2] == "refusal"), default=0.0)
