"""Mistral's moderation endpoint.

https://docs.mistral.ai/capabilities/guardrailing/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ttsa_guard.moderators.openai import OpenAI, OpenAIOptions
from ttsa_guard.plugins import Register, hookimpl

TOPICS = frozenset({"health", "financial", "law", "pii"})
"""Categories that say what a text is about, which is no harm in itself."""


class MistralOptions(OpenAIOptions):
    """Options of the moderator ``mistral``."""

    key: str = Field("MISTRAL_API_KEY", description="environment variable that holds the key")
    model: str = Field("mistral-moderation-latest", min_length=1, description="the service's model")
    base_url: str = Field(
        "https://api.mistral.ai/v1", min_length=1, description="address of the service"
    )


class Mistral(OpenAI):
    """Asks Mistral's endpoint, which speaks OpenAI's protocol with other categories.

    Categories that are topics count only if they are selected.
    """

    name = "mistral"

    def __init__(self, options: MistralOptions | None = None, **kwargs: Any) -> None:
        super().__init__(options or MistralOptions(), **kwargs)

    async def scores(self, texts: Sequence[str]) -> list[Mapping[str, Any]]:
        """Return the scores of each text's categories; see `Remote.scores`."""
        found = await super().scores(texts)
        if self.options.categories:
            return found
        return [
            {name: score for name, score in scores.items() if name not in TOPICS}
            for scores in found
        ]


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: mistral``."""
    register("mistral", Mistral, options=MistralOptions)
