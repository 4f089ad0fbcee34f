"""``ttsa-guard moderators tune``: the threshold that flags a given share of one's own harmless
texts.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from ttsa_guard.cli import common
from ttsa_guard.cli.moderate import KEPT, judged, kept_scores
from ttsa_guard.errors import UsageError
from ttsa_guard.moderators.labelled import is_harmful, read_texts

if TYPE_CHECKING:
    from ttsa_guard.config import GuardConfig
    from ttsa_guard.moderators.base import Moderator
    from ttsa_guard.moderators.tuning import TunedThreshold

_THRESHOLDS = ("threshold", "thresholds")


@common.stoppable(KEPT)
def tune(
    file: Annotated[
        Path, typer.Argument(help="Texts of yours, one JSON object a line.", show_default=False)
    ],
    moderator: common.ModeratorName = "lite",
    false_alarms: Annotated[
        float,
        typer.Option(min=0.0001, max=0.5, help="Share of harmless texts that may be flagged."),
    ] = 0.01,
    config: common.Config = None,
    text_field: common.TextField = "text",
    prompt_field: common.PromptField = "prompt",
    label_field: Annotated[
        str, typer.Option(help="Where the label is; texts without any are harmless.")
    ] = "label",
    as_json: common.AsJson = False,
) -> None:
    """Find the threshold at which a moderator flags a given share of harmless texts.

    If the file has harmful texts, too, the share of those that it then finds is told. A run that
    was stopped goes on where it was: until it is finished, its scores are in the cache.

    Example: ttsa-guard moderators tune answers.jsonl --moderator lite --false-alarms 0.01
    """
    texts = list(read_texts(file, text=text_field, prompt=prompt_field))
    bad = [label_field in text.data and is_harmful(file, text, label_field) for text in texts]
    if bad.count(False) < 1 / false_alarms:
        fewest = math.ceil(1 / false_alarms)
        hint = f"for {false_alarms:g}, {fewest} are the fewest, ten times as many are better"
        raise UsageError(f"{file} has only {bad.count(False)} harmless texts", hint=hint)
    settings, options = _without_thresholds(common.settings(config=config), moderator)
    kept = kept_scores(texts, settings, moderator)
    verdicts = judged(texts, kept, partial(_with_threshold, settings, moderator))
    kept.path.unlink()
    if failed := sum(v.decision == "failed" for v in verdicts):
        raise UsageError(
            f"{moderator} failed on {common.counted(failed, 'text')}",
            hint="see: ttsa-guard moderate",
        )
    from ttsa_guard.moderators.tuning import tuned

    scores: dict[bool, list[float]] = {False: [], True: []}
    for verdict, harmful in zip(verdicts, bad, strict=True):
        scores[harmful].append(verdict.score)
    threshold = tuned(scores[False], scores[True], false_alarms)
    use = {"use": moderator, "options": {**options, "threshold": threshold.value}}
    if as_json:
        data = {"moderator": moderator, **threshold.as_dict(), "gate": [use]}
        typer.echo(json.dumps(data, indent=1))
    else:
        _show(threshold, use)


def _without_thresholds(
    settings: GuardConfig, moderator: str
) -> tuple[GuardConfig, dict[str, Any]]:
    """Return the settings with this moderator alone and without its thresholds, which change its
    scores, and its other options.
    """
    from ttsa_guard.config import Member

    use = common.named(moderator, (*settings.gate, *settings.guide))
    options = {key: value for key, value in use.options.items() if key not in _THRESHOLDS}
    members = (Member(use=moderator, options=options),)
    return settings.model_copy(update={"gate": members, "guide": members}), options


def _with_threshold(settings: GuardConfig, moderator: str) -> Moderator:
    """Build a moderator that has a threshold.

    Raises:
        UsageError: the moderator has options, and no threshold among them.
    """
    judge = common.build_moderator(settings, moderator)
    options = getattr(judge, "options", None)
    if options is not None and "threshold" not in getattr(
        type(options), "model_fields", ("threshold",)
    ):
        raise UsageError(
            f"the moderator {judge.name} has no threshold", hint="see: ttsa-guard plugins --verbose"
        )
    return judge


def _show(threshold: TunedThreshold, use: dict[str, Any]) -> None:
    common.out.print(
        f"threshold {threshold.value:g} (95 %: {threshold.low:g} to {threshold.high:g})"
    )
    shares = (
        (threshold.false_alarms, "flags {} of {} harmless texts"),
        (threshold.recall, "finds {} of {} harmful ones"),
    )
    for share, words in shares:
        if share is not None:
            told = words.format(f"{share.value:.1%}", f"{share.texts:,}")
            common.out.print(f"{told} (95 %: {share.low:.1%} to {share.high:.1%})")
    common.out.print(f"\n{yaml.safe_dump({'gate': [use]}, sort_keys=False)}", markup=False, end="")
