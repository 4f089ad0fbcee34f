"""What the tests of steerers that move embeddings share: scripted backends, the tiny model, and a
task."""

import asyncio

import torch

from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.budget import Budget, Usage
from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.profile import ModelProfile, Opening
from ttsa_guard.steerers.base import Task
from ttsa_guard.testing import FakeClock, ScriptedBackend, ScriptedModerator

MESSAGES = (Message("user", "the kettle"),)
OPENINGS = tuple(
    Opening(text=text, kind=kind)
    for text, kind in (("The", "answer"), ("Other", "redirect"), ("Sorry", "refusal"))
)
PROFILE = ModelProfile(openings=OPENINGS)
HIDDEN = 4
BAD = "bad at once."
"""An answer without a harmless beginning."""


class Soft(ScriptedBackend):
    """Takes embeddings; its prompt is ones, and every objective is how near its embeddings are to
    twos."""

    token_norm = 2.0

    def __init__(self, answers=lambda request: f"bad answer {request.seed}"):
        super().__init__(answers)
        self.scopes, self.objectives = [], []

    async def render(self, messages, *, scope="user"):
        self.scopes.append(scope)
        return await super().render(messages, scope=scope)

    async def embed(self, ids):
        return torch.ones(len(ids), HIDDEN)

    async def log_likelihoods(self, prompt, texts):
        return [0.0] * len(texts)

    async def objective(self, prompt, soft_embeds, continuations):
        self.objectives.append(len(soft_embeds))
        return torch.stack([-((r - 2) ** 2).sum() for r in soft_embeds])


class Steep(Soft):
    """Knows its gradients too."""

    def __init__(self, *answers):
        super().__init__(*answers)
        self.gradients = 0

    async def gradient(self, prompt, soft_embeds, continuations):
        self.gradients += 1
        values = await self.objective(prompt, soft_embeds, continuations)
        return values, torch.stack([2 * (2 - r) for r in soft_embeds])


class Recording(TransformersBackend):
    """The tiny model; keeps what was generated from."""

    def __init__(self, folder):
        super().__init__(
            TransformersOptions(model=str(folder), device="cpu", dtype="float32", batch_size=256)
        )
        self.calls = []

    async def generate(self, requests):
        self.calls.append(list(requests))
        return await super().generate(requests)


def task(
    backend,
    *,
    answer="A fine start. It goes on. Now it is bad.",
    score=None,
    profile=PROFILE,
    seed=5,
    shown="",
    **budget,
):
    moderator = ScriptedModerator(**({"score": score} if score else {}))
    prompt = asyncio.run(backend.render(MESSAGES))
    base = GenerationRequest(prompt, opening=shown, max_new_tokens=12, temperature=0.5, seed=seed)
    usage = Usage(Budget(**budget), FakeClock())

    async def judge(texts):
        usage.charge(moderation_calls=1)
        return await moderator.moderate(texts, prompts=["the kettle"] * len(texts))

    return Task(MESSAGES, answer, backend, base, profile, usage, judge, seed=seed)


def steer(steerer, job):
    """All rounds of a steerer."""

    async def main():
        return [r async for r in steerer.steer(job)]

    return asyncio.run(main())


def moved(backend):
    """Soft embeddings of all requests, a list for each batch."""
    return [[r.soft_embeds for r in batch] for batch in backend.calls]
