"""Compare a plan with reality: one guard under open-loop traffic on this machine, against the
simulation of the same requests.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, product
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from pydantic import BaseModel, ConfigDict

from ttsa_guard.embedded.world import World
from ttsa_guard.errors import ConfigError
from ttsa_guard.files import read_state, replacing
from ttsa_guard.guard import Guard
from ttsa_guard.messages import GenerationRequest, Message, Prompt, own_seed
from ttsa_guard.plan.config import PlanConfig, SearchCosts
from ttsa_guard.plan.costs import Costs
from ttsa_guard.plan.measure import measure
from ttsa_guard.plan.searches import search_of
from ttsa_guard.plan.simulation import Arrival, pass_lengths, percentiles, simulate

Say = Callable[[str], None]
Schedule = Sequence[tuple[float, "Conversation"]]
_CLIENTS = 8
"""So many keep the guard busy while its capacity is measured."""
_RUNS = 2
_QUANTITIES = ("unflagged, whole answer", "flagged, whole answer", "flagged, added by the review")


@dataclass(frozen=True)
class Conversation:
    """A prompt and what is known of its answer.

    Args:
        prompt: the messages as the model reads them.
        tokens: of the plain answer.
        flagged: by the gate.
    """

    messages: tuple[Message, ...]
    prompt: Prompt
    tokens: int
    flagged: bool


@dataclass(frozen=True)
class Timed:
    """Seconds of one answer: to the plain one, and from then on."""

    flagged: bool
    plain: float
    added: float


class Run(BaseModel):
    """One run of the traffic at one load, in numbers.

    The answers are counted by quantity, and their percentiles are in seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    machine_load: float
    """Before the run, as the system tells it."""
    costs: Costs
    """Measured right before the run."""
    answers: dict[str, int]
    measured: dict[str, dict[str, float]]
    predicted: dict[str, dict[str, float]]


class Measurements(BaseModel):
    """What was measured so far: the state of a validation. It holds no texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    capacity: float
    """Answers a second."""
    runs: tuple[Run, ...] = ()
    """Those of the first load, then those of the next one, and so on."""


@dataclass(frozen=True)
class Compared:
    """One quantity at one rate.

    The percentiles are in seconds, measured in two runs of the same requests, and predicted for
    each of them from costs that were measured right before it.
    """

    load: float
    rate: float
    quantity: str
    answers: int
    measured: tuple[dict[str, float], ...]
    predicted: tuple[dict[str, float], ...]

    def error(self, q: str) -> float:
        """Return predicted over measured, both as means of the runs, minus one."""
        return mean(run[q] for run in self.predicted) / mean(run[q] for run in self.measured) - 1

    def noise(self, q: str) -> float:
        """Return how far the measured runs are apart, over their mean."""
        values = [run[q] for run in self.measured]
        return (max(values) - min(values)) / mean(values)


@dataclass(frozen=True)
class Validation:
    """Everything that was measured and predicted.

    Args:
        costs: measured before each run, one after another.
        capacity: answers a second, with `flags` of them flagged.
        seconds: of a run.
        conversations: those whose answer passes, and those whose answer is flagged.
        loads: of the machine before each run, as the system tells them.
    """

    costs: tuple[Costs, ...]
    capacity: float
    flags: float
    seconds: float
    conversations: tuple[int, int]
    rows: tuple[Compared, ...]
    loads: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the validation as plain data."""
        extra = [
            {q: {"error": r.error(q), "noise": r.noise(q)} for q in ("p50", "p95")}
            for r in self.rows
        ]
        rows = [{**asdict(row), **more} for row, more in zip(self.rows, extra, strict=True)]
        costs = [c.model_dump(mode="json", exclude={"about"}) for c in self.costs]
        return {**asdict(self), "about": self.costs[0].about, "costs": costs, "rows": rows}


