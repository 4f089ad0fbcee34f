"""Bring the guard into an ``LLMRails``: read its settings, refuse what cannot be honoured, register
the parts.
"""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import Any

from nemoguardrails import RailsConfig, register_provider
from nemoguardrails.colang import parse_colang_file
from nemoguardrails.colang.v2_x.runtime.runtime import create_flow_configs_from_flow_list

# the package exports another one if IORails is switched on
from nemoguardrails.rails.llm.llmrails import LLMRails
from pydantic import Field

from ttsa_guard.config import GuardConfig
from ttsa_guard.environment import with_environment
from ttsa_guard.errors import ConfigError
from ttsa_guard.guard import Guard
from ttsa_guard.nemo.actions import NAME, TOOLS_FLOW, TOOLS_NAME, make_action, make_tools_action
from ttsa_guard.nemo.gate import NemoRail
from ttsa_guard.nemo.model import BackendModel
from ttsa_guard.nemo.names import ENGINE, FLOW, KEY
from ttsa_guard.nemo.privacy import guard_actions, guard_records, silence
from ttsa_guard.nemo.problems import unused
from ttsa_guard.nemo.rails import rails_path
from ttsa_guard.nemo.refusals import (
    enabled,
    refuse_app,
    refuse_other_weights,
    refuse_rails,
    refuse_settings,
)
from ttsa_guard.nemo.requests import guard_prompts, guard_requests, tell_images_apart
from ttsa_guard.nemo.streaming import guard_streams
from ttsa_guard.nemo.threads import separate_threads
from ttsa_guard.settings import Settings, validated

_building: ContextVar[Guard | None] = ContextVar("ttsa_guard_building", default=None)
"""The guard of the app whose models are being made: providers are global to the host, and guards
belong to one app."""


class ModelParameters(Settings):
    """``parameters`` of a model with our engine; the guard's settings are their defaults."""

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    seed: int | None = None


def init(app: Any) -> None:
    """Set up the guard as the app's configuration says.

    The host calls this for every ``config.py`` that has it. It does nothing if the app has a guard
    already.

    Raises:
        ConfigError, PluginError, ModelError: with a hint each; the host wraps them in a
            `RuntimeError`.
    """
    if installed_guard(app):
        return
    config = GuardConfig.parse(with_environment(app.config.custom_data.get(KEY)))
    refuse_settings(app.config)
    refuse_other_weights(app.config, config.backend)
    if app.config.colang_version == "1.0" and not enabled(app):
        raise unused()
    refuse_app(app)
    guard = Guard.from_config(config)
    install(app, guard)
    if any(model.engine == ENGINE for model in app.config.models):
        _provide_while_building(app, guard)


def install(app: Any, guard: Guard) -> None:
    """Make `guard` the output rail of an app that is built or being built.

    It replaces the one that is there.

    In Colang 1.0 the flow is added and enabled if the configuration does not name it. In Colang 2.x
    the app's own flow ``output rails`` has to call it. The app gets a copy of its configuration, so
    that another app can be made from that.

    Raises:
        ConfigError: the app would let flagged text through.
    """
    refuse_app(app)
    _add_flows(app, tools=guard.config.gate_tool_calls)
    checks = [moderator for moderator in guard.moderators if isinstance(moderator, NemoRail)]
    refuse_rails(app, guard.config, [check.flow for check in checks])
    for check in checks:
        check.bind(app)
    if not installed_guard(app):
        app.__getstate__ = _refuse_pickle
        guard_requests(app, lambda: app.runtime.registered_action_params[KEY])
        guard_prompts(app)
        tell_images_apart()
        separate_threads(app)
        guard_records(app)
        guard_actions(app)
        guard_streams(app, lambda: app.runtime.registered_action_params[KEY])
    silence()
    app.register_action(make_action(guard, plain=app.config.colang_version != "1.0"), NAME)
    if app.config.colang_version == "1.0":
        app.register_action(make_tools_action(guard), TOOLS_NAME)
    app.register_action_param(KEY, guard)


def passthrough_app(guard: Guard) -> LLMRails:
    """Make a chat app that does nothing but ask the guard's backend and have the guard review its
    answers.
    """
    config = guard.config
    model = BackendModel(
        guard.backend,
        generation=config.generation,
        seed=config.seed,
        seconds=config.answer_seconds,
        images=config.images,
    )
    app = LLMRails(
        RailsConfig.from_content(yaml_content="models: []\npassthrough: true\n"), llm=model
    )
    install(app, guard)
    return app


