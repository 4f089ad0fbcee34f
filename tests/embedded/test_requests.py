"""What tells everyday questions from requests for harm, as it is trained and as it ships."""

import asyncio

import numpy as np
import pytest
import yaml

from research.embedded.train_requests import (
    CONTRAST,
    SELF_HARM,
    asked,
    bias_for,
    network,
    regression,
    with_bias,
    without_copies,
)
from ttsa_guard.moderators.everyday import EVERYDAY, harm_of, logits, network_logits


def kinds():
    """Rows of harm, of which one kind is rare, and of what is fine."""
    rng = np.random.default_rng(0)
    places = np.eye(8, dtype=np.float32)[:4]
    often, seldom, fine, sounds_unsafe = (
        place + 0.1 * rng.standard_normal((n, 8), np.float32)
        for place, n in zip(places, (400, 20, 400, 20), strict=True)
    )
    return [(often, 0.7), (seldom, 0.3)], [(fine, 0.7), (sounds_unsafe, 0.3)]


def told_apart(judged, bad, fine):
    return min(judged(rows).min() for rows, _ in bad) > max(judged(rows).max() for rows, _ in fine)


def test_a_kind_is_learned_though_it_is_rare():
    bad, fine = kinds()
    weights = regression(bad, fine)
    assert told_apart(lambda rows: rows @ weights, bad, fine)
    weights = network(bad, fine) | {"out_bias": np.zeros(1, np.float32)}
    assert told_apart(lambda rows: network_logits(rows, weights), bad, fine)


def test_in_conversations_the_larger_harm_counts():
    one = np.ones(1, np.float32)
    weights = {"hidden": one[None], "hidden_bias": one, "out": one, "out_bias": -one}
    weights |= {f"self_harm_{name}": -abs(array) for name, array in weights.items()}
    weights |= {"said": 3 * one, "said_bias": one}
    assert logits(one[None], weights, turns=False).tolist() == [1]
    assert logits(one[None], weights, turns=True).tolist() == [4]


@pytest.mark.parametrize("turns", [False, True])
def test_self_harm_counts_where_it_is_larger(turns):
    one = np.ones(1, np.float32)
    weights = {"hidden": one[None], "hidden_bias": one, "out": one, "out_bias": -one}
    weights |= {f"self_harm_{name}": 2 * array for name, array in weights.items()}
    weights |= {"said": one, "said_bias": one}
    assert logits(one[None], weights, turns=turns).tolist() == [6]


@pytest.mark.parametrize(("file", "most"), [(CONTRAST, 4000), (SELF_HARM, 1000)])
def test_no_message_is_in_two_places(file, most):
    held = yaml.safe_load(file.read_text(encoding="utf-8"))
    texts = [text for part in held.values() for kind in part.values() for text in kind]
    assert {part: set(kinds) for part, kinds in held.items()} == {
        part: {"fine", "harmful"} for part in ("training", "validation")
    }
    assert len(texts) == len(set(texts)) > most


def test_what_is_nearly_held_out_is_not_trained_on():
    rows = np.eye(3)
    assert without_copies(rows, np.array([[0.9, 0.1, 0.0]])).tolist() == rows[1:].tolist()


def test_the_bias_is_where_that_share_is_everyday():
    found = np.linspace(-1, 1, 101)
    harms = 1 / (1 + np.exp(-(found + bias_for(found, 0.98))))
    assert np.sum(harms < EVERYDAY) == 98


def test_a_network_takes_that_share_of_texts_for_everyday_ones():
    bad, fine = kinds()
    rows = np.vstack([rows for rows, _ in (*bad, *fine)])
    weights = with_bias(network(bad, fine), rows, 0.25)
    harms = 1 / (1 + np.exp(-network_logits(rows, weights)))
    assert np.mean(harms < EVERYDAY) == pytest.approx(0.25, abs=0.01)


@pytest.mark.real
def test_the_test_questions_are_everyday_ones_as_the_card_says():
    questions = asked("_test")
    harms = [asyncio.run(harm_of([question], turns=True)) for question in questions]
    # The card counts without regard to the language; of other languages nothing is known.
    found = np.mean([harm.value < EVERYDAY for harm in harms if harm])
    assert (len(questions), round(found, 2)) == (180, 0.95)
