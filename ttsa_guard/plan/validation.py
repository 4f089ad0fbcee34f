"""Does the plan come true? One guard under open-loop traffic on this machine, against the simulation of the same requests."""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from statistics import mean, median, pstdev
from typing import Any

from ttsa_guard.embedded.world import World
from ttsa_guard.guard import Guard
from ttsa_guard.messages import GenerationRequest, Message, Prompt, own_seed
from ttsa_guard.plan.config import PlanConfig, Search
from ttsa_guard.plan.costs import Costs, Moderation
from ttsa_guard.plan.measure import about
from ttsa_guard.plan.searches import search_of
from ttsa_guard.plan.simulation import Answered, Arrival, pass_lengths, percentiles, simulate

Say = Callable[[str], None]
_REPEATS = 3
_CLIENTS = 8
"""That keep the guard busy while its capacity is measured."""
_QUANTITIES = ("unflagged, whole answer", "flagged, whole answer", "flagged, added by the review")


@dataclass(frozen=True)
class Conversation:
    """A prompt with what it costs when nothing else is going on.

    Args:
        messages: the prompt, and `prompt` as the model reads it.
        tokens: of the plain answer.
        search: of its review; None if that passes.
    """

    messages: tuple[Message, ...]
    prompt: Prompt
    tokens: int
    search: Search | None = None


@dataclass(frozen=True)
class Timed:
    """Seconds of one answer: to the plain one, and from then on."""

    flagged: bool
    plain: float
    added: float


@dataclass(frozen=True)
class Compared:
    """One quantity at one rate: percentiles in seconds of two measured runs of the same requests, and predicted."""

    load: float
    rate: float
    quantity: str
    answers: int
    measured: tuple[dict[str, float], dict[str, float]]
    predicted: dict[str, float]

    def error(self, q: str) -> float:
        """Predicted over the mean of both runs, minus one."""
        return self.predicted[q] / mean(run[q] for run in self.measured) - 1

    def noise(self, q: str) -> float:
        """Difference of the two runs over their mean."""
        first, second = (run[q] for run in self.measured)
        return abs(first - second) / mean((first, second))


@dataclass(frozen=True)
class Validation:
    """All of it. `capacity` is in answers a second, with `flags` of them flagged."""

    costs: Costs
    capacity: float
    flags: float
    seconds: float
    searches: int
    rows: tuple[Compared, ...]
    machine: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        extra = [{q: {"error": r.error(q), "noise": r.noise(q)} for q in ("p50", "p95")} for r in self.rows]
        rows = [{**asdict(row), **more} for row, more in zip(self.rows, extra, strict=True)]
        return {**asdict(self), "costs": self.costs.model_dump(mode="json"), "rows": rows}


async def validate(
    guard: Guard, costs: Costs, *, loads: Sequence[float], seconds: float, flags: float, n: int, seed: int, say: Say
) -> Validation:
    """Measure what the conversations cost one by one, the capacity with all of them, and answers at shares of that.

    Args:
        costs: of the guard's model and gate.
        loads: shares of the measured capacity, 0 to 1; each is run twice for `seconds`.
        flags: share of the requests whose answer is flagged.
        n: conversations of each kind.
        say: is told what is being done.
    """
    say("conversations, one by one")
    found = await _conversations(guard, n, seed)
    plan = _plan(found, costs, flags, seed)
    found = [await _searched(guard, c, plan) for c in found]
    pools = [[c for c in found if (c.search is not None) is flagged] for flagged in (False, True)]
    say("capacity")
    capacity = await _capacity(guard, pools, flags, seconds / 2, seed)
    rows: list[Compared] = []
    for load in loads:
        rate = load * capacity
        schedule = _schedule(pools, rate, flags, seconds, random.Random(f"{seed}/{load}"))
        runs = []
        for run in (1, 2):
            say(f"{rate:.1f} answers a second, run {run}")
            runs.append(await _drive(guard, schedule))
        predicted = simulate(plan, _arrivals(schedule, plan), replicas=1).answers
        rows += _compared(load, rate, runs, predicted)
    machine = {**about(guard.backend), "cpus": os.cpu_count(), "load average": list(os.getloadavg())}
    return Validation(costs, capacity, flags, seconds, len(pools[1]), tuple(rows), machine)


def _plan(found: Sequence[Conversation], costs: Costs, flags: float, seed: int) -> PlanConfig:
    tokens = [c.tokens for c in found]
    return PlanConfig(
        traffic="chat",
        batching="calls",
        flags=flags,
        tokens=mean(tokens),
        spread=pstdev(tokens) / mean(tokens),
        prompt=round(mean(len(c.prompt) for c in found)),
        costs=costs,
        gate=costs.gate or Moderation(),
        deadline=3600,
        seed=seed,
    )


