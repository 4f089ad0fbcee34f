"""Requests on their way through guards and replicas, one event after another."""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean
from typing import Any, Literal

import numpy as np
import simpy

from ttsa_guard.plan.config import PlanConfig, SearchCosts
from ttsa_guard.plan.costs import Moderation
from ttsa_guard.plan.replica import Calls, Continuous, SimulatedReplica

End = Literal["pass", "swap", "deadline", "gate", "search"]
"""How a request ends. The last three end in the fallback: the search ran out of time, the gate did
not answer, or nothing good was found."""
_WARM = 0.1
"""Share of the simulated time that is left out at its beginning, when the replicas are still empty.
"""
_DRAWS = 100
"""Searches that are drawn to say what one takes on average."""
_ALLOWANCE = 1.0
"""Seconds over which a service counts the calls of its limit."""
Events = Generator[simpy.Event, Any, Any]


@dataclass(frozen=True)
class Arrival:
    """A request.

    Args:
        at: when it comes, in seconds.
        tokens: of its plain answer.
        search: what mending takes; None where the answer is not flagged.
        passes: the tokens of the rows of each pass of the search.
    """

    at: float
    tokens: int
    search: SearchCosts | None = None
    passes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class SimulatedAnswer:
    """One request afterwards."""

    arrival: Arrival
    end: End
    plain: float
    """Seconds until the plain answer was there; 0 where the replicas do not generate it."""
    added: float
    """Seconds from then on."""


@dataclass(frozen=True)
class Result:
    """What a simulation has found.

    Args:
        answers: in the order in which they ended, those of the warm-up too.
        seconds: simulated, from the first arrival to the last.
        busy: share of that in which a replica worked, 0 to 1.
        rows: mean share of a replica's rows in use, 0 to 1.
        calls: moderation calls of gate and guide.
    """

    answers: tuple[SimulatedAnswer, ...]
    seconds: float
    busy: float
    rows: float
    calls: int

    def counted(self, *, flagged: bool) -> list[SimulatedAnswer]:
        """Return the answers after the warm-up that were flagged, or those that were not."""
        first = min((a.arrival.at for a in self.answers), default=0.0) + _WARM * self.seconds
        return [
            a
            for a in self.answers
            if (a.arrival.search is not None) is flagged and a.arrival.at >= first
        ]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99; nothing for no values."""
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)} if values else {}


def length(mean: float, spread: float, rng: random.Random) -> int:
    """Draw the tokens of one answer, at least one: gamma-distributed."""
    if not spread:
        return max(1, round(mean))
    return max(1, math.ceil(rng.gammavariate(1 / spread**2, mean * spread**2)))


def pass_lengths(
    search: SearchCosts, spread: float, rng: random.Random
) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of the rows of each pass of a search whose tokens are known."""
    if not search.passes or not search.generations or search.tokens is None:
        return ()
    passes = min(search.passes, search.generations)
    if search.steps is None:
        tokens = search.tokens / search.generations
        rows = [length(tokens, spread, rng) for _ in range(search.generations)]
        return tuple(tuple(rows[i::passes]) for i in range(passes))
    longest = max(1, round(search.steps / passes))
    others = search.generations - passes
    tokens = max(1.0, (search.tokens - search.steps) / max(1, others))
    shorter = [min(longest, length(tokens, spread, rng)) for _ in range(others)]
    return tuple((longest, *shorter[i::passes]) for i in range(passes))


