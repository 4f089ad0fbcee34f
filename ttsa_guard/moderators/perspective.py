"""The service Perspective, until it ends.

https://developers.perspectiveapi.com
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

from pydantic import Field

from ttsa_guard.errors import ConfigError
from ttsa_guard.moderators.remote import Remote, RemoteOptions, member
from ttsa_guard.plugins import Register, hookimpl

log = logging.getLogger(__name__)
LAST_DAY = date(2026, 12, 31)
INSTEAD = (
    "the moderator 'openai', or 'classifier' with a local toxicity model such as unitary/toxic-bert"
)


class PerspectiveOptions(RemoteOptions):
    """Options of the moderator ``perspective``."""

    key: str = Field("PERSPECTIVE_API_KEY", description="environment variable that holds the key")
    base_url: str = Field(
        "https://commentanalyzer.googleapis.com/v1alpha1",
        min_length=1,
        description="address of the service",
    )
    categories: tuple[str, ...] = Field(
        ("TOXICITY",), min_length=1, description="attributes that are asked for"
    )
    languages: tuple[str, ...] = Field(
        ("en",), min_length=1, description="languages of the texts, as ISO 639-1 codes"
    )
    requests_per_second: float | None = Field(1.0, gt=0, description="what your plan allows")
    allow_sunset: bool = Field(False, description="go on after the service's announced end")


class Perspective(Remote):
    """Asks Perspective for the probabilities of attributes, with one text per request.

    Deprecated: the service ends with the year 2026.

    Raises:
        ConfigError: the service has ended, and `allow_sunset` is not set.
    """

    name = "perspective"
    options: PerspectiveOptions

    def __init__(
        self,
        options: PerspectiveOptions | None = None,
        *,
        today: Callable[[], date] = date.today,
        **kwargs: Any,
    ) -> None:
        options = options or PerspectiveOptions()
        if today() > LAST_DAY and not options.allow_sunset:
            raise ConfigError(
                f"the Perspective service ended on {LAST_DAY}",
                hint=f"use {INSTEAD}; or set allow_sunset: true",
            )
        log.warning("the Perspective service ends on %s; use %s", LAST_DAY, INSTEAD)
        super().__init__(options, **kwargs)

    async def scores(self, texts: Sequence[str]) -> list[Mapping[str, Any]]:
        """Return the probabilities of the attributes of one text; see `Remote.scores`."""
        [text] = texts
        answer = await self._http.post(
            f"{self.options.base_url.rstrip('/')}/comments:analyze",
            {
                "comment": {"text": text},
                "languages": list(self.options.languages),
                "requestedAttributes": {name: {} for name in self.options.categories},
                "doNotStore": True,
            },
            headers={"X-Goog-Api-Key": self._key},  # a key in the address would get into logs
            units=self._tokens(texts),
        )
        found = member(answer, dict, "attributeScores")
        return [
            {
                name: member(found, object, name, "summaryScore", "value")
                for name in self.options.categories
            }
        ]


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: perspective``."""
    register("perspective", Perspective, options=PerspectiveOptions)
