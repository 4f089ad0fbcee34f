"""What to expect of the moderators in this package, for messages: numbers of ``ttsa_guard/embedded/MODERATORS_CARD.md``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """On held-out answers of the training sources, at the shipped threshold.

    Args:
        roc_auc: harmful or abusive answers against all others.
        recall: share of the harmful or abusive answers that are flagged.
        false_alarms: share of the others that are flagged.
        unrelated: recall on answers to harmful questions of two sources of which no row was trained on.
    """

    roc_auc: float
    recall: float
    false_alarms: float
    unrelated: float

    def __str__(self) -> str:
        seen = f"finds {self.recall:.0%} of bad answers like those it learned from, {self.unrelated:.0%} of others"
        return f"{seen}, with {self.false_alarms:.1%} false alarms"


MEASURED: dict[str, Measured] = {}
