"""``ttsa-guard moderate``: scores for a file of texts."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ttsa_guard.cli import common
from ttsa_guard.cli.rows import LabelledText, read_rows
from ttsa_guard.errors import ConfigError

if TYPE_CHECKING:
    from ttsa_guard.moderators.base import Moderator
    from ttsa_guard.verdict import Verdict

TextField = Annotated[str, typer.Option("--text-field", help="Where the text is.")]
PromptField = Annotated[str, typer.Option("--prompt-field", help="Where that is which the user had said; may be missing.")]


def moderate(
    file: Annotated[Path, typer.Argument(help="Texts, one JSON object a line.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Results; default: FILE with .scores.jsonl.", show_default=False)] = None,
    moderator: common.ModeratorName = "lite",
    config: common.Config = None,
    text_field: TextField = "text",
    prompt_field: PromptField = "prompt",
    batch: Annotated[int, typer.Option(min=1, help="Texts judged together.")] = 64,
) -> None:
    """Judge every text of a file.

    A run that was stopped goes on where it was. Texts are not copied into the results.

    Example: ttsa-guard moderate answers.jsonl --moderator lite --text-field answer
    """
    out = out or file.with_suffix(".scores.jsonl")
    rows = list(read_rows(file, text=text_field, prompt=prompt_field))
    done = _resumed(out, rows)
    judge = common.build_moderator(common.settings(config=config), moderator)
    asyncio.run(_score(judge, rows[done:], out, batch, done, len(rows)))
    counts = Counter(json.loads(line)["decision"] for line in out.read_text(encoding="utf-8").splitlines())
    told = ", ".join(f"{counts[d]} {word}" for d, word in (("flag", "flagged"), ("pass", "passed"), ("failed", "failed")))
    common.err.print(f"{common.counted(len(rows), 'text')}: {told}; see {out}", markup=False)


def _resumed(out: Path, rows: list[LabelledText]) -> int:
    """Count the rows that have a result. A last line that was cut off is removed.

    Raises:
        ConfigError: the results are those of other texts.
    """
    if not out.exists():
        return 0
    written = out.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    lines = whole.decode("utf-8", "replace").splitlines()
    for line, row in zip(lines, rows, strict=False):
        if not _belongs(line, row):
            raise ConfigError(f"{out} has the results of other texts", hint="name another file with --out, or remove that one")
    if len(lines) > len(rows):
        raise ConfigError(f"{out} has more results than there are texts", hint="name another file with --out")
    if whole != written:
        out.write_bytes(whole)
    return len(lines)


def _belongs(line: str, row: LabelledText) -> bool:
    try:
        return bool(json.loads(line)["digest"] == row.digest)
    except (ValueError, TypeError, KeyError):
        return False


async def _score(judge: Moderator, rows: list[LabelledText], out: Path, batch: int, done: int, total: int) -> None:
    from ttsa_guard.moderators.base import close, moderate_safely

    with common.progress() as progress, out.open("a", encoding="utf-8") as file:
        task = progress.add_task(f"judging with {judge.name}", total=total, completed=done)
        for start in range(0, len(rows), batch):
            chunk = rows[start : start + batch]
            with common.quiet("ttsa_guard"):  # failures are in the results
                verdicts = await moderate_safely(judge, [r.text for r in chunk], prompts=[r.prompt for r in chunk])
            file.writelines(json.dumps(_result(row, v)) + "\n" for row, v in zip(chunk, verdicts, strict=True))
            file.flush()
            progress.advance(task, len(chunk))
        await close(judge)


def _result(row: LabelledText, verdict: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = {"line": row.line, "digest": row.digest, "decision": verdict.decision, "score": verdict.score}
    found |= {"categories": dict(verdict.categories), "reason": verdict.reason}
    return found | ({"id": row.data["id"]} if "id" in row.data else {})
