"""``ttsa-guard init``: from a few answers to a guarded chat model."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, TypeVar

import typer

from ttsa_guard.cli import common
from ttsa_guard.cli.common import out, plain
from ttsa_guard.errors import ConfigError, nearest

if TYPE_CHECKING:
    from ttsa_guard.checking.report import Report
    from ttsa_guard.setup.answers import Answers
    from ttsa_guard.setup.plan import Change

C = TypeVar("C", bound=str)
T = TypeVar("T")
_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def init(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder to write to. An app of NeMo Guardrails that is in it gets the guard."
        ),
    ] = Path(),
    host: Annotated[
        Literal["colang-1", "colang-2", "none"] | None,
        typer.Option(
            help=(
                "A new app of NeMo Guardrails, in Colang 1.0 or 2.x; or none: settings for"
                " 'serve' and the library."
            ),
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        Literal["api", "vllm", "local"] | None,
        typer.Option(
            help=(
                "Where the chat model runs: behind an OpenAI-compatible API, on a vLLM server, or"
                " in the process."
            ),
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the chat model.", show_default=False)
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Base URL of its API or server.", show_default=False)
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable with its key; 'none': it wants none.", show_default=False
        ),
    ] = None,
    steering: Annotated[
        str | None,
        typer.Option(
            help=(
                "Local model that mends flagged answers of an API: 'embedded', 'smollm2', a Hugging"
                " Face name, or a path. 'none': the chat model itself is asked again."
            ),
            show_default=False,
        ),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Moderator that decides what a user may see; several are a panel. 'host': the"
                " checks among the app's own output rails."
            ),
            show_default=False,
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: take the defaults, and write.")
    ] = False,
) -> None:
    """Set up a guarded chat model, or put the guard into an app that you have.

    It asks for what no option says. What it would write is checked, as by 'config check', and shown
    as a diff. Comments and everything else in your files stay as they are. Run again, it changes
    only what you ask for. It ends with the command that tries the result.
    Exit status 0: all is set up; 1: it would not work, and nothing was written.

    Example: ttsa-guard init my_app --host colang-1 --chat api --model gpt-4o-mini
    """
    from ttsa_guard.setup.place import survey
    from ttsa_guard.setup.plan import check, plan, write
    from ttsa_guard.setup.questions import Given, answers_for

    ask = _Person(silent=yes)
    given = Given(host, chat, model, url, key_env, steering, gate)
    with common.quiet("ttsa_guard"):
        place = survey(folder)
        answers = answers_for(place, given, ask)
        changes = plan(place, answers)
        report = check(folder, changes, answers)
    _show(changes)
    if report.problems:
        _refuse(report)
    if changes and not ask.agrees("Write that?"):
        out.print("nothing was written")
        return
    write(changes)
    for change in changes:
        out.print(plain(f"{'amended' if change.before else 'wrote'} {change.path}", "bold green"))
    if not changes:
        out.print(plain(f"{folder}: nothing to change", "bold green"))
    _try(folder, answers)


class _Person:
    """Answers at the terminal; or, if silent, with what is usual."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent

    def text(self, option: str, question: str, default: str | None) -> str:
        if not self._silent:
            return str(_answered(lambda: typer.prompt(question, default=default))).strip()
        if default is None:
            raise ConfigError(f"{option} is missing", hint=f"add {option}: {question.lower()}")
        return default

    def choice(self, option: str, question: str, choices: Mapping[C, str], default: C) -> C:
        if self._silent:
            return default
        out.print(question)
        for name, meaning in choices.items():
            out.print(plain(f"  {name:9} {meaning}"), soft_wrap=True)
        while True:
            chosen = str(_answered(lambda: typer.prompt(option[2:], default=default))).strip()
            found = next((name for name in choices if name == chosen), None)
            if found is not None:
                return found
            out.print(plain(f"  {nearest(chosen, choices)}", "yellow"))

    def agrees(self, question: str) -> bool:
        return self._silent or bool(_answered(lambda: typer.confirm(question, default=True)))


def _answered(ask: Callable[[], T]) -> T:
    """Return the answer of a person.

    Raises:
        ConfigError: there is nobody to ask.
    """
    try:
        return ask()
    except typer.Abort as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise ConfigError(
            "init asks questions, and nobody answers", hint="add --yes, and options for the rest"
        ) from None


def _show(changes: Sequence[Change]) -> None:
    for change in changes:
        before, after = change.before.splitlines(), change.after.splitlines()
        old = str(change.path) if change.before else "/dev/null"
        for line in unified_diff(before, after, old, str(change.path), lineterm=""):
            out.print(plain(line, _STYLES.get(line[0], "")), soft_wrap=True)


def _refuse(report: Report) -> NoReturn:
    for problem in report.problems:
        out.print(plain(f"{problem.where}: {problem.message}", "red"), soft_wrap=True)
        if problem.hint:
            out.print(plain(f"  → {problem.hint}", "yellow"), soft_wrap=True)
    out.print(plain("it would not work like that, and nothing was written", "bold red"))
    raise typer.Exit(1)


def _try(folder: Path, answers: Answers) -> None:
    """Print the command that tries the result."""
    chat, settings = answers.chat, str(folder / "settings.yml")
    if answers.host != "none":
        command = ["nemoguardrails", "chat", "--config", str(folder)]
    elif chat.kind == "local":
        command = ["ttsa-guard", "chat", "--config", settings]
    else:
        key = ["--upstream-key-env", chat.key] if chat.key else []
        command = ["ttsa-guard", "serve", "--upstream", chat.url, *key, "--config", settings]
    out.print("\nTry it:")
    if chat.key and not os.environ.get(chat.key, "").strip():
        out.print(plain(f"  export {chat.key}=...   # its key is not set"))
    out.print(plain(f"  {shlex.join(command)}", "bold"), soft_wrap=True)
