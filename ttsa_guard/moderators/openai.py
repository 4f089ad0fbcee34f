"""OpenAI's moderation endpoint, and servers that speak its protocol.

https://platform.openai.com/docs/api-reference/moderations
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ttsa_guard.moderators.remote import Remote, RemoteOptions, member
from ttsa_guard.plugins import Register, hookimpl

NULLABLE = frozenset({"illicit", "illicit/violent"})
"""Categories that older models do not judge. A null in any other category is a fault."""


class OpenAIOptions(RemoteOptions):
    """Options of the moderator ``openai``."""

    key: str = Field("OPENAI_API_KEY", description="environment variable that holds the key")
    model: str = Field("omni-moderation-latest", min_length=1, description="the service's model")
    base_url: str = Field(
        "https://api.openai.com/v1", min_length=1, description="of OpenAI or a compatible server"
    )
    batch: int = Field(32, ge=1, description="texts in one request")


class OpenAI(Remote):
    """Scores texts with all of the service's categories, or with the selected ones."""

    name = "openai"
    options: OpenAIOptions

    def __init__(self, options: OpenAIOptions | None = None, **kwargs: Any) -> None:
        super().__init__(options or OpenAIOptions(), **kwargs)
        self.batch_size = self.options.batch

    async def scores(self, texts: Sequence[str]) -> list[Mapping[str, Any]]:
        """Return the scores of each text's categories; see `Remote.scores`."""
        answer = await self._http.post(
            f"{self.options.base_url.rstrip('/')}/moderations",
            {"model": self.options.model, "input": list(texts)},
            headers={"Authorization": f"Bearer {self._key}"},
            units=self._tokens(texts),
        )
        found = [
            member(result, dict, "category_scores") for result in member(answer, list, "results")
        ]
        return [
            {n: score for n, score in scores.items() if score is not None or n not in NULLABLE}
            for scores in found
        ]


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: openai``."""
    register("openai", OpenAI, options=OpenAIOptions)
