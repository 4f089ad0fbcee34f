"""Steer the input embeddings of the prompt against the moderation score: no weights are touched, nothing is trained."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ttsa_guard.backends.base import ScoresText, TakesEmbeddings
from ttsa_guard.messages import Scope
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.estimators import Normalise
from ttsa_guard.steerers.paper import paper_rounds


class EmbeddingOptions(BaseModel):
    """`probe` and `step` are multiples of the mean token-embedding norm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["default", "paper"] = Field("default", description="paper: arXiv 2604.26167, Algorithm 1, to the letter")
    rows: Scope = Field("user", description="rows that move: of the last user message, or all")
    probe: float | None = Field(None, ge=0, description="length of a probe")
    step: float | None = Field(None, ge=0, description="length of a step")
    iterations: int = Field(10, ge=1)
    probes: int = Field(8, ge=1, description="paper mode: probes an iteration")
    cosine: float = Field(0.2, gt=0, lt=1, description="paper mode: lowest cosine to the original prompt")
    stop_below: float = Field(0.1, ge=0, le=1, description="paper mode: guide score that ends the search")
    normalise: Normalise = Field("per_token", description="paper mode: what has norm 1 before a step")
    direction: Literal["estimate", "random"] = Field("estimate", description="random: the control")


class Embedding:
    """The embedding steerer; see the two modes' modules."""

    name = "embedding"
    needs: ClassVar[tuple[type, ...]] = (TakesEmbeddings, ScoresText)

    def __init__(self, options: EmbeddingOptions) -> None:
        self.options = options

    def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        return paper_rounds(task, self.options)


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("embedding", Embedding, options=EmbeddingOptions)
