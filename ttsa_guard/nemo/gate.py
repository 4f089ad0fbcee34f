"""A check of the host as a moderator: a team keeps the policy that it has and gains the repair.

Any output rail of the host's library will do, named as it is under ``rails.output.flows``; its
manifest says what its action takes. The rail itself must go from that list, or it would block the
answer before it can be mended.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from nemoguardrails import RailsConfig
from nemoguardrails.actions.rail_outcome import RailOutcome
from nemoguardrails.context import explain_info_var
from nemoguardrails.exceptions import InvalidRailsConfigurationError
from nemoguardrails.logging.explain import ExplainInfo
from nemoguardrails.logging.processing_log import processing_log_var
from nemoguardrails.manifests import (
    RailDirection,
    RailSurface,
    default_rail_catalog,
    parse_configured_surface,
)
from pydantic import Field

from ttsa_guard.errors import ConfigError, ModeratorError, nearest
from ttsa_guard.nemo.redaction import MARK
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.verdict import Verdict

_TEXTS = {"user_message", "bot_message"}
"""Context that a candidate has; of other context, the answer's own would be wrong for it."""


class NemoRailOptions(Settings):
    """Which output rail it is."""

    flow: str = Field(
        min_length=1,
        description="as under rails.output.flows, e.g. 'content safety check output $model=...'",
    )


class NemoRail:
    """Runs the action of one of the host's output rails on every text.

    What it blocks or would rewrite is flagged. It scores 0 or 1, so it can be a gate; as a guide it
    would give a search nothing to go by.

    Raises:
        ConfigError: the host has no such output rail, or one of its parameters is missing or
            unknown.
    """

    name = "nemo_rail"
    coarse = True

    def __init__(self, options: NemoRailOptions) -> None:
        self.options = options
        self.flow, self.parameters = _parsed(options.flow)
        self._surface = _surface(self.flow, self.parameters)
        self._app: Any = None

    def bind(self, app: Any) -> None:
        """Use the models, prompts and settings of this app.

        Raises:
            ConfigError: they lack what the rail needs.
        """
        settings = app.config
        try:
            # The host checks its own rails' needs, but only of those that it runs itself.
            RailsConfig(
                models=settings.models,
                prompts=settings.prompts,
                rails={"output": {"flows": [self.options.flow]}},
            )
        except (InvalidRailsConfigurationError, ValueError) as error:
            raise ConfigError(
                f"the gate's rail {self.flow!r} lacks something: {error}",
                hint="add it as for rails.output.flows",
            ) from None
        self._app = app

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Return one verdict for each text; the texts are checked at once.

        Raises:
            ModeratorError: it is not used inside an app of the host.
        """
        if self._app is None:
            raise ModeratorError(
                "nemo_rail works only in a NeMo Guardrails app", hint="see ttsa_guard.nemo.install"
            )
        checks = (self._check(text, prompt) for text, prompt in zip(texts, prompts, strict=True))
        return list(await asyncio.gather(*map(asyncio.ensure_future, checks)))

    async def _check(self, text: str, prompt: str) -> Verdict:
        calls, log = ExplainInfo(), []  # type: ignore[var-annotated]
        outer_explained, outer_log = explain_info_var.get(), processing_log_var.get()
        explain_info_var.set(calls)
        processing_log_var.set(log)
        try:
            action = self._app.runtime.action_dispatcher.get_action(self._surface.action.name)
            outcome = await action(**self._arguments(action, text, prompt))
        except Exception as error:
            return Verdict.failure(self.name, type(error).__name__)
        finally:
            # A judge's prompt quotes the text, which may be flagged and which clients may ask the
            # host for.
            for call in calls.llm_calls:
                call.prompt = call.completion = MARK
                call.raw_response = None
            if outer_explained:
                outer_explained.llm_calls += calls.llm_calls
            if outer_log is not None:
                outer_log += log
        if not isinstance(outcome, RailOutcome) or outcome.failed:
            return Verdict.failure(self.name, "no outcome")
        flagged = outcome.is_blocked or outcome.is_transform
        return Verdict.scored(
            self.name, float(flagged), threshold=0.5, categories={self.flow: float(flagged)}
        )

    def _arguments(self, action: Any, text: str, prompt: str) -> dict[str, Any]:
        """Return the arguments that the host would pass to the rail's action.

        Its own objects are passed under the names of the action's parameters, and the rest as the
        rail's manifest says.
        """
        runtime, context = self._app.runtime, {"user_message": prompt, "bot_message": text}
        own = runtime.registered_action_params
        offered = {
            **own,
            "llm": own.get(f"{self._surface.action.name}_llm", own.get("llm")),
            "config": self._app.config,
            "llm_task_manager": runtime.llm_task_manager,
            "context": {**context, "triggered_output_rail": self.options.flow},
        }
        taken = inspect.signature(action).parameters
        arguments = {name: value for name, value in offered.items() if name in taken}
        for binding in self._surface.bindings:
            source: Mapping[str, Any] = context if binding.kind == "context" else self.parameters
            value = binding.value if binding.kind == "literal" else source.get(binding.key or "")
            if value is not None:
                arguments[binding.action_param] = value
        return arguments


def _parsed(flow: str) -> tuple[str, dict[str, str]]:
    try:
        name, parameters = parse_configured_surface(flow)
    except ValueError as error:
        raise ConfigError(
            f"nemo_rail: {flow!r} is no flow of the host: {error}", hint="e.g. 'self check output'"
        ) from None
    return name, parameters


def _surface(flow: str, parameters: Mapping[str, str]) -> RailSurface:
    surfaces = {
        name: surface
        for (_, name), surface in default_rail_catalog().surfaces(RailDirection.OUTPUT).items()
    }
    if flow not in surfaces:
        raise ConfigError(
            f"nemo_rail: the host has no output rail {flow!r}", hint=nearest(flow, surfaces)
        )
    surface = surfaces[flow]
    taken = {b.key for b in surface.bindings if b.kind == "surface_param"}
    needed = {b.key for b in surface.bindings if b.required and b.kind == "surface_param"}
    if wrong := sorted(needed - parameters.keys()) or sorted(parameters.keys() - taken):
        raise ConfigError(
            f"nemo_rail: {flow!r} needs or does not take ${wrong[0]}",
            hint=f"write it as '{flow} $name=value'",
        )
    if other := sorted(
        str(b.key)
        for b in surface.bindings
        if b.required and b.kind == "context" and b.key not in _TEXTS
    ):
        raise ConfigError(
            f"nemo_rail: {flow!r} needs {other[0]!r}, which belongs to one answer and not to the"
            " candidates for another",
            hint="keep it under rails.output.flows, after 'ttsa steer output'",
        )
    return surface


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: nemo_rail``."""
    register("nemo_rail", NemoRail, options=NemoRailOptions)
