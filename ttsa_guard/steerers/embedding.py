"""Steer the input embeddings of the prompt against the moderation score: no weights are touched, nothing is trained.

The default mode is in `surrogate`, the published one in `paper`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal

from pydantic import Field

from ttsa_guard.backends.base import ScoresSoftEmbeds, TakesEmbeddings
from ttsa_guard.messages import Scope
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.estimators import Normalise
from ttsa_guard.steerers.paper import paper_rounds
from ttsa_guard.steerers.surrogate import surrogate_rounds


class EmbeddingOptions(Settings):
    """Settings of both modes. Lengths are multiples of the mean token-embedding norm."""

    mode: Literal["default", "paper"] = Field("default", description="paper: arXiv 2604.26167, Algorithm 1, to the letter")
    rows: Scope | None = Field(None, description="rows that move; default: the last user message's, in paper mode all")
    direction: Literal["estimate", "random"] = Field("estimate", description="random: the control")
    normalise: Normalise = Field("per_token", description="what has norm 1 before a step")
    iterations: int = Field(10, ge=1, description="most steps")
    step: float | None = Field(None, ge=0, description="length of a step; default 0.1, in paper mode Table 3's or 1.0")
    probe: float | None = Field(None, ge=0, description="length of a probe; default 0.3, in paper mode Table 3's or 0.6")
    probes: int = Field(8, ge=1, description="probes an iteration; pairs of them in the default mode")
    gradient: Literal["auto", "estimated"] = Field("auto", description="default mode; auto: exact where the backend can")
    openings: int = Field(4, ge=0, description="default mode: safe openings to climb, besides the turn")
    continuations: int = Field(8, ge=0, description="default mode: other continuations of a harmless beginning")
    aversion: float = Field(1.0, ge=0, description="default mode: weight of the words to turn away from")
    every: int = Field(2, ge=1, description="default mode: steps between two candidates of a path")
    round: int = Field(6, ge=1, description="default mode: steps between two batches of candidates")
    cosine: float = Field(0.2, gt=0, lt=1, description="paper mode: lowest cosine to the original prompt")
    stop_below: float = Field(0.1, ge=0, le=1, description="paper mode: guide score that ends the search")


class Embedding:
    """The embedding steerer; needs a backend that takes embeddings and, where it climbs a smooth goal, evaluates it there."""

    name = "embedding"

    def __init__(self, options: EmbeddingOptions) -> None:
        self.options = options
        climbs = options.mode == "default" and options.direction == "estimate"
        self.needs: tuple[type, ...] = (TakesEmbeddings, ScoresSoftEmbeds) if climbs else (TakesEmbeddings,)

    def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        rounds = paper_rounds if self.options.mode == "paper" else surrogate_rounds
        return rounds(task, self.options)


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("embedding", Embedding, options=EmbeddingOptions)
