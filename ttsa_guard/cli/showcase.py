"""What the demo shows: conversations through a NeMo Guardrails app, and what became of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from statistics import median
from typing import TYPE_CHECKING, Any

import yaml

from ttsa_guard.bench.cases import Case as BenchCase
from ttsa_guard.bench.judges import EncoderJudge, Judge, ModeratorJudge
from ttsa_guard.bench.prompts import Item
from ttsa_guard.cli.common import timed
from ttsa_guard.config import GuardConfig
from ttsa_guard.embedded.world import World, WorldCase
from ttsa_guard.moderators.encoder_judge import EncoderHeads
from ttsa_guard.moderators.minilm import installed
from ttsa_guard.moderators.second_opinion import SecondOpinion
from ttsa_guard.plugins import hookimpl
from ttsa_guard.record import AuditRecord
from ttsa_guard.request import question
from ttsa_guard.verdict import Verdict

if TYPE_CHECKING:
    from ttsa_guard.guard import Guard

_DRAWN = 12
"""Cases of each kind, of which those that the model is likeliest to give in to are shown."""
_BRIEF = 128
"""Most tokens of a real model's answer."""
_NOTHING = Verdict("none", "pass", 0.0)


@dataclass(frozen=True)
class Scene:
    """One conversation that the demo is going to hold.

    Args:
        messages: (role, content) pairs that end with the user's.
        question: what the user asks, without anything around it.
        case: what the embedded world knows about it; None for a real model's.
    """

    group: str
    messages: tuple[tuple[str, str], ...]
    question: str
    case: WorldCase | None = None

    @property
    def user(self) -> str:
        """What the user says last."""
        return self.messages[-1][1]

    @property
    def unsafe(self) -> bool:
        """Whether the user asks for harm."""
        return self.group.startswith("unsafe")


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
        """Whether the gate flagged the model's answer."""
        return self.record.action != "pass"


@dataclass(frozen=True)
class ShownQuality:
    """Whether a mended answer is worth reading."""

    good: bool
    helpful: bool


class Observer:
    """A plugin that keeps the last record."""

    def __init__(self) -> None:
        self._last: AuditRecord | None = None

    @hookimpl
    def ttsa_guard_finished(self, record: AuditRecord) -> None:
        """Keep the record of a review."""
        self._last = record

    def take(self) -> AuditRecord:
        """Take the record of the review that has just ended; an empty answer is not reviewed."""
        record, self._last = self._last, None
        return record or AuditRecord(
            "", time.time(), "pass", "the answer was empty", gate_score=0.0, final_score=None
        )


def scenes(world: World) -> list[Scene]:
    """Draw ten held-out conversations.

    The wrapped ones are those that the embedded model is likeliest to give in to.
    """
    plan = (
        ("harmless", "benign", None, 3),
        ("unsafe", "unsafe", None, 1),
        ("unsafe, jailbreak", "unsafe", "content", 3),
        ("harmless, rude persona", "benign", "tone", 3),
    )
    chosen: list[Scene] = []
    for group, request, wrapper, n in plan:
        cases = world.cases(request, wrapper, _DRAWN)
        drawn = sorted(cases, key=lambda case: case.rate, reverse=True)
        chosen += [Scene(group, case.messages, case.question, case) for case in drawn[:n]]
    return chosen


def real_scenes() -> list[Scene]:
    """Return the conversations for a real model."""
    file = resources.files(__package__) / "real_scenes.yaml"
    groups = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [
        Scene(group, (("user", text),), question(text))
        for group, texts in groups.items()
        for text in texts
    ]


def is_embedded(config: GuardConfig) -> bool:
    """Whether the guard steers the embedded model, of which everything is known."""
    return (
        config.backend.use == "transformers"
        and config.backend.options.get("model", "embedded") == "embedded"
    )


def brief(config: GuardConfig) -> GuardConfig:
    """Return the settings with answers as long as a demo has time for."""
    tokens = min(_BRIEF, config.generation.max_new_tokens)
    generation = config.generation.model_copy(update={"max_new_tokens": tokens})
    return config.model_copy(update={"generation": generation})


def stay_offline(config: GuardConfig) -> bool:
    """Download and report nothing with the embedded model; for another one the hub is needed.

    Has to come before transformers and nemoguardrails are imported.
    """
    embedded = is_embedded(config)
    if embedded or config.backend.options.get("model") == "smollm2":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("NEMO_GUARDRAILS_NO_USAGE_STATS", "1")
        return True
    return False


async def play(guard: Guard, observer: Observer, todo: Sequence[Scene]) -> AsyncIterator[Shown]:
    """Hold the conversations, one after the other.

    The app's model is the guard's backend, and its output rail is the guard.

    Raises:
        ModelError, PromptError: the model cannot answer.
    """
    from ttsa_guard.nemo import passthrough_app

    rails = passthrough_app(guard)
    for scene in todo:
        messages = [{"role": role, "content": text} for role, text in scene.messages]
        reply, seconds = await timed(rails.generate_async(messages=messages))
        record = observer.take()
        yield Shown(scene, reply["content"], record, max(0.0, seconds - record.seconds))


async def judged(world: World, shown: Sequence[Shown]) -> tuple[str, list[ShownQuality]]:
    """Judge the answers, and say who judged.

    The world knows every sentence of the embedded model. Another model's answers are judged by
    moderators that no search has seen, and by a sentence encoder where that is installed.
    """
    if all(s.scene.case for s in shown):
        exact = [world.judge(s.scene.case, s.answer) for s in shown if s.scene.case]
        return "world", [
            ShownQuality(judgement.good, judgement.good and judgement.helpful)
            for judgement in exact
        ]
    name, judge = _judge()
    qualities = []
    for s in shown:
        item = Item(
            s.scene.group, s.scene.group, s.scene.messages, s.scene.question, s.scene.unsafe
        )
        judgement = await judge.judge(BenchCase(item, "", flagged=True), s.answer, _NOTHING)
        good = judgement.good and s.record.action != "fallback"
        qualities.append(ShownQuality(good, good and judgement.helpful))
    return name, qualities


def _judge() -> tuple[str, Judge]:
    if installed():
        return "encoder_judge", EncoderJudge(EncoderHeads())
    return "second_opinion", ModeratorJudge(SecondOpinion())


def report(world: World, shown: Sequence[Shown]) -> dict[str, Any]:
    """Count the numbers of the demo; `good` and `helpful` count among the flagged."""
    judge, qualities = asyncio.run(judged(world, shown))
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
        "steer_seconds_median": (
            round(median(s.record.seconds for s, _ in flagged), 4) if flagged else None
        ),
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
