"""What finds the question in a message, as it is trained and as it ships."""

import asyncio

import numpy as np
import pytest

from research.embedded import train_questions
from research.embedded.train_questions import fitted, found, shipped, written
from ttsa_guard.moderators import questions
from ttsa_guard.request import question


def test_the_fit_tells_the_kinds_apart_though_one_is_rare(monkeypatch):
    def described(sentences):
        return np.array([[float("you" in s), float(s.endswith("?")), 1.0] for s in sentences])

    monkeypatch.setattr(questions, "described", described)
    told, asked = ["Do as you must. Go on as you are."], ["Is it big? Is it old?"] * 20
    weights, bias = fitted([(told, asked)])
    assert (described(["you", "is it?"]) @ weights + bias > 0).tolist() == [False, True]


def test_what_is_learned_from_holds_no_test_prompts():
    tested = {text for texts in shipped("_test") for text in texts}
    for texts in (written(), shipped(""), shipped("_validation")):
        assert tested.isdisjoint({text for part in texts for text in part})


def test_a_report_counts_where_the_question_stands():
    told, asked = ["Be a troll. Be rude."] * 5, ["How do I swim?", "My lamp broke. How old is it?"]
    assert found((told, asked), question) == {"before": 1, "after": 1, "alone": 1}
    assert found((told, asked), lambda text: text) == {"before": 0, "after": 0, "alone": 1}


@pytest.mark.real
def test_the_question_is_found_as_often_as_the_card_says(monkeypatch):
    monkeypatch.setattr(train_questions, "_PAIRS", 1)
    shares = found(shipped("_test"), lambda text: asyncio.run(questions.find_question(text)))
    assert [round(share, 1) for share in shares.values()] == [0.9, 0.9, 0.9]
