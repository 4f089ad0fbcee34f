"""What the commands share: options, settings, the guard, quiet libraries, and words for what
happened.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
import warnings
from collections.abc import Awaitable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ttsa_guard.cli.listing import plugin_names
from ttsa_guard.errors import ConfigError, TTSAError

if TYPE_CHECKING:
    from ttsa_guard.config import GuardConfig, Use
    from ttsa_guard.guard import Guard
    from ttsa_guard.moderators.base import Moderator
    from ttsa_guard.plugins import Plugins
    from ttsa_guard.record import AuditRecord

T = TypeVar("T")
_ENDLESS = 10_000
"""A width that no table needs."""
STOPPED = 130
"""The exit status of a command that Ctrl-C has stopped: 128 and the number of the signal."""
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def model_names(incomplete: str) -> list[str]:
    """Return the chat models that are at hand, for the shell: ours, and what is downloaded."""
    hub = os.environ.get("HF_HUB_CACHE") or Path(
        os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface", "hub"
    )
    cached = (p.name.removeprefix("models--") for p in Path(hub).glob("models--*--*"))
    names = ["embedded", "smollm2", *sorted(name.replace("--", "/") for name in cached)]
    return [name for name in names if name.startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Option(
        help="'embedded', 'smollm2', a Hugging Face name, or a path.",
        show_default=False,
        autocompletion=model_names,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with the guard's settings.", envvar="TTSA_GUARD_CONFIG", show_default=False
    ),
]
SteererName = Annotated[
    str | None,
    typer.Option(
        "--steerer",
        help="Use this steerer alone.",
        show_default=False,
        autocompletion=plugin_names("steerer"),
    ),
]
ModeratorName = Annotated[
    str,
    typer.Option(
        "--moderator", help="Plugin that judges.", autocompletion=plugin_names("moderator")
    ),
]
Prefer = Annotated[
    str | None,
    typer.Option(
        help="Of the steerer prosocial: attributes and weights, empathy=0.6,helpfulness=0.4.",
        show_default=False,
    ),
]
TextField = Annotated[str, typer.Option("--text-field", help="Where the text is.")]
PromptField = Annotated[
    str,
    typer.Option("--prompt-field", help="Where it says what the user said; may be missing."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def settings(
    model: str | None = None,
    config: Path | None = None,
    steerer: str | None = None,
    prefer: str | None = None,
) -> GuardConfig:
    """Return the guard's settings: the file, or the defaults, with what the command line names
    instead.

    Raises:
        ConfigError: the file is wrong, `--model` is given for a backend that takes no model, or
            `--prefer` without the steerer that has preferences.
    """
    from ttsa_guard.config import GuardConfig

    chosen = GuardConfig.deployed(config)
    if model is not None:
        if not model.strip():
            raise ConfigError(
                "--model is empty",
                hint="give 'embedded', 'smollm2', a Hugging Face name, or a path",
            )
        backend = chosen.backend.model_copy(
            update={"options": {**chosen.backend.options, "model": model}}
        )
        chosen = chosen.model_copy(update={"backend": backend})
    if steerer is not None:
        chosen = chosen.model_copy(
            update={"steerers": (named(steerer, chosen.steerers),), "steerers_for_harm": None}
        )
    if prefer is not None:
        chosen = chosen.model_copy(update={"steerers": _preferring(chosen.steerers, prefer)})
    return chosen.resolved()


def _preferring(steerers: Sequence[Use], prefer: str) -> tuple[Use, ...]:
    """Return the steerers, of which the one that has preferences gets these."""
    from ttsa_guard.config import Use

    if all(use.use != "prosocial" for use in steerers):
        raise ConfigError("--prefer is for the steerer prosocial", hint="add: --steerer prosocial")
    try:
        pairs = [part.split("=") for part in prefer.split(",")]
        weights = {name.strip(): float(weight) for name, weight in pairs}
    except ValueError:
        hint = "give attributes and weights, such as empathy=0.6,helpfulness=0.4"
        raise ConfigError("--prefer cannot be read", hint=hint) from None
    return tuple(
        u if u.use != "prosocial" else Use(use=u.use, options={**u.options, "prefer": weights})
        for u in steerers
    )


def named(plugin: str, uses: Sequence[Use]) -> Use:
    """Return the plugin with the options that the settings give it, if they name it."""
    from ttsa_guard.config import Use

    return next((use for use in uses if use.use == plugin), Use(use=plugin))


def build_guard(config: GuardConfig, plugins: Plugins | None = None) -> Guard:
    """Build the guard of every command; tests put a scripted one in its place."""
    from ttsa_guard.guard import Guard

    with quiet(), waiting("loading the model"):
        hide_loading_bars()
        return Guard.from_config(config, plugins=plugins)


def build_moderator(config: GuardConfig, name: str) -> Moderator:
    """Build the moderator `name`, with its options from the settings."""
    from ttsa_guard.plugins import Plugins

    moderator: Moderator = Plugins().make("moderators", named(name, (*config.gate, *config.guide)))
    return moderator


@contextmanager
def quiet(*others: str) -> Iterator[None]:
    """Keep warnings of all libraries, and logs of noisy ones and of `others`, out of our output."""
    loggers = [
        logging.getLogger(name)
        for name in ("nemoguardrails", "transformers", "huggingface_hub", *others)
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def hide_loading_bars() -> None:
    """Hide the bars that transformers draws while it loads weights, and while it unpacks a GGUF
    file.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        from transformers.utils import logging as transformers_logging
    except ImportError:  # then loading the backend says what to install
        return
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class _Rate(ProgressColumn):
    """How many steps a second are done, or how many seconds one takes."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.3g} s each")


class ProgressLines(Progress):
    """Progress as lines on standard error, for a log: at most one in half a minute."""

    apart = 30.0
    """Seconds between two lines."""

    def __init__(self) -> None:
        super().__init__(console=err, disable=True)
        self._said = time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task."""
        super().update(task_id, **changes)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count steps of a task."""
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if now - self._said < self.apart:
            return
        self._said = now
        [task] = [task for task in self.tasks if task.id == task_id]
        done = "" if task.total is None else f": {task.completed:.0f} of {task.total:.0f}"
        self.console.print(f"{task.description}{done}")


def progress(console: Console = err) -> Progress:
    """Return a progress bar that leaves nothing behind, or lines where nobody watches."""
    if not console.is_terminal:
        return ProgressLines()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def waiting(what: str) -> AbstractContextManager[Any]:
    """Say what is being done, to a person who is watching."""
    return err.status(what) if err.is_terminal else nullcontext()


@contextmanager
def stoppable(how: str = "") -> Iterator[None]:
    """End with one line and the status `STOPPED` where Ctrl-C stops a command.

    Args:
        how: says what is kept, and how to go on.
    """
    try:
        yield
    except KeyboardInterrupt:
        err.print("stopped" + (f": {how}" if how else ""), markup=False, soft_wrap=True)
        raise typer.Exit(STOPPED) from None


def run(guard: Guard, work: Coroutine[Any, Any, T]) -> T:
    """Do `work` in an event loop of its own, and close the guard there."""

    async def whole() -> T:
        try:
            return await work
        finally:
            await guard.close()

    return asyncio.run(whole())


async def timed(work: Awaitable[T]) -> tuple[T, float]:
    """Return the result, and the seconds it took."""
    started = time.perf_counter()
    return await work, time.perf_counter() - started


def plain(text: str, style: str = "") -> Text:
    """Clean a text of users or models for the terminal: no markup, no control sequences, nothing
    that cannot be encoded.
    """
    printable = (
        re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)
        .encode("utf-8", "replace")
        .decode("utf-8")
    )
    return Text(printable, style=style)


def show_numbers(table: Table) -> None:
    """Print a table of numbers, of which none is cut.

    A pipe gets it at its full width. A terminal gets it with cells that fold between words, and
    where it is too narrow for that, one block for each row.
    """
    full = Measurement.get(out, out.options.update(width=_ENDLESS), table).maximum
    if not out.is_terminal and "COLUMNS" not in os.environ:
        Console(file=out.file, width=max(full, out.width), highlight=False).print(table)
        return
    if full > out.width:  # rich would cut numbers, so the columns get the widths of their words
        for column in table.columns:
            cells = map(str, (column.header, *column.cells))
            parts = cells if column.no_wrap else (word for cell in cells for word in cell.split())
            column.width = max(map(len, parts), default=0)
        gaps = (1 if table.collapse_padding else 2) * (len(table.columns) - 1)
        full = gaps + sum(column.width or 0 for column in table.columns)
    if full <= out.width:
        out.print(table)
        return
    if table.title:
        out.print(plain(str(table.title), "bold"))
    headings = [" ".join(str(c.header).replace("-\n", "").split()) for c in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        told = [(heading, str(cell)) for heading, cell in zip(headings, row, strict=True)]
        out.print(plain(" ".join(told[0]), "bold"))
        for heading, cell in told[1:]:
            if cell:
                out.print(plain(f"  {heading}: {cell}"))


def counted(n: int, noun: str) -> str:
    """Return a number and its noun, in the plural where that is right: "1 candidate", "2
    candidates".
    """
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def happened(record: AuditRecord) -> str:
    """Write one line about a review."""
    effort = f"{counted(len(record.candidates), 'candidate')}, {record.seconds:.1f} s"
    if record.action == "pass":
        return f"passed by the gate (score {record.gate_score:.2f})"
    if record.action == "swap":
        kind = "" if record.helpful else ", a refusal"
        return f"answer adjusted by {record.steerer}{kind}: {effort}"
    return f"no answer given ({record.reason}): {effort}"


def fail(error: TTSAError) -> None:
    """Print an error as one line, and its hint."""
    err.print(
        Text.assemble(("error: ", "bold red"), plain(error.message.replace("\n", " "), "red")),
        soft_wrap=True,
    )
    if error.hint:
        err.print(Text.assemble("hint: ", plain(error.hint)), soft_wrap=True)