@dataclass(eq=False)
class Validator:
    """Measures a guard and predicts what it measures.

    Args:
        guard: of a model in this process.
        rows: most rows that its backend decodes together.
        flags: share of the requests whose answer is flagged.
        n: conversations of each kind.
        seconds: of a run.
        say: is told what is being done.
        state: file that keeps what was measured, so that a run that was stopped goes on after the
            last measurement. Whoever has given it removes it.
    """

    guard: Guard
    rows: int
    flags: float
    n: int
    seconds: float
    seed: int
    say: Say
    state: Path
    _pools: tuple[list[Conversation], list[Conversation]] = field(init=False)

    async def validate(self, loads: Sequence[float]) -> Validation:
        """Run the guard at `loads`, shares of its measured capacity from 0 to 1.

        Raises:
            ConfigError: none or all of the answers are flagged, or the state is damaged.
        """
        found = read_state(self.state, Measurements.model_validate_json)
        self.say("conversations, one by one")
        conversations = await _conversations(self.guard, self.n, self.seed)
        self._pools = (
            [c for c in conversations if not c.flagged],
            [c for c in conversations if c.flagged],
        )
        if not all(self._pools):
            raise ConfigError(
                "none or all of the answers are flagged",
                hint="take more conversations, or another gate",
            )
        if found is None:
            self.say("capacity")
            found = self._kept(Measurements(capacity=await self._capacity()))
        for load, run in list(product(loads, range(_RUNS)))[len(found.runs) :]:
            rate = load * found.capacity
            self.say(f"{rate:.1f} answers a second, run {run + 1} of {_RUNS}")
            schedule = self._schedule(rate, random.Random(f"{self.seed}/{load}"))
            runs = (*found.runs, await self._run(schedule, seed=len(found.runs)))
            found = self._kept(found.model_copy(update={"runs": runs}))
        rows = [
            row
            for i, load in enumerate(loads)
            for row in _compared(load, load * found.capacity, found.runs[_RUNS * i :][:_RUNS])
        ]
        passing, flagged = map(len, self._pools)
        return Validation(
            costs=tuple(run.costs for run in found.runs),
            capacity=found.capacity,
            flags=self.flags,
            seconds=self.seconds,
            conversations=(passing, flagged),
            rows=tuple(rows),
            loads=tuple(run.machine_load for run in found.runs),
        )

    def _kept(self, found: Measurements) -> Measurements:
        with replacing(self.state) as file:
            file.write_text(found.model_dump_json(), encoding="utf-8")
        return found

    async def _run(self, schedule: Schedule, *, seed: int) -> Run:
        """Measure what the work takes now, with nothing else going on: costs, and the search of
        each flagged conversation. Then run the traffic, and predict that.
        """
        machine_load = os.getloadavg()[0]
        costs = await measure(self.guard, rows=self.rows, seed=seed)
        plan = self._plan(costs)
        searches = {c.prompt: await self._searched(c, plan) for c in self._pools[1]}
        measured = _quantities(await _drive(self.guard, schedule))
        simulated = simulate(plan, _arrivals(schedule, searches, plan), replicas=1).answers
        predicted = _quantities(
            [Timed(a.arrival.search is not None, a.plain, a.added) for a in simulated]
        )
        return Run(
            machine_load=machine_load,
            costs=costs,
            answers={quantity: len(values) for quantity, values in measured.items()},
            measured={quantity: percentiles(values) for quantity, values in measured.items()},
            predicted={quantity: percentiles(values) for quantity, values in predicted.items()},
        )

    def _plan(self, costs: Costs) -> PlanConfig:
        conversations = [conversation for pool in self._pools for conversation in pool]
        tokens = [c.tokens for c in conversations]
        return PlanConfig(
            traffic="chat",
            batching="calls",
            flags=self.flags,
            tokens=mean(tokens),
            spread=pstdev(tokens) / mean(tokens),
            prompt=round(mean(len(c.prompt) for c in conversations)),
            costs=costs,
            deadline=self.guard.config.budget.seconds,
            gate_seconds=self.guard.config.gate_seconds,
            seed=self.seed,
        )

    async def _searched(self, conversation: Conversation, plan: PlanConfig) -> SearchCosts:
        request = _request(self.guard, conversation.messages, conversation.prompt)
        [plain] = await self.guard.backend.generate([request])
        outcome = await self.guard.review(conversation.messages, plain.text)
        own = plan.model_copy(update={"prompt": len(conversation.prompt)})
        return search_of(outcome.record, own, timed=True)

    async def _capacity(self) -> float:
        """Measure answers a second while some clients always wait for one."""
        rng, done = random.Random(self.seed), 0
        end = time.perf_counter() + self.seconds / 2

        async def client() -> None:
            nonlocal done
            while time.perf_counter() < end:
                await _answer(self.guard, self._draw(rng), time.perf_counter())
                done += time.perf_counter() < end

        await asyncio.gather(*(client() for _ in range(_CLIENTS)))
        return 2 * done / self.seconds

    def _schedule(self, rate: float, rng: random.Random) -> Schedule:
        """Draw Poisson traffic: when each request comes, and which it is."""
        times = accumulate(rng.expovariate(rate) for _ in range(math.ceil(rate * self.seconds)))
        return [(at, self._draw(rng)) for at in times]

    def _draw(self, rng: random.Random) -> Conversation:
        return rng.choice(self._pools[rng.random() < self.flags])


