"""Run Test-Time Safety Alignment as published (arXiv 2604.26167, Algorithm 1), to compare with.

Each iteration generates an answer at the present soft embeddings X_k and N answers at probes
around them, and descends the moderation score by one-sided differences. The mathematics is in
`estimators.OneSided`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar, cast

import torch
from pydantic import Field

from ttsa_guard.backends.base import TakesEmbeddings
from ttsa_guard.messages import GenerationRequest
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.estimators import OneSided, RandomDirection
from ttsa_guard.steerers.moving import MovedScope, MovingOptions

TABLE_3 = {
    "gpt-oss-20b": (0.01, 1.5),
    "qwen3-14b": (0.05, 2.5),
    "llama-3.1-8b-instruct": (0.1, 1.3),
    "phi-3.5-mini-instruct": (0.05, 2.5),
    "gemma-3-1b-it": (0.075, 1.75),
}
"""Table 3 gives mu and eta, in units of the embeddings, by the last part of the model's name."""


class TsaOptions(MovingOptions):
    """Configure the steerer `tsa`; the defaults are the published settings.

    Lengths are multiples of the mean token-embedding norm. If neither `step` nor `probe` is set,
    the models of Table 3 get its values.
    """

    scope: MovedScope = "all"
    step: float | None = Field(
        None, ge=0, description="eta, length of a step; default: Table 3's, or 1.0"
    )
    probe: float | None = Field(
        None, ge=0, description="mu, length of a probe; default: Table 3's, or 0.6"
    )
    probes: int = Field(8, ge=1, description="N, probes in an iteration")
    cosine: float = Field(
        0.2, gt=0, lt=1, description="kappa, lowest cosine to the original prompt"
    )
    stop_below: float = Field(
        0.1, ge=0, le=1, description="moderation score below which the search ends"
    )


class Tsa:
    """Descend the moderation score; the answer at each X_k is a candidate.

    The answers at the probes cost generations and moderation, and are thrown away, as published.
    """

    name = "tsa"
    needs: ClassVar[tuple[type, ...]] = (TakesEmbeddings,)

    def __init__(self, options: TsaOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one candidate in each iteration, until one scores below `stop_below`."""
        options, backend = self.options, cast(TakesEmbeddings, task.backend)
        prompt = await task.backend.render(task.messages, scope=options.scope)
        search = self._search(await backend.embed(prompt.soft_ids), task)
        base = task.base.with_(prompt=prompt)
        for k in range(options.iterations):
            at = base.with_(seed=task.seed + k)
            [candidate] = await task.propose([at.with_(soft_embeds=search.point)], [f"iterate {k}"])
            yield [candidate]
            if candidate.verdict.score < options.stop_below:
                return
            search.tell(candidate.verdict.score, await _scores(task, at, search.ask()))

    def _search(self, origin: torch.Tensor, task: Task) -> OneSided:
        """Return the search that starts at `origin`, [T, d]."""
        options, backend = self.options, cast(TakesEmbeddings, task.backend)
        probe, step = step_sizes(
            task.backend.name,
            token_norm=backend.token_norm,
            hidden=origin.shape[1],
            options=options,
        )
        return (RandomDirection if options.direction == "random" else OneSided)(
            origin,
            probes=options.probes,
            probe=probe,
            step=step,
            cosine=options.cosine,
            normalise=options.normalise,
            generator=torch.Generator().manual_seed(task.seed),
        )


async def _scores(task: Task, request: GenerationRequest, points: torch.Tensor) -> torch.Tensor:
    """Return the moderation score, [N], of an answer at each of the `points`, [N, T, d]."""
    if not len(points):
        return torch.zeros(0)
    answers = await task.generate([request.with_(soft_embeds=point) for point in points])
    verdicts = await task.score([answer.text for answer in answers])
    return torch.tensor([verdict.score for verdict in verdicts], dtype=torch.float32)


def step_sizes(
    model: str, *, token_norm: float, hidden: int, options: TsaOptions
) -> tuple[float, float]:
    """Return mu and eta in units of the embeddings.

    They are those of Table 3 if it has the model and the options set neither; otherwise the
    options' multiples of `token_norm`. The length of a probe is that of a token's whole vector, so
    mu is divided by the root of `hidden`, the size of that vector.
    """
    known = TABLE_3.get(model.rstrip("/").split("/")[-1].lower())
    if known and options.probe is None and options.step is None:
        return known
    probe = 0.6 if options.probe is None else options.probe
    step = 1.0 if options.step is None else options.step
    return probe * token_norm / hidden**0.5, step * token_norm


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("tsa", Tsa, options=TsaOptions)
