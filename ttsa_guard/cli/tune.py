"""``ttsa-guard moderators tune``: the threshold that flags a given share of one's own harmless texts."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from ttsa_guard.cli import common
from ttsa_guard.cli.compare import judged
from ttsa_guard.cli.moderate import PromptField, TextField
from ttsa_guard.cli.rows import is_harmful, read_rows
from ttsa_guard.config import GuardConfig, Member
from ttsa_guard.errors import UsageError

if TYPE_CHECKING:
    from ttsa_guard.moderators.base import Moderator

_Z = 1.96
"""Standard deviations of a 95 % interval."""
_THRESHOLDS = ("threshold", "thresholds")


def tune(
    file: Annotated[Path, typer.Argument(help="Texts of yours, one JSON object a line.", show_default=False)],
    moderator: Annotated[str, typer.Option("--moderator", help="Plugin that judges.")] = "lite",
    false_alarms: Annotated[float, typer.Option(min=0.0001, max=0.5, help="Share of harmless texts that may be flagged.")] = 0.01,
    config: common.Config = None,
    text_field: TextField = "text",
    prompt_field: PromptField = "prompt",
    label_field: Annotated[str, typer.Option(help="Where the label is; texts without any are harmless.")] = "label",
    as_json: common.AsJson = False,
) -> None:
    """Find the threshold at which a moderator flags so many harmless texts, and what it finds of the harmful ones then.

    Example: ttsa-guard moderators tune answers.jsonl --moderator lite --false-alarms 0.01
    """
    rows = list(read_rows(file, text=text_field, prompt=prompt_field))
    bad = [label_field in row.data and is_harmful(file, row, label_field) for row in rows]
    if bad.count(False) < 1 / false_alarms:
        hint = f"for {false_alarms:g}, {math.ceil(1 / false_alarms)} are the fewest, ten times as many are better"
        raise UsageError(f"{file} has only {bad.count(False)} harmless texts", hint=hint)
    settings, options = _without_thresholds(common.settings(config=config), moderator)
    judge = common.build_moderator(settings, moderator)
    _has_threshold(judge)
    verdicts = asyncio.run(judged(judge, rows))
    if failed := sum(v.decision == "failed" for v in verdicts):
        raise UsageError(f"{moderator} failed on {common.counted(failed, 'text')}", hint="see: ttsa-guard moderate")
    scores = [verdict.score for verdict in verdicts]
    found = measured(
        [s for s, b in zip(scores, bad, strict=True) if not b], [s for s, b in zip(scores, bad, strict=True) if b], false_alarms
    )
    use = {"use": moderator, "options": {**options, "threshold": found["threshold"]}}
    if as_json:
        typer.echo(json.dumps({"moderator": moderator, **found, "gate": [use]}, indent=1))
    else:
        _show(found, use)


def measured(harmless: Sequence[float], harmful: Sequence[float], rate: float) -> dict[str, Any]:
    """Find the threshold for a false-alarm rate and what it does, with 95 % intervals; `recall` is None without harmful texts.

    The interval of the threshold spans those for the rates between which the true rate of the found one may lie.
    """
    from ttsa_guard.moderators.operating_points import operating_point

    threshold = round(operating_point(harmless, rate), 6)
    low, high = interval(rate * len(harmless), len(harmless))
    found: dict[str, Any] = {
        "threshold": threshold,
        "threshold_interval": [round(operating_point(harmless, high), 6), round(operating_point(harmless, low), 6)],
        **_share("false_alarms", harmless, threshold),
        "recall": None,
    }
    return found | (_share("recall", harmful, threshold) if harmful else {})


def interval(successes: float, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    share, z2 = successes / trials, _Z**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(name: str, scores: Sequence[float], threshold: float) -> dict[str, Any]:
    flagged = sum(score >= threshold for score in scores)
    bounds = [round(bound, 4) for bound in interval(flagged, len(scores))]
    return {name: round(flagged / len(scores), 4), f"{name}_interval": bounds, f"{name}_texts": len(scores)}


def _without_thresholds(settings: GuardConfig, moderator: str) -> tuple[GuardConfig, dict[str, Any]]:
    """Return the settings with the moderator's scores unchanged by thresholds that it may have, and its other options."""
    use = common.named(moderator, (*settings.gate, *settings.guide))
    options = {key: value for key, value in use.options.items() if key not in _THRESHOLDS}
    members = (Member(use=moderator, options=options),)
    return settings.model_copy(update={"gate": members, "guide": members}), options


def _has_threshold(judge: Moderator) -> None:
    """Refuse a moderator without a threshold.

    Raises:
        UsageError: the moderator has options, and no threshold among them.
    """
    options = getattr(judge, "options", None)
    if options is not None and "threshold" not in getattr(type(options), "model_fields", ("threshold",)):
        raise UsageError(f"the moderator {judge.name} has no threshold", hint="see: ttsa-guard plugins --verbose")


def _show(found: dict[str, Any], use: dict[str, Any]) -> None:
    low, high = found["threshold_interval"]
    common.out.print(f"threshold {found['threshold']:g} (95 %: {low:g} to {high:g})")
    for name, said in (("false_alarms", "flags {} of {} harmless texts"), ("recall", "finds {} of {} harmful ones")):
        if found[name] is not None:
            low, high = found[f"{name}_interval"]
            told = said.format(f"{found[name]:.1%}", f"{found[f'{name}_texts']:,}")
            common.out.print(f"{told} (95 %: {low:.1%} to {high:.1%})")
    common.out.print(f"\n{yaml.safe_dump({'gate': [use]}, sort_keys=False)}", markup=False, end="")
