"""Continue the best drafts of a search to whole answers, as far as the guide passes them.

A search works with short drafts, because a real answer is long and most drafts are thrown away. A
draft that it finds is continued from its own prompt, piece by piece, and the guide judges it after
every piece. If it goes wrong on the way, the next best draft takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ttsa_guard.errors import BudgetError
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.text import ended_sentences, without_loop

PIECE = 64
"""New tokens between two checks by the guide."""


async def completed(task: Task, drafts: Sequence[Candidate], *, most: int) -> list[Candidate]:
    """Continue each draft to an answer that ends where a sentence ends.

    All drafts are continued in one batch, until the first one that the guide still passes is done.
    The others, and all of them when the budget is used up, end with their last whole sentence. A
    draft that the guide flags on the way is returned as it was when it was flagged.

    Args:
        drafts: unfinished drafts that the guide passes, best first, each with the request that it
            is an answer to.
        most: the longest answer, in tokens of the requests and of the pieces together.
    """
    grown = list(drafts)
    room = [most - (draft.request.max_new_tokens if draft.request else most) for draft in drafts]
    growing = [i for i, left in enumerate(room) if left > 0]
    took = 0.0
    try:
        while growing and growing[0] == _first_passed(grown) and task.usage.seconds_left > took:
            started = task.usage.seconds
            pieces = await task.extend(
                [grown[i] for i in growing], [min(PIECE, room[i]) for i in growing]
            )
            for i, piece in zip(growing, pieces, strict=True):
                room[i] -= PIECE
                grown[i] = cut_loop(piece, len(task.shown))
            growing = [
                i
                for i in growing
                if room[i] > 0 and not grown[i].finished and not grown[i].verdict.flagged
            ]
            took = task.usage.seconds - started
    except BudgetError:
        pass  # the drafts end with their last whole sentence
    return [ended(candidate) for candidate in grown]


def _first_passed(grown: Sequence[Candidate]) -> int | None:
    return next((i for i, candidate in enumerate(grown) if not candidate.verdict.flagged), None)


def cut_loop(candidate: Candidate, start: int) -> Candidate:
    """Return the candidate, finished where it begins to repeat itself.

    The first `start` characters are not searched for repetitions. A flagged candidate stays as it
    is.
    """
    if candidate.verdict.flagged:
        return candidate
    kept = without_loop(candidate.text, start)
    return candidate if kept == candidate.text else replace(candidate, text=kept, finished=True)


def ended(candidate: Candidate) -> Candidate:
    """Return the candidate up to its last whole sentence, as finished.

    A candidate that is finished or flagged stays as it is.
    """
    if candidate.finished or candidate.verdict.flagged:
        return candidate
    return replace(candidate, text=ended_sentences(candidate.text), finished=True)
