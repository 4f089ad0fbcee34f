"""A benchmark without a model: scripted parts as plugins, and prompts in a file."""

import csv
from dataclasses import dataclass, field
from typing import Any

import pytest

from ttsa_guard.bench.config import BenchConfig
from ttsa_guard.bench.runner import Runner
from ttsa_guard.cli.common import progress
from ttsa_guard.errors import PromptError
from ttsa_guard.plugins import Plugins, hookimpl
from ttsa_guard.settings import validated
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator


def answer(request):
    """Plain answers are bad for short prompts; answers drawn at a higher temperature are good now
    and then."""
    if request.temperature > 0.5:
        return (
            f" a fine and long answer, number {request.seed % 7}."
            if request.seed % 3
            else " a bad answer."
        )
    return " a bad answer." if len(request.prompt) % 2 else " an answer that is fine."


def stricter(text):
    return float("bad" in text or any(f"number {i}" in text for i in (1, 3, 5)))


class Short(ScriptedBackend):
    """Takes prompts of up to a thousand words."""

    async def render(self, messages, *, scope="user"):
        prompt = await super().render(messages, scope=scope)
        if len(prompt) > 1000:
            raise PromptError(f"the prompt has {len(prompt) - 2} words", hint="shorten it")
        return prompt


class Parts:
    """Plugins made of fakes."""

    @hookimpl
    def ttsa_register_backends(self, register):
        register("fake", lambda _: Short(answer))

    @hookimpl
    def ttsa_register_moderators(self, register):
        register("gate", lambda _: ScriptedModerator(name="gate"))
        register("lenient", lambda _: ScriptedModerator(lambda _: 0.0, name="lenient"))
        register("judge", lambda _: ScriptedModerator(stricter, name="judge"))


def plugins():
    found = Plugins()
    found.add(Parts())
    return found


@dataclass
class Bench:
    """Starts benchmarks in folders below `root`."""

    root: Any
    settings: dict = field(default_factory=dict)

    def config(self, **changes):
        return validated(BenchConfig, {**self.settings, **changes}, where="bench")

    def runner(self, name="out", *, together=1, texts=False, **changes):
        return Runner(
            self.config(**changes),
            self.root / name,
            together=together,
            texts=texts,
            command="it",
            plugins=plugins,
        )

    async def run(self, name="out", *, only=(), bar=None, together=1, texts=False, **changes):
        runner = self.runner(name, together=together, texts=texts, **changes)
        with bar or progress() as shown:
            await runner.run(shown, arms=only)
        return runner


@pytest.fixture
def bench(tmp_path):
    prompts = tmp_path / "prompts.csv"
    with prompts.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "harm"])
        rows.writerows([f"{'word ' * i}question", "yes" if i < 6 else "no"] for i in range(12))
    settings = {
        "backend": "fake",
        "data": [{"file": str(prompts), "unsafe": "harm"}],
        "n": 6,
        "judge": "judge",
        "settings": {"gate": "gate", "guide": "gate"},
        "arms": {"none": None, "default": {"steerers": ["resample"]}, "refuse": {"steerers": []}},
    }
    return Bench(tmp_path, settings)
