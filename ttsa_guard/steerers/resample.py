"""Best of n: plain samples at a higher temperature. The control that every search has to beat."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar

from pydantic import Field

from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task


class ResampleOptions(Settings):
    n: int = Field(16, ge=1, description="samples in all")
    temperature: float = Field(1.0, ge=0, le=2)
    batch: int = Field(16, ge=1, description="samples a round")
    harmless: bool = Field(False, description="only where the answer was not flagged for what it helps with")


class Resample:
    """Draws up to `n` answers from the unmoved prompt."""

    name = "resample"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: ResampleOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        options = self.options
        if options.harmless and task.harmful:
            return  # what the moderator does not see in more of them is likely to be there
        n = min(options.n, task.usage.generations_left)
        for start in range(0, n, options.batch):
            numbers = range(start, min(start + options.batch, n))
            requests = [task.base.with_(temperature=options.temperature, seed=task.seed + i) for i in numbers]
            yield await task.propose(requests, [f"sample {i}" for i in numbers])


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("resample", Resample, options=ResampleOptions)
