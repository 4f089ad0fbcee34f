"""Replicas, costs and limits."""

import pytest

from ttsa_guard.plan.capacity import breaking, needed, point, table
from ttsa_guard.plan.simulation import enough, percentiles, simulate


@pytest.mark.parametrize("traffic", ["reviews", "chat"])
@pytest.mark.parametrize("batching", ["continuous", "calls"])
def test_a_shard_stands_for_all(plan, traffic, batching):
    """Four replicas at their share of the rate, against twelve with one balancer that knows the
    load of all."""
    settings = plan(traffic=traffic, batching=batching, samples=1500, tokens=40)
    rate = 12 * (4.0 if traffic == "chat" else 6.0)
    shard = point(settings, rate, 12)
    whole = simulate(settings, enough(settings, rate), replicas=12)
    direct = percentiles([a.added for a in whole.counted(flagged=True)])
    assert shard.flagged["p50"] == pytest.approx(direct["p50"], rel=0.05)
    assert shard.flagged["p95"] == pytest.approx(direct["p95"], rel=0.08)
    assert shard.rows == pytest.approx(whole.rows, rel=0.08)


def test_more_replicas_are_faster_and_a_higher_rate_is_slower(plan):
    settings = plan()
    by_replicas = [point(settings, 20.0, n).flagged["p95"] for n in (1, 2, 4, 8)]
    by_rate = [point(settings, rate, 2).flagged["p95"] for rate in (1.0, 10.0, 20.0, 40.0)]
    assert by_replicas == sorted(by_replicas, reverse=True)
    assert by_rate == sorted(by_rate)


def test_as_many_as_are_needed_and_no_more(plan):
    settings = plan(target=3.0, samples=100, deadline=15)
    found = needed(settings, 400.0)
    assert found.limit is None
    assert found.flagged["p95"] <= 3.0
    assert point(settings, 400.0, found.replicas - 1).limit
    assert needed(settings, 4000.0).replicas == pytest.approx(10 * found.replicas, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"replicas": 2}, "rows"),
        ({"gate": {"p50": 0.05, "per_second": 100}}, "moderation"),
        ({"deadline": 0.5}, "deadline"),
        ({"target": 0.5}, "target"),
    ],
)
def test_what_breaks(plan, changes, limit):
    assert table(plan(samples=50, **changes), [1e3])[0].limit == limit


def test_where_it_breaks(plan):
    """One call for each answer and 2 x 0.2 for the guide and 0.2 for the last check: 1.6 of 160 a
    second."""
    settings = plan(gate={"p50": 0.05, "per_second": 160}, samples=100)
    found = breaking(settings, table(settings, [1.0, 10.0, 1000.0]))
    assert found.limit == "moderation"
    assert found.rate == pytest.approx(95, rel=0.1)


def test_nothing_breaks(plan):
    settings = plan()
    assert breaking(settings, table(settings, [1.0, 2.0])) is None


def test_the_first_rate_may_be_too_high(plan):
    settings = plan(replicas=1)
    assert breaking(settings, table(settings, [1000.0])).rate < 200


def test_what_a_million_answers_cost(plan):
    settings = plan(price=3.6, gate={"p50": 0.05, "price": 2.0}, guide={"p50": 0.05, "price": 1.0})
    found = point(settings, 10.0, 5)
    replicas = 5 * 3.6 / 3600 / 10 * 1e6
    moderation = 1e3 * (1.2 * 2.0 + 0.2 * 2 * 1.0)
    assert found.cost == pytest.approx(replicas + moderation)
    assert found.calls == pytest.approx(1.6, rel=0.05)
