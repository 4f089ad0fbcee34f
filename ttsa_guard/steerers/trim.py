"""Leave out the flagged sentences of an answer and keep the rest.

This costs moderation, but no generation. It is done only where the question can be answered safely.
If an answer was flagged because it helps with harm, the rest of it helps with that, too.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import ClassVar

from pydantic import Field

from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.text import SENTENCE, ended_sentences

_PIECE = re.compile(rf"{SENTENCE.pattern}\s*", re.DOTALL)
"""It matches a sentence or a line, with the space behind it."""


class TrimOptions(Settings):
    """Configure the steerer `trim`."""

    kept: float = Field(
        0.6, gt=0, le=1, description="smallest share of the answer's words that has to stay"
    )


class Trim:
    """Propose the answer without the sentences and lines that are flagged when they stand alone."""

    name = "trim"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: TrimOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one candidate, or none if too little of the answer is left."""
        if task.harmful is not False:
            return
        unseen = ended_sentences(task.answer)[len(task.shown) :]
        pieces = _PIECE.findall(unseen)
        if len(pieces) < 2:
            return
        verdicts = await task.score([piece.strip() for piece in pieces])
        passing = [p for p, v in zip(pieces, verdicts, strict=True) if not v.flagged]
        text = task.shown + "".join(passing).rstrip()
        if len(text.split()) < self.options.kept * len(task.answer.split()):
            return
        [verdict] = await task.score([text])
        yield [Candidate(text, "what passes of the answer", verdict)]


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("trim", Trim, options=TrimOptions)
