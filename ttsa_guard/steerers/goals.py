"""Smooth stand-ins for the moderation score: texts whose likelihood a steerer can climb.

The moderation score of an aligned model is a step function of the embeddings: blind search fails where the model complies
nearly always. The likelihood of words that only a safe answer has is smooth, and costs no generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ttsa_guard.backends.base import Continuation
from ttsa_guard.profile import Opening
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.text import split_sentences

ONSET_WORDS = 3
MOST_ONSETS = 6


@dataclass(frozen=True)
class Goal:
    """What it is called in the record, and the continuations whose mean objective is to rise."""

    name: str
    continuations: tuple[Continuation, ...]
    opening: str = ""
    """What answers from its path are made to begin with; empty: with nothing but what has been shown."""


def opening_goal(task: Task, opening: Opening) -> Goal:
    """Begin, or after what has been shown go on, like a safe answer. Redirecting answers are made to begin so, too: a model that
    is moved toward an alternative may still refuse."""
    begun = task.after_shown(opening.text)
    goal = Continuation(((task.shown, 0.0), (begun.removeprefix(task.shown), 1.0)))
    return Goal(f"toward {opening.text!r}", (goal,), begun if opening.kind == "redirect" else "")


@dataclass(frozen=True)
class Turn:
    """A flagged answer that began harmlessly: the beginning to keep, and the words with which it goes wrong after that."""

    kept: str
    onsets: tuple[str, ...]

    def goal(self, *, aversion: float) -> Goal:
        """Keep the beginning and turn away from every onset, whose words weigh `aversion` times those to keep."""
        return Goal("turn", tuple(Continuation(((self.kept, 1.0), (onset, -aversion))) for onset in self.onsets))


async def find_turn(task: Task) -> Turn | None:
    """Where the flagged answer went wrong; None if that was in its first sentence, so that there is nothing to keep. What
    has been shown of it is always kept.

    The sentences are scored as growing prefixes, in one moderation call; the first prefix that is flagged ends with the
    sentence to avoid.
    """
    sentences = split_sentences(task.answer.removeprefix(task.shown))
    if not sentences or not (task.shown or len(sentences) > 1):
        return None
    prefixes = [task.after_shown(" ".join(sentences[: i + 1])) for i in range(len(sentences))]
    verdicts = await task.score(prefixes)
    wrong = next((i for i, v in enumerate(verdicts) if v.flagged), len(sentences) - 1)
    kept = prefixes[wrong - 1] if wrong else task.shown
    return Turn(kept, (_onset(sentences[wrong]),)) if kept else None


async def continued(task: Task, turn: Turn, n: int) -> tuple[list[Candidate], Turn]:
    """`n` other continuations of the beginning, drawn at temperature 1.0, and the turn with the onsets that they show.

    Turning away from one onset alone makes the model go wrong in other words. Only a sentence that is flagged right after
    the beginning gives an onset; that takes a second moderation call.
    """
    requests = [task.base.with_(opening=turn.kept, temperature=1.0, seed=task.seed + i) for i in range(n)]
    candidates = await task.propose(requests, [f"continuation {i}" for i in range(n)])
    tails = [split_sentences(c.text.removeprefix(turn.kept)) for c in candidates if c.verdict.flagged]
    following = list(dict.fromkeys(tail[0] for tail in tails if tail))
    verdicts = await task.score([f"{turn.kept} {sentence}" for sentence in following]) if following else []
    found = [_onset(sentence) for sentence, verdict in zip(following, verdicts, strict=True) if verdict.flagged]
    onsets = tuple(dict.fromkeys([*turn.onsets, *found]))
    return candidates, replace(turn, onsets=onsets[:MOST_ONSETS])


def _onset(sentence: str) -> str:
    return " " + " ".join(sentence.split()[:ONSET_WORDS])


def pairs(goals: Sequence[Goal]) -> list[tuple[int, Continuation]]:
    """All continuations with the index of their goal."""
    return [(i, continuation) for i, goal in enumerate(goals) for continuation in goal.continuations]
