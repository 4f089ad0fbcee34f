"""The rows that the encoder learns from, and that a seed gives the same weights; the training
itself is marked real."""

import random

import numpy as np
import pytest
from rich.console import Console

from research.embedded import encoder_data
from research.embedded.encoder_data import HEADS, labels, training
from research.embedded.lite_data import UNKNOWN, Example


def rows(part, n=40):
    """Answers to questions, half of them bad; every part has its own questions but for the last
    one, which all share."""
    for i in range(n):
        prompt = "the shared question" if i == n - 1 else f"{part} question {i}"
        text = f"the {part} answer number {i}. It goes on."
        yield Example(text, "just-eval safety", part, i % 2, 0, 0, prompt=prompt)
        yield Example(
            f"a {part} dolly answer {i}",
            "dolly",
            part,
            0,
            0,
            i % 4 == 0,
            prompt=f"{part} harmless {i}",
        )


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setattr(encoder_data, "WORLD_ANSWERS", 2)
    return [e for part in ("train", "validation", "test") for e in rows(part)]


def test_nothing_that_answers_a_held_out_prompt_is_trained_on(found):
    made = training(found, seed=0)
    assert all("validation answer" not in e.text and "test answer" not in e.text for e in made)
    assert all("train answer number 39" not in e.text for e in made), (
        "its question is asked in the test, too"
    )


def test_hard_pairs_have_the_labels_of_their_answers(found):
    made = [e for e in training(found, seed=0) if e.source == "made"]
    assert {e.harm for e in made} == {0, 1}
    assert all(
        ("dolly" not in e.text) or e.harm == 0 for e in made if "answer number" not in e.text
    )
    assert all(e.harm == 1 for e in made if "answer number" in e.text and "dolly" not in e.text)


def test_the_same_seed_gives_the_same_rows(found):
    assert training(found, seed=1) == training(found, seed=1)
    assert training(found, seed=1) != training(found, seed=2)


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (Example("an answer", "s", "train", 1, UNKNOWN, 0, prompt="about suicide"), 1),
        (Example("an answer", "s", "train", 1, 0, 0, prompt="about locks"), 0),
        (Example("an answer about suicide", "s", "train", 0, 0, 1), 0),
        (Example("an answer", "s", "train"), UNKNOWN),
    ],
)
def test_self_harm_is_a_topic_of_what_is_bad(example, expected):
    assert labels(example)[HEADS.index("self_harm")] == expected


@pytest.mark.real
def test_a_seed_gives_the_same_weights_to_the_last_bit(found):
    from research.embedded.train_encoder import stored, train

    some = random.Random(0).sample(found, 64)
    one, two, other = (
        stored(train(some, Console(quiet=True), epochs=1, seed=seed)) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["heads.weight"], other["heads.weight"])
