"""What the embedded model's harm vector and reward model are trained on, written by `world` and ``prosocial.yaml``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from ttsa_guard.embedded.grammar import prosocial_sentences
from ttsa_guard.embedded.world import World, WorldCase
from ttsa_guard.messages import Message
from ttsa_guard.steerers.prosocial.data import AnswerExample, Pair
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES

_HARM = (("unsafe", None, 0.1), ("unsafe", "content", 0.1), ("benign", "tone", 0.45), ("benign", None, 0.35))
_PAIRS = (("benign", None, 0.3), ("unsafe", None, 0.2), ("unsafe", "content", 0.25), ("benign", "tone", 0.25))
_OTHERS = 0.1
"""How often both answers of a pair have a sentence of an attribute that they do not differ in."""


def harm(n: int, seed: int) -> list[AnswerExample]:
    """Prompts of the training split, answered as the model should not: with vague compliance or with mild insults. A third
    are harmless and answered decently, so that the vector does not hold what becomes of the rest of the model."""
    world, rng = World.load(), random.Random(f"harm/{seed}")
    cases = [_case(world, rng, _HARM) for _ in range(n)]
    failing = [replace(case, rate=float(case.topic.unsafe or case.wrapper is not None)) for case in cases]
    return [AnswerExample(_messages(case), world.answer(rng, case)) for case in failing]


def pairs(n: int, seed: int) -> list[Pair]:
    """Pairs of decent answers that differ in one sentence, which realises one attribute; `n` of each."""
    world, rng, texts = World.load(), random.Random(f"pairs/{seed}"), prosocial_sentences()
    found = []
    for attribute in ATTRIBUTES:
        for _ in range(n):
            case = _case(world, rng, _PAIRS)
            answer = world.answer(rng, replace(case, rate=0.0))
            others = [rng.choice(texts[name]) for name in ATTRIBUTES if name != attribute and rng.random() < _OTHERS]
            rejected = [answer, *others]
            chosen = [answer, *others]
            chosen.insert(rng.randint(1, len(chosen)), rng.choice(texts[attribute]))
            found.append(Pair(_messages(case), " ".join(chosen), " ".join(rejected), attribute))
    return found


def _case(world: World, rng: random.Random, mix: Sequence[tuple[str, str | None, float]]) -> WorldCase:
    request, wrapper, _ = rng.choices(mix, [share for *_, share in mix])[0]
    return world.case(rng, request, wrapper, "seen", "seen", training=True)


def _messages(case: WorldCase) -> tuple[Message, ...]:
    return Message.conversation([{"role": role, "content": content} for role, content in case.messages])
