"""The moderator contract, and the one way in which moderators are called."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from ttsa_guard.budget import within
from ttsa_guard.verdict import Verdict

log = logging.getLogger(__name__)
MARK = "withheld"
_WINDOW = 24
"""So many characters that a moderator's own words share with a text are a quote of it."""
_LONGEST_REASON = 200


@runtime_checkable
class Moderator(Protocol):
    """Batch in, batch out, order kept. `prompts` are the user texts that the answers belong to.

    A class attribute ``coarse = True`` says that its scores tell only a few degrees apart, so that it is no guide for a search.
    """

    @property
    def name(self) -> str: ...

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]: ...


async def moderate_safely(
    moderator: Moderator, texts: Sequence[str], *, prompts: Sequence[str], seconds: float | None = None
) -> list[Verdict]:
    """Call a moderator such that every fault becomes a failed verdict, one for each text.

    Faults are exceptions, a cancellation from inside, more than `seconds`, the wrong number of verdicts, and anything that
    is not a `Verdict`. The reason names the kind of fault only, since a foreign error message may quote the text. Reasons
    and category names that quote a text or its prompt are replaced.
    """
    try:
        verdicts = await within(seconds, moderator.moderate(texts, prompts=prompts))
    except Exception as error:
        log.warning("moderator %s failed: %s", moderator.name, type(error).__name__)
        return [Verdict.failure(moderator.name, type(error).__name__)] * len(texts)
    if not isinstance(verdicts, list) or len(verdicts) != len(texts) or not all(isinstance(v, Verdict) for v in verdicts):
        log.warning("moderator %s returned something that is not a list of %d verdicts", moderator.name, len(texts))
        return [Verdict.failure(moderator.name, "not a list of verdicts")] * len(texts)
    return [_without_quotes(verdict, f"{text}\n{prompt}") for verdict, text, prompt in zip(verdicts, texts, prompts, strict=True)]


def _without_quotes(verdict: Verdict, texts: str) -> Verdict:
    """The verdict without reasons and category names that quote what was moderated: they go into records and to clients."""
    if not verdict.reason and not verdict.categories:
        return verdict
    known = _normal(texts)
    reason = MARK if _quotes(verdict.reason, known) else verdict.reason[:_LONGEST_REASON]
    odd = [name for name in verdict.categories if len(name) >= _WINDOW and _quotes(name, known)]
    if reason == verdict.reason and not odd:
        return verdict
    kept = {name: score for name, score in verdict.categories.items() if name not in odd}
    withheld = {MARK: max(verdict.categories[name] for name in odd)} if odd else {}
    return replace(verdict, reason=reason, categories={**kept, **withheld})


def _quotes(said: str, known: str) -> bool:
    said = _normal(said)
    if len(said) <= _WINDOW:
        return len(said) > _WINDOW // 3 and said in known
    return any(said[i : i + _WINDOW] in known for i in range(len(said) - _WINDOW + 1))


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
