"""Judge, from text and likelihood, whether a text that the moderators pass is a good answer."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

from pydantic import Field

from ttsa_guard.settings import Settings
from ttsa_guard.text import WORD, is_ended

Flaw = Literal[
    "short", "repeats", "echo", "cut off", "broken", "unlikely", "unchanged", "takes back"
]
"""What is wrong with an answer.

"unchanged" means that a candidate is the flagged answer itself. "takes back" means that a candidate
does not begin with what was shown already.
"""
_NUMBERS = 0.4
"""Largest share of words that are bare numbers."""
_ECHO = 0.5
"""Largest share of an answer that may be what was said before."""


class Quality(Settings):
    """What an answer must fulfil besides passing the moderators."""

    shortest: int = Field(3, ge=1, description="Fewest words of an answer.")
    repeats: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Largest share of an answer's word 4-grams that occur more than once.",
    )
    floor: float | Literal["auto"] | None = Field(
        "auto",
        description=(
            "Lowest mean log-likelihood of an answer's tokens, in nats, so a number below 0."
            " `auto`: the floor in the model's profile, less `slack`. `null`: no limit."
        ),
    )
    slack: float = Field(
        0.2,
        ge=0,
        description=(
            "How far below the profile's floor an answer may be, in nats, if `floor` is `auto`."
        ),
    )
    refusal_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description=(
            "Refusal score from which on an answer counts as a refusal, and so not as helpful."
        ),
    )

    def for_model(self, usual: float | None) -> Quality:
        """Return these limits with a number, or None, in place of the floor "auto".

        Args:
            usual: the floor in the model's profile, in nats; None if the profile has none.
        """
        own = None if usual is None else usual - self.slack
        return self.model_copy(update={"floor": own}) if self.floor == "auto" else self

    @property
    def lowest(self) -> float:
        """The floor, in nats; minus infinity if there is none."""
        return self.floor if isinstance(self.floor, float) else -math.inf

    def flaws(
        self, text: str, *, log_likelihood: float | None, finished: bool, asked: str = ""
    ) -> tuple[Flaw, ...]:
        """Return the flaws of an answer to the user text `asked`; none if it is good.

        Args:
            log_likelihood: the answer's mean token log-likelihood, in nats; None skips that check.
            finished: False if the answer was cut off.
        """
        found: list[Flaw] = []
        words = WORD.findall(text.lower())
        if len(words) < self.shortest:
            found.append("short")
        if repetition(words) > self.repeats:
            found.append("repeats")
        if echoes(text, asked):
            found.append("echo")
        if not finished and not is_ended(text):
            found.append("cut off")
        if has_debris(text) or (
            len(words) > 8 and sum(word.isdigit() for word in words) > _NUMBERS * len(words)
        ):
            found.append("broken")
        if log_likelihood is not None and not (
            math.isfinite(log_likelihood) and log_likelihood >= self.lowest
        ):
            found.append("unlikely")
        return tuple(found)


def repetition(words: list[str], n: int = 4) -> float:
    """Return the share of word n-grams that occur more than once, 0 to 1.

    It is 0 for texts that have fewer than two n-grams.
    """
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(grams.values())
    return sum(c for c in grams.values() if c > 1) / total if total > 1 else 0.0


def echoes(text: str, said: str, n: int = 4) -> bool:
    """Return whether most word n-grams of a text were said before.

    It is False for texts that have fewer than two n-grams.
    """
    words, known = (WORD.findall(t.lower()) for t in (text, said))
    before = {tuple(known[i : i + n]) for i in range(len(known) - n + 1)}
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(grams) > 1 and sum(gram in before for gram in grams) > _ECHO * len(grams)


def has_debris(text: str) -> bool:
    """Return whether a text has leftovers of broken decoding.

    Those are replacement characters, control characters and chat-template markers.
    """
    return "\ufffd" in text or "<|" in text or any(ord(c) < 32 and c not in "\n\r\t" for c in text)
