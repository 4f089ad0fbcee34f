"""The installed plugins, as their entry points and their sources tell them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ttsa_guard.errors import PluginError

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Listed:
    """One entry point of our group."""

    name: str
    package: str
    kinds: tuple[str, ...] = ()
    error: str = ""
    options: dict[str, type[BaseModel]] = field(default_factory=dict)
    """By kind; known only if the plugin was imported."""


def installed(look: Callable[[EntryPoint], Listed]) -> list[Listed]:
    """Return all entry points of the group by name, seen through `look`.

    A name must not come from two packages.
    """
    from ttsa_guard.hookspecs import PROJECT

    # one installation may be found twice
    points = {point.value: point for point in entry_points(group=PROJECT)}
    names = Counter(point.name for point in points.values())
    seen = sorted(
        (look(point) for point in points.values()), key=lambda listed: (listed.name, listed.package)
    )
    return [
        replace(one, error="two packages bring this name") if names[one.name] > 1 else one
        for one in seen
    ]


def declared(point: EntryPoint) -> Listed:
    """Read what the plugin's source says, without importing it: a backend would bring torch."""
    from ttsa_guard.plugins import KINDS

    try:
        spec = find_spec(point.module)
    except Exception as error:  # a parent package that does not import
        return Listed(point.name, _package(point), error=f"{type(error).__name__}: {error}")
    if spec is None:
        return Listed(point.name, _package(point), error=f"there is no module {point.module!r}")
    readable = spec.origin and spec.origin.endswith(".py")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec.origin and readable else ""
    kinds = tuple(k[:-1] for k in KINDS if re.search(rf"\bdef ttsa_register_{k}\b", source))
    return Listed(point.name, _package(point), kinds)


def imported(point: EntryPoint) -> Listed:
    """Import the plugin, and see what it registers."""
    from ttsa_guard.plugins import Plugins, missing_package

    loader = Plugins()
    try:
        plugin = point.load()
        loader.add(plugin)
    except Exception as error:
        reason = (
            error.message if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        )
        if missing := missing_package(error):
            reason = f"it needs {missing}, which is not installed"
        return Listed(point.name, _package(point), error=reason)
    options = {
        kind[:-1]: made[point.name].options
        for kind, made in loader.found.items()
        if point.name in made
    }
    problem = "" if options else "it registers nothing under this name"
    return Listed(point.name, _package(point), tuple(options), problem, options)


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def plugin_names(kind: str) -> Callable[[str], list[str]]:
    """Return what completes the names of installed plugins of a kind, without importing them."""

    def complete(incomplete: str) -> list[str]:
        found = (one.name for one in installed(declared) if kind in one.kinds)
        return [name for name in found if name.startswith(incomplete)]

    return complete
