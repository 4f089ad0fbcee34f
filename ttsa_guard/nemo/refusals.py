"""Set-ups under which the host would show a flagged text, or do nothing in silence: refused at
start-up, with the fix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemoguardrails import RailsConfig

# the package exports another one if IORails is switched on
from nemoguardrails.rails.llm.llmrails import LLMRails

from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.errors import ConfigError
from ttsa_guard.nemo.names import FLOW
from ttsa_guard.nemo.problems import (
    colang_2_problems,
    misplaced,
    other_weights,
    output_problems,
    rail_problems,
)

_NOT_FLOW = re.compile(r'""".*?"""|#.*?$', re.DOTALL | re.MULTILINE)


def refuse_app(app: Any) -> None:
    """Raise `ConfigError` for an app in which our rail cannot do its work."""
    if not isinstance(app, LLMRails):
        raise ConfigError(
            f"{type(app).__name__} is no app with flows", hint="build the app with LLMRails(config)"
        )
    config, output = app.config, app.config.rails.output
    streaming = bool(output.streaming and output.streaming.enabled)
    _refuse(output_problems(parallel=bool(output.parallel), streaming=streaming))
    if config.colang_version != "1.0":
        chain = {"output rails", "run output rails"} <= app.runtime.flow_configs.keys()
        runs = chain and enabled(app)
        _refuse(colang_2_problems(runs=runs, tracing=config.tracing.enabled))


def refuse_settings(config: RailsConfig) -> None:
    """Raise if the guard's settings stand where the host drops them; only the files show that."""
    _refuse(misplaced(_yaml_files(config)))


def refuse_rails(app: Any, guard: GuardConfig, checks: list[str]) -> None:
    """Raise for other output rails of the app that are in the way.

    Args:
        checks: flows that the guard's gate runs itself.
    """
    single_call = app.config.rails.dialog.single_call.enabled
    _refuse(rail_problems(output_rails(app), guard, checks, single_call=single_call))


def refuse_other_weights(config: RailsConfig, backend: Use) -> None:
    """Raise if the configuration's files name other weights for our engine than the guard's backend
    has.

    The guard's settings alone name the weights: clients of the host's server may name any
    ``model``, and the host puts that into the configuration.
    """
    on_disk = config.config_path and Path(config.config_path).is_dir()
    models = (RailsConfig.from_path(config.config_path) if on_disk else config).models
    _refuse(other_weights(((model.engine, model.model) for model in models), backend))


def _refuse(problems: Iterator[ConfigError]) -> None:
    """Raise the first problem, if there is one."""
    if (problem := next(problems, None)) is not None:
        raise problem


def output_rails(app: Any) -> list[str]:
    """Return the app's output rails, in order."""
    if app.config.colang_version == "1.0" or app.config.rails.output.flows:
        return list(app.config.rails.output.flows)
    source = _NOT_FLOW.sub("", app.runtime.flow_configs["output rails"].source_code or "")
    return [line.strip() for line in source.splitlines()[1:] if line.strip()]


def enabled(app: Any) -> bool:
    """Return whether our flow is an output rail in the configuration, or another flow calls it."""
    others = (flow for name, flow in app.runtime.flow_configs.items() if name != FLOW)
    return FLOW in app.config.rails.output.flows or any(
        FLOW in (flow.source_code or "") for flow in others
    )


def _yaml_files(config: RailsConfig) -> list[Path]:
    if not config.config_path or not (folder := Path(config.config_path)).is_dir():
        return []
    return sorted([*folder.glob("*.yml"), *folder.glob("*.yaml")])
