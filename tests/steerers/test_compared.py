"""Steerers that others have published or that are obvious: rewrite, self_reminder, smoothllm."""

import asyncio
import random
import string

import pytest

from ttsa_guard.budget import Budget, Usage
from ttsa_guard.messages import GenerationRequest, Message, Prompt, Tokens
from ttsa_guard.profile import GENERIC
from ttsa_guard.steerers.base import Steerer, Task
from ttsa_guard.steerers.baselines.rewrite import INSTRUCTION, Rewrite, RewriteOptions
from ttsa_guard.steerers.baselines.self_reminder import (
    AFTER,
    BEFORE,
    SelfReminder,
    SelfReminderOptions,
)
from ttsa_guard.steerers.baselines.smoothllm import SmoothLLM, SmoothLLMOptions, perturbed
from ttsa_guard.testing import FakeClock, ScriptedBackend, ScriptedModerator

TALK = (
    Message("system", "be brief"),
    Message("user", "hello"),
    Message("assistant", "hi"),
    Message("user", "how do I sing?"),
)
ANSWER = "a bad answer"
STEERERS = [
    Rewrite(RewriteOptions(n=3)),
    SelfReminder(SelfReminderOptions(n=3)),
    SmoothLLM(SmoothLLMOptions(n=3)),
]


class Remembering(ScriptedBackend):
    """Keeps the conversations that it rendered."""

    def __init__(self, answers):
        super().__init__(answers)
        self.rendered = []

    async def render(self, messages, *, scope="user"):
        self.rendered.append(tuple(messages))
        return Prompt((Tokens(tuple(range(len(self.rendered)))),))


def steer(steerer, answers, *, generations=96, opening=""):
    backend = Remembering(answers)
    base = GenerationRequest(Prompt((Tokens((99,)),)), temperature=0.1, seed=7, opening=opening)

    async def score(texts):
        return await ScriptedModerator().moderate(texts, prompts=["hello"] * len(texts))

    usage = Usage(Budget(generations=generations), FakeClock())
    task = Task(TALK, ANSWER, backend, base, GENERIC, usage, score, seed=7)

    async def main():
        return [r async for r in steerer.steer(task)]

    return asyncio.run(main()), backend, usage


def fine(request):
    return f"fine {request.seed}"


@pytest.mark.parametrize("steerer", STEERERS, ids=lambda s: s.name)
class TestEach:
    def test_it_is_a_steerer(self, steerer):
        assert isinstance(steerer, Steerer)

    def test_one_batch_of_different_samples_within_the_budget(self, steerer):
        _, backend, usage = steer(steerer, fine, generations=2)
        [batch] = backend.calls
        assert [r.seed for r in batch] == [7, 8]
        assert (usage.generations, usage.decode_passes, usage.tokens) == (2, 1, 4)

    def test_nothing_is_asked_when_the_budget_is_gone(self, steerer):
        found, backend, usage = steer(steerer, fine, generations=0)
        assert (found, backend.calls, usage.moderation_calls) == ([], [], 0)

    def test_what_was_shown_stays(self, steerer):
        [[first, *_]], _, _ = steer(steerer, fine, opening="Well, ")
        assert first.text.startswith("Well, fine")

    def test_other_turns_are_left_alone(self, steerer):
        _, backend, _ = steer(steerer, fine)
        assert all(messages[:3] == TALK[:3] for messages in backend.rendered)


def test_rewrite_shows_the_model_its_answer():
    [candidates], backend, _ = steer(Rewrite(RewriteOptions(n=3, temperature=0.5)), fine)
    assert backend.rendered == [(*TALK, Message("assistant", ANSWER), Message("user", INSTRUCTION))]
    assert [(c.text, c.origin) for c in candidates] == [
        (f"fine {i + 7}", f"rewrite {i}") for i in range(3)
    ]
    assert {r.temperature for r in backend.calls[0]} == {0.5}


def test_the_instruction_can_be_worded_otherwise():
    _, backend, _ = steer(Rewrite(RewriteOptions(instruction="again, please")), fine)
    assert backend.rendered[0][-1] == Message("user", "again, please")


def test_self_reminder_wraps_the_last_question():
    [candidates], backend, _ = steer(SelfReminder(SelfReminderOptions(n=2)), fine)
    [messages] = backend.rendered
    assert messages[-1] == Message("user", f"{BEFORE}how do I sing?{AFTER}")
    assert [c.origin for c in candidates] == ["reminded 0", "reminded 1"]


@pytest.mark.parametrize(
    ("bad", "flagged"), [(0, False), (3, False), (5, False), (6, True), (10, True)]
)
def test_smoothllm_gives_one_answer_of_the_majority(bad, flagged):
    [[candidate]], backend, usage = steer(
        SmoothLLM(SmoothLLMOptions()), ["bad"] * bad + ["fine"] * (10 - bad)
    )
    assert candidate.verdict.flagged is flagged
    assert usage.generations == len(backend.rendered) == 10
    assert {r.temperature for r in backend.calls[0]} == {0.1}


def test_smoothllm_asks_about_different_copies():
    _, backend, _ = steer(SmoothLLM(SmoothLLMOptions(rate=0.3)), fine)
    assert len({messages[-1].content for messages in backend.rendered}) == 10
    assert len({r.prompt for r in backend.calls[0]}) == 10


def test_smoothllm_can_be_repeated():
    first, second = (steer(SmoothLLM(SmoothLLMOptions()), fine)[1].rendered for _ in range(2))
    assert first == second


TEXT = "\u00e9" * 50  # no printable ASCII, so what is changed shows


@pytest.mark.parametrize(("kind", "length"), [("swap", 50), ("patch", 50), ("insert", 60)])
def test_a_share_of_the_characters_is_changed(kind, length):
    found = perturbed(TEXT, 0.2, kind, random.Random(1))
    changed = [i for i, c in enumerate(found) if c in string.printable]
    assert (len(found), len(changed)) == (length, 10)
    assert (changed == list(range(changed[0], changed[0] + 10))) == (kind == "patch")


@pytest.mark.parametrize("kind", ["swap", "insert", "patch"])
@pytest.mark.parametrize(("text", "rate"), [("short", 0.1), ("", 0.5), ("unchanged", 0.0)])
def test_texts_too_short_to_change(kind, text, rate):
    assert perturbed(text, rate, kind, random.Random(1)) == text


@pytest.mark.parametrize("kind", ["swap", "patch"])
def test_everything_can_be_changed(kind):
    assert set(perturbed(TEXT, 1.0, kind, random.Random(1))) <= set(string.printable)
