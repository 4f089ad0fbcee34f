"""``ttsa-guard moderators compare``: several moderators on labelled texts, pooled and by source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ttsa_guard.cli import common
from ttsa_guard.cli.listing import plugin_names
from ttsa_guard.cli.moderate import KEPT, judged, kept_scores
from ttsa_guard.errors import UsageError
from ttsa_guard.moderators.labelled import is_harmful, read_texts
from ttsa_guard.plots import draw_curves, ready

if TYPE_CHECKING:
    from ttsa_guard.moderators.comparison import Comparison, ModeratorMetrics, SourceComparison

app = typer.Typer(no_args_is_help=True)
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
@common.stoppable(KEPT)
def compare(
    file: Annotated[
        Path, typer.Argument(help="Labelled texts, one JSON object a line.", show_default=False)
    ],
    moderator: Annotated[
        list[str],
        typer.Option(
            "--moderator",
            help="Plugin that judges; several times.",
            show_default=False,
            autocompletion=plugin_names("moderator"),
        ),
    ],
    config: common.Config = None,
    text_field: common.TextField = "text",
    prompt_field: common.PromptField = "prompt",
    label_field: Annotated[
        str,
        typer.Option(
            help=(
                "Where the label is: true, 1, 'unsafe', 'harmful'; or false, 0, 'safe', 'harmless'."
            )
        ),
    ] = "label",
    source_field: Annotated[
        str, typer.Option(help="Where it says which data set a text is from; may be missing.")
    ] = "source",
    plot: Annotated[
        Path | None, typer.Option(help="Write the curves to this PNG file.", show_default=False)
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """Measure moderators on labelled texts.

    The table has ranking (ROC-AUC, PR-AUC), calibration (Brier, ECE), decisions, and agreement
    (Cohen's kappa).

    A failed verdict counts as a flag with the score 1, as a guard counts it. Where texts come from
    several sources, each is told by itself, too: the areas of all together are partly about which
    source a text is from.

    A run that was stopped goes on where it was: until it is finished, its scores are in the cache.

    Example: ttsa-guard moderators compare labelled.jsonl --moderator lite --moderator
        second_opinion --plot curves.png
    """
    from ttsa_guard.moderators import comparison

    comparison.check_installed()
    if plot:
        ready(plot)
    texts = list(read_texts(file, text=text_field, prompt=prompt_field))
    labels = [is_harmful(file, text, label_field) for text in texts]
    if len(set(labels)) < 2:
        raise UsageError(
            f"{file} has texts of one kind only",
            hint=f"harms and others are needed; see --label-field {label_field}",
        )
    settings = common.settings(config=config)
    scores = {name: kept_scores(texts, settings, name) for name in moderator}
    verdicts = {
        name: judged(texts, own, partial(common.build_moderator, settings, name))
        for name, own in scores.items()
    }
    sources = [str(text.data.get(source_field, "")) for text in texts]
    compared = comparison.compare(labels, verdicts, sources)
    if plot:
        scored = {name: (labels, [v.score for v in own]) for name, own in verdicts.items()}
        draw_curves(scored, plot)
    if as_json:
        typer.echo(json.dumps(compared.as_dict(), indent=1))
    else:
        _show(compared)
    for own in scores.values():
        own.path.unlink(missing_ok=True)


def _show(compared: Comparison) -> None:
    common.out.print(_counts(compared))
    common.show_numbers(_table(compared.moderators))
    for pair, kappa in compared.kappa.items():
        common.out.print(f"agreement of {pair}: Cohen's kappa {kappa:.3f}", markup=False)
    for source, part in compared.sources.items():
        common.out.print(common.plain(f"\n{source or 'no source'}: {_counts(part)}"))
        common.show_numbers(_table(part.moderators))


def _counts(part: Comparison | SourceComparison) -> str:
    return f"{common.counted(part.texts, 'text')}, {part.harmful} of them harmful"


def _table(moderators: Mapping[str, ModeratorMetrics]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("moderator")
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for name, metrics in moderators.items():
        table.add_row(name, *(_cell(key, getattr(metrics, key)) for key in _COLUMNS))
    return table


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if key == "failed" else f"{value:.3f}"
