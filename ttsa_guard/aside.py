"""Run foreign code on an event loop in its own thread, so that it cannot hold up the caller's loop.

A time limit can end work that waits on the caller's loop. Nothing can end work that blocks it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar
from weakref import finalize

from ttsa_guard.forks import ByObject, forks

T = TypeVar("T")


class _Loop:
    """An event loop that runs in a thread of its own."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.forks = forks()
        self._asked: threading.Event | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.run_until_complete(_end_others())
        self.loop.close()

    def stop(self) -> None:
        """End the loop and its thread. The tasks that are left in it are cancelled."""
        with suppress(RuntimeError):  # the loop is closed already
            self.loop.call_soon_threadsafe(self.loop.stop)

    def ask(self) -> None:
        """Start a check of whether something blocks the loop.

        The loop counts as lost until it has answered.
        """
        self._asked = threading.Event()
        self.loop.call_soon_threadsafe(self._asked.set)

    @property
    def lost(self) -> bool:
        """True if the loop is blocked, or if a fork has left its thread behind."""
        return self.forks != forks() or (self._asked is not None and not self._asked.is_set())


_loops = ByObject[_Loop]()
_lock = threading.Lock()


async def aside(owner: Any, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which runs on the event loop of `owner`.

    An owner keeps the same loop, unless something blocks that loop for good. The caller's context
    variables are visible to the work. An exception of the work is raised here.
    """
    loop = _loop_of(owner)
    future = asyncio.run_coroutine_threadsafe(_caught(work), loop.loop)
    try:
        result, error = await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        loop.ask()
        raise
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _loop_of(owner: Any) -> _Loop:
    with _lock:
        found = _loops.get(owner)
        if found is None or found.lost:
            if found and found.forks == forks():
                found.stop()  # takes effect when the blocking work has ended
            found = _Loop(f"ttsa-{getattr(owner, 'name', 'aside')}")
            _loops.put(owner, found)
            with suppress(TypeError):  # owners without weak references keep their loop for ever
                finalize(owner, found.stop).atexit = False
        return found


async def _end_others() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def _caught(work: Coroutine[Any, Any, T]) -> tuple[T | None, BaseException | None]:
    """Return the result of `work` and None, or None and the exception that it raised.

    An exit or an interrupt that leaves a task would end the loop, and the thread would print its
    message.
    """
    try:
        return await work, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return None, error
