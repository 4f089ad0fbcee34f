"""What tells everyday questions from requests for harm, as it is trained and as it ships."""

import asyncio

import numpy as np
import pytest

from research.embedded.train_requests import asked, bias_for, fitted, without_copies
from ttsa_guard.moderators.everyday import EVERYDAY, harm_of


def test_the_fit_tells_the_kinds_apart_though_one_is_rare():
    rng = np.random.default_rng(0)
    bad, fine = rng.normal(0.5, 0.2, (20, 8)), rng.normal(-0.5, 0.2, (400, 8))
    weights, bias = fitted(bad, fine)
    assert (bad @ weights + bias > 0).all()
    assert (fine @ weights + bias < 0).all()


def test_what_is_nearly_held_out_is_not_trained_on():
    rows = np.eye(3)
    assert without_copies(rows, np.array([[0.9, 0.1, 0.0]])).tolist() == rows[1:].tolist()


def test_the_bias_is_where_nearly_all_harmless_rows_are_everyday_ones():
    fine = np.linspace(-1, 1, 101)[:, None]
    weights = np.array([3.0])
    harms = 1 / (1 + np.exp(-(fine @ weights + bias_for(weights, fine))))
    assert np.sum(harms < EVERYDAY) == 98


@pytest.mark.real
def test_the_test_questions_are_everyday_ones_as_the_card_says():
    questions = asked("_test")
    harms = [asyncio.run(harm_of([question], turns=True)) for question in questions]
    # The card counts without regard to the language; of other languages nothing is known.
    found = np.mean([harm.value < EVERYDAY for harm in harms if harm])
    assert (len(questions), round(found, 2)) == (180, 0.92)
