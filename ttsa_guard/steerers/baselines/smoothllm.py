"""Answer perturbed copies of the prompt and let the answers vote; for comparison.

This is SmoothLLM (Robey et al., arXiv 2310.03684, Algorithm 1):

1. It makes `n` copies of the last user message and changes the share `rate` of the characters of
   each at random.
2. It generates one answer to each copy, in one batch, at the temperature of plain generation.
3. The answers vote on whether the prompt is harmful. The flag of the guide moderator takes the
   place of the paper's list of refusal words. A tie counts as not flagged.
4. The only candidate is a random one of the answers that agree with the vote. If most answers are
   flagged, that is a flagged one, as published; the guard then holds it back.
"""

from __future__ import annotations

import random
import string
from collections.abc import AsyncGenerator
from typing import ClassVar, Literal

from pydantic import Field

from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task

PerturbationKind = Literal["swap", "insert", "patch"]
"""Single characters are replaced (swap) or added (insert), or one run is replaced (patch)."""


class SmoothLLMOptions(Settings):
    """Configure the steerer `smoothllm`."""

    n: int = Field(10, ge=1, description="perturbed copies")
    rate: float = Field(0.1, ge=0, le=1, description="share of the characters that are changed")
    kind: PerturbationKind = Field(
        "swap",
        description="swap: replace characters; insert: add some; patch: replace one run of them",
    )


class SmoothLLM:
    """Propose one answer of the majority."""

    name = "smoothllm"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: SmoothLLMOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one round with one candidate."""
        options, rng = self.options, random.Random(task.seed)
        numbers = range(min(options.n, task.usage.generations_left))
        if not numbers:
            return
        copies = [
            task.reworded(lambda text: perturbed(text, options.rate, options.kind, rng))
            for _ in numbers
        ]
        prompts = [await task.backend.render(copy) for copy in copies]
        requests = [
            task.base.with_(prompt=prompt, seed=task.seed + i) for i, prompt in enumerate(prompts)
        ]
        answers = await task.propose(requests, [f"copy {i}" for i in numbers])
        flagged = [c for c in answers if c.verdict.flagged]
        passing = [c for c in answers if not c.verdict.flagged]
        yield [rng.choice(flagged if len(flagged) > len(passing) else passing)]


def perturbed(text: str, rate: float, kind: PerturbationKind, rng: random.Random) -> str:
    """Change int(rate * length) characters of `text`; new ones are from `string.printable`."""
    letters, count = list(text), int(rate * len(text))
    if kind == "patch":
        start = rng.randint(0, len(text) - count)
        letters[start : start + count] = rng.choices(string.printable, k=count)
    else:
        # The last position comes first, so that an insertion does not move the next ones.
        for i in sorted(rng.sample(range(len(text)), count), reverse=True):
            letters[i : i + (kind == "swap")] = rng.choice(string.printable)
    return "".join(letters)


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("smoothllm", SmoothLLM, options=SmoothLLMOptions)
