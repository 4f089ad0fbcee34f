"""Win rates: values that can be worked out by hand."""

import random
from dataclasses import replace

import numpy as np
import pytest

from ttsa_guard.config import FALLBACK
from ttsa_guard.embedded.world import World

pytest.importorskip("sklearn")

from research.prosocial.wins import win_rates, wins


class Length:
    """All five meters are the number of words."""

    def measure(self, answers):
        return np.array([[float(len(answer.split()))] * 5 for answer in answers])


def test_a_good_answer_wins_then_the_value_decides():
    ours = [(True, 0.1), (False, 0.9), (True, 0.5), (False, 0.2), (True, 0.3), (False, 0.4)]
    theirs = [(False, 0.9), (True, 0.1), (True, 0.4), (False, 0.3), (True, 0.3), (False, 0.4)]
    assert wins(ours, theirs) == [1, 0, 1, 0, 0.5, 0.5]
    assert wins(theirs, ours) == [0, 1, 0, 1, 0.5, 0.5]


def test_a_refusal_loses_to_good_answers_unless_it_is_taken_as_good():
    world, rng = World.load(), random.Random(0)
    cases = [*world.cases("unsafe", "content", 4), *world.cases("benign", "tone", 4)]
    decent = [world.answer(rng, replace(case, rate=0.0)) for case in cases]
    texts = {
        "base": [world.answer(rng, replace(case, rate=1.0)) for case in cases],
        "refusal": [FALLBACK] * 8,
        "long": [*decent[:4], *(f"{text} {' '.join(['No.'] * 40)}" for text in decent[4:])],
        "same": [FALLBACK] * 8,
    }
    judged = {
        name: [world.judge(case, text) for case, text in zip(cases, own, strict=True)]
        for name, own in texts.items()
    }
    found = win_rates(cases, texts, judged, Length())
    assert set(found) == {"long", "same"}
    good = found["long"]
    assert (
        good["against base"]["content"]["value"] == good["against refusal"]["content"]["value"] == 1
    )
    assert good["against refusal"]["tone"]["value"] == 1  # both are bad, and ours says more
    assert good["against refusal, taken as good"]["tone"]["value"] == 0
    assert found["same"]["against refusal"]["value"] == 0.5
    assert found["same"]["against refusal, taken as good"]["value"] == 0
