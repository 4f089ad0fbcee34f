"""A bridge to the guards of the library any-guardrail.

https://github.com/mozilla-ai/any-guardrail
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from math import isnan
from typing import Any

from pydantic import Field

from ttsa_guard.errors import ConfigError, nearest
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.verdict import Verdict

log = logging.getLogger(__name__)


class AnyGuardrailOptions(Settings):
    """Options of the moderator ``any_guardrail``."""

    guardrail: str = Field(min_length=1, description="its name in the library, e.g. 'duo_guard'")
    options: dict[str, Any] = Field(
        default_factory=dict, description="passed to the guard, e.g. model_id"
    )


class AnyGuardrail:
    """Asks a guard of the library about every text, one after the other.

    The guard's own verdict decides.

    If a guard gives no score, a pass counts as 0 and a flag as 1. That is enough for a gate, but
    too coarse to guide a search.

    Raises:
        ConfigError: the library is not installed, or has no such guard.
    """

    name = "any_guardrail"

    def __init__(self, options: AnyGuardrailOptions) -> None:
        self.options = options
        self._library = _library()
        names = {
            str(name.value): name for name in self._library.AnyGuardrail.get_supported_guardrails()
        }
        if options.guardrail not in names:
            raise ConfigError(
                f"any-guardrail has no guard {options.guardrail!r}",
                hint=nearest(options.guardrail, names),
            )
        self._name = names[options.guardrail]
        self._guard = self._library.AnyGuardrail.create(self._name, **options.options)
        self._warned = False

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Judge `texts`.

        A guard that takes only one text, and no answer beside a prompt, gets the answer.
        """
        return await asyncio.to_thread(
            lambda: [self._verdict(*pair) for pair in zip(texts, prompts, strict=True)]
        )

    def _verdict(self, text: str, prompt: str) -> Verdict:
        try:
            found = self._asked(text, prompt)
            score = self._coarse(found.valid) if found.score is None else float(found.score)
            return Verdict(
                self.name,
                "pass" if found.valid else "flag",
                score if isnan(score) else min(max(score, 0.0), 1.0),
            )
        except Exception as error:
            return Verdict.failure(self.name, type(error).__name__)

    def _coarse(self, valid: bool) -> float:
        if not self._warned:
            log.warning("the guard %s gives no score; keep it as the gate", self.options.guardrail)
            self._warned = True
        return 0.0 if valid else 1.0

    def _asked(self, text: str, prompt: str) -> Any:
        evaluate = self._library.AnyGuardrail.evaluate
        try:
            return evaluate(self._name, self._guard, prompt, response=text)
        except ValueError:  # the guard takes only one text
            return evaluate(self._name, self._guard, text)


def _library() -> Any:
    try:
        import any_guardrail
    except ImportError as error:
        hint = "pip install any-guardrail; it does not go together with nemoguardrails[server]"
        raise ConfigError("the library any-guardrail is not installed", hint=hint) from error
    return any_guardrail


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: any_guardrail``."""
    register("any_guardrail", AnyGuardrail, options=AnyGuardrailOptions)
