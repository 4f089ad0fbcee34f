"""Set-ups under which the host would show a flagged text, or do nothing in silence: refused at
start-up, with the fix.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from nemoguardrails import RailsConfig

# the package exports another one if IORails is switched on
from nemoguardrails.rails.llm.llmrails import LLMRails

from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.errors import ConfigError
from ttsa_guard.nemo.actions import FLOW, KEY
from ttsa_guard.nemo.model import ENGINE

_NOT_FLOW = re.compile(r'""".*?"""|#.*?$', re.DOTALL | re.MULTILINE)


def refuse_app(app: Any) -> None:
    """Raise `ConfigError` for an app in which our rail cannot do its work."""
    if not isinstance(app, LLMRails):
        raise ConfigError(
            f"{type(app).__name__} is no app with flows", hint="build the app with LLMRails(config)"
        )
    config, output = app.config, app.config.rails.output
    if output.parallel:
        raise ConfigError(
            "rails.output.parallel undoes rewrites: every rail sees the original and the last one"
            " wins",
            hint=(
                f"remove parallel: true; put {FLOW!r} before rails that only check, and they judge"
                " the new answer"
            ),
        )
    if output.streaming and output.streaming.enabled:
        raise ConfigError(
            "rails.output.streaming shows an answer in chunks, before it can be replaced",
            hint=(
                "remove it; stream_async works without it, or sooner with"
                f" custom_data.{KEY}.streaming: progressive"
            ),
        )
    if config.colang_version != "1.0":
        _refuse_colang_2(app)


def _refuse_colang_2(app: Any) -> None:
    chain = {"output rails", "run output rails"} <= app.runtime.flow_configs.keys()
    if not (chain and enabled(app)):
        raise ConfigError(
            "this Colang 2.x app does not run our output rail",
            hint=(
                "add to a .co file: import guardrails, and: flow output rails $output_text, with"
                f" the line: {FLOW}"
            ),
        )
    if app.config.tracing.enabled:
        raise ConfigError(
            "tracing.enabled makes every answer of a Colang 2.x app fail",
            hint="remove it; the guard's own OpenTelemetry spans do not need it",
        )


def refuse_settings(config: RailsConfig) -> None:
    """Raise if the guard's settings are where the host drops them; only the files show that."""
    for path in _files(config, "*.yml", "*.yaml"):
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # the host has read it, so it says what is wrong
        found = data if isinstance(data, dict) else {}
        rails = found.get("rails")
        nested = rails.get("config") if isinstance(rails, dict) else None
        for where, place in (("the top level", found), ("rails.config", nested)):
            if isinstance(place, dict) and KEY in place:
                raise ConfigError(
                    f"{path.name} has {KEY!r} under {where}, where the host drops it",
                    hint=f"move it to custom_data.{KEY}",
                )


def refuse_rails(app: Any, guard: GuardConfig, checks: list[str]) -> None:
    """Raise for other output rails of the app that are in the way.

    Args:
        checks: flows that the guard's gate runs itself.
    """
    rails = output_rails(app)
    before = rails[: rails.index(FLOW)] if FLOW in rails else []
    for rail in before:
        if rail.split(" $")[0] in checks:
            raise ConfigError(
                f"the rail {rail!r} blocks an answer before the gate, which runs it too, can have"
                " it mended",
                hint=f"remove it from the output rails, or put it after {FLOW!r}",
            )
    if guard.streaming == "progressive" and app.config.rails.dialog.single_call.enabled:
        raise ConfigError(
            "streaming: progressive never ends in an app with rails.dialog.single_call",
            hint="set streaming: buffered, or rails.dialog.single_call.enabled: false",
        )
    others = [rail for rail in rails if rail != FLOW]
    if guard.streaming == "progressive" and others:
        raise ConfigError(
            f"streaming: progressive shows sentences before the rail {others[0]!r} has seen the"
            " answer",
            hint=(
                "set streaming: buffered, or let the gate do that check: gate: [{use: nemo_rail,"
                " options: {flow: ...}}]"
            ),
        )


def refuse_other_weights(config: RailsConfig, backend: Use) -> None:
    """Raise if the configuration's files name other weights for our engine than the guard's backend
    has.

    The guard's settings alone name the weights: clients of the host's server may name any
    ``model``, and the host puts that into the configuration.
    """
    loaded = backend.options.get("model", "embedded" if backend.use == "transformers" else None)
    on_disk = config.config_path and Path(config.config_path).is_dir()
    for model in (RailsConfig.from_path(config.config_path) if on_disk else config).models:
        if model.engine == ENGINE and loaded is not None and model.model != loaded:
            raise ConfigError(
                f"models names {model.model!r} for the engine {ENGINE!r}, but the guard's backend"
                f" has {loaded!r}",
                hint=(
                    f"set custom_data.{KEY}.backend: {{use: {backend.use}, options: {{model:"
                    f" {model.model}}}}}, or model: {loaded}"
                ),
            )


def output_rails(app: Any) -> list[str]:
    """Return the app's output rails, in order."""
    if app.config.colang_version == "1.0" or app.config.rails.output.flows:
        return list(app.config.rails.output.flows)
    source = _NOT_FLOW.sub("", app.runtime.flow_configs["output rails"].source_code or "")
    return [line.strip() for line in source.splitlines()[1:] if line.strip()]


def enabled(app: Any) -> bool:
    """Whether the configuration names our flow as an output rail, or another flow calls it."""
    others = (flow for name, flow in app.runtime.flow_configs.items() if name != FLOW)
    return FLOW in app.config.rails.output.flows or any(
        FLOW in (flow.source_code or "") for flow in others
    )


def _files(config: RailsConfig, *patterns: str) -> list[Path]:
    folder = Path(config.config_path or "")
    return (
        sorted(p for pattern in patterns for p in folder.glob(pattern))
        if config.config_path and folder.is_dir()
        else []
    )
