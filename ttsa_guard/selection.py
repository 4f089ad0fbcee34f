"""Choose which candidate is shown to the gate.

The order is: acceptable ones only, helpful before unhelpful, and of those the likeliest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ttsa_guard.quality import Flaw, Quality, echoes, repetition
from ttsa_guard.record import CandidateRecord
from ttsa_guard.steerers.base import Candidate
from ttsa_guard.text import WORD
from ttsa_guard.verdict import Verdict

REPEATED = 1.75
"""Log-likelihood, in nats a token, that an answer loses if all of its word 2-grams are repeated.

What repeats itself is likelier than it is good.
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

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        steerer: str,
        quality: Quality,
        *,
        asked: str,
        earlier: str,
        answer: str,
        shown: str,
        log_likelihood: float | None,
        refuses: bool,
    ) -> Judged:
        """Judge a candidate.

        Args:
            asked: the user text.
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
        return cls(candidate, steerer, log_likelihood, flaws, helpful, again)

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
        return likely - REPEATED * repetition(WORD.findall(self.candidate.text.lower()), 2)

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
    """Return the acceptable candidates, best first, and no text twice.

    Without likelihoods, the scores of the guide decide.
    """
    acceptable = [j for j in judged if j.acceptable]
    distinct: dict[str, Judged] = {}
    for j in sorted(acceptable, key=lambda j: (j.group, j.likely), reverse=True):
        distinct.setdefault(j.candidate.text, j)
    return list(distinct.values())


def refusal(verdict: Verdict) -> float:
    """Return the score of the category "refusal", in [0, 1].

    It is the highest one if several members of a panel give it ("NAME/refusal"), and 0 if none
    does.
    """
    scores = verdict.categories.items()
    return max((s for name, s in scores if name.rpartition("/")[2] == "refusal"), default=0.0)
