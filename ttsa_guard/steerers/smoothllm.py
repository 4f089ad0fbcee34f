"""SmoothLLM (Robey et al., arXiv 2310.03684, Algorithm 1): answers to perturbed copies of the prompt, and a vote. For
comparison.

1. `n` copies of the user's last message; in each, `rate` of the characters are changed at random.
2. One answer to each copy, in one batch, at the temperature of plain generation.
3. Vote: the guide's flag takes the place of the paper's list of refusal words. A tie counts as not flagged.
4. The only candidate is a random one of the answers that agree with the vote. Where most are flagged that is a flagged
   one, as published; the guard then keeps it back.
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


class SmoothLLMOptions(Settings):
    n: int = Field(10, ge=1, description="perturbed copies")
    rate: float = Field(0.1, ge=0, le=1, description="share of the characters that are changed")
    kind: PerturbationKind = Field("swap", description="other characters, more characters, or one run of others")


class SmoothLLM:
    """Proposes one answer, that of the majority."""

    name = "smoothllm"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: SmoothLLMOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        options, rng = self.options, random.Random(task.seed)
        numbers = range(min(options.n, task.usage.generations_left))
        if not numbers:
            return
        copies = [task.reworded(lambda text: perturbed(text, options.rate, options.kind, rng)) for _ in numbers]
        prompts = [await task.backend.render(copy) for copy in copies]
        requests = [task.base.with_(prompt=prompt, seed=task.seed + i) for i, prompt in enumerate(prompts)]
        answers = await task.propose(requests, [f"copy {i}" for i in numbers])
        flagged = [c for c in answers if c.verdict.flagged]
        passing = [c for c in answers if not c.verdict.flagged]
        yield [rng.choice(flagged if len(flagged) > len(passing) else passing)]


def perturbed(text: str, rate: float, kind: PerturbationKind, rng: random.Random) -> str:
    """`text` with int(rate * length) of its characters changed, drawn from `string.printable`."""
    letters, count = list(text), int(rate * len(text))
    if kind == "patch":
        start = rng.randint(0, len(text) - count)
        letters[start : start + count] = rng.choices(string.printable, k=count)
    else:
        for i in sorted(rng.sample(range(len(text)), count), reverse=True):  # from the end, so that insertions move no place
            letters[i : i + (kind == "swap")] = rng.choice(string.printable)
    return "".join(letters)


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("smoothllm", SmoothLLM, options=SmoothLLMOptions)
