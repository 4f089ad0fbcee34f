"""Refuse to use a model in a process that was forked after the model had been used.

A fork copies the memory but none of the threads. Work that waits for a model's thread in the child
would wait for ever.
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
    "load it in each worker: gunicorn without preload_app, Celery's signal worker_process_init,"
    " multiprocessing with the start method 'spawn'; or use no model before the fork"
)
_forks = 0


class ByObject(Generic[V]):
    """A map whose keys are objects that need not be hashable. A value lives as long as its key."""

    def __init__(self) -> None:
        self._values: dict[int, V] = {}
        self._kept: list[Any] = []

    def get(self, owner: Any) -> V | None:
        """Return the value of `owner`, or None."""
        return self._values.get(id(owner))

    def put(self, owner: Any, value: V) -> None:
        """Set the value of `owner`."""
        if id(owner) not in self._values:
            try:
                finalize(owner, self._values.pop, id(owner), None).atexit = False
            # it allows no weak references, so it is kept, or its id could be reused
            except TypeError:
                self._kept.append(owner)
        self._values[id(owner)] = value


_used = ByObject[int]()
"""The number of forks at the first use, by model."""


def _count() -> None:
    global _forks
    _forks += 1


def forks() -> int:
    """Return how often this process and its ancestors have been forked since the import."""
    return _forks


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count)


def refuse_after_fork(model: Any) -> None:
    """Note that `model` is used.

    Raises:
        ModelError: the model was used before this process was forked.
    """
    first = _used.get(model)
    if first is None:
        _used.put(model, _forks)
    elif first != _forks:
        error = ModelError("this process was forked after the model had been used", hint=_HINT)
        log.error("%s", error)
        raise error