def _compared(load: float, rate: float, runs: Sequence[Run]) -> list[Compared]:
    return [
        Compared(
            load,
            rate,
            quantity,
            answers,
            tuple(run.measured[quantity] for run in runs),
            tuple(run.predicted[quantity] for run in runs),
        )
        for quantity, answers in runs[0].answers.items()
        if answers
    ]


async def _conversations(guard: Guard, n: int, seed: int) -> list[Conversation]:
    world, conversations = World.load(), []
    for request, wrapper in (("benign", None), ("benign", "tone"), ("unsafe", "content")):
        for case in world.cases(request, wrapper, n, seed=seed):
            messages = Message.conversation(case.messages[-1][1])
            prompt = await guard.backend.render(messages)
            [plain] = await guard.backend.generate([_request(guard, messages, prompt)])
            outcome = await guard.review(messages, plain.text)
            flagged = outcome.action != "pass"
            conversations.append(Conversation(messages, prompt, max(1, plain.tokens), flagged))
    return conversations


def _request(guard: Guard, messages: tuple[Message, ...], prompt: Prompt) -> GenerationRequest:
    settings = guard.config.generation
    seed = own_seed(guard.config.seed, messages)
    return GenerationRequest(
        prompt, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=seed
    )


async def _answer(guard: Guard, conversation: Conversation, due: float) -> Timed:
    """Ask for one answer; its time starts when it is due, not when the machine gets round to it."""
    prompt = await guard.backend.render(conversation.messages)
    [plain] = await guard.backend.generate([_request(guard, conversation.messages, prompt)])
    answered = time.perf_counter()
    await guard.review(conversation.messages, plain.text)
    return Timed(conversation.flagged, answered - due, time.perf_counter() - answered)


async def _drive(guard: Guard, schedule: Schedule) -> list[Timed]:
    """Send every request when it is due, whatever has become of the others."""
    start, work = time.perf_counter(), []
    for at, conversation in schedule:
        await asyncio.sleep(start + at - time.perf_counter())
        work.append(asyncio.ensure_future(_answer(guard, conversation, start + at)))
    return await asyncio.gather(*work)


def _arrivals(
    schedule: Schedule, searches: Mapping[Prompt, SearchCosts], plan: PlanConfig
) -> list[Arrival]:
    rng, arrivals = random.Random(plan.seed), []
    for at, conversation in schedule:
        search = searches.get(conversation.prompt)
        passes = pass_lengths(search, plan.spread, rng) if search else ()
        arrivals.append(Arrival(at, conversation.tokens, search, passes))
    return arrivals


def _quantities(answers: Sequence[Timed]) -> dict[str, list[float]]:
    flagged, unflagged = ([a for a in answers if a.flagged is kind] for kind in (True, False))
    values = (
        [a.plain + a.added for a in unflagged],
        [a.plain + a.added for a in flagged],
        [a.added for a in flagged],
    )
    return dict(zip(_QUANTITIES, values, strict=True))
