"""What to expect of the moderators in this package, for messages to users.

The numbers are those of the cards in ``ttsa_guard/embedded``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """The quality of a moderator at the shipped threshold.

    It is measured on held-out answers of the training sources.

    Args:
        roc_auc: harmful or abusive answers against all others.
        recall: share of the harmful or abusive answers that are flagged.
        false_alarms: share of the others that are flagged.
        unrelated: recall on harmful answers of two sources that were not used in training at all;
            None if there are none.
    """

    roc_auc: float
    recall: float
    false_alarms: float
    unrelated: float | None = None

    def __str__(self) -> str:
        others = (
            ""
            if self.unrelated is None
            else f", {self.unrelated:.0%} of harmful ones of other origin"
        )
        return (
            f"finds {self.recall:.0%} of bad answers like those it learned from{others};"
            f" {self.false_alarms:.1%} false alarms"
        )


MEASURED = {
    "encoder": Measured(0.980, 0.884, 0.052, 0.324),
    "lite": Measured(0.954, 0.735, 0.034, 0.212),
    "second_opinion": Measured(0.904, 0.812, 0.019),
}