def passes_of(
    search: SearchCosts, plan: PlanConfig, tokens: int, rng: random.Random
) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of the rows of each pass of a search for an answer of `tokens`.

    Where the search does not say how many it takes, its rows are drafts, and what is left of the
    answer is a last pass of one row.
    """
    if search.tokens is not None:
        return pass_lengths(search, plan.spread, rng)
    rows = [min(plan.draft, length(tokens, plan.spread, rng)) for _ in range(search.generations)]
    passes = min(search.passes, search.generations)
    drafts = tuple(tuple(rows[i::passes]) for i in range(passes))
    left = max(0, tokens - plan.draft) if drafts and search.swapped else 0
    return (*drafts, (left,)) if left else drafts


def effort(search: SearchCosts, plan: PlanConfig) -> tuple[float, float]:
    """Return the tokens and the passes that a search takes on average."""
    if search.tokens is not None:
        return search.tokens, search.passes
    rng = random.Random(plan.seed)
    drawn = [
        passes_of(search, plan, length(plan.tokens, plan.spread, rng), rng) for _ in range(_DRAWS)
    ]
    return fmean(sum(map(sum, passes)) for passes in drawn), fmean(map(len, drawn))


def arrivals(plan: PlanConfig, rate: float) -> Iterator[Arrival]:
    """Yield Poisson traffic without end, at `rate` a second on average.

    The same seed gives the same requests at any rate.
    """
    rng, at = random.Random(f"{plan.seed}/arrivals"), 0.0
    highest = plan.burst.factor if plan.burst else 1.0
    while True:
        at += rng.expovariate(rate * highest)
        if plan.burst and rng.random() * highest >= plan.burst.level(at):
            continue
        tokens = length(plan.tokens, plan.spread, rng)
        if rng.random() < plan.flags:
            search = rng.choice(plan.searches)
            yield Arrival(at, tokens, search, passes_of(search, plan, tokens, rng))
        else:
            yield Arrival(at, tokens)


def enough(plan: PlanConfig, rate: float) -> list[Arrival]:
    """Draw requests with `plan.samples` flagged ones among them on average, and for at least a
    deadline and three bursts.
    """
    seconds = max(plan.deadline, 3 * plan.burst.period if plan.burst else 0.0)
    n = max(plan.samples / (plan.flags or 1.0), seconds * rate)
    return list(islice(arrivals(plan, rate), math.ceil(n)))


def simulate(
    plan: PlanConfig, requests: Iterable[Arrival], *, replicas: int, share: float = 1.0
) -> Result:
    """Let the requests, in the order in which they come, through `replicas`.

    Each piece of work goes to the least loaded replica. A search that runs out of time ends in the
    fallback here; a real guard gives what good answer it has found by then.

    Args:
        share: of the moderation limits, which the whole deployment has in common.
    """
    return _Deployment(plan, replicas, share).run(requests)


@dataclass(eq=False)
class _Service:
    """A moderator.

    Calls beyond the limit wait. It is counted over a second, so that short bursts do not wait.
    """

    settings: Moderation
    share: float
    rng: random.Random
    calls: int = 0
    _full: float = 0.0
    """When the calls so far would all have been made, if they were evenly spaced."""

    def seconds(self, now: float, most: float) -> float:
        """Return how many seconds a call takes that is wanted now.

        It is given up after `most`, and not made if it would not end by then.
        """
        wait, limit = 0.0, self.settings.per_second
        if limit:
            wait = max(0.0, self._full - now - _ALLOWANCE)
            if wait + self.settings.p50 >= most:
                return most
            self._full = max(self._full, now) + 1 / (limit * self.share)
        self.calls += 1
        takes = self.settings.p50 * self.rng.lognormvariate(0.0, self.settings.sigma)
        return min(most, wait + takes)


@dataclass(eq=False)
class _Deployment:
    plan: PlanConfig
    count: int
    share: float
    answers: list[SimulatedAnswer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.env = simpy.Environment()
        kind = Continuous if self.plan.batching == "continuous" else Calls
        self.costs = self.plan.measured
        self.prompt = self.costs.prefill * self.plan.prompt
        self.replicas: list[SimulatedReplica] = [
            kind(self.env, self.costs) for _ in range(self.count)
        ]
        self.gate = self._service(self.plan.first, "gate")
        self.guide = self._service(self.plan.guide, "guide") if self.plan.guide else self.gate

    def _service(self, settings: Moderation, name: str) -> _Service:
        return _Service(settings, self.share, random.Random(f"{self.plan.seed}/{name}"))

    def run(self, requests: Iterable[Arrival]) -> Result:
        self.env.process(self._arrive(requests))
        self.env.run()
        times = [a.arrival.at for a in self.answers]
        first = min(times, default=0.0)
        seconds = max(times, default=0.0) - first
        # Work goes on for a while after the last arrival, so shares are those of the whole time.
        last = max((a.arrival.at + a.plain + a.added for a in self.answers), default=0.0)
        whole = last - first
        worked = whole * self.count or 1.0
        calls = self.gate.calls + (self.guide.calls if self.guide is not self.gate else 0)
        busy = sum(r.busy for r in self.replicas) / worked
        rows = sum(r.rows for r in self.replicas) / worked / self.costs.rows
        return Result(tuple(self.answers), seconds, min(1.0, busy), min(1.0, rows), calls)

    def _arrive(self, requests: Iterable[Arrival]) -> Events:
        for arrival in requests:
            if arrival.at > self.env.now:
                yield self.env.timeout(arrival.at - self.env.now)
            # needs no replica, so nobody has to wait for it
            if arrival.search is None and self.plan.traffic == "reviews":
                self._end(arrival, 0.0, *self._passing())
            else:
                self.env.process(self._request(arrival))

    def _passing(self) -> tuple[End, float]:
        seconds = self.gate.seconds(self.env.now, self.plan.gate_seconds)
        return ("gate" if seconds >= self.plan.gate_seconds else "pass"), seconds

    def _request(self, arrival: Arrival) -> Events:
        env, plain = self.env, 0.0
        if self.plan.traffic == "chat":
            yield self._least_loaded().submit((arrival.tokens,), self.prompt).done
            plain = env.now - arrival.at
        end, seconds = self._passing()
        if arrival.search is None or end == "gate":
            self._end(arrival, plain, end, seconds)
            return
        started = env.now
        clock = env.timeout(self.plan.deadline)
        yield env.timeout(seconds)
        in_time = yield from self._search(arrival, clock)
        if in_time and arrival.search.swapped:
            end, seconds = self._passing()
            yield env.timeout(seconds)
            end = "swap" if end == "pass" else "gate"
        else:
            end = "search" if in_time else "deadline"
        self._end(arrival, plain, end, env.now - started)

    def _search(self, arrival: Arrival, clock: simpy.Event) -> Events:
        """Tell whether the search ends before the clock does.

        It makes its passes, and after each its part of the calls, of the other work, which waits
        for the model like a pass, and of what is done aside.
        """
        search = arrival.search
        assert search is not None
        passes = arrival.passes
        parts = max(1, len(passes))
        for i in range(parts):
            beside = self.prompt + search.measuring / parts
            if passes and not (yield from self._done(passes[i], beside, clock)):
                return False
            for _ in range(search.calls * (i + 1) // parts - search.calls * i // parts):
                seconds = self.guide.seconds(self.env.now, self.plan.deadline)
                if not (yield from self._passes(seconds, clock)):
                    return False
            if search.work and not (yield from self._done((), search.work / parts, clock)):
                return False
            if search.aside and not (yield from self._passes(search.aside / parts, clock)):
                return False
        return True

    def _passes(self, seconds: float, clock: simpy.Event) -> Generator[simpy.Event, Any, bool]:
        """Tell whether these seconds pass before the clock ends."""
        yield self.env.timeout(seconds) | clock
        return not clock.processed

    def _done(
        self, lengths: Sequence[int], seconds: float, clock: simpy.Event
    ) -> Generator[simpy.Event, Any, bool]:
        """Tell whether a replica has done a job before the clock ends."""
        replica = self._least_loaded()
        job = replica.submit(lengths, seconds)
        yield job.done | clock
        if not job.done.triggered:
            replica.cancel(job)
        return bool(job.done.triggered)

    def _least_loaded(self) -> SimulatedReplica:
        return min(self.replicas, key=lambda replica: replica.load)

    def _end(self, arrival: Arrival, plain: float, end: End, added: float) -> None:
        self.answers.append(SimulatedAnswer(arrival, end, plain, added))
