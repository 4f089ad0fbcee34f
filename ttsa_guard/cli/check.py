"""``ttsa-guard check``: a moderator's verdict on a text."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ttsa_guard.cli import common
from ttsa_guard.errors import ModeratorError, PromptError

if TYPE_CHECKING:
    from ttsa_guard.moderators.base import Moderator
    from ttsa_guard.verdict import Verdict

_STATUS = {"pass": 0, "flag": 1}
_STYLE = {"pass": "bold green", "flag": "bold red"}


def check(
    text: Annotated[
        str,
        typer.Argument(help="The answer to judge; '-' reads it from stdin.", show_default=False),
    ],
    moderator: common.ModeratorName = "lite",
    prompt: Annotated[
        str, typer.Option(help="What the user had said; many moderators do not look at it.")
    ] = "",
    config: common.Config = None,
    as_json: common.AsJson = False,
) -> None:
    """Judge a text.

    Exit status 0: it passes; 1: it is flagged; 2: it could not be judged.

    Example: ttsa-guard check --moderator lite "What a lovely day."
    """
    answer = sys.stdin.read() if text == "-" else text
    if not answer.strip():
        raise PromptError(
            "there is no text to judge", hint="give a text, or '-' and a text on stdin"
        )
    judge = common.build_moderator(common.settings(config=config), moderator)
    verdict = asyncio.run(_verdict(judge, answer, prompt))
    if verdict.decision == "failed":
        raise ModeratorError(
            f"moderator {moderator!r} failed: {verdict.reason}", hint="see ttsa-guard doctor"
        )
    _show(verdict, as_json)
    raise typer.Exit(_STATUS[verdict.decision])


async def _verdict(judge: Moderator, answer: str, prompt: str) -> Verdict:
    from ttsa_guard.moderators.base import moderate_safely

    with common.quiet("ttsa_guard"):  # a failure is told once, by us
        [verdict] = await moderate_safely(judge, [answer], prompts=[prompt])
    return verdict


def _show(verdict: Verdict, as_json: bool) -> None:
    categories = dict(verdict.categories)
    if as_json:
        data = {
            "moderator": verdict.moderator,
            "decision": verdict.decision,
            "score": verdict.score,
            "categories": categories,
        }
        typer.echo(json.dumps(data))
        return
    decision = (verdict.decision, _STYLE[verdict.decision])
    common.out.print(Text.assemble(decision, f"  {verdict.moderator} {verdict.score:.3f}"))
    for name, score in sorted(categories.items(), key=lambda item: -item[1]):
        common.out.print(f"  {name:<24} {score:.3f}", markup=False)
