"""Gather the work of different conversations into batches."""

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
    """The items that one caller asked for, and the future of their results."""

    items: tuple[Item, ...]
    future: Future[list[Result]] = field(default_factory=Future)
    stop: threading.Event = field(default_factory=threading.Event)


class Batcher(Generic[Item, Result]):
    """Does all work together that is waiting when the model's thread is free.

    It does not wait for more work to come, except for what is asked at the same moment. The result
    of an item does not depend on the batch around it, so callers do not affect one another. Several
    kinds of work on one thread take turns: each waits for at most one batch of each other kind.

    Args:
        work: computes results of items, in order. It also gets an event for each item; a set event
            says that nobody wants the result any more.
        worker: the model's thread.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item], Sequence[threading.Event]], Sequence[Result]],
        worker: ThreadPoolExecutor,
    ) -> None:
        self._work, self._worker = work, worker
        self._waiting: list[_Job[Item, Result]] = []
        self._lock = threading.Lock()

    async def __call__(self, items: Sequence[Item]) -> list[Result]:
        """Return the results of `items`, in order."""
        job: _Job[Item, Result] = _Job(tuple(items))
        with self._lock:
            # All that wait get one turn. With one turn each, later work would overtake other kinds.
            first = not self._waiting
            self._waiting.append(job)
        try:
            try:
                await asyncio.sleep(0)  # lets other tasks of this loop add their work
            finally:
                if first:
                    self._worker.submit(self._drain)
            return await asyncio.wrap_future(job.future)
        finally:
            job.future.cancel()  # takes effect if the work has not begun
            job.stop.set()

    def _drain(self) -> None:
        """Do all work that is waiting. If a batch fails, each job of it is done alone."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        batches = [[job for job in waiting if job.future.set_running_or_notify_cancel()]]
        while batches:
            jobs = batches.pop(0)
            items = [item for job in jobs for item in job.items]
            stops = [job.stop for job in jobs for _ in job.items]
            try:
                with mapped_errors():
                    results = iter(self._work(items, stops) if jobs else ())
            except BaseException as error:  # else the callers would wait for ever
                if len(jobs) == 1:
                    jobs[0].future.set_exception(error)
                else:  # a fault of one job must not fail the others
                    batches += [[job] for job in jobs]
                continue
            for job in jobs:
                job.future.set_result([next(results) for _ in job.items])
