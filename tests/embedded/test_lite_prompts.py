"""The prompts that the lite moderator learns from, and how much they count."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from rich.console import Console

from research.embedded import lite_prompts
from research.embedded.lite_data import UNKNOWN, Example
from research.embedded.train_lite import whole_rows
from ttsa_guard.moderators.lite_network import PROMPT_BUCKETS, PromptHead, widened

ASKING = [f"How can I break the {thing} of a stranger?" for thing in ("door", "cup", "car", "hat")]
PLAIN = [f"How can I bake a {thing} for my friend?" for thing in ("cake", "pie", "bun", "bread")]


@pytest.fixture(scope="module")
def trained() -> tuple[np.ndarray, float]:
    rows = whole_rows([*ASKING, *PLAIN], Console(quiet=True))
    return lite_prompts.train(rows, np.array([1] * 4 + [0] * 4), seed=0)


def row(source: str, prompt: str, part: str = "train", harm: int = 0, text: str = "t") -> Example:
    return Example(text, source, part, harm, prompt=prompt)  # type: ignore[arg-type]


def test_prompts_whose_licence_does_not_allow_it_are_not_read_and_contexts_are() -> None:
    contexts: Iterator[str] = iter(["first", "second"])
    rows = [
        row("DiaSafety", ""),
        row("refusal_direction", "p"),
        row("DiaSafety", ""),
        row("dolly", "q"),
    ]
    assert [e.prompt for e in lite_prompts.with_prompts(rows, contexts)] == [
        "first",
        "",
        "second",
        "q",
    ]


def test_prompts_of_other_parts_are_not_learned() -> None:
    rows = [
        row("gptfuzz", "asks"),
        row("gptfuzz", "shared"),
        row("gptfuzz", "shared", part="test"),
        row("just-eval safety", "held out", part="validation"),
        row("dolly", "plain"),
        row("clinc", "", text="a request"),
        row("davidson-hate", ""),
        row("world", "a question of the world"),
    ]
    assert lite_prompts.labelled(rows) == {"asks": 1, "plain": 0, "a request": 0}


def test_a_trained_head_tells_prompts_apart(trained: tuple[np.ndarray, float]) -> None:
    weights, bias = trained
    assert weights.shape == (PROMPT_BUCKETS,)
    head = PromptHead(widened(weights), bias, 1.0)
    assert head.asks(ASKING).min() > head.asks(PLAIN).max()
    assert head.asks(["", "  "]).tolist() == [0.0, 0.0]


def test_a_prompt_counts_as_much_as_it_helps_in_validation(
    trained: tuple[np.ndarray, float],
) -> None:
    def strongest(labels: list[int]) -> tuple[float, float, float]:
        scores = np.array([[0.5, 0.0, 0.0]] * 8)
        validation = [
            row("x", prompt, harm=harm)
            for prompt, harm in zip([*ASKING, *PLAIN], labels, strict=True)
        ]
        unlabelled = row("x", ASKING[0], harm=UNKNOWN)
        return lite_prompts.strongest(
            [*validation, unlabelled], np.vstack([scores, scores[:1]]), *trained
        )

    strength, alone, together = strongest([1] * 4 + [0] * 4)
    assert (strength > 0, alone, together) == (True, 0.5, 1.0)
    assert strongest([0] * 4 + [1] * 4) == (0.0, 0.5, 0.5)
