"""``ttsa-guard plugins``: what is installed, and the options of each plugin."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table

from ttsa_guard.cli.common import AsJson, out, plain, quiet
from ttsa_guard.cli.listing import Listed, declared, imported, installed

if TYPE_CHECKING:
    from pydantic import BaseModel


def plugins(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Import the plugins and show their options.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins.

    Example: ttsa-guard plugins --verbose
    """
    with quiet():
        points = installed(imported if verbose else declared)
    if as_json:
        typer.echo(json.dumps({"plugins": [_as_dict(listed) for listed in points]}, indent=1))
    else:
        _show(points, verbose)


def _as_dict(listed: Listed) -> dict[str, Any]:
    """Return what is known; the options are JSON schemas, by kind."""
    options = {kind: options.model_json_schema() for kind, options in listed.options.items()}
    return {**asdict(replace(listed, options={})), "options": options}


def _show(points: Sequence[Listed], verbose: bool) -> None:
    from ttsa_guard.plugins import RENAMED

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
