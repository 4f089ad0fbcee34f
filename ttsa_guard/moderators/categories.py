"""What verdicts tell of a text by category, and one verdict of several such scores."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from ttsa_guard.errors import ModeratorError
from ttsa_guard.settings import Settings
from ttsa_guard.verdict import Verdict, is_score

HEADS = ("harm", "toxicity", "refusal")
"""What `lite`, `second_opinion` and `encoder_judge` tell apart."""
OBSCURED = "obscured"
"""The category that tells how much of a text could not be read."""


class CategoryOptions(Settings):
    """The categories that count, and the score from which on each of them flags a text."""

    categories: tuple[str, ...] | None = Field(
        None, description="those that count; default: all that are harms"
    )
    threshold: float = Field(0.5, ge=0, le=1, description="from this score on, a text is flagged")
    thresholds: dict[str, float] = Field(
        default_factory=dict, description="the same for single categories"
    )

    def judge(self, moderator: str, scores: Mapping[str, float]) -> Verdict:
        """Return the verdict on a text with these category scores, each in [0, 1], higher is worse.

        Each score is stretched so that its threshold lies at 0.5; the verdict's score is the
        largest of them. So a text is flagged from 0.5 on, whatever the thresholds are, and a higher
        score is always closer to a flag.

        Raises:
            KeyError: a selected category has no score.
            ModeratorError: there is no score at all, or a score is not a number in [0, 1].
        """
        counted = {name: scores[name] for name in self.categories or scores}
        if not counted:
            raise ModeratorError(
                f"moderator {moderator!r} gave no category", hint="is it asked for any?"
            )
        if odd := [name for name, score in counted.items() if not is_score(score)]:
            raise ModeratorError(
                f"moderator {moderator!r} gave no number in [0, 1] for {len(odd)} categories"
            )
        worst = max(
            stretched(score, self.thresholds.get(name, self.threshold))
            for name, score in counted.items()
        )
        return Verdict.scored(moderator, worst, threshold=0.5, categories=counted)


def stretched(score: float, threshold: float) -> float:
    """Return `score` on a piecewise linear scale.

    On that scale `threshold` becomes 0.5, and 0 and 1 stay.
    """
    if score < threshold:
        return 0.5 * score / threshold
    return 0.5 + 0.5 * (score - threshold) / (1 - threshold) if threshold < 1 else 1.0


def told(obscured: float) -> dict[str, float]:
    """Return the category of a text that could not be read wholly; nothing for others.

    Args:
        obscured: the share of it that could not, 0 to 1.
    """
    return {OBSCURED: round(obscured, 4)} if obscured else {}
