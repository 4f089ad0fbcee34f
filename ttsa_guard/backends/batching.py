"""Requests of different conversations meet in one batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from ttsa_guard.backends.engine import Engine, mapped_errors
from ttsa_guard.messages import Generation, GenerationRequest


@dataclass(frozen=True, eq=False)
class _Job:
    """What one caller asked for."""

    requests: tuple[GenerationRequest, ...]
    future: Future[list[Generation]] = field(default_factory=Future)
    stop: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Decodes together whatever is waiting when the model's thread is free; nobody is waited for.

    A row's answer does not depend on the batch around it, so the callers see nothing of one another.
    """

    def __init__(self, engine: Engine, worker: ThreadPoolExecutor) -> None:
        self._engine, self._worker = engine, worker
        self._waiting: SimpleQueue[_Job] = SimpleQueue()

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        job = _Job(tuple(requests))
        self._waiting.put(job)
        self._worker.submit(self._drain)
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            # Cancelled while decoding: its rows end at the next token.
            job.stop.set()

    def _drain(self) -> None:
        """Everything that is waiting. There is one call for each job, of which most find that an earlier one has done it."""
        jobs: list[_Job] = []
        try:
            while True:
                job = self._waiting.get_nowait()
                if job.future.set_running_or_notify_cancel():
                    jobs.append(job)
        except Empty:
            pass
        if jobs:
            self._run(jobs)

    def _run(self, jobs: Sequence[_Job]) -> None:
        requests = [request for job in jobs for request in job.requests]
        stops = [job.stop for job in jobs for _ in job.requests]
        try:
            with mapped_errors():
                answers = iter(self._engine.generate(requests, stops))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:  # the fault of one must not be everybody's
                for job in jobs:
                    self._run([job])
            return
        for job in jobs:
            job.future.set_result([next(answers) for _ in job.requests])