# ---------------------------------------------------------------------- one by one


async def _conversations(guard: Guard, n: int, seed: int) -> list[Conversation]:
    world, found = World.load(), []
    for request, wrapper in (("benign", None), ("benign", "tone"), ("unsafe", "content")):
        for case in world.cases(request, wrapper, n, seed=seed):
            messages = Message.conversation(case.messages[-1][1])
            prompt = await guard.backend.render(messages)
            [plain] = await guard.backend.generate([_request(guard, messages, prompt)])
            found.append(Conversation(messages, prompt, max(1, plain.tokens)))
    return found


def _request(guard: Guard, messages: tuple[Message, ...], prompt: Prompt) -> GenerationRequest:
    settings = guard.config.generation
    seed = own_seed(guard.config.seed, messages)
    return GenerationRequest(prompt, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=seed)


async def _searched(guard: Guard, conversation: Conversation, plan: PlanConfig) -> Conversation:
    """The conversation with the search that its answer takes: the median of three reviews, after one that warms up."""
    [plain] = await guard.backend.generate([_request(guard, conversation.messages, conversation.prompt)])
    outcome = await guard.review(conversation.messages, plain.text)
    if outcome.action == "pass":
        return conversation
    records = [(await guard.review(conversation.messages, plain.text)).record for _ in range(_REPEATS)]
    row = {**records[0].numbers(), "seconds": median(r.seconds for r in records)}
    own = plan.model_copy(update={"prompt": len(conversation.prompt)})
    return Conversation(conversation.messages, conversation.prompt, conversation.tokens, search_of(row, own, timed=True))


# ---------------------------------------------------------------------- together


async def _answer(guard: Guard, conversation: Conversation, due: float) -> Timed:
    """One answer; its time starts when it is due, not when the machine gets round to it."""
    prompt = await guard.backend.render(conversation.messages)
    [plain] = await guard.backend.generate([_request(guard, conversation.messages, prompt)])
    answered = time.perf_counter()
    await guard.review(conversation.messages, plain.text)
    return Timed(conversation.search is not None, answered - due, time.perf_counter() - answered)


def _draw(pools: Sequence[Sequence[Conversation]], flags: float, rng: random.Random) -> Conversation:
    return rng.choice(pools[rng.random() < flags])


async def _capacity(
    guard: Guard, pools: Sequence[Sequence[Conversation]], flags: float, seconds: float, seed: int
) -> float:
    """Answers a second while some clients always wait for one."""
    rng, done, end = random.Random(seed), 0, time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await _answer(guard, _draw(pools, flags, rng), time.perf_counter())
            done += time.perf_counter() < end

    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return done / seconds


Schedule = Sequence[tuple[float, Conversation]]


def _schedule(
    pools: Sequence[Sequence[Conversation]], rate: float, flags: float, seconds: float, rng: random.Random
) -> Schedule:
    """Poisson traffic: when each request comes, and which it is."""
    times = accumulate(rng.expovariate(rate) for _ in range(math.ceil(rate * seconds)))
    return [(at, _draw(pools, flags, rng)) for at in times]


async def _drive(guard: Guard, schedule: Schedule) -> list[Timed]:
    """Send every request when it is due, whatever has become of the others."""
    start, work = time.perf_counter(), []
    for at, conversation in schedule:
        await asyncio.sleep(start + at - time.perf_counter())
        work.append(asyncio.ensure_future(_answer(guard, conversation, start + at)))
    return await asyncio.gather(*work)


def _arrivals(schedule: Schedule, plan: PlanConfig) -> list[Arrival]:
    rng = random.Random(plan.seed)
    return [Arrival(at, c.tokens, c.search, pass_lengths(c.search, plan.spread, rng) if c.search else ()) for at, c in schedule]


def _compared(load: float, rate: float, runs: Sequence[Sequence[Timed]], predicted: Sequence[Answered]) -> list[Compared]:
    simulated = [Timed(a.arrival.search is not None, a.plain, a.added) for a in predicted]
    series = [_quantities(answers) for answers in (*runs, simulated)]
    return [
        Compared(load, rate, name, len(series[0][name]), (percentiles(first), percentiles(second)), percentiles(expected))
        for name in _QUANTITIES
        for first, second, expected in [[found[name] for found in series]]
        if first
    ]


def _quantities(answers: Sequence[Timed]) -> dict[str, list[float]]:
    flagged, unflagged = ([a for a in answers if a.flagged is kind] for kind in (True, False))
    values = ([a.plain + a.added for a in unflagged], [a.plain + a.added for a in flagged], [a.added for a in flagged])
    return dict(zip(_QUANTITIES, values, strict=True))
