"""Keep what passes of an answer: without its flagged sentences, or without the marks of its lists.

This costs moderation, but no generation. It is done only where the question can be answered safely.
If an answer was flagged because it helps with harm, the rest of it helps with that, too.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task, harmful
from ttsa_guard.text import SENTENCE, as_prose, ended_sentences

_PIECE = re.compile(rf"{SENTENCE.pattern}\s*", re.DOTALL)
"""It matches a sentence or a line, with the space behind it."""


class TrimOptions(Settings):
    """Configure the steerer `trim`."""

    kept: float = Field(
        0.6, gt=0, le=1, description="smallest share of the answer's words that has to stay"
    )


class Trim:
    """Propose what passes of the answer.

    That is the answer without the sentences and lines that are flagged when they stand alone. Where
    lists break a policy, it is also the answer with its lists written as prose.
    """

    name = "trim"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: TrimOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one batch, or none if too little of the answer is left."""
        if task.harmful is not False:
            return
        ended = ended_sentences(task.answer)
        texts = {}
        if passing := await self._passing(ended[len(task.shown) :], task):
            texts["what passes of the answer"] = task.shown + passing
        if (prose := _unseen_as_prose(ended, task)) != ended:
            texts["the answer as prose"] = prose
        if texts:
            verdicts = await task.score(list(texts.values()))
            yield [
                Candidate(text, origin, verdict)
                for (origin, text), verdict in zip(texts.items(), verdicts, strict=True)
            ]

    async def _passing(self, unseen: str, task: Task) -> str:
        """Return what passes of the text, or an empty string if that is too little."""
        pieces = _PIECE.findall(unseen)
        if len(pieces) < 2:
            return ""
        verdicts = await task.score([piece.strip() for piece in pieces])
        kept = [p for p, v in zip(pieces, verdicts, strict=True) if not v.flagged]
        text = "".join(kept).rstrip()
        words = len((task.shown + text).split())
        return text if words >= self.options.kept * len(task.answer.split()) else ""


async def in_prose(task: Task, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those candidates that break a policy with a list, with it written as prose."""
    texts = {
        _unseen_as_prose(c.text, task): c
        for c in candidates
        if c.verdict.flagged and harmful(c.verdict) is False
    }
    changed = {text: c for text, c in texts.items() if text != c.text}
    verdicts = await task.score(list(changed)) if changed else []
    return [
        replace(c, text=text, origin=f"{c.origin} as prose", verdict=verdict, log_likelihood=None)
        for (text, c), verdict in zip(changed.items(), verdicts, strict=True)
    ]


def _unseen_as_prose(text: str, task: Task) -> str:
    """Return `text`, which begins with what was shown, with its further lists as prose."""
    unseen = text[len(task.shown) :]
    prose = as_prose(unseen)
    return text if prose == unseen else task.after_shown(prose)


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("trim", Trim, options=TrimOptions)
