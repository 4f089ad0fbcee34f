"""Find what is wrong with a host's configuration, without an app and without the host's modules.

At start-up the first of these problems is raised (see `ttsa_guard.nemo.refusals`), and
``ttsa-guard config check`` shows them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ttsa_guard.config import EMBEDDED, GuardConfig, Use
from ttsa_guard.errors import ConfigError
from ttsa_guard.nemo.names import ENGINE, FLOW, KEY


def output_problems(*, parallel: bool, streaming: bool) -> Iterator[ConfigError]:
    """Yield what ``rails.output`` says that undoes the rail's work.

    Args:
        parallel: ``rails.output.parallel``.
        streaming: ``rails.output.streaming.enabled``.
    """
    if parallel:
        yield ConfigError(
            "rails.output.parallel undoes rewrites: every rail sees the original and the last one"
            " wins",
            hint=(
                f"remove parallel: true; put {FLOW!r} before rails that only check, and they judge"
                " the new answer"
            ),
        )
    if streaming:
        yield ConfigError(
            "rails.output.streaming shows an answer in chunks, before it can be replaced",
            hint=(
                "remove it; stream_async works without it, or sooner with"
                f" custom_data.{KEY}.streaming: progressive"
            ),
        )


def colang_2_problems(*, runs: bool, tracing: bool) -> Iterator[ConfigError]:
    """Yield what keeps the rail from its work in Colang 2.x.

    Args:
        runs: whether a flow calls the rail.
        tracing: ``tracing.enabled``.
    """
    if not runs:
        yield ConfigError(
            "this Colang 2.x app does not run our output rail",
            hint=(
                "add to a .co file: import guardrails, and: flow output rails $output_text, with"
                f" the line: {FLOW}"
            ),
        )
    if tracing:
        yield ConfigError(
            "tracing.enabled makes every answer of a Colang 2.x app fail",
            hint="remove it; the guard's own OpenTelemetry spans do not need it",
        )


def unused() -> ConfigError:
    """Return the problem of a configuration in Colang 1.0 that does not name the rail."""
    return ConfigError(
        f"the flow {FLOW!r} is imported but not used",
        hint=f"add {FLOW!r} to rails.output.flows",
    )


def misplaced(files: Iterable[Path]) -> Iterator[ConfigError]:
    """Yield a problem for each place in YAML files where the host drops the guard's settings."""
    for path in files:
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # the host has read it, so it says what is wrong
        found = data if isinstance(data, dict) else {}
        rails = found.get("rails")
        nested = rails.get("config") if isinstance(rails, dict) else None
        for where, place in (("the top level", found), ("rails.config", nested)):
            if isinstance(place, dict) and KEY in place:
                yield ConfigError(
                    f"{path.name} has {KEY!r} under {where}, where the host drops it",
                    hint=f"move it to custom_data.{KEY}",
                )


def rail_problems(
    rails: Sequence[str], guard: GuardConfig, checks: Sequence[str], *, single_call: bool
) -> Iterator[ConfigError]:
    """Yield what other output rails do that is in the guard's way.

    Args:
        rails: the app's output rails, in order.
        checks: flows that the guard's gate runs itself.
        single_call: ``rails.dialog.single_call.enabled``.
    """
    before = rails[: rails.index(FLOW)] if FLOW in rails else []
    for rail in before:
        if rail.split(" $")[0] in checks:
            yield ConfigError(
                f"the rail {rail!r} blocks an answer before the gate, which runs it too, can have"
                " it mended",
                hint=f"remove it from the output rails, or put it after {FLOW!r}",
            )
    if guard.streaming == "progressive" and single_call:
        yield ConfigError(
            "streaming: progressive never ends in an app with rails.dialog.single_call",
            hint="set streaming: buffered, or rails.dialog.single_call.enabled: false",
        )
    others = [rail for rail in rails if rail != FLOW]
    if guard.streaming == "progressive" and others:
        yield ConfigError(
            f"streaming: progressive shows sentences before the rail {others[0]!r} has seen the"
            " answer",
            hint=(
                "set streaming: buffered, or let the gate do that check: gate: [{use: nemo_rail,"
                " options: {flow: ...}}]"
            ),
        )


def other_weights(models: Iterable[tuple[str, Any]], backend: Use) -> Iterator[ConfigError]:
    """Yield the models of our engine that are not the one that the guard's backend has.

    Args:
        models: engine and name of each model in the configuration.
    """
    loaded = backend.options.get("model", EMBEDDED if backend.use == "transformers" else None)
    for engine, name in models:
        if engine == ENGINE and loaded is not None and name != loaded:
            yield ConfigError(
                f"models names {name!r} for the engine {ENGINE!r}, but the guard's backend has"
                f" {loaded!r}",
                hint=(
                    f"set custom_data.{KEY}.backend: {{use: {backend.use}, options: {{model:"
                    f" {name}}}}}, or model: {loaded}"
                ),
            )
