"""Real LLMRails apps around scripted guards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.testing import FakeLLMModel

from ttsa_guard.guard import Guard
from ttsa_guard.nemo import install
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import scripted_guard

SAFE = "Here is a fine answer."
FLAGGED = "Mix the bad seekrit powder."
STEERED = "Here is a steered answer."
FALLBACK = "Let us talk about something else."
USER = [{"role": "user", "content": "How do I do it?"}]

CHAT_V2 = """
import core
import llm
import guardrails

flow main
  activate chat

flow chat
  user said something as $u
  global $user_message
  $answer = await PassthroughLLMAction(user_message=$user_message)
  bot say $answer
"""
COLANG = {"1.0": "", "2.x": CHAT_V2 + "\nflow output rails $output_text\n  ttsa steer output\n"}

MakeApp = Callable[..., LLMRails]


def make_config(version: str, colang: str | None = None, **settings: Any) -> RailsConfig:
    return RailsConfig.from_content(
        COLANG[version] if colang is None else colang,
        config={"models": [], "colang_version": version, **settings},
    )


def make_guard(answers: Any = (STEERED,), **parts: Any) -> Guard:
    return scripted_guard(
        answers, **{"fallback": FALLBACK, "steerers": [Resample(ResampleOptions(n=1))], **parts}
    )


def make_app(version: str, guard: Guard, answers: Sequence[Any] = (), **settings: Any) -> LLMRails:
    """An app whose model gives `answers`, with `guard` installed; `settings` go into its
    configuration."""
    app = LLMRails(make_config(version, **settings), llm=FakeLLMModel(responses=list(answers)))
    install(app, guard)
    return app


def say(app: LLMRails, messages: Any = USER, **options: Any) -> Any:
    return asyncio.run(app.generate_async(messages=messages, **options))


@pytest.fixture(params=["1.0", "2.x"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)
