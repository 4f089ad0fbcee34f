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
from ttsa_guard.files import ready_file, ready_folder, state_file
from ttsa_guard.plots import draw_plan, draw_validation, ready

if TYPE_CHECKING:
    from ttsa_guard.plan.capacity import LoadPoint
    from ttsa_guard.plan.config import PlanConfig
    from ttsa_guard.plan.validation import Validation

app = typer.Typer(invoke_without_command=True)
_ALWAYS = 50
"""A rate that is as many times lower than the lowest in the table is as good as none."""
_LEGEND = (
    "seconds are those that the review adds; load is the share of the most work that the replicas"
    " could do"
)
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
    target: Annotated[
        float | None, _option("Most seconds that 95 % of flagged answers may take longer.")
    ] = None,
    price: Annotated[float | None, _option("Price of a replica for an hour.")] = None,
    replicas: Annotated[
        int | None, _option("Replicas; default: as many as the latency target takes.")
    ] = None,
    bench: Annotated[
        Path | None, _option("Folder of a benchmark, which says what searches take.")
    ] = None,
    audit: Annotated[
        Path | None,
        _option("Audit file, which says rate, flags, searches and the gate's seconds."),
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
        "target": target,
        "price": price,
        "replicas": replicas,
        "costs": costs and Costs.load(costs),
    }
    settings = PlanConfig.load(
        config, **{key: value for key, value in named.items() if value is not None}
    )
    if bench and audit:
        raise ConfigError("--bench and --audit both say what searches take", hint="give one")
    if bench or audit:
        from ttsa_guard.plan.searches import with_audit, with_searches

        settings = with_searches(settings, bench) if bench else settings
        settings = with_audit(settings, audit) if audit else settings
    own = {settings.rate} if audit or "rate" in settings.model_fields_set else set()
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
    common.out.print(_assumed(settings, bench or audit))
    common.show_numbers(_table(points, own))
    common.out.print(_words(settings, points, broken), style="dim")


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
    "the same command goes on after the last finished run; fewer --seconds take less time"
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

    It takes minutes, and nothing else should run meanwhile. A validation that was stopped goes on
    after its last finished run; only the conversations are asked for again, because no texts are
    kept.

    Example: ttsa-guard plan validate --out validation --seconds 120
    """
    _installed()
    ready_folder(out)
    picture = out / "validation.png"
    ready(picture)
    from ttsa_guard.plan.measure import about
    from ttsa_guard.plan.validation import Validator

    settings = common.settings(model, config)
    loads = load or [0.2, 0.5, 0.7]
    guard = common.build_guard(settings)
    asked = (settings.model_dump(mode="json"), about(guard.backend), loads)
    state = state_file(out / "validation.json", *asked, seconds, flags, n, rows, seed)
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
            state=state,
        )
        validation = common.run(guard, validator.validate(loads))
    text = json.dumps(validation.as_dict(), indent=1)
    (out / "validation.json").write_text(text + "\n", encoding="utf-8")
    draw_validation(validation, picture)
    if as_json:
        typer.echo(text)
    else:
        common.show_numbers(_validated(validation))
        flagged = f"{validation.flags:.0%} of them flagged"
        told = f"capacity: {validation.capacity:.3g} answers a second, {flagged}"
        common.out.print(told, style="dim", soft_wrap=True)
    state.unlink()


def _installed() -> None:
    if find_spec("simpy") is None:
        raise ConfigError("plans need simpy", hint="pip install 'ttsa-guard[plan]'")


def _table(points: Sequence[LoadPoint], own: set[float]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    titles = (
        "answers\na second",
        "repli-\ncas",
        "time\nbusy",
        "load",
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
        rate = f"{p.rate:,.0f}" if p.rate >= 100 else f"{p.rate:.3g}"
        first = (rate, f"{p.replicas:,}", f"{p.busy:.0%}", f"{p.load:.0%}")
        last = (late, f"{p.cost:,.2f}", p.limit or "")
        table.add_row(*first, *seconds, *last, style="bold" if p.rate in own else "")
    return table


def _words(settings: PlanConfig, points: Sequence[LoadPoint], broken: LoadPoint | None) -> str:
    number = "as many replicas as help"
    if settings.replicas:
        number = common.counted(settings.replicas, "replica")
    told = "nothing breaks"
    if broken and broken.limit:
        always = broken.rate < points[0].rate / _ALWAYS
        when = "at any rate" if always else f"at {broken.rate:,.3g} answers a second"
        told = f"{_BREAKS[broken.limit]} breaks first, {when}"
    return f"with {number}, {told}; {_LEGEND}"


def _assumed(settings: PlanConfig, measured: Path | None) -> Table:
    """Return what the numbers rest on, so that nobody takes a default for a fact."""
    gate = settings.first
    limit = f", at most {gate.per_second:g} calls a second" if gate.per_second else ""
    generated = {"chat": "generated here", "reviews": "generated elsewhere"}[settings.traffic]
    table = Table.grid(padding=(0, 2))
    for name, told in (
        ("model", _machine(settings)),
        ("answers", f"{settings.tokens:g} tokens, {generated}; prompts {settings.prompt}"),
        ("flagged", f"{settings.flags:.2%}, mended within {settings.deadline:g} s"),
        ("search", _search(settings, measured)),
        ("gate", f"{1e3 * gate.p50:.3g} ms a call (median){limit}"),
        ("price", f"{settings.price:g} for a replica and hour"),
        ("target", f"95 % of the flagged answers take at most {settings.target:g} s longer"),
    ):
        table.add_row(f"[dim]{name}[/]", common.plain(told))
    return table


def _machine(settings: PlanConfig) -> str:
    if settings.costs:
        about = settings.costs.about
        return f"{about.get('model', 'a model')} on {about.get('device', 'a device')}, as measured"
    shape = settings.shape
    return (
        f"{shape.parameters / 1e9:g} billion parameters of {shape.bytes:g} bytes, on"
        f" {shape.memory / 1e9:g} GB, {shape.flops / 1e12:g} TFLOP/s and"
        f" {shape.bandwidth / 1e12:g} TB/s, {shape.efficiency:.0%} of them reached;"
        " an estimate: measure yours with 'plan measure'"
    )


def _search(settings: PlanConfig, measured: Path | None) -> str:
    searches = settings.searches
    passes, generations = mean(s.passes for s in searches), mean(s.generations for s in searches)
    taken = f"{generations:.1f} generations in {passes:.1f} passes"
    if measured:
        return f"{taken}: as in {measured}, with the lengths there, whatever --tokens says"
    known = "searches" in settings.model_fields_set
    told = "as the settings say" if known else "like the benchmark's default"
    if all(s.tokens is not None for s in searches):
        return f"{taken}: {told}"
    return f"{taken}: {told}; drafts of up to {settings.draft} tokens, then the rest of the answer"


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
