"""``ttsa-guard plugins``: what is installed, and the options of each plugin."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table

from ttsa_guard.cli.common import out, plain, quiet
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


def plugins(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Import the plugins and show their options.")
    ] = False,
) -> None:
    """List the installed plugins.

    Example: ttsa-guard plugins --verbose
    """
    from ttsa_guard.plugins import RENAMED

    with quiet():
        points = installed(imported if verbose else declared)
    table = Table("plugin", "kind", "package", box=None, pad_edge=False, header_style="bold")
    for listed in points:
        table.add_row(plain(listed.name), ", ".join(listed.kinds) or "?", plain(listed.package))
    out.print(table)
    for listed in points:
        if listed.error:
            out.print(plain(f"\n{listed.name} is broken: {listed.error}", "red"), soft_wrap=True)
        for kind, options in listed.options.items():
            _show_options(f"{listed.name} ({kind})", options)
    names = {listed.name for listed in points}
    aliases = [
        f"{old} is an old name of {new}, for one more release"
        for old, new in RENAMED.items()
        if old not in names
    ]
    if aliases:
        out.print(plain("\n" + "\n".join(aliases)))
    if not verbose:
        out.print("\n[dim]--verbose shows their options[/]")


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


def _show_options(title: str, options: type[BaseModel]) -> None:
    out.print(f"\n[bold]{title}[/]" + ("" if options.model_fields else "  no options"))
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, option in options.model_fields.items():
        default = "required" if option.is_required() else f"= {_default(option)!r}"
        table.add_row(
            f"  {name}",
            plain(_type(option.annotation), "dim"),
            plain(default),
            plain(option.description or ""),
        )
    if options.model_fields:
        out.print(table)


def _default(option: Any) -> Any:
    from pydantic_core import PydanticUndefined

    default = option.get_default(call_default_factory=True)
    return None if default is PydanticUndefined else default


def _type(annotation: Any) -> str:
    """Write a type as one does by hand: ``float``, ``Literal['a', 'b']``, ``Path | None``."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    name = re.sub(r"\b(typing|pathlib|collections\.abc)\.", "", str(annotation))
    return name.replace("NoneType", "None")
