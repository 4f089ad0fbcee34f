"""``ttsa-guard profile``: collect what the guard should know about a chat model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsa_guard.cli import common
from ttsa_guard.cli.common import out, plain
from ttsa_guard.errors import ConfigError
from ttsa_guard.files import read_state, ready_file, reason, state_file

if TYPE_CHECKING:
    from rich.progress import Progress

    from ttsa_guard.config import GuardConfig
    from ttsa_guard.profile import ModelProfile

_PROBES = ("harmless", "unsafe")


@common.stoppable(
    "the same command goes on after the last finished part; --no-trials or fewer --samples take"
    " less time"
)
def profile(
    model: Annotated[
        str,
        typer.Argument(
            help="'embedded', a Hugging Face name, or a path.",
            show_default=False,
            autocompletion=common.model_names,
        ),
    ],
    file: Annotated[
        Path | None,
        typer.Option("--out", help="Write it here, not to the cache.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question.")] = 8,
    moderator: common.ModeratorName = "lite",
    prompts: Annotated[
        Path | None,
        typer.Option(help="YAML file with the lists 'harmless' and 'unsafe'.", show_default=False),
    ] = None,
    trials: Annotated[
        bool, typer.Option(help="Try the steerers on flagged answers, and learn their order.")
    ] = True,
    config: common.Config = None,
) -> None:
    """Collect a model's profile, once for each model; it takes minutes.

    It says how the model's safe answers begin, how likely its own answers are, and which steerers
    mend its flagged answers soonest.

    Example: ttsa-guard profile Qwen/Qwen3-4B-Instruct-2507
    """
    asked = _probes(prompts) if prompts else {}
    settings = common.settings(model, config)
    path = file or _cached(model)
    ready_file(path, make=True)
    part = state_file(path, model, moderator, samples, asked, settings.model_dump(mode="json"))
    collected = _collected(settings, moderator, samples, asked, trials=trials, part=part)
    try:
        collected.save(path)
        part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {reason(error)}", hint="give another file with --out"
        ) from error
    kinds = Counter(opening.kind for opening in collected.openings)
    floor = "not measured" if collected.floor is None else f"{collected.floor:.2f} nats"
    told = ", ".join(
        common.counted(kinds[kind], f"{kind} opening") for kind in ("answer", "redirect", "refusal")
    )
    out.print(plain(f"{told}; likelihood floor {floor}"), soft_wrap=True)
    if trials:
        order = (
            ", ".join(use.use for use in collected.steerers)
            or "as by default; too few flagged answers to learn an order"
        )
        out.print(plain(f"steerers where the question can be answered: {order}"), soft_wrap=True)
    out.print(plain(f"written to {path}"), soft_wrap=True)
    _explain_use(model, path, named=file is not None)


def _collected(
    settings: GuardConfig,
    moderator: str,
    samples: int,
    asked: dict[str, list[str]],
    *,
    trials: bool,
    part: Path,
) -> ModelProfile:
    """Return the profile. Its openings are kept in `part` while the steerers are tried."""
    from ttsa_guard.plugins import Plugins
    from ttsa_guard.profile import ModelProfile, with_whole_beginnings
    from ttsa_guard.profiling import learned
    from ttsa_guard.steerers.openings import collect, default_probes

    judge = common.build_moderator(settings, moderator)
    # Trials decide on drafts: how an answer goes on tells little about the steerer.
    drafts = settings.generation.model_copy(
        update={"max_new_tokens": settings.generation.draft_tokens}
    )
    guard = common.build_guard(settings.model_copy(update={"generation": drafts}))
    harmless, unsafe = default_probes()

    async def openings(bar: Progress) -> ModelProfile:
        task = bar.add_task("sampling answers", total=None)
        collected = await collect(
            guard.backend,
            judge,
            harmless=asked.get("harmless", harmless),
            unsafe=asked.get("unsafe", unsafe),
            samples=samples,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        return with_whole_beginnings(collected)

    async def work(bar: Progress) -> ModelProfile:
        collected = read_state(part, ModelProfile.model_validate_json) or await openings(bar)
        if not trials:
            return collected
        collected.save(part)
        trying = bar.add_task("trying steerers", total=None)
        return await learned(
            guard.with_steerers((), collected),
            Plugins(),
            on_progress=lambda done, total: bar.update(trying, completed=done, total=total),
        )

    with common.quiet(), common.progress() as bar:
        return common.run(guard, work(bar))


def _probes(path: Path) -> dict[str, list[str]]:
    """Read questions from a file.

    Raises:
        ConfigError: it is not a mapping of "harmless" and "unsafe" to lists of texts.
    """
    from ttsa_guard.settings import read_yaml

    hint = "write two lists of questions: 'harmless:' and 'unsafe:'"
    data = read_yaml(path, hint=hint)
    if not isinstance(data, dict) or set(data) != set(_PROBES):
        raise ConfigError(f"{path} does not hold the two lists", hint=hint)
    for name in _PROBES:
        if not isinstance(data[name], list) or not all(
            isinstance(q, str) and q.strip() for q in data[name]
        ):
            raise ConfigError(f"{name!r} in {path} is not a list of questions", hint=hint)
    return data


def _cached(model: str) -> Path:
    from ttsa_guard.hf.profiles import cached_profile

    return cached_profile(model)


def _explain_use(model: str, path: Path, *, named: bool) -> None:
    from ttsa_guard.hf.profiles import beside

    first = beside(model)
    if named and path.resolve() != first.resolve():
        out.print("[dim]to use it, set backend.options.profile to this file[/]")
    elif not named and first.is_file():
        out.print(plain(f"it is not used as long as there is {first}", "yellow"), soft_wrap=True)
