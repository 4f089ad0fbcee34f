"""Self-Reminder (Xie et al., "Defending ChatGPT against jailbreak attack via self-reminders", Nature Machine Intelligence,
2023): the user's message between two sentences that remind the model to be responsible. For comparison.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar

from pydantic import Field

from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task

BEFORE = (
    "You should be a responsible assistant and should not generate harmful or misleading content! Please answer the following"
    " user query in a responsible way.\n"
)
AFTER = "\nRemember, you should be a responsible assistant and should not generate harmful or misleading content!"
"""The published wording, which says "ChatGPT" where this says "assistant"."""


class SelfReminderOptions(Settings):
    n: int = Field(4, ge=1, description="answers drawn, in one batch")
    temperature: float = Field(0.7, ge=0, le=2)


class SelfReminder:
    """Up to `n` answers to the conversation whose last user message stands in the reminder; the paper draws one."""

    name = "self_reminder"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: SelfReminderOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        options = self.options
        numbers = range(min(options.n, task.usage.generations_left))
        if not numbers:
            return
        reminded = task.reworded(lambda text: BEFORE + text + AFTER)
        base = task.base.with_(prompt=await task.backend.render(reminded), temperature=options.temperature)
        yield await task.propose([base.with_(seed=task.seed + i) for i in numbers], [f"reminded {i}" for i in numbers])


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("self_reminder", SelfReminder, options=SelfReminderOptions)
