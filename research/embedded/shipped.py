"""Load the shipped moderators as functions of texts and prompts, for reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from research.embedded.lite_data import Part
from ttsa_guard.moderators import minilm
from ttsa_guard.moderators.encoder import Encoder
from ttsa_guard.moderators.lite import Lite
from ttsa_guard.moderators.second_opinion import SecondOpinion

Scorer = Callable[[Sequence[str], Sequence[str]], NDArray[Any]]
"""Returns scores [n, heads], harm and toxicity first, of n texts and their prompts."""


@dataclass(frozen=True)
class Shipped:
    """A shipped moderator.

    Args:
        scores: scores of the worst reading of each text.
        literal: scores of the texts as they are written.
        unread: the part of lite's data of which the moderator has read no ordinary answer.
    """

    scores: Scorer
    literal: Scorer
    unread: Part


def shipped() -> dict[str, Shipped]:
    """Return the moderators whose packages are installed, by name."""
    lite, second = Lite(), SecondOpinion()
    found = {
        "lite": Shipped(lite.scores, lite.literal_scores, "test"),
        # Of the rows that lite was trained on it has read none.
        "second_opinion": Shipped(
            lambda texts, _: second.scores(texts),
            lambda texts, _: second.literal_scores(texts),
            "train",
        ),
    }
    if minilm.installed():
        encoder = Encoder()
        found["encoder"] = Shipped(encoder.scores, encoder.literal_scores, "test")
    return found
