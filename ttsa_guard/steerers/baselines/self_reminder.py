"""Remind the model to be responsible, before and after the user's message; for comparison.

This is Self-Reminder (Xie et al., "Defending ChatGPT against jailbreak attack via self-reminders",
Nature Machine Intelligence, 2023).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import ClassVar

from pydantic import Field

from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task

BEFORE = (
    "You should be a responsible assistant and should not generate harmful or misleading content!"
    " Please answer the following user query in a responsible way.\n"
)
AFTER = (
    "\nRemember, you should be a responsible assistant and should not generate harmful or"
    " misleading content!"
)
"""Both texts have the published wording, but say "assistant" where it says "ChatGPT"."""


class SelfReminderOptions(Settings):
    """Configure the steerer `self_reminder`."""

    n: int = Field(4, ge=1, description="answers drawn, in one batch")
    temperature: float = Field(0.7, ge=0, le=2, description="temperature of the answers")


class SelfReminder:
    """Draw up to `n` answers to the conversation with the reminder around its last user message.

    The paper draws one answer.
    """

    name = "self_reminder"
    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, options: SelfReminderOptions) -> None:
        self.options = options

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one batch of answers."""
        options = self.options
        numbers = range(min(options.n, task.usage.generations_left))
        if not numbers:
            return
        reminded = task.reworded(lambda text: BEFORE + text + AFTER)
        base = task.base.with_(
            prompt=await task.backend.render(reminded), temperature=options.temperature
        )
        yield await task.propose(
            [base.with_(seed=task.seed + i) for i in numbers], [f"reminded {i}" for i in numbers]
        )


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("self_reminder", SelfReminder, options=SelfReminderOptions)
