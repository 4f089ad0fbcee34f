"""Processes that were forked while a model was in use.

A fork copies the memory, but none of the threads: whoever waits for a model's thread there waits for ever.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Generic, TypeVar
from weakref import finalize

from ttsa_guard.errors import ModelError

V = TypeVar("V")
log = logging.getLogger(__name__)
_HINT = (
    "load it in each worker: gunicorn without preload_app, Celery's signal worker_process_init, multiprocessing with the "
    "start method 'spawn'; or use no model before the fork"
)
_forks = 0


class ByObject(Generic[V]):
    """What belongs to objects that need not be hashable, as long as they live."""

    def __init__(self) -> None:
        self._values: dict[int, V] = {}
        self._kept: list[Any] = []

    def get(self, owner: Any) -> V | None:
        return self._values.get(id(owner))

    def put(self, owner: Any, value: V) -> None:
        if id(owner) not in self._values:
            try:
                finalize(owner, self._values.pop, id(owner), None).atexit = False
            except TypeError:  # it has no weak references, so its id must not come back
                self._kept.append(owner)
        self._values[id(owner)] = value


_used = ByObject[int]()
"""Models, and after how many forks they were first used."""


def _count() -> None:
    global _forks
    _forks += 1


def forks() -> int:
    """How often the process has been forked, seen from this child."""
    return _forks


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count)


def refuse_after_fork(model: Any) -> None:
    """Note that `model` is used.

    Raises:
        ModelError: it was used before this process was forked.
    """
    first = _used.get(model)
    if first is None:
        _used.put(model, _forks)
    elif first != _forks:
        error = ModelError("this process was forked after the model had been used", hint=_HINT)
        log.error("%s", error)
        raise error
