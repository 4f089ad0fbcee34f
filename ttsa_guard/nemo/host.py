"""Bring the guard into an ``LLMRails``: read its settings, refuse what cannot be honoured, register the parts."""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import Any

from nemoguardrails import RailsConfig, register_provider
from nemoguardrails.colang import parse_colang_file
from nemoguardrails.colang.v2_x.runtime.runtime import create_flow_configs_from_flow_list
from nemoguardrails.rails.llm.llmrails import LLMRails  # the package exports another one if IORails is switched on
from pydantic import BaseModel, ConfigDict, Field

from ttsa_guard.config import GuardConfig, validated
from ttsa_guard.errors import ConfigError
from ttsa_guard.guard import Guard
from ttsa_guard.nemo import rails_path
from ttsa_guard.nemo.actions import FLOW, KEY, NAME, make_action
from ttsa_guard.nemo.gate import NemoRail
from ttsa_guard.nemo.model import ENGINE, BackendModel
from ttsa_guard.nemo.privacy import guard_reasoning, silence
from ttsa_guard.nemo.refusals import enabled, refuse_app, refuse_other_weights, refuse_rails, refuse_settings
from ttsa_guard.nemo.requests import guard_prompts, guard_requests
from ttsa_guard.nemo.streaming import guard_streams

_current: ContextVar[Guard] = ContextVar("ttsa_guard_current")
"""Whose backend the next model is made from: providers are global to the host, guards belong to one app."""


class ModelParameters(BaseModel):
    """``parameters`` of a model with our engine; what is not given is as in the guard's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    seed: int | None = None


def init(app: Any) -> None:
    """Set up the guard as the app's configuration says; the host calls this for every ``config.py`` that has it.

    Does nothing if the app has a guard already.

    Raises:
        ConfigError, PluginError, ModelError: with a hint each; the host wraps them in a `RuntimeError`.
    """
    if installed_guard(app):
        return
    config = GuardConfig.parse(app.config.custom_data.get(KEY))
    refuse_settings(app.config)
    refuse_other_weights(app.config, config.backend)
    if app.config.colang_version == "1.0" and not enabled(app):
        raise ConfigError(f"the flow {FLOW!r} is imported but not used", hint=f"add {FLOW!r} to rails.output.flows")
    refuse_app(app)
    guard = Guard.from_config(config)
    install(app, guard)
    if any(model.engine == ENGINE for model in app.config.models):
        _current.set(guard)
        register_provider(ENGINE, _provide)


def install(app: Any, guard: Guard) -> None:
    """Make `guard` the output rail of an app that is built or being built; it replaces the one that is there.

    In Colang 1.0 the flow is added and enabled if the configuration does not name it. In Colang 2.x the app's own flow
    ``output rails`` has to call it.

    Raises:
        ConfigError: the app would let flagged text through.
    """
    refuse_app(app)
    _add_flow(app)
    checks = [moderator for moderator in guard.moderators if isinstance(moderator, NemoRail)]
    refuse_rails(app, guard.config, [check.flow for check in checks])
    for check in checks:
        check.bind(app)
    if not installed_guard(app):
        guard_requests(app)
        guard_prompts(app)
        guard_reasoning(app)
        guard_streams(app, lambda: app.runtime.registered_action_params[KEY])
    silence()
    app.register_action(make_action(guard), NAME)
    app.register_action_param(KEY, guard)


def passthrough_app(guard: Guard) -> LLMRails:
    """A chat app that does nothing but ask the guard's backend and have the guard review its answers."""
    model = BackendModel(guard.backend, generation=guard.config.generation, seed=guard.config.seed)
    app = LLMRails(RailsConfig.from_content(yaml_content="models: []\npassthrough: true\n"), llm=model)
    install(app, guard)
    return app


def installed_guard(app: Any) -> Guard | None:
    """The app's guard, if it has one."""
    guard: Guard | None = app.runtime.registered_action_params.get(KEY)
    return guard


def _provide(model: str, **parameters: Any) -> BackendModel:
    """The host's factory for models with our engine."""
    parameters.pop("mode", None)  # the host's own
    asked = validated(ModelParameters, parameters, where=f"models.{model}.parameters").model_dump(exclude_none=True)
    guard = _current.get()
    seed = asked.pop("seed", guard.config.seed)
    if "max_tokens" in asked:
        asked["max_new_tokens"] = asked.pop("max_tokens")
    return BackendModel(guard.backend, name=model, generation=guard.config.generation.model_copy(update=asked), seed=seed)


def _add_flow(app: Any) -> None:
    """Add our flow to an app that has not imported it, and enable it in Colang 1.0; the host has no public call for it."""
    version, runtime = app.config.colang_version, app.runtime
    if FLOW not in runtime.flow_configs:
        file = "flows.v1.co" if version == "1.0" else "flows.co"
        source = (Path(rails_path()) / file).read_text(encoding="utf-8")
        flows = parse_colang_file(file, content=source, version=version)["flows"]
        app.config.flows.extend(flows)
        if version == "1.0":
            for flow in flows:
                flow["is_system_flow"] = True  # keeps it out of prompts
                runtime._load_flow_config(flow)
        else:
            runtime.flow_configs.update(create_flow_configs_from_flow_list(flows))
    if version == "1.0" and not enabled(app):
        app.config.rails.output.flows.append(FLOW)
