"""Conversations with a known truth through a real NeMo Guardrails app, and what became of them: what the demo shows."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from ttsa_guard.cli.common import timed
from ttsa_guard.config import GuardConfig
from ttsa_guard.embedded.world import Case, World
from ttsa_guard.plugins import hookimpl
from ttsa_guard.record import AuditRecord

if TYPE_CHECKING:
    from ttsa_guard.guard import Guard

_DRAWN = 12


@dataclass(frozen=True)
class Scene:
    """One conversation that the demo is going to hold."""

    group: str
    case: Case

    @property
    def user(self) -> str:
        return self.case.messages[-1][1]


@dataclass(frozen=True)
class Shown:
    """One conversation as its user saw it, and the record of the review."""

    scene: Scene
    answer: str
    record: AuditRecord
    plain_seconds: float
    """What the model alone takes for its answer."""

    @property
    def flagged(self) -> bool:
        return self.record.action != "pass"


@dataclass(frozen=True)
class Quality:
    """Whether a mended answer is worth reading."""

    good: bool
    helpful: bool


class Observer:
    """A plugin that keeps the last record."""

    def __init__(self) -> None:
        self._last: AuditRecord | None = None

    @hookimpl
    def ttsa_guard_finished(self, record: AuditRecord) -> None:
        self._last = record

    def take(self) -> AuditRecord:
        """The record of the review that has just ended; an empty answer is not reviewed."""
        record, self._last = self._last, None
        return record or AuditRecord("", time.time(), "pass", "the answer was empty", gate_score=0.0, final_score=None)


def scenes(world: World) -> list[Scene]:
    """Ten held-out conversations. Of the wrapped ones those that the embedded model is likeliest to give in to."""
    plan = (
        ("harmless", "benign", None, 3),
        ("unsafe", "unsafe", None, 1),
        ("unsafe, jailbreak", "unsafe", "content", 3),
        ("harmless, rude persona", "benign", "tone", 3),
    )
    found: list[Scene] = []
    for group, request, wrapper, n in plan:
        drawn = sorted(world.cases(request, wrapper, _DRAWN), key=lambda case: case.rate, reverse=True)
        found += [Scene(group, case) for case in drawn[:n]]
    return found


def stay_offline(config: GuardConfig) -> bool:
    """With the embedded model nothing is downloaded and nothing is reported; for another one the hub is needed.

    Has to come before transformers and nemoguardrails are imported.
    """
    embedded = config.backend.use == "transformers" and config.backend.options.get("model", "embedded") == "embedded"
    if embedded:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("NEMO_GUARDRAILS_NO_USAGE_STATS", "1")
    return embedded


async def play(guard: Guard, observer: Observer, todo: Sequence[Scene]) -> AsyncIterator[Shown]:
    """Hold the conversations, one after the other, with an app whose model is the guard's backend and whose output rail
    is the guard.

    Raises:
        ModelError, PromptError: the model cannot answer.
    """
    from ttsa_guard.nemo import passthrough_app

    rails = passthrough_app(guard)
    for scene in todo:
        _, plain_seconds = await timed(rails.llm.generate_async(scene.user))
        reply = await rails.generate_async(messages=[{"role": role, "content": text} for role, text in scene.case.messages])
        yield Shown(scene, reply["content"], observer.take(), plain_seconds)


def judged(world: World, shown: Sequence[Shown]) -> tuple[str, list[Quality]]:
    """Who judged, and the judgements. The world knows every sentence of the embedded model, but none of another one's;
    there the guard's own opinion has to do."""
    exact = [world.judge(s.scene.case, s.answer) for s in shown]
    if any(judgement.fluent for judgement in exact):
        return "world", [Quality(judgement.good, judgement.good and judgement.helpful) for judgement in exact]
    return "guard", [Quality(s.record.action != "fallback", s.record.helpful) for s in shown]


def report(world: World, shown: Sequence[Shown]) -> dict[str, Any]:
    """The numbers of the demo; `good` and `helpful` count among the flagged."""
    judge, qualities = judged(world, shown)
    flagged = [(s, q) for s, q in zip(shown, qualities, strict=True) if s.flagged]
    return {
        "conversations": len(shown),
        "flagged": len(flagged),
        "neutralised": sum(s.record.action == "swap" for s, _ in flagged),
        "good": sum(q.good for _, q in flagged),
        "helpful": sum(q.helpful for _, q in flagged),
        "fallback": sum(s.record.action == "fallback" for s, _ in flagged),
        "generations": sum(s.record.generations for s in shown),
        "moderation_calls": sum(s.record.moderation_calls for s in shown),
        "steer_seconds_median": round(median(s.record.seconds for s, _ in flagged), 4) if flagged else None,
        "plain_generation_seconds_median": round(median(s.plain_seconds for s in shown), 4),
        "judge": judge,
        "details": [{**_detail(s), **asdict(q)} for s, q in zip(shown, qualities, strict=True)],
    }


def _detail(shown: Shown) -> dict[str, Any]:
    record = shown.record
    return {
        "group": shown.scene.group,
        "user": shown.scene.user,
        "answer": shown.answer,
        "action": record.action,
        "reason": record.reason,
        "steerer": record.steerer,
        "gate_score": record.gate_score,
        "final_score": record.final_score,
        "candidates": len(record.candidates),
        "generations": record.generations,
        "moderation_calls": record.moderation_calls,
        "seconds": round(record.seconds, 4),
        "plain_seconds": round(shown.plain_seconds, 4),
    }
