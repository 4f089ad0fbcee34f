"""``ttsa-guard moderators compare``: several moderators on labelled texts, pooled and by source."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ttsa_guard.cli import common
from ttsa_guard.cli.moderate import PromptField, TextField
from ttsa_guard.cli.rows import LabelledText, is_harmful, read_rows
from ttsa_guard.errors import ConfigError, UsageError
from ttsa_guard.plots import draw_curves, ready

if TYPE_CHECKING:
    from ttsa_guard.moderators.base import Moderator
    from ttsa_guard.verdict import Verdict

app = typer.Typer(no_args_is_help=True)
_BATCH, _BINS = 64, 10
_COLUMNS = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "brier": "Brier",
    "ece": "ECE",
    "precision": "precision",
    "recall": "recall",
    "false_alarms": "false alarms",
    "failed": "failed",
}


@app.callback()
def _group() -> None:
    """Look at moderators side by side."""


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(help="Labelled texts, one JSON object a line.", show_default=False)],
    moderator: Annotated[list[str], typer.Option("--moderator", help="Plugin that judges; several times.", show_default=False)],
    config: common.Config = None,
    text_field: TextField = "text",
    prompt_field: PromptField = "prompt",
    label_field: Annotated[
        str, typer.Option(help="Where the label is: true, 1, 'unsafe', 'harmful'; or false, 0, 'safe', 'harmless'.")
    ] = "label",
    source_field: Annotated[str, typer.Option(help="Where it says which data set a text is from; may be missing.")] = "source",
    plot: Annotated[Path | None, typer.Option(help="Write the curves to this PNG file.", show_default=False)] = None,
    as_json: common.AsJson = False,
) -> None:
    """Ranking (ROC-AUC, PR-AUC), calibration (Brier, ECE), decisions and agreement (Cohen's kappa) on labelled texts.

    A failed verdict counts as a flag with the score 1, as a guard counts it. Where texts come from several sources, each is
    told by itself, too: the areas of all together are partly about which source a text is from.
    """
    metrics = _metrics()
    if plot:
        ready(plot)
    rows = list(read_rows(file, text=text_field, prompt=prompt_field))
    labels = [int(is_harmful(file, row, label_field)) for row in rows]
    if len(set(labels)) < 2:
        raise UsageError(
            f"{file} has texts of one kind only", hint=f"harms and others are needed; see --label-field {label_field}"
        )
    settings = common.settings(config=config)
    verdicts_of = {name: asyncio.run(judged(common.build_moderator(settings, name), rows)) for name in dict.fromkeys(moderator)}
    found = {
        "texts": len(rows),
        "harmful": sum(labels),
        "moderators": {name: measure(metrics, labels, verdicts) for name, verdicts in verdicts_of.items()},
        "kappa": {
            f"{a} / {b}": round(float(metrics.cohen_kappa_score(_flags(verdicts_of[a]), _flags(verdicts_of[b]))), 4)
            for a, b in combinations(verdicts_of, 2)
        },
    }
    if len(sources := _by_source(rows, source_field)) > 1:
        found["sources"] = {
            source: {
                "texts": len(places),
                "harmful": sum(labels[i] for i in places),
                "moderators": {
                    name: measure(metrics, [labels[i] for i in places], [verdicts[i] for i in places])
                    for name, verdicts in verdicts_of.items()
                },
            }
            for source, places in sources.items()
        }
    if plot:
        draw_curves({name: (labels, _scores(verdicts)) for name, verdicts in verdicts_of.items()}, plot)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _show(found)


def measure(metrics: Any, labels: Sequence[int], verdicts: Sequence[Verdict]) -> dict[str, float | None]:
    """What a moderator is worth on these labels; `metrics` is ``sklearn.metrics``. None: not to be said of labels of one kind."""
    scores, flags = _scores(verdicts), _flags(verdicts)
    harmful, harmless = sum(labels), len(labels) - sum(labels)
    both = harmful and harmless
    values = {
        "roc_auc": metrics.roc_auc_score(labels, scores) if both else None,
        "pr_auc": metrics.average_precision_score(labels, scores) if both else None,
        "brier": metrics.brier_score_loss(labels, scores),
        "ece": calibration_error(labels, scores),
        "precision": metrics.precision_score(labels, flags, zero_division=0) if both else None,
        "recall": metrics.recall_score(labels, flags, zero_division=0) if harmful else None,
        "false_alarms": sum(f for f, bad in zip(flags, labels, strict=True) if not bad) / harmless if harmless else None,
        "failed": sum(v.decision == "failed" for v in verdicts),
    }
    return {name: None if value is None else round(float(value), 4) for name, value in values.items()}


def _by_source(rows: Sequence[LabelledText], field: str) -> dict[str, list[int]]:
    """The places of each source's rows."""
    found: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(str(row.data.get(field, "")), []).append(i)
    return found


def calibration_error(labels: Sequence[int], scores: Sequence[float]) -> float:
    """Expected calibration error: the mean distance between score and share of harms in ten bins of equal width."""
    bins: list[list[tuple[int, float]]] = [[] for _ in range(_BINS)]
    for label, score in zip(labels, scores, strict=True):
        bins[min(int(score * _BINS), _BINS - 1)].append((label, score))
    return sum(abs(sum(label - score for label, score in found)) for found in bins) / len(labels)


async def judged(judge: Moderator, rows: Sequence[LabelledText]) -> list[Verdict]:
    from ttsa_guard.moderators.base import close, moderate_safely

    found: list[Verdict] = []
    with common.progress() as progress:
        task = progress.add_task(f"judging with {judge.name}", total=len(rows))
        for start in range(0, len(rows), _BATCH):
            chunk = rows[start : start + _BATCH]
            with common.quiet("ttsa_guard"):  # failures are counted
                found += await moderate_safely(judge, [r.text for r in chunk], prompts=[r.prompt for r in chunk])
            progress.advance(task, len(chunk))
    await close(judge)
    return found


def _flags(verdicts: Sequence[Verdict]) -> list[int]:
    return [int(v.flagged) for v in verdicts]


def _scores(verdicts: Sequence[Verdict]) -> list[float]:
    return [v.score for v in verdicts]


def _metrics() -> Any:
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ConfigError("scikit-learn is not installed", hint="pip install 'ttsa-guard[train,plot]'") from error
    return metrics


def _show(found: dict[str, Any]) -> None:
    common.out.print(f"{common.counted(found['texts'], 'text')}, {found['harmful']} of them harmful")
    common.out.print(_table(found["moderators"]))
    for pair, kappa in found["kappa"].items():
        common.out.print(f"agreement of {pair}: Cohen's kappa {kappa:.3f}", markup=False)
    for source, part in found.get("sources", {}).items():
        counts = f"{common.counted(part['texts'], 'text')}, {part['harmful']} of them harmful"
        common.out.print(common.plain(f"\n{source or 'no source'}: {counts}"))
        common.out.print(_table(part["moderators"]))


def _table(moderators: dict[str, dict[str, float | None]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("moderator")
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for name, values in moderators.items():
        table.add_row(name, *(_cell(key, values[key]) for key in _COLUMNS))
    return table


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if key == "failed" else f"{value:.3f}"
