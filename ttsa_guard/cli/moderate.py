"""``ttsa-guard moderate``: scores for a file of texts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from ttsa_guard.cli import common
from ttsa_guard.files import ready_file
from ttsa_guard.moderators.labelled import read_texts


@common.stoppable("the scores so far are kept; the same command goes on from there")
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
    batch: Annotated[int, typer.Option(min=1, help="Texts judged together.")] = 64,
) -> None:
    """Judge every text of a file.

    A run that was stopped goes on where it was. Texts are not copied into the results.

    Example: ttsa-guard moderate answers.jsonl --moderator lite --text-field answer
    """
    out = out or file.with_suffix(".scores.jsonl")
    ready_file(out)
    from ttsa_guard.moderators.scoring import ScoreFile

    texts = list(read_texts(file, text=text_field, prompt=prompt_field))
    scores = ScoreFile(out)
    done = scores.resume(texts)
    judge = common.build_moderator(common.settings(config=config), moderator)
    with common.progress() as progress, common.quiet("ttsa_guard"):  # failures are in the results
        task = progress.add_task(f"judging with {judge.name}", total=len(texts), completed=done)
        asyncio.run(
            scores.score(
                judge, texts[done:], batch=batch, advance=lambda n: progress.advance(task, n)
            )
        )
    counts = scores.decisions()
    told = f"{counts['flag']} flagged, {counts['pass']} passed, {counts['failed']} failed"
    common.err.print(f"{common.counted(len(texts), 'text')}: {told}; see {out}", markup=False)
