"""Replicas: the two ways in which a model's rows share its time."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import simpy

from ttsa_guard.plan.costs import Costs


@dataclass(eq=False)
class Job:
    """Rows that one request decodes together, or other work.

    Args:
        lengths: tokens of its rows; none if it is other work alone.
        seconds: of the prompt and of other work.
        done: happens when all of it is done.

    `left` is what of it is not done: its rows, or the one piece of other work.
    """

    lengths: Sequence[int]
    seconds: float
    done: simpy.Event
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.lengths) or 1


class SimulatedReplica(Protocol):
    """One copy of the model."""

    load: int
    """Rows and other work that wait or are being done."""
    busy: float
    """Seconds in which it worked."""
    rows: float
    """Rows times the seconds in which they were decoded, those of a call until its end."""

    def submit(self, lengths: Sequence[int], seconds: float) -> Job:
        """Take a job: rows of these `lengths` in tokens, and `seconds` of work besides."""
        ...

    def cancel(self, job: Job) -> None:
        """Drop what is left of a job."""
        ...


class _Queue:
    """What both kinds of replicas have in common: jobs come, and the model's process is woken."""

    def __init__(self, env: simpy.Environment, costs: Costs) -> None:
        self.load, self.busy, self.rows = 0, 0.0, 0.0
        self._env, self._costs = env, costs
        self._jobs: deque[Job] = deque()
        self._wake = env.event()
        env.process(self._run())

    def submit(self, lengths: Sequence[int], seconds: float) -> Job:
        job = Job(lengths, seconds, self._env.event())
        self.load += job.left
        self._jobs.append(job)
        if not self._wake.triggered:
            self._wake.succeed()
        return job

    def _idle(self) -> simpy.Event:
        self._wake = self._env.event()
        return self._wake

    def _run(self) -> Generator[simpy.Event, Any, None]:
        raise NotImplementedError


class Continuous(_Queue):
    """Rows join at every step and leave when they end.

    The step in which a job joins is longer by its prompt.
    """

    def __init__(self, env: simpy.Environment, costs: Costs) -> None:
        # the step after which a row ends, a number, its job
        self._running: list[tuple[int, int, Job]] = []
        self._waiting: deque[tuple[int, Job]] = deque()
        self._step, self._number = 0, count()
        super().__init__(env, costs)

    def cancel(self, job: Job) -> None:
        """Drop the rows of a job, also those that are running."""
        self._jobs = deque(j for j in self._jobs if j is not job)
        self._waiting = deque(row for row in self._waiting if row[1] is not job)
        self._running = [row for row in self._running if row[2] is not job]
        heapq.heapify(self._running)
        self.load -= job.left
        job.left = 0

    def _run(self) -> Generator[simpy.Event, Any, None]:
        while True:
            if not (self._jobs or self._waiting or self._running):
                yield self._idle()
            extra, worked = self._take()
            n, seconds = self._stretch(extra)
            rows = len(self._running)
            yield self._env.timeout(seconds)
            self._step += n
            self.busy += seconds
            self.rows += rows * seconds
            self._leave()
            for job in worked:
                self.load -= job.left
                job.done.succeed()

    def _take(self) -> tuple[float, list[Job]]:
        """Let in what fits; return seconds of prompts and other work, and jobs without tokens."""
        extra, worked = 0.0, []
        while self._jobs:
            job = self._jobs.popleft()
            extra += job.seconds
            self._waiting.extend((length, job) for length in job.lengths)
            if not job.lengths:
                worked.append(job)
        while self._waiting and len(self._running) < self._costs.rows:
            length, job = self._waiting.popleft()
            heapq.heappush(self._running, (self._step + length, next(self._number), job))
        return extra, worked

    def _stretch(self, extra: float) -> tuple[int, float]:
        """Count as many steps as nothing can change in: up to the first row's end or the next thing
        to happen anywhere.
        """
        if not self._running:
            return 0, extra
        step = self._costs.steps[len(self._running)]
        n = self._running[0][0] - self._step
        happens = self._env.peek() - self._env.now - extra
        if happens < n * step:
            n = max(1, math.ceil(happens / step))
        return n, extra + n * step

    def _leave(self) -> None:
        while self._running and self._running[0][0] <= self._step:
            _, _, job = heapq.heappop(self._running)
            self.load -= 1
            job.left -= 1
            if not job.left:
                job.done.succeed()


class Calls(_Queue):
    """All rows that wait when the model is free are decoded in one call, and all of them are there
    when it ends.

    A job without rows has its own turn, in order. A job that is given up while it is decoded goes
    on to the end of the call.
    """

    def cancel(self, job: Job) -> None:
        """Drop a job that has not begun; a call that runs cannot be stopped."""
        if job in self._jobs:
            self._jobs.remove(job)
            self.load -= job.left

    def _run(self) -> Generator[simpy.Event, Any, None]:
        while True:
            if not self._jobs:
                yield self._idle()
            if not self._jobs:  # what it was woken for has been given up
                continue
            together = self._next()
            lengths = [length for job in together for length in job.lengths]
            seconds = sum(job.seconds for job in together) + self._costs.calling(lengths, 0)
            yield self._env.timeout(seconds)
            self.busy += seconds
            self.rows += min(len(lengths), self._costs.rows) * seconds
            for job in together:
                self.load -= job.left
                job.done.succeed()

    def _next(self) -> list[Job]:
        """Return the first job, and if it is to decode, all the others that are."""
        first = self._jobs.popleft()
        if not first.lengths:
            return [first]
        together = [first, *(job for job in self._jobs if job.lengths)]
        self._jobs = deque(job for job in self._jobs if not job.lengths)
        return together
