"""Write `docs/cli.md` from the command line itself: `python docs/make_cli.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from ttsa_guard.cli import app

PAGE = Path(__file__).parent / "cli.md"
NAME = "ttsa-guard"
EXAMPLE = re.compile(r"^Example: ", re.MULTILINE)
EVERYWHERE = ("help", "install_completion", "show_completion")
INTRODUCTION = """\
# Command line

<!-- Written by docs/make_cli.py; change the commands' docstrings and run it again. -->

`ttsa-guard COMMAND --help` shows what stands here. `ttsa-guard --install-completion` completes
commands, options, and the names of plugins, models and benchmarks in your shell. Colours are left
out where the variable `NO_COLOR` is set.

The exit status is one of these:

* 0: the command did what it was told.
* 1: it ran, but something is not well: `check` has flagged the text, `doctor` has found something
  broken, an arm of `bench run` has failed, or what `init` would write would not work.
* 2: it could not do it. One line on the standard error stream says why, and a hint how to mend it.
* 130: Ctrl-C has stopped it. One line says what is kept and how to go on: `bench run`, `moderate`,
  `moderators compare`, `moderators tune`, `plan validate`, `profile`, and `prosocial` with
  `--state` go on where they were when the same command is started again; others begin anew.

The states of `moderators compare` and `moderators tune` are in the folder `~/.cache/ttsa_guard`,
those of `plan validate` and `profile` beside the results. They hold scores and other numbers, for a
profile the openings of answers, but no moderated texts. A state is gone on from only with the same
arguments, texts and version of this package, and it is removed when the work is done.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    return "\n".join([INTRODUCTION, *(part for _, found in commands() for part in _section(found))])


def commands() -> Iterator[tuple[list[str], Any]]:
    """Yield words and context of every command that can be run, in the order of the help."""
    root = typer.main.get_command(app)
    yield from _below([NAME], root, None)


def example(context: Any) -> str:
    """Return the command line that a command's docstring gives as its example.

    Raises:
        ValueError: it gives none.
    """
    parts = EXAMPLE.split(context.command.help or "", maxsplit=1)
    if len(parts) == 1:
        raise ValueError(
            f"{context.command_path}: the docstring has no line that begins with 'Example: '"
        )
    return " ".join(parts[1].split())


def _below(words: list[str], command: Any, above: Any) -> Iterator[tuple[list[str], Any]]:
    context = command.context_class(command, info_name=words[-1], parent=above)
    inner = getattr(command, "commands", {})
    if not inner or command.invoke_without_command:
        yield words, context
    for name, found in inner.items():
        yield from _below([*words, name], found, context)


def _section(context: Any) -> Iterator[str]:
    path = context.command_path
    yield f"## {path.removeprefix(NAME).strip()}\n"
    yield f"{EXAMPLE.split(context.command.help)[0].strip()}\n"
    arguments = [p for p in context.command.get_params(context) if p.name not in EVERYWHERE]
    if arguments:
        yield "| argument | meaning |\n|---|---|"
        for argument in arguments:
            usage, meaning = argument.get_help_record(context)
            yield f"| `{usage.replace('|', ' or ')}` | {_cell(meaning)} |"
        yield ""
    yield f"```bash\n{example(context)}\n```\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "&#124;").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
