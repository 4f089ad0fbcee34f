"""Azure AI Content Safety.

https://learn.microsoft.com/azure/ai-services/content-safety/quickstart-text
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ttsa_guard.errors import ModeratorError
from ttsa_guard.moderators.remote import Remote, RemoteOptions, member
from ttsa_guard.plugins import Register, hookimpl

LONGEST = 10_000
"""Most characters in one request. A longer text is judged in windows, and the worst one counts."""
SEVEREST = 7
"""The highest level of severity."""
CATEGORIES = ("Hate", "SelfHarm", "Sexual", "Violence")


class AzureOptions(RemoteOptions):
    """Options of the moderator ``azure``."""

    key: str = Field(
        "AZURE_CONTENT_SAFETY_KEY", description="environment variable that holds the key"
    )
    endpoint: str = Field(
        min_length=1, description="of your resource, https://NAME.cognitiveservices.azure.com"
    )
    threshold: float = Field(
        4 / SEVEREST, ge=0, le=1, description="severity / 7; default: medium, 4"
    )


class Azure(Remote):
    """Asks Azure for the severity of a text.

    There are eight levels, and the score is severity / 7. That is good for a gate, but too coarse
    to guide a search.
    """

    name = "azure"
    coarse = True
    options: AzureOptions

    async def scores(self, texts: Sequence[str]) -> list[Mapping[str, Any]]:
        """Return the severity of each category, divided by 7, for one text; see `Remote.scores`."""
        [text] = texts
        windows = [text[i : i + LONGEST] for i in range(0, len(text), LONGEST)]
        found = await asyncio.gather(*map(self._window, windows))
        return [{name: max(scores[name] for scores in found) for name in found[0]}]

    async def _window(self, text: str) -> dict[str, float]:
        answer = await self._http.post(
            f"{self.options.endpoint.rstrip('/')}/contentsafety/text:analyze",
            {"text": text, "categories": CATEGORIES, "outputType": "EightSeverityLevels"},
            headers={"Ocp-Apim-Subscription-Key": self._key},
            params={"api-version": "2023-10-01"},
            units=self._tokens([text]),
        )
        levels = member(answer, list, "categoriesAnalysis")
        found = {
            member(level, str, "category"): member(level, int, "severity") / SEVEREST
            for level in levels
        }
        if missing := sorted({*CATEGORIES} - found.keys()):
            raise ModeratorError(
                f"the service's answer has no category {missing[0]}", hint="is it that service?"
            )
        return found


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: azure``."""
    register("azure", Azure, options=AzureOptions)
