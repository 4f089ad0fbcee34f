"""From rows to numbers."""

import asyncio

import numpy as np
import pytest

from ttsa_guard.bench.judges import lexical_similarity
from ttsa_guard.bench.measure import Results, estimate


def test_the_interval_of_a_share_is_about_the_normal_one():
    found = estimate([True] * 80 + [False] * 120)
    assert found.value == pytest.approx(0.4)
    half = 1.96 * (0.4 * 0.6 / 200) ** 0.5
    assert (found.low, found.high) == (
        pytest.approx(0.4 - half, abs=0.01),
        pytest.approx(0.4 + half, abs=0.01),
    )


def test_the_interval_of_a_mean():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = estimate(list(values))
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == (
        pytest.approx(values.mean() - half, abs=0.03),
        pytest.approx(values.mean() + half, abs=0.03),
    )


def test_a_median_does_not_mind_an_outlier():
    assert estimate([1.0, 2.0, 3.0, 4.0, 1000.0], median=True).value == 3.0


@pytest.mark.parametrize(
    ("values", "expected"), [([], None), ([None, None], None), ([None, 1, 3], 2.0), ([True], 1.0)]
)
def test_values_that_are_missing_do_not_count(values, expected):
    found = estimate(values)
    assert (found.value if found else None) == expected


def test_numbers_are_the_same_each_time():
    values = [0, 1, 1, 0, 1]
    assert estimate(values) == estimate(values)


def test_pairs_leave_out_what_two_arms_share():
    hard = np.random.default_rng(2).random(300) < 0.5
    better = hard.copy()
    better[:30] = True
    paired = estimate(list(better.astype(float) - hard.astype(float)))
    alone = estimate(list(hard))
    assert 0 < paired.low < paired.value < paired.high
    assert paired.high - paired.low < (alone.high - alone.low) / 1.5


@pytest.fixture
def summary(bench, tmp_path):
    asyncio.run(bench.run())
    return Results.load(tmp_path / "out").summary().as_dict()


def test_a_summary(summary):
    found = summary["groups"]["all"]["arms"]
    assert found["none"]["unsafe"]["value"] == 1
    assert found["none"]["good"]["value"] == found["refuse"]["good"]["value"] == 0
    assert found["refuse"]["swapped"]["value"] == 0
    assert found["default"]["swapped"]["value"] == 1
    assert found["default"]["generations"] == {"value": 16, "low": 16, "high": 16}
    assert 0 < found["default"]["good"]["value"] < 1
    assert found["default"]["good"]["value"] + found["default"]["unsafe"]["value"] == pytest.approx(
        1
    )
    assert "on topic" not in found["default"]
    assert "refusals among swaps" not in found["refuse"]


def test_differences_are_to_the_reference(summary):
    found = summary["groups"]["all"]["arms"]
    assert found["default"]["difference"] == {}
    assert found["none"]["difference"]["good"]["value"] == -found["default"]["good"]["value"]


def test_groups(summary):
    groups = summary["groups"]
    assert (
        groups["prompts, benign"]["cases"] + groups["prompts, unsafe"]["cases"]
        == groups["all"]["cases"]
    )
    assert groups["mixed"]["cases"] == groups["all"]["cases"]
    assert "hard" not in groups


def test_over_refusal(summary):
    found = summary["benign"]["arms"]
    assert {
        arm: found[arm]["unflagged, left unchanged"]["value"] for arm in found
    } == dict.fromkeys(found, 1)
    assert {arm: found[arm]["flagged, refused"]["value"] for arm in found} == {
        "none": 0,
        "default": 0,
        "refuse": 1,
    }


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ("how to clean a kettle", "how to clean a kettle", 1, 1),
        ("how to clean a kettle", "to clean the kettle, boil it", 0.3, 0.9),
        ("how to clean a kettle", "zzz qqq xxx", 0, 0.1),
        ("", "", 0, 1),
    ],
)
def test_similarity(first, second, low, high):
    assert low <= round(lexical_similarity(first, second), 9) <= high
    assert lexical_similarity(first, second) == pytest.approx(lexical_similarity(second, first))
