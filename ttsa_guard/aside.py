"""Foreign code on an event loop in a thread of its own, so that it cannot hold up the caller's.

A time limit can end what waits on the caller's loop; nothing can end what blocks it.
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
    """A running event loop."""

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
        with suppress(RuntimeError):  # it is closed
            self.loop.call_soon_threadsafe(self.loop.stop)

    def ask(self) -> None:
        """Have it show until it is looked at again that nothing blocks it."""
        self._asked = threading.Event()
        self.loop.call_soon_threadsafe(self._asked.set)

    @property
    def lost(self) -> bool:
        return self.forks != forks() or (self._asked is not None and not self._asked.is_set())


_loops = ByObject[_Loop]()
_lock = threading.Lock()


async def aside(owner: Any, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work` on the loop of `owner`, which is always the same one unless something blocks it for good.

    The context variables of the caller hold in there. Whatever the work raises is raised here.
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
                found.stop()  # when what blocks it has ended
            found = _Loop(f"ttsa-{getattr(owner, 'name', 'aside')}")
            _loops.put(owner, found)
            with suppress(TypeError):  # without weak references the loop stays
                finalize(owner, found.stop).atexit = False
        return found


async def _end_others() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def _caught(work: Coroutine[Any, Any, T]) -> tuple[T | None, BaseException | None]:
    """What came of it: an exit or interrupt that leaves a task ends the loop, and the thread would print its message."""
    try:
        return await work, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return None, error
