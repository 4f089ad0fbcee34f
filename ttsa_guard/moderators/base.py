"""The moderator contract, the one way in which moderators are called, and panels of several."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from ttsa_guard.budget import within
from ttsa_guard.verdict import Verdict

log = logging.getLogger(__name__)
Combine = Literal["any", "all"]


@runtime_checkable
class Moderator(Protocol):
    """Batch in, batch out, order kept. `prompts` are the user texts that the answers belong to."""

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


@dataclass(frozen=True)
class Panel:
    """Several moderators as one: flagged if any (or only if all) of them flag; a failed one counts as a flag.

    Its score is the highest (any) or lowest (all) of the members that share its decision.
    """

    members: tuple[Moderator, ...]
    combine: Combine = "any"
    name: str = "panel"

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        columns = await asyncio.gather(*(moderate_safely(m, texts, prompts=prompts) for m in self.members))
        return [self._joined(row) for row in zip(*columns, strict=True)]

    def _joined(self, row: tuple[Verdict, ...]) -> Verdict:
        worst = max if self.combine == "any" else min
        chosen = worst(row, key=lambda v: (v.flagged, v.score))
        categories = {f"{v.moderator}/{name}": score for v in row for name, score in v.categories.items()}
        if chosen.decision == "failed":
            return Verdict.failure(chosen.moderator, chosen.reason)
        return Verdict(self.name, chosen.decision, chosen.score, categories)