def installed_guard(app: Any) -> Guard | None:
    """Return the app's guard, if it has one."""
    guard: Guard | None = app.runtime.registered_action_params.get(KEY)
    return guard


def _provide_while_building(app: Any, guard: Guard) -> None:
    """Let the models of `app` with our engine, and of no other one, have the backend of `guard`."""
    register_provider(ENGINE, _provide)
    # the host has no public place for this, and looks providers up by their name alone
    make_models = app._init_llms

    def init_llms() -> None:
        _building.set(guard)
        try:
            make_models()
        finally:
            _building.set(None)

    app._init_llms = init_llms


def _provide(model: str, **parameters: Any) -> BackendModel:
    """Make a model with our engine; the host calls it."""
    guard = _building.get()
    if guard is None:
        raise ConfigError(
            f"the engine {ENGINE!r} is used by an app without our rail, whose answers nobody would"
            " review",
            hint=(
                f"add import_paths: [ttsa_guard/rails] and {FLOW!r} to rails.output.flows; from"
                " Python, without those: LLMRails(config, llm=BackendModel(guard.backend)) and"
                " install(app, guard)"
            ),
        )
    parameters.pop("mode", None)  # the host's own
    known = validated(ModelParameters, parameters, where=f"models.{model}.parameters")
    asked = known.model_dump(exclude_none=True)
    seed = asked.pop("seed", guard.config.seed)
    if "max_tokens" in asked:
        asked["max_new_tokens"] = asked.pop("max_tokens")
    generation = guard.config.generation.model_copy(update=asked)
    return BackendModel(
        guard.backend,
        name=model,
        generation=generation,
        seed=seed,
        seconds=guard.config.answer_seconds,
        images=guard.config.images,
    )


def _refuse_pickle() -> Any:
    raise ConfigError(
        "an app with a guard cannot be pickled or copied: it would come back without it",
        hint=(
            "pickle the configuration that it was made from, and call install on the app that is"
            " made from that"
        ),
    )


def _add_flows(app: Any, *, tools: bool) -> None:
    """Add our flows to an app that has not imported them, and enable them in Colang 1.0.

    The host has no public call for it.
    """
    version, runtime, rails = app.config.colang_version, app.runtime, app.config.rails
    first = version == "1.0"
    output = [FLOW] if first and not enabled(app) else []
    gate_tools = first and tools and TOOLS_FLOW not in rails.tool_output.flows
    tool_output = [TOOLS_FLOW] if gate_tools else []
    flows: list[Any] = []
    if FLOW not in runtime.flow_configs:
        file = "flows.v1.co" if first else "flows.co"
        source = (Path(rails_path()) / file).read_text(encoding="utf-8")
        flows = parse_colang_file(file, content=source, version=version)["flows"]
    if not (flows or output or tool_output):
        return
    _use_config(app, _with_flows(app.config, flows, output, tool_output))
    if not first:
        runtime.flow_configs.update(create_flow_configs_from_flow_list(flows))
        return
    for flow in app.config.flows:
        if flow.get("id") in (FLOW, TOOLS_FLOW):
            flow["is_system_flow"] = True  # keeps it out of prompts
    for flow in flows:
        runtime._load_flow_config(flow)


def _with_flows(
    config: RailsConfig, flows: list[Any], output: list[str], tool_output: list[str]
) -> RailsConfig:
    """Return a copy of `config` with these flows, and rails, at the end of its own."""
    rails = config.rails
    more = {
        "output": rails.output.model_copy(update={"flows": [*rails.output.flows, *output]}),
        "tool_output": rails.tool_output.model_copy(
            update={"flows": [*rails.tool_output.flows, *tool_output]}
        ),
    }
    return config.model_copy(
        update={"flows": [*config.flows, *flows], "rails": rails.model_copy(update=more)}
    )


def _use_config(app: Any, config: RailsConfig) -> None:
    """Put `config` in the place of the one that the parts of `app` have, as far as it is built."""
    actions = getattr(app, "_llm_generation_actions", None)
    for part in (app, app.runtime, app.runtime.llm_task_manager, actions):
        if part is not None:
            part.config = config
