"""Draw plain samples at a higher temperature: the control that every search has to beat."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar

from pydantic import Field

from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task


class ResampleOptions(Settings):
    """Configure the steerer `resample`."""

    n: int = Field(16, ge=1, description="samples in all")
    temperature: float = Field(1.0, ge=0, le=2, description="temperature of the samples")
    batch: int = Field(16, ge=1, description="samples a round")
    harmless: bool = Field(
        False, description="only where the answer was not flagged for helping with harm"
    )
    question: bool = Field(
        False, description="answer the question alone, without what stands around it"
    )


class Resample:
    """Draw up to `n` answers to the prompt as it is, or to its question."""

    name = "resample"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: ResampleOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield the samples, `batch` of them in a round."""
        options = self.options
        if options.harmless and task.harmful:
            # Other samples are likely to hold the same harm, which the moderator may miss in some.
            return
        asked = options.question and task.asked
        base = task.base.with_(prompt=task.asked[0]) if asked else task.base
        n = min(options.n, task.usage.generations_left)
        for start in range(0, n, options.batch):
            numbers = range(start, min(start + options.batch, n))
            requests = [
                base.with_(temperature=options.temperature, seed=task.seed + i) for i in numbers
            ]
            yield await task.propose(requests, [f"sample {i}" for i in numbers])


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("resample", Resample, options=ResampleOptions)
