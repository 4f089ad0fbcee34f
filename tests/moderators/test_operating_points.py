"""Thresholds by the share of harmless texts that they flag."""

from __future__ import annotations

import asyncio

import pytest

from research.embedded.operating_points import digest
from ttsa_guard.config import Use
from ttsa_guard.errors import ConfigError
from ttsa_guard.moderators.operating_points import (
    RATES,
    FalseAlarms,
    cutoff,
    points,
)
from ttsa_guard.moderators.tuning import operating_point
from ttsa_guard.plugins import Plugins

SHIPPED = ("lite", "second_opinion")
KETTLE = "You can clean the kettle with warm water and a soft cloth."


def made(name: str, threshold: object) -> object:
    return Plugins().make("moderators", Use(use=name, options={"threshold": threshold}))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_table_belongs_to_the_shipped_weights(name: str) -> None:
    assert points()[name]["weights"] == digest(name), (
        "run python -m research.embedded.operating_points"
    )
    scores = points()[name]["scores"]
    assert tuple(scores) == RATES
    assert list(scores.values()) == sorted(scores.values())


@pytest.mark.parametrize("name", SHIPPED)
def test_the_moderator_flags_from_the_score_of_the_rate_on(name: str) -> None:
    strict, lax = made(name, {"false_alarms": 0.1}), made(name, {"false_alarms": 0.001})
    score = max(moderate(strict).categories[head] for head in ("harm", "toxicity"))
    assert moderate(strict).score == moderate(lax).score == score
    assert strict.threshold == points()[name]["scores"][0.1] < lax.threshold  # type: ignore[attr-defined]
    at = made(name, score)
    assert moderate(at).flagged
    assert not moderate(lax).flagged


def moderate(moderator: object) -> object:
    [verdict] = asyncio.run(moderator.moderate([KETTLE], prompts=[""]))  # type: ignore[attr-defined]
    return verdict


def test_rates_between_those_that_were_measured() -> None:
    between = cutoff("lite", FalseAlarms(false_alarms=0.015))
    assert (
        cutoff("lite", FalseAlarms(false_alarms=0.02))
        < between
        < cutoff("lite", FalseAlarms(false_alarms=0.01))
    )


def test_a_moderator_that_was_not_measured() -> None:
    with pytest.raises(ConfigError, match="have not been measured") as caught:
        cutoff("mine", FalseAlarms(false_alarms=0.01))
    assert "moderators tune FILE.jsonl --moderator mine" in caught.value.hint


@pytest.mark.parametrize(
    "threshold",
    [
        1.5,
        -0.1,
        "low",
        {"false_alarms": 0.5},
        {"false_alarms": 0.0001},
        {"false_alarm": 0.01},
        {},
        None,
    ],
)
def test_thresholds_that_are_none(threshold: object) -> None:
    with pytest.raises(
        ConfigError, match=r"lite\.threshold.*give a number from 0 to 1, or {false_alarms: SHARE}"
    ):
        made("lite", threshold)


@pytest.mark.parametrize(
    ("scores", "rate", "threshold"),
    [
        ([0.1, 0.2, 0.3, 0.4], 0.25, 0.35),
        ([0.1, 0.2, 0.3, 0.4], 0.5, 0.25),
        ([0.1, 0.2, 0.3, 0.4], 0.2, 0.7),  # none may be flagged
        ([0.1, 0.4, 0.4, 0.4], 0.5, 0.7),  # of equal scores, all or none
        ([0.1, 0.2], 1.0, 0.1),
    ],
)
def test_operating_points_by_hand(scores: list[float], rate: float, threshold: float) -> None:
    assert operating_point(scores, rate) == pytest.approx(threshold)
    assert sum(score >= threshold for score in scores) <= rate * len(scores)


def test_texts_can_count_differently() -> None:
    assert operating_point([0.9, 0.1, 0.2], 0.5, [3, 1, 2]) == pytest.approx(0.55)
    assert operating_point([0.9, 0.1, 0.2], 0.4, [3, 1, 2]) == pytest.approx(0.95)
