"""What of a text is reasoning, and templates of models that write some."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.reasoning_models import TEMPLATES, reasoning_copy
from ttsa_guard.backends.base import Reasons
from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.messages import GenerationRequest, Message, Scope
from ttsa_guard.reasoning import shown_so_far, split_reasoning, without_reasoning
from ttsa_guard.testing import scripted_guard

TURN = [Message("user", "is the kettle clean")]


@pytest.mark.parametrize(
    ("text", "reasoning", "rest"),
    [
        ("Just an answer.", "", "Just an answer."),
        (" <b> 1 < 2", "", " <b> 1 < 2"),
        ("<think>a plan</think>\n\nAn answer.", "a plan", "An answer."),
        ("<think>a plan that does not end", "a plan that does not end", ""),
        ("begun in the prompt</think>An answer.", "begun in the prompt", "An answer."),
        ("<think>one</think>A<think>two</think>B", "one\ntwo", "AB"),
        ("<think></think>An answer.", "", "An answer."),
    ],
)
def test_reasoning_is_split_off(text: str, reasoning: str, rest: str) -> None:
    assert split_reasoning(text) == (reasoning, rest)
    assert without_reasoning(text) == rest.lstrip()


def test_of_a_growing_text_no_reasoning_is_shown() -> None:
    text = "<think>a plan</think>\n\nAn answer < 3 <thin ice."
    shown = [shown_so_far(text[:n]) for n in range(len(text) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
    assert shown[-1] == "An answer < 3 <thin ice."
    assert not any("think" in s or "plan" in s for s in shown)


@pytest.fixture(params=TEMPLATES)
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def reasoning_model(style: str, tiny_model: Path, tmp_path: Path) -> TransformersBackend:
    folder = reasoning_copy(tiny_model, tmp_path / "model", style)
    return TransformersBackend(
        TransformersOptions(model=str(folder), device="cpu", dtype="float32")
    )


def decoded(backend: TransformersBackend, ids: Any) -> str:
    return str(backend._engine.tokenizer.decode(ids))


@pytest.mark.parametrize("scope", ["user", "all"])
def test_steering_begins_after_a_closed_block(
    reasoning_model: TransformersBackend, scope: Scope
) -> None:
    prompt = asyncio.run(reasoning_model.render(TURN, scope=scope))
    assert decoded(reasoning_model, prompt.ids).endswith("<|assistant|><think>\n\n</think>\n\n")
    if scope == "user":
        assert decoded(reasoning_model, prompt.soft_ids) == TURN[0].content


def test_the_plain_answer_may_reason(style: str, reasoning_model: TransformersBackend) -> None:
    assert isinstance(reasoning_model, Reasons)
    prompt, opening = asyncio.run(reasoning_model.render_reasoning(TURN))
    assert decoded(reasoning_model, prompt.ids).endswith("<|assistant|>")
    assert opening == ("<think>\n" if style == "deepseek" else "")
    [answer] = asyncio.run(
        reasoning_model.generate([GenerationRequest(prompt, opening=opening, max_new_tokens=4)])
    )
    assert answer.text.startswith(opening.strip())


def test_an_answer_that_is_nothing_but_reasoning_is_asked_for_again(
    reasoning_model: TransformersBackend,
) -> None:
    """A tiny model closes no block: of an answer that the template made reason, nothing else would
    be left."""
    guard = scripted_guard([], generation={"max_new_tokens": 8})
    guard.backend = reasoning_model
    outcome = asyncio.run(guard.respond("is the kettle clean"))
    assert outcome.action == "pass"
    assert outcome.text
    assert "think" not in outcome.text


def test_other_templates_are_left_alone(tiny: TransformersBackend) -> None:
    assert asyncio.run(tiny.render_reasoning(TURN)) == (asyncio.run(tiny.render(TURN)), "")
