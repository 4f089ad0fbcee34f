"""Smooth stand-ins for the moderation score: texts whose likelihood a steerer can climb.

The moderation score of an aligned model is a step function of the embeddings: blind search fails where the model complies
nearly always. The likelihood of words that only a safe answer has is smooth, and costs no generation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ttsa_guard.backends.base import Continuation
from ttsa_guard.profile import Opening
from ttsa_guard.steerers.base import Task
from ttsa_guard.steerers.prefill import mixed_openings

ONSET_WORDS = 3


@dataclass(frozen=True)
class Goal:
    """A continuation to make likelier, and what it is called in the record."""

    name: str
    continuation: Continuation


def opening_goal(opening: Opening) -> Goal:
    """Begin like a safe answer."""
    return Goal(f"toward {opening.text!r}", Continuation(((opening.text, 1.0),)))


async def turn_goal(task: Task, *, aversion: float) -> Goal | None:
    """Keep the harmless beginning of the flagged answer, and turn away from the words with which it goes wrong.

    The sentences are scored as growing prefixes, in one moderation call; the first prefix that is flagged ends with the
    sentence to avoid. None if the very first sentence is flagged, where there is nothing to keep.

    Args:
        aversion: weight of the words to avoid, relative to the words to keep.
    """
    sentences = split_sentences(task.answer)
    if len(sentences) < 2:
        return None
    prefixes = [" ".join(sentences[: i + 1]) for i in range(len(sentences))]
    verdicts = await task.score(prefixes)
    wrong = next((i for i, v in enumerate(verdicts) if v.flagged), len(sentences) - 1)
    if wrong == 0:
        return None
    onset = " " + " ".join(sentences[wrong].split()[:ONSET_WORDS])
    return Goal("turn", Continuation(((prefixes[wrong - 1], 1.0), (onset, -aversion))))


async def goals_for(task: Task, *, openings: int, aversion: float) -> list[Goal]:
    """What to climb for this task, most promising first."""
    turn = await turn_goal(task, aversion=aversion)
    found = [opening_goal(o) for o in mixed_openings(task.profile, openings)]
    return [turn, *found] if turn else found


def split_sentences(text: str) -> list[str]:
    """Sentences of `text`, with their closing punctuation."""
    return [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]
