"""The moderator contract, and the one way in which moderators are called."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ttsa_guard.budget import within
from ttsa_guard.verdict import Verdict

log = logging.getLogger(__name__)


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
    is not a `Verdict`. The reason names the kind of fault only, since a foreign error message may quote the text.
    """
    try:
        verdicts = await within(seconds, moderator.moderate(texts, prompts=prompts))
    except Exception as error:
        log.warning("moderator %s failed: %s", moderator.name, type(error).__name__)
        return [Verdict.failure(moderator.name, type(error).__name__)] * len(texts)
    if not isinstance(verdicts, list) or len(verdicts) != len(texts) or not all(isinstance(v, Verdict) for v in verdicts):
        log.warning("moderator %s returned something that is not a list of %d verdicts", moderator.name, len(texts))
        return [Verdict.failure(moderator.name, "not a list of verdicts")] * len(texts)
    return verdicts
