"""The settings of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ttsa_guard.plan.costs import Costs, Moderation, ReplicaShape
from ttsa_guard.settings import Settings, read_yaml, validated


class SearchCosts(Settings):
    """What mending one flagged answer takes."""

    passes: int = Field(1, ge=0, description="batches decoded one after another")
    generations: int = Field(5, ge=0, description="rows of all passes")
    tokens: int | None = Field(
        None,
        ge=0,
        description=(
            "new tokens of all rows; default: they are drafts, and the best of them goes on to the"
            " length of an answer, if the search swaps"
        ),
    )
    steps: int | None = Field(
        None,
        ge=0,
        description=(
            "of those, the longest row's of each pass; default: drawn with the answers' spread"
        ),
    )
    calls: int = Field(5, ge=0, description="calls of the guide")
    measuring: float = Field(
        0.0, ge=0, description="seconds of its passes besides prompts and steps"
    )
    work: float = Field(
        0.0,
        ge=0,
        description=(
            "seconds of the replica for likelihoods and gradients by themselves, a part after each"
            " pass"
        ),
    )
    aside: float = Field(
        0.0, ge=0, description="seconds of neither replica nor moderators, a part after each pass"
    )
    swapped: bool = Field(True, description="a good answer is found")


BENCHMARK = (
    SearchCosts(passes=1, generations=4, calls=4),
    SearchCosts(passes=1, generations=4, calls=4),
    SearchCosts(passes=2, generations=8, calls=6),
)
"""Searches that take on average what the benchmark's default took on SmolLM2-135M-Instruct: 5.4
generations in 1.4 passes and 6.8 moderation calls, two of which are the gate's."""


class Burst(Settings):
    """The rate is `factor` times the mean at the start of each period, and lower in the rest, so
    that the mean stays.
    """

    factor: float = Field(
        3.0, ge=1, description="times the mean rate, in the busy part of a period"
    )
    period: float = Field(60.0, gt=0, description="seconds")
    share: float = Field(0.1, gt=0, lt=1, description="of the period that is busy")

    @model_validator(mode="after")
    def _leaves_something(self) -> Burst:
        if self.factor * self.share > 1:
            raise ValueError(
                "factor times share is at most 1: more would arrive in the busy part than in all"
            )
        return self

    def level(self, at: float) -> float:
        """Return the rate at a time, as a multiple of the mean."""
        quiet = (1 - self.factor * self.share) / (1 - self.share)
        return self.factor if at % self.period < self.share * self.period else quiet


class PlanConfig(Settings):
    """All settings of a plan; prices are in one currency of your choice."""

    rate: float = Field(1.0, gt=0, description="answers a second, all replicas together")
    burst: Burst | None = Field(None, description="how the rate varies; default: it is constant")
    traffic: Literal["reviews", "chat"] = Field(
        "reviews", description="chat: the replicas generate the plain answers too"
    )
    flags: float = Field(0.05, ge=0, le=1, description="share of the answers that the gate flags")
    tokens: float = Field(64, gt=0, description="of an answer, on average")
    spread: float = Field(
        0.5, ge=0, description="standard deviation of an answer's tokens over their mean (gamma)"
    )
    prompt: int = Field(128, ge=0, description="prompt tokens of a request")
    searches: tuple[SearchCosts, ...] = Field(
        BENCHMARK,
        min_length=1,
        description=(
            "one is drawn for each flagged answer; default: like those of the benchmark's default"
        ),
    )
    draft: int = Field(
        64,
        ge=1,
        description=(
            "most tokens of a candidate before the search decides: the guard's"
            " generation.draft_tokens"
        ),
    )
    costs: Costs | None = Field(None, description="measured; default: from the shape")
    shape: ReplicaShape = Field(
        ReplicaShape(), description="the model and the accelerator, where nothing was measured"
    )
    batching: Literal["continuous", "calls"] = Field(
        "continuous",
        description=(
            "calls: what is waiting is decoded as one batch, as by the backend transformers"
        ),
    )
    gate: Moderation | None = Field(
        None, description="default: that of the costs, else a local one of a millisecond"
    )
    guide: Moderation | None = Field(
        None, description="default: the gate, which it then shares the limit with"
    )
    deadline: float = Field(
        30.0, gt=0, description="seconds in which a search has to end: the guard's budget.seconds"
    )
    gate_seconds: float = Field(10.0, gt=0, description="time limit of a gate call")
    replicas: int | None = Field(
        None, ge=1, description="how many; default: as many as the target takes"
    )
    shard: int = Field(4, ge=1, description="replicas that are simulated; the others are like them")
    target: float = Field(
        5.0, gt=0, description="seconds: the 95th percentile of what a flagged answer takes longer"
    )
    tolerance: float = Field(
        0.01, gt=0, lt=1, description="share of answers that may be lost to a limit"
    )
    price: float = Field(2.0, ge=0, description="of a replica for an hour")
    samples: int = Field(500, ge=10, description="flagged answers in one simulation")
    seed: int = Field(0, ge=0, description="of everything random")

    @model_validator(mode="after")
    def _fits(self) -> PlanConfig:
        self.measured  # noqa: B018  # raises if the shape does not fit
        return self

    @property
    def measured(self) -> Costs:
        """The costs, or those of the shape."""
        return self.costs or self.shape.costs()

    @property
    def first(self) -> Moderation:
        """The gate."""
        return self.gate or self.measured.gate or Moderation()

    @classmethod
    def load(cls, path: Path | None, **named: Any) -> PlanConfig:
        """Read settings from a YAML file with `named` ones in their place.

        ``costs: FILE``, made by ``ttsa-guard plan measure``, is seen from the settings' folder.

        Raises:
            ConfigError: a file cannot be read, or settings are wrong.
        """
        data = read_yaml(path, hint="give a YAML file with the plan's settings") if path else {}
        if path and isinstance(data, Mapping) and isinstance(data.get("costs"), str):
            data = {**data, "costs": Costs.load(path.parent / data["costs"])}
        if isinstance(data, Mapping):
            data = {**data, **named}
        return validated(cls, data, where="plan")
