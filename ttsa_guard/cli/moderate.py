"""``ttsa-guard moderate``: scores for a file of texts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsa_guard.cli import common
from ttsa_guard.errors import ConfigError
from ttsa_guard.files import cache_folder, ready_file, reason, state_file
from ttsa_guard.moderators.labelled import LabelledText, read_texts

if TYPE_CHECKING:
    from ttsa_guard.config import GuardConfig
    from ttsa_guard.moderators.base import Moderator
    from ttsa_guard.moderators.scoring import ScoreFile
    from ttsa_guard.verdict import Verdict

KEPT = "the scores so far are kept; the same command goes on from there"
_BATCH = 64


@common.stoppable(KEPT)
def moderate(
    file: Annotated[
        Path, typer.Argument(help="Texts, one JSON object a line.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Results; default: FILE with .scores.jsonl.", show_default=False),
    ] = None,
    moderator: common.ModeratorName = "lite",
    config: common.Config = None,
    text_field: common.TextField = "text",
    prompt_field: common.PromptField = "prompt",
    batch: Annotated[int, typer.Option(min=1, help="Texts judged together.")] = _BATCH,
) -> None:
    """Judge every text of a file.

    A run that was stopped goes on where it was. Texts are not copied into the results.

    Example: ttsa-guard moderate answers.jsonl --moderator lite --text-field answer
    """
    out = out or file.with_suffix(".scores.jsonl")
    ready_file(out)
    from ttsa_guard.moderators.scoring import ScoreFile

    texts = list(read_texts(file, text=text_field, prompt=prompt_field))
    build = partial(common.build_moderator, common.settings(config=config), moderator)
    verdicts = judged(texts, ScoreFile(out, moderator), build, batch=batch)
    counts = Counter(verdict.decision for verdict in verdicts)
    told = f"{counts['flag']} flagged, {counts['pass']} passed, {counts['failed']} failed"
    common.err.print(f"{common.counted(len(texts), 'text')}: {told}; see {out}", markup=False)


def judged(
    texts: Sequence[LabelledText],
    scores: ScoreFile,
    build: Callable[[], Moderator],
    *,
    batch: int = _BATCH,
) -> list[Verdict]:
    """Return the verdicts on all texts: those in the file, and the rest, which goes there, too.

    There is a progress bar. Failures are not told, for they are among the verdicts.

    Args:
        build: makes the moderator if there is anything left to judge.
        batch: texts judged together.
    """
    known = scores.resume(texts)
    if known and len(known) == len(texts):
        return known
    judge = build()
    with common.progress() as progress, common.quiet("ttsa_guard"):
        task = progress.add_task(
            f"judging with {judge.name}", total=len(texts), completed=len(known)
        )
        found = scores.score(
            judge, texts[len(known) :], batch=batch, advance=lambda n: progress.advance(task, n)
        )
        return known + asyncio.run(found)


def kept_scores(texts: Sequence[LabelledText], settings: GuardConfig, moderator: str) -> ScoreFile:
    """Return the file in the cache for the scores of a command that has no other file for them.

    It is for the same texts, moderator and options only. Whoever has asked for it removes it after
    the work.

    Raises:
        ConfigError: the folder of the cache cannot be made.
    """
    from ttsa_guard.moderators.scoring import ScoreFile

    use = common.named(moderator, (*settings.gate, *settings.guide))
    digests = [text.digest for text in texts]
    path = state_file(cache_folder() / "scores", use.model_dump(mode="json"), digests)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {path.parent}: {reason(error)}",
            hint="set the variable XDG_CACHE_HOME to another folder",
        ) from None
    return ScoreFile(path, moderator)
