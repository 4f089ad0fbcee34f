"""The command line.

Commands import what is heavy when they run, so that help is fast and needs no torch.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ttsa_guard import __version__
from ttsa_guard.cli import (
    audit,
    bench,
    check,
    compare,
    config,
    demo,
    doctor,
    init,
    moderate,
    plan,
    plugins,
    profile,
    prosocial,
    serve,
    talk,
    tune,
    view,
)
from ttsa_guard.cli.common import fail, stoppable
from ttsa_guard.errors import TTSAError

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Turn our own errors into one red line and the hint, with exit status 2 and no traceback.

    Ctrl-C becomes one line, too, with exit status 130.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            with stoppable():
                return super().invoke(ctx)
        except TTSAError as error:
            fail(error)
            raise typer.Exit(2) from None


# Tracebacks that show local variables would show the moderated text.
app = typer.Typer(
    cls=_Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ttsa-guard {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Turn flagged chat answers into good ones."""


_COMMANDS = (
    demo.demo,
    init.init,
    talk.chat,
    talk.steer,
    serve.serve,
    check.check,
    moderate.moderate,
    plugins.plugins,
    doctor.doctor,
    profile.profile,
    view.view,
)
for _command in _COMMANDS:
    app.command()(_command)
app.add_typer(audit.app, name="audit")
app.add_typer(config.app, name="config")
compare.app.command()(tune.tune)
app.add_typer(compare.app, name="moderators")
app.add_typer(bench.app, name="bench")
app.add_typer(plan.app, name="plan")
app.add_typer(prosocial.app, name="prosocial")


def main() -> None:
    """Run the console script."""
    # Before torch is imported: spinning threads make it several times slower where other programs
    # are running.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
