"""Drafts become whole answers: the best ones are continued to their end, as far as the guide passes them.

A search looks at short drafts, for a real answer is long and most drafts are thrown away. What it finds is continued from the
prompt that it came from, piece by piece, and looked at after every piece. What goes wrong on the way is given up for the next
best one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ttsa_guard.errors import BudgetError
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.text import ended_sentences, without_loop

PIECE = 64
"""New tokens between two looks of the guide."""


async def completed(task: Task, drafts: Sequence[Candidate], *, most: int) -> list[Candidate]:
    """Each draft as an answer that ends where a sentence ends, continued in one batch until the first of them is done.

    Those behind the first that are not done by then, and all of them when the budget is used up, end with their last whole
    sentence. One that the guide flags on the way is returned as it was flagged.

    Args:
        drafts: unfinished ones that the guide passes, best first; each with the request that it is an answer to.
        most: longest answer, in tokens, as far as drafts and pieces have them.
    """
    grown = list(drafts)
    room = [most - (draft.request.max_new_tokens if draft.request else most) for draft in drafts]
    growing = [i for i, left in enumerate(room) if left > 0]
    took = 0.0
    try:
        while growing and growing[0] == _first_passed(grown) and task.usage.seconds_left > took:
            started = task.usage.seconds
            pieces = await task.extend([grown[i] for i in growing], [min(PIECE, room[i]) for i in growing])
            for i, piece in zip(growing, pieces, strict=True):
                room[i] -= PIECE
                grown[i] = cut_loop(piece, len(task.shown))
            growing = [i for i in growing if room[i] > 0 and not grown[i].finished and not grown[i].verdict.flagged]
            took = task.usage.seconds - started
    except BudgetError:
        pass  # what there is ends with its last whole sentence
    return [ended(candidate) for candidate in grown]


def _first_passed(grown: Sequence[Candidate]) -> int | None:
    return next((i for i, candidate in enumerate(grown) if not candidate.verdict.flagged), None)


def cut_loop(candidate: Candidate, start: int) -> Candidate:
    """The candidate up to where it begins to repeat itself, behind its first `start` characters; there it is finished."""
    if candidate.verdict.flagged:
        return candidate
    kept = without_loop(candidate.text, start)
    return candidate if kept == candidate.text else replace(candidate, text=kept, finished=True)


def ended(candidate: Candidate) -> Candidate:
    """The candidate up to its last whole sentence, if it is still a draft that may be shown."""
    if candidate.finished or candidate.verdict.flagged:
        return candidate
    return replace(candidate, text=ended_sentences(candidate.text), finished=True)
