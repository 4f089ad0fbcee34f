"""Work of different conversations meets in one batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ttsa_guard.backends.local.engine import mapped_errors

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class _Job(Generic[Item, Result]):
    """What one caller asked for."""

    items: tuple[Item, ...]
    future: Future[list[Result]] = field(default_factory=Future)
    stop: threading.Event = field(default_factory=threading.Event)


class Batcher(Generic[Item, Result]):
    """Does together whatever is waiting when the model's thread is free; only what is asked in the same moment is waited for.

    Args:
        work: results of items, in order. It gets an event for each item, which says that nobody wants its result any more.
        worker: the model's thread.

    An item's result does not depend on the batch around it, so the callers see nothing of one another. Several kinds of work
    on one thread take turns: each waits for no more than one batch of each other kind.
    """

    def __init__(
        self, work: Callable[[Sequence[Item], Sequence[threading.Event]], Sequence[Result]], worker: ThreadPoolExecutor
    ) -> None:
        self._work, self._worker = work, worker
        self._waiting: list[_Job[Item, Result]] = []
        self._lock = threading.Lock()

    async def __call__(self, items: Sequence[Item]) -> list[Result]:
        job: _Job[Item, Result] = _Job(tuple(items))
        with self._lock:
            first = not self._waiting  # one turn for all that wait: with one for each, later work would go before other kinds
            self._waiting.append(job)
        try:
            try:
                await asyncio.sleep(0)  # what else is ready on this loop comes along
            finally:
                if first:
                    self._worker.submit(self._drain)
            return await asyncio.wrap_future(job.future)
        finally:
            job.future.cancel()  # if it has not begun
            job.stop.set()

    def _drain(self) -> None:
        """Everything that is waiting."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        jobs = [job for job in waiting if job.future.set_running_or_notify_cancel()]
        if jobs:
            self._run(jobs)

    def _run(self, jobs: Sequence[_Job[Item, Result]]) -> None:
        items = [item for job in jobs for item in job.items]
        stops = [job.stop for job in jobs for _ in job.items]
        try:
            with mapped_errors():
                results = iter(self._work(items, stops))
        except BaseException as error:  # whoever waits would wait for ever
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:  # the fault of one must not be everybody's
                for job in jobs:
                    self._run([job])
            return
        for job in jobs:
            job.future.set_result([next(results) for _ in job.items])
