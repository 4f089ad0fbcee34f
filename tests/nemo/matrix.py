"""An app in which the user's words decide what happens, for every way of running it; also the
``config.py`` of servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ttsa_guard.config import GuardConfig
from ttsa_guard.guard import Guard
from ttsa_guard.messages import Generation, GenerationRequest, Prompt, Soft
from ttsa_guard.nemo import BackendModel, install
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator

SAFE = "One is fine. Two is fine. Three is fine."
SHOWN = "One is fine."
STEERED = "Here is a steered answer."
FALLBACK = "Let us talk about something else."
ENDS = {
    "pass": SAFE,
    "swap": STEERED,
    "fallback": FALLBACK,
    "gate raises": FALLBACK,
    "gate hangs": FALLBACK,
    "guide raises": FALLBACK,
    "guide gives garbage": FALLBACK,
    "backend raises": FALLBACK,
    "backend hangs": FALLBACK,
    "steerer raises": FALLBACK,
}
"""What the user says, and what the user reads."""
PROGRESSIVE = {
    case: (
        f"{SHOWN}\n\n{FALLBACK}"
        if end == FALLBACK
        else {"pass": SAFE, "swap": f"{SHOWN} {STEERED}"}[case]
    )
    for case, end in ENDS.items()
}
"""The same where sentences are shown as they pass: the first one always does."""


class Gate(ScriptedModerator):
    async def moderate(self, texts: Any, *, prompts: Any) -> Any:
        await _act("gate", texts[0] if "seekrit" in texts[0] else "")
        return await super().moderate(texts, prompts=prompts)


class Guide(ScriptedModerator):
    async def moderate(self, texts: Any, *, prompts: Any) -> Any:
        await _act("guide", prompts[0])
        return (
            [None] * len(texts)
            if prompts[0] == "guide gives garbage"
            else await super().moderate(texts, prompts=prompts)
        )


class Breaks:
    name = "breaks"
    needs = ()

    async def steer(self, task: Any) -> Any:
        await _act("steerer", task.messages[-1].content)
        if "steerer" not in task.messages[-1].content:
            yield []


class Backend(ScriptedBackend):
    """Prompts are the code points of what the user said. Samples at temperature 1 are candidates,
    others the chat's answers."""

    def __init__(self) -> None:
        super().__init__([])

    async def render(self, messages: Any, *, scope: Any = "user") -> Prompt:
        return Prompt((Soft(tuple(map(ord, messages[-1].content))),))

    async def generate(self, requests: Any) -> list[Generation]:
        self.calls.append(list(requests))
        return [Generation(await self._said(r), 9, True) for r in requests]

    async def stream(
        self, request: GenerationRequest, on_text: Callable[[str], None]
    ) -> Generation:
        [answer] = await self.generate([request])
        for i, word in enumerate(answer.text.split(" ")):
            on_text(f" {word}" if i else word)
            await asyncio.sleep(0.001)
        return answer

    async def _said(self, request: GenerationRequest) -> str:
        user = "".join(map(chr, request.prompt.ids))
        if request.temperature < 1:
            return (
                SAFE
                if user.startswith("pass")
                else f"{SHOWN} Then a bad seekrit of {user}. And more."
            )
        await _act("backend", user)
        end = STEERED if user == "swap" else f"A bad seekrit of {user}."
        return f"{request.opening} {end}".strip()


async def _act(part: str, text: str) -> None:
    if f"{part} raises" in text:
        raise RuntimeError(f"cannot handle the bad seekrit of {text}")
    if f"{part} hangs" in text:
        await asyncio.sleep(60)


def make_guard(settings: dict[str, Any]) -> Guard:
    limits = {"gate_seconds": 0.2, "budget": {"seconds": 0.4}, "fallback": FALLBACK}
    return Guard(
        GuardConfig.parse({**limits, **settings}),
        backend=Backend(),
        gate=Gate(name="gate"),
        guide=Guide(name="guide"),
        steerers=[Breaks(), Resample(ResampleOptions(n=2))],
    )


def init(app: Any) -> None:
    guard = make_guard(app.config.custom_data.get("ttsa_guard", {}))
    app.llm = BackendModel(guard.backend)
    install(app, guard)
