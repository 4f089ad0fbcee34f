"""``ttsa-guard bench``: ways of mending flagged answers, side by side."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ttsa_guard.cli import common
from ttsa_guard.errors import ConfigError

app = typer.Typer(no_args_is_help=True)
Arms = Annotated[list[str] | None, typer.Option("--arm", help="Only this arm; several times.", show_default=False)]


@app.callback()
def _group() -> None:
    """Compare ways of mending flagged answers under one budget."""


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="YAML file, or 'embedded' or 'quick', which ship.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the results.", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="Folder with the public data sets.", show_default=False)] = None,
    arm: Arms = None,
    n: Annotated[
        int | None, typer.Option(min=1, help="Prompts of each kind; default: the settings'.", show_default=False)
    ] = None,
    together: Annotated[int, typer.Option(min=1, help="Answers reviewed at once; more than one blurs the seconds.")] = 1,
) -> None:
    """Run a benchmark; one that was stopped goes on. cases.jsonl holds prompts and flagged answers: do not publish it unread."""
    from ttsa_guard.bench.config import BenchConfig

    settings = BenchConfig.load(config, n=n)
    from ttsa_guard.bench.runner import Runner

    words = ["ttsa-guard", "bench", "run", Path(config).name, *(["--n", str(n)] if n else []), "--out", "DIR"]
    runner = Runner(settings, out, datasets=data, together=together, command=shlex.join(words))
    common.hide_loading_bars()
    with common.quiet(), common.progress() as progress:
        asyncio.run(runner.run(progress, arms=arm or ()))
    for name, why in runner.failed.items():
        common.err.print(common.plain(f"arm {name} failed: {why}", "red"), soft_wrap=True)
    common.err.print(f"see: ttsa-guard bench report {shlex.quote(str(out))}", markup=False, soft_wrap=True)
    if runner.failed:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of the results.", show_default=False)],
    as_json: common.AsJson = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with tables and plots to this file.", show_default=False)
    ] = None,
) -> None:
    """Say what a benchmark has found; texts are never shown."""
    from ttsa_guard.bench.measure import Results
    from ttsa_guard.bench.tables import tables

    summary = Results.load(folder).summary()
    if html:
        if not html.parent.is_dir():
            raise ConfigError(f"there is no folder {html.parent}", hint="make it first")
        from ttsa_guard.bench.page import page

        html.write_text(page(summary), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
        return
    if not summary["groups"]:
        common.out.print("no answer was flagged, so there was nothing to mend\n")
    for table in tables(summary):
        common.out.print(table, "")
    common.out.print("in brackets: 95 % intervals; seconds are medians; --json and --html say more", style="dim")
    if summary["missing"]:
        lacking = f"not finished, start the run again: {'; '.join(summary['missing'])}"
        common.err.print(common.plain(lacking, "yellow"), soft_wrap=True)
