"""``ttsa-guard plan``: how many replicas a deployment needs, its costs, and what breaks first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table

from ttsa_guard.cli import common
from ttsa_guard.errors import ConfigError
from ttsa_guard.files import ready_file, ready_folder
from ttsa_guard.plots import draw_plan, draw_validation, ready

if TYPE_CHECKING:
    from ttsa_guard.plan.capacity import LoadPoint
    from ttsa_guard.plan.config import PlanConfig
    from ttsa_guard.plan.validation import Validation

app = typer.Typer(invoke_without_command=True)
Rows = Annotated[
    int, typer.Option(min=1, help="Most rows that the backend decodes together, its batch_size.")
]
_BREAKS = {
    "moderation": "the moderation limit",
    "rows": "the replicas' rows",
    "deadline": "the deadline",
    "target": "the latency target",
}


def _option(words: str, *names: str) -> Any:
    return typer.Option(*names, help=words, show_default=False)


@app.callback()
def plan(
    context: typer.Context,
    config: Annotated[Path | None, _option("YAML file with the plan's settings.")] = None,
    rate: Annotated[float | None, _option("Answers a second.")] = None,
    flags: Annotated[float | None, _option("Share of them that is flagged, 0 to 1.")] = None,
    tokens: Annotated[float | None, _option("Mean tokens of an answer.")] = None,
    replicas: Annotated[
        int | None, _option("Replicas; default: as many as the latency target takes.")
    ] = None,
    bench: Annotated[
        Path | None, _option("Folder of a benchmark, which says what searches take.")
    ] = None,
    costs: Annotated[Path | None, _option("File of 'ttsa-guard plan measure'.")] = None,
    as_json: common.AsJson = False,
    picture: Annotated[
        Path | None, _option("Draw latency, replicas and cost to this file.", "--plot")
    ] = None,
) -> None:
    """Simulate a deployment at 1 to 100,000 answers a second: latency, replicas, cost, and what
    breaks first.

    Example: ttsa-guard plan --rate 200 --flags 0.03
    """
    if context.invoked_subcommand:
        return
    _installed()
    if picture:
        ready(picture)
    from ttsa_guard.plan.capacity import RATES, breaking, table
    from ttsa_guard.plan.config import PlanConfig
    from ttsa_guard.plan.costs import Costs

    named = {
        "rate": rate,
        "flags": flags,
        "tokens": tokens,
        "replicas": replicas,
        "costs": costs and Costs.load(costs),
    }
    settings = PlanConfig.load(
        config, **{key: value for key, value in named.items() if value is not None}
    )
    if bench:
        from ttsa_guard.plan.searches import with_searches

        settings = with_searches(settings, bench)
    own = {settings.rate} if "rate" in settings.model_fields_set else set()
    with common.waiting("simulating"):
        points = table(settings, sorted({*RATES, *own}))
        broken = breaking(settings, points)
    if picture:
        draw_plan(points, settings.target, picture)
    if as_json:
        data = {
            "settings": settings.model_dump(mode="json"),
            "points": [p.as_dict() for p in points],
        }
        typer.echo(json.dumps({**data, "breaks": broken.as_dict() if broken else None}, indent=1))
        return
    common.out.print(_table(points, own))
    common.out.print(_words(settings, broken), style="dim")


@app.command()
def measure(
    out: Annotated[Path, _option("YAML file for the costs.")],
    model: common.Model = None,
    config: common.Config = None,
    rows: Rows = 32,
) -> None:
    """Measure on this machine what the work of a local model and of the gate takes: for --costs.

    Example: ttsa-guard plan measure --out costs.yml
    """
    _installed()
    from ttsa_guard.plan.measure import measure as measured

    ready_file(out)
    guard = common.build_guard(common.settings(model, config))
    with common.quiet(), common.waiting("measuring; let nothing else run"):
        costs = common.run(guard, measured(guard, rows=rows))
    out.write_text(yaml.safe_dump(costs.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    ends = ", ".join(f"{1e3 * s:.1f} ms with {n}" for n, s in (costs.step[0], costs.step[-1]))
    told = f"a step takes {ends} rows; a prompt token {1e6 * costs.prefill:.0f} µs"
    common.out.print(told, markup=False, soft_wrap=True)


@app.command()
@common.stoppable(
    "nothing is written; the same command begins anew; fewer --seconds take less time"
)
def validate(
    out: Annotated[Path, _option("Folder for the results.")],
    model: common.Model = None,
    config: common.Config = None,
    load: Annotated[
        list[float] | None, _option("Share of the capacity; several times; default 0.2, 0.5, 0.7.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="Length of a run; each load is run twice.")
    ] = 60,
    flags: Annotated[
        float,
        typer.Option(min=0.01, max=0.99, help="Share of the requests whose answer is flagged."),
    ] = 0.2,
    n: Annotated[int, typer.Option(min=1, help="Conversations of each kind.")] = 12,
    rows: Rows = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of conversations and traffic.")] = 0,
    as_json: common.AsJson = False,
) -> None:
    """Send Poisson traffic through one guard on this machine, and compare with the plan.

    It takes minutes, and nothing else should run meanwhile.

    Example: ttsa-guard plan validate --out validation --seconds 120
    """
    _installed()
    ready_folder(out)
    picture = out / "validation.png"
    ready(picture)
    from ttsa_guard.plan.validation import Validator

    guard = common.build_guard(common.settings(model, config))
    with common.quiet(), common.progress() as progress:
        bar = progress.add_task("", total=None)
        validator = Validator(
            guard,
            rows,
            flags,
            n,
            seconds,
            seed,
            say=lambda doing: progress.update(bar, description=doing),
        )
        validation = common.run(guard, validator.validate(load or (0.2, 0.5, 0.7)))
    text = json.dumps(validation.as_dict(), indent=1)
    (out / "validation.json").write_text(text + "\n", encoding="utf-8")
    draw_validation(validation, picture)
    if as_json:
        typer.echo(text)
    else:
        common.out.print(_validated(validation))
        flagged = f"{validation.flags:.0%} of them flagged"
        told = f"capacity: {validation.capacity:.3g} answers a second, {flagged}"
        common.out.print(told, style="dim", soft_wrap=True)


def _installed() -> None:
    if find_spec("simpy") is None:
        raise ConfigError("plans need simpy", hint="pip install 'ttsa-guard[plan]'")


def _table(points: Sequence[LoadPoint], own: set[float]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    titles = (
        "answers\na second",
        "repli-\ncas",
        "rows\nused",
        "unflagged\np95, s",
        "flagged\np50, s",
        "\np95, s",
        "\np99, s",
    )
    for title in (*titles, "too\nlate", "cost of\na million"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("\nbreaks")
    for p in points:
        shown = [p.unflagged.get("p95"), *(p.flagged.get(q) for q in ("p50", "p95", "p99"))]
        seconds = [f"{x:.3g}" if x is not None else "" for x in shown]
        late = f"{p.deadline:.1%}" if p.flagged else ""
        first = (f"{p.rate:,g}", f"{p.replicas:,}", f"{p.rows:.0%}")
        last = (late, f"{p.cost:,.2f}", p.limit or "")
        table.add_row(*first, *seconds, *last, style="bold" if p.rate in own else "")
    return table


def _words(settings: PlanConfig, broken: LoadPoint | None) -> str:
    number = f"{settings.replicas} replicas" if settings.replicas else "as many replicas as help"
    if broken is None or broken.limit is None:
        return f"with {number}, nothing breaks; seconds are those that the review adds"
    rate = f"{broken.rate:,.3g} answers a second"
    return f"with {number}, {_BREAKS[broken.limit]} breaks first, at {rate}"


def _validated(validation: Validation) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("load")
    table.add_column("seconds of", no_wrap=True)
    for title in ("", "answers", "measured", "predicted", "error", "runs apart"):
        table.add_column(title, justify="right")
    for row in validation.rows:
        for q in ("p50", "p95"):
            seconds = [
                f"{mean(run[q] for run in runs):.3f}" for runs in (row.measured, row.predicted)
            ]
            shares = (f"{row.error(q):+.0%}", f"{row.noise(q):.0%}")
            table.add_row(f"{row.load:.0%}", row.quantity, q, str(row.answers), *seconds, *shares)
    return table
