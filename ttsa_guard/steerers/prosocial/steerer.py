"""Draw the answer again, from the model without its harm vector, as the user prefers it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from ttsa_guard.backends.base import ExposesLogits
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.prosocial.adapter import Adapter
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector, check_base
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES, EQUAL, checked
from ttsa_guard.steerers.prosocial.product import Product

log = logging.getLogger(__name__)
EMBEDDED = "embedded"
"""The options call the files of the embedded model so."""
HARM_VECTOR, REWARD = "harm_vector.safetensors", "reward.safetensors"


class ProSocialOptions(Settings):
    """Configure the steerer `prosocial`."""

    harm_vector: str | None = Field(
        EMBEDDED,
        description=(
            "file of the harm vector; 'embedded': the embedded model's; null: the weights stay as"
            " they are"
        ),
    )
    strength: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="how many times the harm vector is subtracted"
    )
    reward: str | None = Field(
        EMBEDDED,
        description=(
            "file of the reward model's adapter; 'embedded': the embedded model's; null: none"
        ),
    )
    alpha: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="weight of the reward model; 0: it does not count; default: what its file says",
    )
    prefer: dict[str, float] = Field(
        default_factory=lambda: dict(EQUAL),
        description="weights of the attributes; they sum to one; default: equal weights",
    )
    n: int = Field(8, ge=1, description="answers drawn, in one batch")
    temperature: float = Field(
        0.7,
        ge=0,
        le=2,
        description="temperature of all answers but the first, which has the request's",
    )

    @field_validator("prefer")
    @classmethod
    def _preferences(cls, value: Mapping[str, float]) -> dict[str, float]:
        return checked(value)


class ProSocial:
    """Run *ProSocialAlign* (arXiv 2512.06515) as far as it is known.

    The rest is our reconstruction. Safety is the hard constraint and comes first: the harm vector
    is taken out of the weights, and users see only candidates that the moderators pass. Of these
    the guard takes the one that is likeliest in the distribution that it was drawn from (see
    `product`). A request's own preferences override the configured ones.

    Raises:
        ConfigError: a file cannot be read, or is something else.
    """

    name = "prosocial"
    needs: ClassVar[tuple[type, ...]] = (ExposesLogits,)

    def __init__(self, options: ProSocialOptions) -> None:
        self.options = options
        harm = (
            HarmVector.load(_file(options.harm_vector, HARM_VECTOR))
            if options.harm_vector
            else None
        )
        reward = Adapter.load(_file(options.reward, REWARD)) if options.reward else None
        alpha = reward.alpha if reward and options.alpha is None else options.alpha or 0.0
        self.decoding = Product(harm, reward, options.strength, alpha, options.prefer)

    def fit(self, backend: ExposesLogits) -> None:
        """Check that the files belong to the backend's model; see `Fits`.

        Raises:
            ConfigError: they do not.
        """
        weights = backend.fingerprint
        for what, part in (
            ("harm vector", self.decoding.harm),
            ("reward model", self.decoding.reward),
        ):
            if part:
                check_base(what, part.base, weights)

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one batch of `n` answers."""
        n = min(self.options.n, task.usage.generations_left)
        warmer = max(self.options.temperature, task.base.temperature)
        requests = [
            task.base.with_(temperature=warmer if i else task.base.temperature, seed=task.seed + i)
            for i in range(n)
        ]
        decoding = replace(self.decoding, prefer=self._preferences(task))
        yield await task.propose(requests, [f"controlled sample {i}" for i in range(n)], decoding)

    def _preferences(self, task: Task) -> Mapping[str, float]:
        """Return the request's preferences, or the configured ones if it has none or wrong ones."""
        if task.prefer is None:
            return self.options.prefer
        try:
            return checked(task.prefer)
        except (AttributeError, TypeError, ValueError):
            # Wrong preferences may hold a client's text, so the log gets only the rule.
            log.error(
                "the request's preferences are not used: they are weights of %s, which sum to 1",
                ", ".join(ATTRIBUTES),
            )
            return self.options.prefer


def _file(named: str, shipped: str) -> Path:
    """Return the path that the options name, or that of the shipped file."""
    return (
        Path(str(resources.files("ttsa_guard") / "embedded" / "prosocial" / shipped))
        if named == EMBEDDED
        else Path(named)
    )


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("prosocial", ProSocial, options=ProSocialOptions)
