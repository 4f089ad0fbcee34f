import math

import pytest

from ttsa_guard.errors import ModeratorError
from ttsa_guard.verdict import Verdict

NOT_SCORES = [
    pytest.param(v, id=repr(v))
    for v in (-0.01, 1.01, math.nan, math.inf, -math.inf, True, "0.5", None, [0.5])
]


def scored(score, **kwargs):
    return Verdict.scored("m", score, threshold=0.5, **kwargs)


@pytest.mark.parametrize(
    ("score", "decision"), [(0, "pass"), (0.49, "pass"), (0.5, "flag"), (1, "flag")]
)
def test_from_the_threshold_upwards_is_a_flag(score, decision):
    assert scored(score).decision == decision
    assert scored(score).flagged == (decision == "flag")


@pytest.mark.parametrize("value", NOT_SCORES)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda v: Verdict("m", "pass", v), id="direct"),
        pytest.param(lambda v: Verdict("m", "pass", 0.0, {"spam": v}), id="category"),
        pytest.param(lambda v: Verdict("m", "pass", v, {"score": 0.0}), id="masked-by-a-category"),
    ],
)
def test_there_is_no_third_thing(make, value):
    with pytest.raises(ModeratorError, match=r"a score is a number in \[0, 1\]"):
        make(value)


@pytest.mark.parametrize("value", NOT_SCORES)
def test_scored_refuses_what_is_no_score(value):
    with pytest.raises((ModeratorError, TypeError)):
        scored(value)


def test_a_threshold_that_is_no_number_lets_nothing_through():
    assert Verdict.scored("m", 0.0, threshold=math.nan).flagged


def test_a_failure_counts_as_a_flag():
    failure = Verdict.failure("m", "TimeoutError")
    assert failure.flagged
    assert (failure.decision, failure.score, failure.reason) == ("failed", 1.0, "TimeoutError")


def test_an_unknown_decision_lets_nothing_through():
    assert Verdict("m", "PASS", 0.0).flagged


def test_categories_are_kept():
    assert dict(scored(0.2, categories={"refusal": 0.9}).categories) == {"refusal": 0.9}
