"""Combine several moderators into one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from ttsa_guard.config import Combine, Member, Vote
from ttsa_guard.moderators.base import Moderator, is_coarse, moderate_safely
from ttsa_guard.plugins import Plugins
from ttsa_guard.verdict import Verdict


@dataclass(frozen=True)
class Seat:
    """A member of a panel, and how it counts.

    Args:
        moderator: the member.
        vote: how it counts.
    """

    moderator: Moderator
    vote: Vote = field(default_factory=Vote)


@dataclass(frozen=True)
class Panel:
    """Several moderators as one.

    The categories of a verdict of "any" and "all" are those of the members that decided so: of a
    flag, the members that flag.

    Raising a member's score never turns a flag into a pass. If all members have failed, the panel
    has failed.

    The values of `combine` are:

    * "any" flags what any member flags. The score is the highest of those that share the decision.
    * "all" flags what all members flag. The score is the lowest of those that share the decision.
    * "weighted" flags from a weighted mean score of 0.5 on, and this mean is the score. It fails if
      a "closed" member fails.
    * "lexicographic" flags what any hard member flags: constraints come first, then preferences. A
      flag scores from 0.5 to 1, by the worst hard member. A pass scores below 0.5, by the weighted
      mean of the others.

    The score of "any" and "all" is one member's own, and as calibrated as that. The score of
    "weighted" is a mean of scores, so the members' own thresholds do not matter. The score of
    "lexicographic" is an order and no probability. The share of harmless texts that "any" flags is
    at most the sum of the members' shares; for "all" it is at most the smallest of them.

    Args:
        seats: the members.
        combine: how the members' verdicts become one.
    """

    seats: tuple[Seat, ...]
    combine: Combine = "any"
    name: str = "panel"

    @property
    def members(self) -> tuple[Moderator, ...]:
        """The moderators of the panel."""
        return tuple(seat.moderator for seat in self.seats)

    @property
    def coarse(self) -> bool:
        """Whether the scores of all members are too coarse to guide a search."""
        return all(map(is_coarse, self.members))

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Judge `texts` with all members at the same time, and combine their verdicts."""
        read = {"answer": texts, "prompt": prompts}
        columns = await asyncio.gather(
            *(moderate_safely(s.moderator, read[s.vote.reads], prompts=prompts) for s in self.seats)
        )
        return [
            self._joined(list(zip(self.seats, votes, strict=True)))
            for votes in zip(*columns, strict=True)
        ]

    def _joined(self, votes: list[tuple[Seat, Verdict]]) -> Verdict:
        counted = [
            (seat, v) for seat, v in votes if v.decision != "failed" or seat.vote.fail == "closed"
        ]
        failed = next((v for _, v in votes if v.decision == "failed"), None)
        if failed and all(v.decision == "failed" for _, v in votes):
            return Verdict.failure(failed.moderator, failed.reason)
        if self.combine == "weighted":
            return self._weighted(counted)
        if self.combine == "lexicographic":
            return self._lexicographic(counted)
        worst = max if self.combine == "any" else min
        chosen = worst((v for _, v in counted), key=lambda v: (v.flagged, v.score))
        if chosen.decision == "failed":
            return Verdict.failure(chosen.moderator, chosen.reason)
        blamed = [(seat, v) for seat, v in counted if v.flagged == chosen.flagged]
        return Verdict(self.name, chosen.decision, chosen.score, _categories(blamed))

    def _weighted(self, votes: list[tuple[Seat, Verdict]]) -> Verdict:
        failed = next((v for _, v in votes if v.decision == "failed"), None)
        if failed:
            return Verdict.failure(failed.moderator, failed.reason)
        return Verdict.scored(self.name, _mean(votes), threshold=0.5, categories=_categories(votes))

    def _lexicographic(self, votes: list[tuple[Seat, Verdict]]) -> Verdict:
        hard = [v for seat, v in votes if seat.vote.hard]
        soft = [(seat, v) for seat, v in votes if not seat.vote.hard] or votes
        failed = next((v for v in hard if v.decision == "failed"), None)
        if failed or not hard:
            reason = failed.reason if failed else "no hard member gave a verdict"
            return Verdict.failure(failed.moderator if failed else self.name, reason)
        if flags := [v.score for v in hard if v.flagged]:
            return Verdict(self.name, "flag", 0.5 + 0.5 * max(flags), _categories(votes))
        return Verdict(self.name, "pass", min(0.5 * _mean(soft), 0.499), _categories(votes))


def _mean(votes: list[tuple[Seat, Verdict]]) -> float:
    return sum(seat.vote.weight * v.score for seat, v in votes) / sum(
        seat.vote.weight for seat, _ in votes
    )


def _categories(votes: list[tuple[Seat, Verdict]]) -> dict[str, float]:
    return {
        f"{v.moderator}/{name}": score for _, v in votes for name, score in v.categories.items()
    }


def build_panel(plugins: Plugins, members: Sequence[Member], combine: Combine) -> Moderator:
    """Make the moderator that is configured, or a panel if there are several.

    Raises:
        PluginError: a moderator is missing or cannot be loaded.
        ConfigError: an option of a moderator is wrong.
    """
    seats = tuple(Seat(plugins.make("moderators", m), m) for m in members)
    return (
        seats[0].moderator
        if len(seats) == 1 and combine != "lexicographic"
        else Panel(seats, combine)
    )
