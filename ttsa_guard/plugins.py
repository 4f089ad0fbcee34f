"""Load the plugins that a configuration names, and only those."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, Literal

import pluggy
from pydantic import BaseModel

from ttsa_guard import hookspecs
from ttsa_guard.config import Use
from ttsa_guard.errors import ConfigError, PluginError, TTSAError, nearest
from ttsa_guard.hookspecs import NoOptions, Register
from ttsa_guard.settings import validated

__all__ = ["KINDS", "Kind", "NoOptions", "Plugins", "Register", "Registered", "hookimpl"]

hookimpl = pluggy.HookimplMarker(hookspecs.PROJECT)
Kind = Literal["moderators", "image_moderators", "backends", "steerers"]
KINDS: tuple[Kind, ...] = ("moderators", "image_moderators", "backends", "steerers")
RENAMED: Mapping[str, str] = {"kick": "random_perturbation"}
"""New names of our plugins, by their old ones. An old name works for one more release."""
HEAVY = ("torch", "transformers", "nemoguardrails")
"""Packages that an installation may do without, if it names no plugin that needs them."""
log = logging.getLogger(__name__)


def missing_package(error: BaseException) -> str:
    """Return the package of others without which a plugin cannot be imported; "" for other errors.

    The default installation has all that our own plugins need. One without torch or transformers
    was made so; see docs/deployment.md.
    """
    name = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    package = name.split(".")[0]
    return package if package in HEAVY else ""


@dataclass(frozen=True)
class Registered:
    """A factory, and the model that validates its options."""

    name: str
    factory: Callable[..., Any]
    options: type[BaseModel]


@dataclass
class Plugins:
    """The plugins of one guard.

    Every guard has a plugin manager of its own; two guards share nothing.
    """

    manager: pluggy.PluginManager = field(
        default_factory=lambda: pluggy.PluginManager(hookspecs.PROJECT)
    )
    found: dict[Kind, dict[str, Registered]] = field(
        default_factory=lambda: {kind: {} for kind in KINDS}
    )
    _warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.manager.add_hookspecs(hookspecs)

    @cached_property
    def _points(self) -> EntryPoints:
        """The entry points of all packages, which are many files to read."""
        return entry_points(group=hookspecs.PROJECT)

    @property
    def installed(self) -> dict[str, EntryPoint]:
        """The entry points by name; none of them is imported for it."""
        return {point.name: point for point in self._points}

    def add(self, plugin: object) -> None:
        """Register a plugin object and everything that it offers.

        Raises:
            PluginError: the plugin implements an unknown hook, a name is taken, or its registration
                fails.
        """
        others = self.manager.get_plugins()
        try:
            self.manager.register(plugin)
            self.manager.check_pending()
            for kind in KINDS:
                hook = self.manager.subset_hook_caller(f"ttsa_register_{kind}", others)
                hook(register=self._registrar(kind))
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(
                f"plugin {plugin!r} does not fit the hooks: {error}",
                hint="see ttsa_guard/hookspecs.py",
            ) from error

    def load(self, kind: Kind, name: str) -> Registered:
        """Return the factory that the configuration calls `name`.

        Its entry point is imported if needed. An old name of one of our plugins (see `RENAMED`)
        works, and a warning is given once.

        Raises:
            PluginError: no package brings that name, two packages bring it, or it cannot be
                imported.
        """
        name = self._current(kind, name)
        if name not in self.found[kind]:
            points = {point.value: point for point in self._points.select(name=name)}
            if not points:
                told = nearest(name, {*self.installed, *self.found[kind]})
                told += "" if told.endswith("?") else ";"
                raise PluginError(
                    f"no plugin named {name!r} is installed",
                    hint=f"{told} or pip install the package that brings it",
                )
            if len(points) > 1:
                raise PluginError(
                    f"two packages bring a plugin named {name!r}: {', '.join(points)}",
                    hint="pip uninstall one of them",
                )
            self._import(*points.values())
        if name not in self.found[kind]:
            kinds = [other[:-1] for other in KINDS if name in self.found[other]]
            what = f"it is a {' and a '.join(kinds)}; " if kinds else ""
            raise PluginError(
                f"plugin {name!r} registers no {kind[:-1]} of that name",
                hint=f"{what}ttsa-guard plugins lists all {kind}",
            )
        return self.found[kind][name]

    def make(self, kind: Kind, use: Use) -> Any:
        """Make the plugin of this kind that `use` names, with validated options.

        Raises:
            PluginError: no package brings that name, or it cannot be imported.
            ConfigError: an option is wrong, or the plugin cannot be built with it.
        """
        registered = self.load(kind, use.use)
        options = validated(registered.options, use.options, where=f"{kind}.{use.use}")
        try:
            return registered.factory(options)
        except TTSAError:
            raise
        except Exception as error:
            raise ConfigError(
                f"plugin {use.use!r} cannot be built: {error}", hint=f"check its options in {kind}"
            ) from error

    def _current(self, kind: Kind, name: str) -> str:
        """Return the name that a plugin has now.

        Somebody else's plugin may have an old name of ours. Then the name means that plugin.
        """
        if name not in RENAMED or name in self.found[kind] or name in self.installed:
            return name
        if name not in self._warned:
            self._warned.add(name)
            log.warning(
                "the plugin %r is now called %r; its old name works for one more release",
                name,
                RENAMED[name],
            )
        return RENAMED[name]

    def _import(self, point: EntryPoint) -> None:
        try:
            plugin = point.load()
        except Exception as error:
            package = point.dist.name if point.dist else "its package"
            if missing := missing_package(error):
                raise PluginError(
                    f"plugin {point.name!r} needs {missing}, which is not installed",
                    hint=(
                        f"pip install {package}, which brings it, or leave the plugin out of the"
                        " settings"
                    ),
                ) from error
            raise PluginError(
                f"plugin {point.name!r} cannot be imported: {error}", hint=f"reinstall {package}"
            ) from error
        if not self.manager.is_registered(plugin):
            self.add(plugin)

    def _registrar(self, kind: Kind) -> Register:
        def register(
            name: str, factory: Callable[..., Any], *, options: type[BaseModel] = NoOptions
        ) -> None:
            if name in self.found[kind]:
                raise PluginError(
                    f"two plugins register the {kind[:-1]} {name!r}",
                    hint="uninstall or rename one of them",
                )
            self.found[kind][name] = Registered(name, factory, options)

        return register
