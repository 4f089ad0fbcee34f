"""What a moderator says about a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from ttsa_guard.errors import ModeratorError

Decision = Literal["pass", "flag", "failed"]


@dataclass(frozen=True)
class Verdict:
    """A score in [0, 1], higher is worse, or a failure; there is no third thing.

    A failed verdict counts as a flag (`flagged` is true), so that a moderator that is down never lets a text through.

    Raises:
        ModeratorError: `score` or a category is not a number in [0, 1].
    """

    moderator: str
    decision: Decision
    score: float
    categories: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    """Why it failed; never contains the moderated text."""

    def __post_init__(self) -> None:
        for name, value in (("score", self.score), *self.categories.items()):
            if not is_score(value):
                raise ModeratorError(
                    f"moderator {self.moderator!r} gave {name} = {value!r}",
                    hint="a score is a number in [0, 1], higher is worse",
                )

    @classmethod
    def scored(cls, moderator: str, score: float, *, threshold: float, categories: Mapping[str, float] | None = None) -> Verdict:
        """A pass or, from `threshold` upwards, a flag."""
        checked = cls(moderator, "flag", score, MappingProxyType(dict(categories or {})))
        return replace(checked, decision="pass") if score < threshold else checked

    @classmethod
    def failure(cls, moderator: str, reason: str) -> Verdict:
        return cls(moderator, "failed", 1.0, reason=reason)

    @property
    def flagged(self) -> bool:
        return self.decision != "pass"


def is_score(value: object) -> bool:
    """Whether it is a number in [0, 1]; truth values are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0.0 <= value <= 1.0
