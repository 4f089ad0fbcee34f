"""Stand in for the moderation score with texts whose likelihood a steerer can raise.

The moderation score of an aligned model is a step function of the embeddings: where the model
nearly always complies, a blind search finds no slope. The likelihood of words that only a safe
answer has is smooth, and evaluating it generates no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ttsa_guard.backends.base import Continuation
from ttsa_guard.profile import Opening
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.text import split_sentences

ONSET_WORDS = 3
"""An onset has at most so many words."""
MOST_ONSETS = 6
"""A derailment remembers at most so many onsets."""


@dataclass(frozen=True)
class Objective:
    """Name the continuations of the prompt whose mean objective (see `Continuation`) is to rise."""

    name: str
    """It stands in the audit record, as the origin of the candidates."""
    continuations: tuple[Continuation, ...]
    opening: str = ""
    """Answers from its path are made to begin with this, or if it is empty with what was shown."""


def opening_objective(task: Task, opening: Opening) -> Objective:
    """Return the objective to begin, or after what has been shown to go on, with `opening`.

    Answers from the path to a redirecting opening are also made to begin with it, because a model
    that is moved toward an alternative may still refuse.
    """
    begun = task.after_shown(opening.text)
    continuation = Continuation(((task.shown, 0.0), (begun.removeprefix(task.shown), 1.0)))
    return Objective(
        f"toward {opening.text!r}", (continuation,), begun if opening.kind == "redirect" else ""
    )


@dataclass(frozen=True)
class Derailment:
    """Describe a flagged answer that began harmlessly and went wrong later.

    Args:
        kept: the harmless beginning.
        onsets: the first words of the sentences with which answers go wrong after it.
    """

    kept: str
    onsets: tuple[str, ...]

    def objective(self, *, aversion: float) -> Objective:
        """Return the objective to keep the beginning and turn away from every onset.

        Args:
            aversion: weight of the words of an onset; the words to keep have weight 1.
        """
        spans = [((self.kept, 1.0), (onset, -aversion)) for onset in self.onsets]
        return Objective("derailment", tuple(Continuation(pair) for pair in spans))


async def find_derailment(task: Task) -> Derailment | None:
    """Find the sentence with which the flagged answer goes wrong.

    The sentences are scored as growing prefixes, in one moderation call. The first prefix that is
    flagged ends with the sentence to avoid. What has been shown of the answer is always kept.

    Returns:
        None if the answer goes wrong in its first sentence, so that there is nothing to keep.
    """
    sentences = split_sentences(task.answer.removeprefix(task.shown))
    if not sentences or not (task.shown or len(sentences) > 1):
        return None
    prefixes = [task.after_shown(" ".join(sentences[: i + 1])) for i in range(len(sentences))]
    verdicts = await task.score(prefixes)
    wrong = next((i for i, v in enumerate(verdicts) if v.flagged), len(sentences) - 1)
    kept = prefixes[wrong - 1] if wrong else task.shown
    return Derailment(kept, (_onset(sentences[wrong]),)) if kept else None


async def continue_kept(
    task: Task, derailment: Derailment, n: int
) -> tuple[list[Candidate], Derailment]:
    """Draw `n` other continuations of the harmless beginning, at temperature 1.0.

    A model that is turned away from one onset alone goes wrong in other words. So the onsets that
    these continuations show are added to the derailment. Only a sentence that is flagged right
    after the beginning gives an onset; finding that out takes a second moderation call.

    Returns:
        The continuations as candidates, and the derailment with at most `MOST_ONSETS` onsets.
    """
    requests = [
        task.base.with_(opening=derailment.kept, temperature=1.0, seed=task.seed + i)
        for i in range(n)
    ]
    candidates = await task.propose(requests, [f"continuation {i}" for i in range(n)])
    tails = [
        split_sentences(c.text.removeprefix(derailment.kept))
        for c in candidates
        if c.verdict.flagged
    ]
    following = list(dict.fromkeys(tail[0] for tail in tails if tail))
    verdicts = (
        await task.score([f"{derailment.kept} {sentence}" for sentence in following])
        if following
        else []
    )
    shown = [
        _onset(sentence)
        for sentence, verdict in zip(following, verdicts, strict=True)
        if verdict.flagged
    ]
    onsets = tuple(dict.fromkeys([*derailment.onsets, *shown]))
    return candidates, replace(derailment, onsets=onsets[:MOST_ONSETS])


def _onset(sentence: str) -> str:
    return " " + " ".join(sentence.split()[:ONSET_WORDS])


def numbered_continuations(objectives: Sequence[Objective]) -> list[tuple[int, Continuation]]:
    """Return all continuations, each with the index of its objective."""
    return [
        (i, continuation)
        for i, objective in enumerate(objectives)
        for continuation in objective.continuations
    ]
