"""Test-Time Safety Alignment as published (arXiv 2604.26167, Algorithm 1), for comparison with the default mode."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

import torch

from ttsa_guard.backends.base import TakesEmbeddings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.estimators import OneSided, RandomDirection

if TYPE_CHECKING:
    from ttsa_guard.steerers.embedding import EmbeddingOptions

STEPS = {
    "gpt-oss-20b": (0.01, 1.5),
    "qwen3-14b": (0.05, 2.5),
    "llama-3.1-8b-instruct": (0.1, 1.3),
    "phi-3.5-mini-instruct": (0.05, 2.5),
    "gemma-3-1b-it": (0.075, 1.75),
}
"""mu and eta of Table 3, in units of the embeddings, by the last part of the model's name."""


def sizes(model: str, *, token_norm: float, hidden: int, options: EmbeddingOptions) -> tuple[float, float]:
    """mu and eta in units of the embeddings: Table 3 for its models, else the options' multiples of the token norm."""
    known = STEPS.get(model.rstrip("/").split("/")[-1].lower())
    if known and options.probe is None and options.step is None:
        return known
    probe = 0.6 if options.probe is None else options.probe
    step = 1.0 if options.step is None else options.step
    return probe * token_norm / hidden**0.5, step * token_norm


async def paper_rounds(task: Task, options: EmbeddingOptions) -> AsyncGenerator[list[Candidate], None]:
    """One round an iteration: the answer at X_k. The N probes cost generations and moderation, and are thrown away."""
    backend = task.backend
    assert isinstance(backend, TakesEmbeddings)
    prompt = await backend.render(task.messages, scope=options.rows or "all")
    origin = await backend.embed(prompt.soft_ids)
    probe, step = sizes(backend.name, token_norm=backend.token_norm, hidden=origin.shape[1], options=options)
    search = (RandomDirection if options.direction == "random" else OneSided)(
        origin,
        probes=options.probes,
        probe=probe,
        step=step,
        cosine=options.cosine,
        normalise=options.normalise,
        generator=torch.Generator().manual_seed(task.seed),
    )
    base = task.base.with_(prompt=prompt)
    for k in range(options.iterations):
        [candidate] = await task.propose([base.with_(soft_embeds=search.point, seed=task.seed + k)], [f"iterate {k}"])
        yield [candidate]
        if candidate.verdict.score < options.stop_below:
            return
        points = search.ask()
        answers = await task.generate([base.with_(soft_embeds=x, seed=task.seed + k) for x in points]) if len(points) else []
        verdicts = await task.score([a.text for a in answers]) if answers else []
        search.tell(candidate.verdict.score, _scores([v.score for v in verdicts]))


def _scores(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)
