"""``ttsa-guard config``: check settings, show those that hold, and print their JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ttsa_guard.cli import common
from ttsa_guard.cli.common import counted, out, plain
from ttsa_guard.errors import ConfigError
from ttsa_guard.files import ready_file, reason

if TYPE_CHECKING:
    from ttsa_guard.checking.report import Report

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Check and show settings. No model is loaded."""


@app.command()
def check(
    path: Annotated[
        Path,
        typer.Argument(
            help="YAML file with the guard's settings, or a config folder of NeMo Guardrails.",
            show_default=False,
        ),
    ],
    as_json: common.AsJson = False,
) -> None:
    """Find everything that is wrong in settings, and say what to expect of them.

    Keys, values, plugins and their options, flows, files and the variables with keys are checked.
    Exit status 0: nothing is wrong; 1: something is; 2: the settings cannot be read.

    Example: ttsa-guard config check settings.yml
    """
    from ttsa_guard.checking.effective import read_settings
    from ttsa_guard.checking.folder import check_folder
    from ttsa_guard.checking.report import Report
    from ttsa_guard.checking.settings import check_settings

    report = Report()
    with common.quiet("ttsa_guard"):
        if path.is_dir():
            check_folder(path, report)
        else:
            data, file = read_settings(path)
            check_settings(data, report, file=file)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=1))
    else:
        _show(report, path)
    raise typer.Exit(1 if report.problems else 0)


@app.command()
def show(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="YAML file or config folder; without it, the defaults.", show_default=False
        ),
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """Print the settings that hold as YAML, each with where it comes from.

    That is the default, the file, or the model's profile. Secrets are hidden.

    Example: ttsa-guard config show settings.yml
    """
    from ttsa_guard.checking.effective import as_yaml, effective

    settings = effective(path)
    if as_json:
        data = {one.key: {"value": one.value, "from": one.origin} for one in settings}
        typer.echo(json.dumps(data, indent=1))
    else:
        typer.echo(as_yaml(settings), nl=False)


@app.command()
def schema(
    to: Annotated[
        Path | None,
        typer.Option("--out", help="Write it to this file instead.", show_default=False),
    ] = None,
) -> None:
    """Print the JSON schema of all settings, with the options of the installed plugins.

    Example: ttsa-guard config schema --out settings.schema.json
    """
    from ttsa_guard.checking.options import installed_schema

    text = json.dumps(installed_schema(), indent=1, ensure_ascii=False)
    if to is None:
        typer.echo(text)
        return
    ready_file(to)
    try:
        to.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write {to}: {reason(error)}", hint="name another file: --out FILE"
        ) from None


def _show(report: Report, path: Path) -> None:
    for problem in report.problems:
        out.print(plain(f"{problem.where}: {problem.message}", "red"), soft_wrap=True)
        if problem.hint:
            out.print(plain(f"  → {problem.hint}", "yellow"), soft_wrap=True)
    for note in report.notes:
        out.print(plain(f"note: {note}"), soft_wrap=True)
    if report.problems:
        out.print(plain(f"{counted(len(report.problems), 'problem')} in {path}", "bold red"))
        return
    out.print(plain(f"{path}: nothing is wrong", "bold green"))
    table = Table(box=None, pad_edge=False, show_header=False)
    for subject, told in report.expect.items():
        table.add_row(plain(subject), plain(told))
    out.print(table)
