"""The hooks through which plugins are found.

Hooks are synchronous. They register factories; what the factories make is asynchronous.

A plugin is a module or an object that an entry point in the group ``ttsa_guard`` names. The entry
point's name is the name that a configuration uses (``use: NAME``). The plugin registers at least
one factory under that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pluggy
from pydantic import BaseModel

from ttsa_guard.record import AuditRecord
from ttsa_guard.settings import Settings

PROJECT = "ttsa_guard"
hookspec = pluggy.HookspecMarker(PROJECT)


class NoOptions(Settings):
    """The options of a plugin that has no settings."""


class Register(Protocol):
    """Registers a factory under the name that configurations use.

    The factory is called with validated options, an instance of the model `options`.
    """

    def __call__(
        self, name: str, factory: Callable[..., Any], *, options: type[BaseModel] = NoOptions
    ) -> None:
        """Register `factory` under `name`."""


@hookspec
def ttsa_register_moderators(register: Register) -> None:
    """Register moderators: ``register(name, factory, options=OptionsModel)``."""


@hookspec
def ttsa_register_image_moderators(register: Register) -> None:
    """Register image moderators: ``register(name, factory, options=OptionsModel)``."""


@hookspec
def ttsa_register_backends(register: Register) -> None:
    """Register backends: ``register(name, factory, options=OptionsModel)``."""


@hookspec
def ttsa_register_steerers(register: Register) -> None:
    """Register steerers: ``register(name, factory, options=OptionsModel)``."""


@hookspec
def ttsa_guard_finished(record: AuditRecord) -> None:
    """Observe a finished review.

    An exception is logged. It changes nothing for the answer or for other observers.
    """
