"""Name the options that the steerers of input embeddings have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from ttsa_guard.messages import Scope
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.estimators import Normalise

MovedScope = Annotated[
    Scope,
    Field(
        validation_alias=AliasChoices("scope", "rows"),  # `rows` is its old name
        description="tokens that move: those of the last user message, or all",
    ),
]


class MovingOptions(Settings):
    """Configure a search that moves the prompt's embeddings step by step."""

    scope: MovedScope = "user"
    direction: Literal["estimate", "random"] = Field(
        "estimate", description="random: the control, in random directions"
    )
    normalise: Normalise = Field("per_token", description="what is scaled to norm 1 before a step")
    iterations: int = Field(10, ge=1, description="most steps")
