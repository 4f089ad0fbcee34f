"""How many replicas a target takes, what that costs, and which limit breaks first as the rate
grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any, Literal

from ttsa_guard.plan.config import PlanConfig
from ttsa_guard.plan.simulation import Result, effort, enough, percentiles, simulate

Limit = Literal["moderation", "rows", "deadline", "target"]
"""What breaks: the calls that the moderation service takes, the replicas' rows, the time that a
search has, the latency."""
RATES = (1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
FULL = 0.95
"""Share of its rows, or of its calls, from which on a replica or a moderation service counts as
full."""
_EXACT = 0.01
"""Share of more replicas than needed that is near enough."""
_IDLE = 0.05
"""Share of the work that replicas could do, below which more of them change nothing."""


@dataclass(frozen=True)
class LoadPoint:
    """A deployment under one rate.

    Seconds are those that an answer takes longer for its review; shares are 0 to 1.

    Args:
        unflagged, flagged, plain: percentiles "p50", "p95" and "p99" in seconds; `plain` for the
            plain answers themselves, where the replicas generate them.
        busy: share of the time in which a replica works.
        load: share of the most work that the replicas could do, with all rows in use; what is
            left is the headroom before a queue grows without end.
        rows: mean share of its rows in use.
        deadline: share of the flagged answers whose search ran out of time.
        gate: share of all answers whose gate call ran out of time.
        unmended: share of the flagged answers for which nothing good was found.
        calls: moderation calls of an answer.
        cost: of a million answers.
        limit: what breaks; None: nothing. Where the rows are too few for the work, a queue grows
            without end, and no seconds are given.
    """

    rate: float
    replicas: int
    unflagged: dict[str, float]
    flagged: dict[str, float]
    plain: dict[str, float]
    busy: float
    load: float
    rows: float
    deadline: float
    gate: float
    unmended: float
    calls: float
    cost: float
    limit: Limit | None

    def as_dict(self) -> dict[str, Any]:
        """Return the point as plain data."""
        return asdict(self)


def point(plan: PlanConfig, rate: float, replicas: int) -> LoadPoint:
    """Simulate `replicas` at `rate` answers a second.

    At most `plan.shard` of them are simulated, at their share of the rate and of the moderation
    limits. Poisson traffic that is split at random is Poisson traffic, so this is exact for a
    balancer that picks a group of that size at random and the least loaded replica within it; one
    that knows the load of all replicas does no worse.
    """
    simulated = min(replicas, plan.shard)
    share = simulated / replicas
    if _work(plan, rate) >= replicas:  # the queue grows without end
        calls, cost = sum(_calls(plan)), _cost(plan, rate, replicas)
        return LoadPoint(
            rate, replicas, {}, {}, {}, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, calls, cost, limit="rows"
        )
    result = simulate(plan, enough(plan, rate * share), replicas=simulated, share=share)
    return _summed_up(plan, rate, replicas, result)


def _summed_up(plan: PlanConfig, rate: float, replicas: int, result: Result) -> LoadPoint:
    flagged, unflagged = result.counted(flagged=True), result.counted(flagged=False)
    counted = [*flagged, *unflagged]
    ends = [a.end for a in counted]
    calls = result.calls / max(1, len(result.answers))
    loaded = LoadPoint(
        rate=rate,
        replicas=replicas,
        unflagged=percentiles([a.added for a in unflagged]),
        flagged=percentiles([a.added for a in flagged]),
        plain=percentiles([a.plain for a in counted]) if plan.traffic == "chat" else {},
        busy=result.busy,
        load=_work(plan, rate) / replicas,
        rows=result.rows,
        deadline=ends.count("deadline") / max(1, len(flagged)),
        gate=ends.count("gate") / max(1, len(counted)),
        unmended=ends.count("search") / max(1, len(flagged)),
        calls=calls,
        cost=_cost(plan, rate, replicas),
        limit=None,
    )
    return replace(loaded, limit=_limit(plan, loaded))


def _limit(plan: PlanConfig, at: LoadPoint) -> Limit | None:
    full = any(calls > FULL * limit for calls, limit in _limited(plan, at.rate))
    if full or at.gate > plan.tolerance:
        return "moderation"
    if at.rows >= FULL:
        return "rows"
    if at.deadline > plan.tolerance:
        return "deadline"
    return "target" if at.flagged and at.flagged["p95"] > plan.target else None


def _calls(plan: PlanConfig) -> tuple[float, float]:
    """Count the calls of the gate and of the guide for one answer, if all searches end."""
    swapped, calls = mean(s.swapped for s in plan.searches), mean(s.calls for s in plan.searches)
    return 1 + plan.flags * swapped, plan.flags * calls


def _limited(plan: PlanConfig, rate: float) -> Iterator[tuple[float, float]]:
    """Count the calls a second, and the limit, of every moderator that has a limit."""
    gate, guide = _calls(plan)
    services = (
        [(plan.first, gate), (plan.guide, guide)] if plan.guide else [(plan.first, gate + guide)]
    )
    return (
        (rate * calls, service.per_second)
        for service, calls in services
        if service and service.per_second
    )


def _cost(plan: PlanConfig, rate: float, replicas: int) -> float:
    gate, guide = _calls(plan)
    moderation = gate * plan.first.price + guide * (plan.guide or plan.first).price
    return 1e6 * replicas * plan.price / (3600 * rate) + 1e3 * moderation


def needed(plan: PlanConfig, rate: float) -> LoadPoint:
    """Find the fewest replicas, to a hundredth, with which nothing breaks.

    More replicas never make an answer slower, so this is a bisection. Where no number helps, the
    point says what breaks.
    """
    work = _work(plan, rate)
    few, many = 0, point(plan, rate, math.floor(work) + 1)
    while many.limit:
        if many.limit == "moderation" or work < _IDLE * many.replicas:
            return many
        few, many = many.replicas, point(plan, rate, 2 * many.replicas)
    while many.replicas - few > max(1, _EXACT * many.replicas):
        middle = point(plan, rate, (few + many.replicas) // 2)
        few, many = (middle.replicas, many) if middle.limit else (few, middle)
    return many


def _work(plan: PlanConfig, rate: float) -> float:
    """Return how many replicas the work keeps busy, if each has as many rows as it takes.

    With fewer replicas, a queue grows without end.
    """
    costs = plan.measured
    token = min(costs.steps[n] / n for n in range(1, costs.rows + 1))
    prompt = costs.prefill * plan.prompt
    searches = [(s.work, *effort(s, plan)) for s in plan.searches]
    search = mean(work + tokens * token + passes * prompt for work, tokens, passes in searches)
    plain = plan.tokens * token + prompt if plan.traffic == "chat" else 0.0
    return rate * (plain + plan.flags * search)


def table(plan: PlanConfig, rates: Sequence[float] = RATES) -> list[LoadPoint]:
    """Return one deployment for each rate: the planned number of replicas, or as many as the target
    takes.
    """
    return [
        point(plan, rate, plan.replicas) if plan.replicas else needed(plan, rate) for rate in rates
    ]


def breaking(plan: PlanConfig, points: Sequence[LoadPoint]) -> LoadPoint | None:
    """Find the lowest rate at which something breaks, to 5 %, given the points of rising rates.

    None if nothing does.
    """
    broken = next((i for i, p in enumerate(points) if p.limit), None)
    if broken is None:
        return None
    low, high = points[broken - 1].rate if broken else 0.0, points[broken]
    while high.rate > max(1.05 * low, points[0].rate / 100):
        [middle] = table(plan, [math.sqrt(low * high.rate) if low else high.rate / 2])
        low, high = (low, middle) if middle.limit else (middle.rate, high)
    return high
