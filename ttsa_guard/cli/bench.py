"""``ttsa-guard bench``: ways of mending flagged answers, side by side."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from ttsa_guard.cli import common
from ttsa_guard.errors import ConfigError, nearest
from ttsa_guard.files import ready_file, ready_folder
from ttsa_guard.plots import draw_speed, ready

app = typer.Typer(no_args_is_help=True)
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Arms = Annotated[
    list[str] | None,
    typer.Option("--arm", help="Only this arm; several times.", show_default=False),
]


def _shipped(incomplete: str) -> list[str]:
    """Return the benchmarks that ship, for the shell."""
    found = sorted(p.stem for p in (Path(__file__).parents[1] / "bench").glob("*.yaml"))
    return [
        name
        for name in found
        if name.startswith(incomplete) and not name.startswith("real_prompts")
    ]


@app.callback()
def _group() -> None:
    """Compare ways of mending flagged answers under one budget."""


@app.command()
@common.stoppable("the results so far are kept; the same command goes on from there")
def run(
    config: Annotated[
        str,
        typer.Argument(
            help="YAML file, or one that ships: embedded, entangled, passes, quick, real.",
            show_default=False,
            autocompletion=_shipped,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="Folder with the public data sets.", show_default=False)
    ] = None,
    arm: Arms = None,
    n: Annotated[
        int | None,
        typer.Option(
            min=1, help="Prompts of each kind; default: the settings'.", show_default=False
        ),
    ] = None,
    together: Annotated[
        int, typer.Option(min=1, help="Answers reviewed at once; more than one blurs the seconds.")
    ] = 1,
    texts: Annotated[
        bool, typer.Option("--texts", help="Keep what left in texts.jsonl, to be read.")
    ] = False,
) -> None:
    """Run a benchmark; one that was stopped goes on.

    The file cases.jsonl in the results holds prompts and flagged answers, and texts.jsonl the texts
    of every arm: do not publish them unread.

    Example: ttsa-guard bench run quick --out results
    """
    from ttsa_guard.bench.config import BenchConfig

    settings = BenchConfig.load(config, n=n)
    ready_folder(out)
    from ttsa_guard.bench.runner import Runner

    # for readers of the results, so without the folders of this machine
    command = ["ttsa-guard", "bench", "run", Path(config).name]
    command += [*(["--n", str(n)] if n else []), "--out", "DIR"]
    runner = Runner(
        settings,
        out,
        datasets=data,
        together=together,
        texts=texts,
        command=shlex.join(command),
    )
    common.hide_loading_bars()
    with common.quiet(), common.progress() as progress:
        asyncio.run(runner.run(progress, arms=arm or ()))
    for name, why in runner.failed.items():
        common.err.print(common.plain(f"arm {name} failed: {why}", "red"), soft_wrap=True)
    common.err.print(
        f"see: ttsa-guard bench report {shlex.quote(str(out))}", markup=False, soft_wrap=True
    )
    if runner.failed:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of the results.", show_default=False)],
    as_json: common.AsJson = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page with tables and plots to this file.", show_default=False),
    ] = None,
) -> None:
    """Say what a benchmark has found; texts are never shown.

    Example: ttsa-guard bench report results --html results.html
    """
    from ttsa_guard.bench.measure import Results
    from ttsa_guard.bench.tables import tables

    summary = Results.load(folder).summary()
    if html:
        ready_file(html, "--html")
        from ttsa_guard.pages.benchmark import page

        html.write_text(page(summary), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(summary.as_dict(), indent=1))
        return
    if not summary.groups:
        common.out.print("no answer was flagged, so there was nothing to mend\n")
    for table in tables(summary):
        common.out.print(table, "")  # its cells fold, and none is cut
    common.out.print(
        "in brackets: 95 % intervals; seconds are medians; --json and --html say more", style="dim"
    )
    if summary.missing:
        lacking = f"not finished, start the run again: {'; '.join(summary.missing)}"
        common.err.print(common.plain(lacking, "yellow"), soft_wrap=True)


@app.command()
def speed(
    shape: Annotated[
        str, typer.Option(help="Sizes of the model: tiny, small, 1b, 3b or 8b.")
    ] = "tiny",
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', ...")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Of weights and keys.")] = "auto",
    plot: Annotated[
        Path | None, typer.Option(help="Draw the times to this PNG file.", show_default=False)
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """Measure how long a batch of candidates takes.

    Beside it stand the model's own generate and the least that the hardware allows. The weights are
    random: speed does not need trained ones.

    Example: ttsa-guard bench speed --shape small --plot speed.png
    """
    from ttsa_guard.bench.speed import SHAPES, Speed, results
    from ttsa_guard.bench.tables import speed_table

    if shape not in SHAPES:
        raise ConfigError(f"no shape is called {shape!r}", hint=nearest(shape, SHAPES))
    if plot:
        ready(plot)
    with common.progress() as progress:
        bar = progress.add_task(f"measuring {shape}", total=None)
        meter = Speed(shape, device=device, dtype=dtype)
        points = []
        for point in meter.sweep():
            points.append(point)
            progress.update(
                bar, description=f"{point.prefix} + {point.candidates} x {point.tokens} tokens"
            )
        memory = meter.memory()  # last, when libraries have taken what they keep
    if plot:
        machine = meter.machine()
        draw_speed(points, plot, title=f"{shape}, {machine.device}, {machine.dtype}")
    if as_json:
        typer.echo(json.dumps(results(meter, points, memory), indent=1))
        return
    common.show_numbers(speed_table(points))
    legend = "first: the beginning is computed too; later: it was kept from an earlier answer"
    common.out.print(f"times in ms; {legend}", style="dim")
    if memory:
        common.out.print(f"memory at the peak: {memory.ratio:.2f} of weights and keys")
