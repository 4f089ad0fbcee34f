"""``ttsa-guard doctor``: is everything there, and does it work?"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

import typer
from rich.table import Table

from ttsa_guard.cli import common
from ttsa_guard.cli.common import out, plain
from ttsa_guard.errors import TTSAError

if TYPE_CHECKING:
    from ttsa_guard.config import GuardConfig
    from ttsa_guard.guard import Guard
    from ttsa_guard.verdict import Verdict

Level = Literal["ok", "note", "broken"]
_MARK: dict[Level, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "note": ("note", "yellow"),
    "broken": ("broken", "bold red"),
}
_QUESTION = "How do I clean a wooden table?"
_ANSWER = "Wipe it with a damp cloth, then dry it with a soft one."


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, how it is, and how to mend it."""

    subject: str
    detail: str
    level: Level = "ok"
    hint: str = ""


def doctor(
    model: common.Model = None, config: common.Config = None, as_json: common.AsJson = False
) -> None:
    """Check the installation, the plugins and the model.

    The exit status is 1 if something is broken.

    Example: ttsa-guard doctor --config guard.yaml
    """
    settings = common.settings(model, config)
    with common.quiet("ttsa_guard"), common.waiting("looking"):
        found = list(findings(settings))
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(finding) for finding in found]}, indent=1))
    else:
        _show(found)
    if any(finding.level == "broken" for finding in found):
        raise typer.Exit(1)


def _show(found: Iterable[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in found:
        table.add_row(_styled(finding.level), finding.subject, plain(finding.detail))
        if finding.hint:
            table.add_row("", "", plain(f"→ {finding.hint}", "yellow"))
    out.print(table)


def findings(settings: GuardConfig) -> Iterator[Finding]:
    """Yield everything that can be said, cheap things first."""
    yield Finding("python", platform.python_version())
    yield from _packages(settings)
    yield from _plugins(settings)
    try:
        guard = common.build_guard(settings)
    except TTSAError as error:
        yield Finding("guard", error.message, "broken", error.hint)
        return
    yield from _model(guard, settings.model)
    yield from _gate(settings)
    yield from _trial(guard)


def _packages(settings: GuardConfig) -> Iterator[Finding]:
    local: Level = "broken" if settings.backend.use == "transformers" else "note"
    yield _package("ttsa-guard", "broken", "pip install ttsa-guard")
    for package in ("torch", "transformers"):
        yield _package(package, local, f"for models in this process: pip install {package}")
    yield _package("nemoguardrails", "note", "only for apps of it: pip install nemoguardrails")
    yield _package("matplotlib", "note", "only for plots: pip install 'ttsa-guard[plot]'")


def _package(package: str, missing: Level, hint: str) -> Finding:
    try:
        return Finding(package, version(package))
    except PackageNotFoundError:
        return Finding(package, "not installed", missing, hint)


def _plugins(settings: GuardConfig) -> Iterator[Finding]:
    from ttsa_guard.cli.listing import imported, installed

    more = (*settings.image_gate, *settings.steerers, *(settings.steerers_for_harm or ()))
    used = {use.use for use in (settings.backend, *settings.guide, *settings.gate, *more)}
    points = installed(imported)
    if good := [listed.name for listed in points if not listed.error]:
        yield Finding("plugins", ", ".join(good))
    else:
        yield Finding("plugins", "none", "broken", "reinstall ttsa-guard")
    for listed in points:
        if listed.error:
            level: Level = "broken" if listed.name in used else "note"
            missing = "not installed" in listed.error
            hint = f"pip install {listed.package.split()[0]}, which brings it"
            hint = hint if missing else f"reinstall or remove {listed.package}"
            yield Finding(f"plugin {listed.name}", listed.error, level, hint)


def _model(guard: Guard, name: str) -> Iterator[Finding]:
    from ttsa_guard.backends.base import Described, TextOnly

    backend = guard.backend
    device = f"{backend.device}, {backend.dtype}" if isinstance(backend, Described) else "unknown"
    context = backend.context_length or "as its service says"
    yield Finding("model", f"{name}, device {device}, context {context}")
    if isinstance(backend, TextOnly):
        return  # a profile is of openings and likelihoods, of which it has none
    profile = guard.profile
    floor = "not measured" if profile.floor is None else f"{profile.floor:.2f} nats"
    what = f"{common.counted(len(profile.openings), 'opening')}, likelihood floor {floor}"
    if profile.model == "any":
        hint = f"better answers with: ttsa-guard profile {name}"
        yield Finding("profile", f"generic: {what}", "note", hint)
    else:
        yield Finding("profile", f"of {profile.model}: {what}")


def _gate(settings: GuardConfig) -> Iterator[Finding]:
    """Yield the members of the gate, and what was measured of those that are ours."""
    from ttsa_guard.moderators.measured import MEASURED

    for member in settings.resolved().gate:
        measured = MEASURED.get(member.use, "not measured by us; try it on texts of yours")
        yield Finding(f"gate {member.use}", str(measured))


def _trial(guard: Guard) -> Iterator[Finding]:
    """Try one plain generation and one check by the gate.

    The generated answer is not shown: nobody may have passed it.
    """
    from ttsa_guard.backends.base import DescribesDecoding
    from ttsa_guard.moderators.advice import BETTER, weak_gate

    try:
        words, generation, verdict, check = common.run(guard, _tried(guard))
    except TTSAError as error:
        yield Finding("generation", error.message, "broken", error.hint)
        return
    how = guard.backend.decoding if isinstance(guard.backend, DescribesDecoding) else ""
    yield Finding(
        "generation", f"{common.counted(words, 'word')} in {generation:.2f} s{how and ', '}{how}"
    )
    if verdict.decision == "failed":
        fault = f"{verdict.moderator} failed: {verdict.reason}"
        yield Finding("gate", fault, "broken", "check its options and its service")
    else:
        judged = f"{verdict.moderator}: {verdict.decision}, score {verdict.score:.3f}"
        yield Finding("gate", f"{judged}, in {check:.3f} s")
    if weak := weak_gate(guard.backend.name, [member.use for member in guard.config.gate]):
        yield Finding("gate", weak, "note", "better: " + "; or: ".join(BETTER))


async def _tried(guard: Guard) -> tuple[int, float, Verdict, float]:
    from ttsa_guard.messages import GenerationRequest, Message
    from ttsa_guard.moderators.base import moderate_safely

    prompt = await guard.backend.render(Message.conversation(_QUESTION))
    request = GenerationRequest(prompt, max_new_tokens=guard.config.generation.max_new_tokens)
    [answer], generation = await common.timed(guard.backend.generate([request]))
    judging = moderate_safely(
        guard.gate, [_ANSWER], prompts=[_QUESTION], seconds=guard.config.gate_seconds
    )
    [verdict], check = await common.timed(judging)
    return len(answer.text.split()), generation, verdict, check


def _styled(level: Level) -> str:
    text, style = _MARK[level]
    return f"[{style}]{text}[/]"
