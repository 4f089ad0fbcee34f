"""The simulation against queueing theory where that is exact, and against what has to hold."""

import random
from collections import Counter
from itertools import islice
from statistics import mean

import pytest

from ttsa_guard.plan.capacity import point
from ttsa_guard.plan.config import Burst, PlanConfig, SearchCosts
from ttsa_guard.plan.simulation import Arrival, arrivals, enough, pass_lengths, simulate

N = 20_000
BATCHING = pytest.mark.parametrize("batching", ["continuous", "calls"])


def queue(load, *, spread, batching):
    """One server that does one answer at a time, of a second on average: seconds in the system, and
    the result."""
    costs = {"step": [[1, 0.005]], "rows": 1}
    plan = PlanConfig(
        traffic="chat", flags=0, tokens=200, spread=spread, prompt=0, costs=costs, batching=batching
    )
    result = simulate(plan, islice(arrivals(plan, load), N), replicas=1)
    return [a.plain for a in result.counted(flagged=False)], result


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_exponential_answers_wait_as_in_m_m_1(load):
    times, _ = queue(load, spread=1.0, batching="continuous")
    assert mean(times) == pytest.approx(1 / (1 - load), rel=0.06)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_equal_answers_wait_as_in_m_d_1(load):
    times, _ = queue(load, spread=0.0, batching="continuous")
    assert mean(times) == pytest.approx(1 + load / (2 * (1 - load)), rel=0.04)


def test_calls_of_one_row_have_the_capacity_of_one_row():
    """What waits is a call, and ends with it: the same work, and nobody is faster than alone."""
    times, result = queue(0.6, spread=0.0, batching="calls")
    assert result.busy == pytest.approx(0.6, rel=0.03)
    assert min(times) == pytest.approx(1.0)
    assert mean(times) > 1 + 0.6 / (2 * (1 - 0.6))


@BATCHING
def test_littles_law(plan, batching):
    """Rows in use are the rate at which rows come times the seconds that each is decoded."""
    settings = plan(
        traffic="chat", flags=0.0, tokens=50, spread=0.0, prompt=0, batching=batching, samples=3000
    )
    result = simulate(settings, enough(settings, 20.0), replicas=1)
    if batching == "continuous":
        inside = mean(a.plain for a in result.answers)
        assert result.rows * 32 == pytest.approx(20 * inside, rel=0.05)
    else:
        assert 0 < result.rows * 32 < 20 * mean(a.plain for a in result.answers)


@BATCHING
def test_alone_an_answer_takes_its_service_time(plan, batching):
    settings = plan(traffic="chat", batching=batching, prompt=100)
    search = SearchCosts(
        passes=2, generations=4, tokens=1, calls=2, work=0.5, measuring=0.3, aside=0.1
    )
    requests = [Arrival(1000.0 * i, 10, search, ((5, 5), (7, 3))) for i in range(3)]
    step = settings.measured.steps
    passes = 2 * 0.001 + 5 * step[2] + 3 * step[2] + 4 * step[1]
    for answer in simulate(settings, requests, replicas=2).answers:
        assert answer.end == "swap"
        assert answer.plain == pytest.approx(0.001 + 10 * step[1])
        assert answer.added == pytest.approx(0.05 + 0.5 + 0.3 + 0.1 + passes + 2 * 0.05 + 0.05)


def test_the_longest_row_of_a_pass_is_what_was_measured():
    rng = random.Random(0)
    search = SearchCosts(passes=2, generations=7, tokens=230, steps=120)
    drawn = [pass_lengths(search, 0.5, rng) for _ in range(500)]
    assert {tuple(max(rows) for rows in passes) for passes in drawn} == {(60, 60)}
    assert {tuple(map(len, passes)) for passes in drawn} == {(4, 3)}
    assert mean(sum(map(sum, passes)) for passes in drawn) == pytest.approx(230, rel=0.03)
    assert pass_lengths(search, 0, rng) == ((60, 22, 22, 22), (60, 22, 22))
    assert pass_lengths(SearchCosts(passes=1, generations=1, tokens=50, steps=50), 0.5, rng) == (
        (50,),
    )
    assert pass_lengths(SearchCosts(passes=0, generations=0, tokens=0, steps=0), 0.5, rng) == ()


@BATCHING
@pytest.mark.parametrize("traffic", ["reviews", "chat"])
@pytest.mark.parametrize("rate", [1.0, 300.0])
def test_every_request_ends_once(plan, batching, traffic, rate):
    settings = plan(
        batching=batching,
        traffic=traffic,
        deadline=3,
        samples=200,
        searches=[{"swapped": False}, {}],
    )
    requests = enough(settings, rate)
    result = simulate(settings, requests, replicas=2)
    assert Counter(a.arrival.at for a in result.answers) == Counter(r.at for r in requests)
    assert all((a.end == "pass") == (a.arrival.search is None) for a in result.answers)
    assert all(a.end != "swap" or a.arrival.search.swapped for a in result.answers)


@BATCHING
def test_nothing_outlives_the_deadline(plan, batching):
    settings = plan(
        batching=batching, deadline=1.5, searches=[{"passes": 3, "tokens": 900, "calls": 0}]
    )
    result = simulate(settings, enough(settings, 60.0), replicas=1)
    flagged = [a for a in result.answers if a.arrival.search]
    late = [a for a in flagged if a.end == "deadline"]
    assert len(late) / len(flagged) > 0.5
    assert all(a.added == pytest.approx(1.5) for a in late)
    assert all(a.added <= 1.5 + 0.05 + 1e-6 for a in flagged)


def test_calls_beyond_the_limit_wait_and_are_given_up(plan):
    gate = {"p50": 0.05, "per_second": 20}
    below, above = (
        plan(flags=0.0, gate=gate, samples=3000),
        plan(flags=0.0, gate=gate, samples=3000, gate_seconds=2.0),
    )
    fine = simulate(below, enough(below, 10.0), replicas=1)
    assert {a.end for a in fine.answers} == {"pass"}
    assert max(a.added for a in fine.answers) < 0.5
    result = simulate(above, enough(above, 40.0), replicas=1)
    given_up = [a for a in result.counted(flagged=False) if a.end == "gate"]
    assert len(given_up) / len(result.counted(flagged=False)) == pytest.approx(0.5, abs=0.05)
    assert result.calls / result.seconds == pytest.approx(20, rel=0.1)


def test_the_guide_shares_the_limit_unless_it_is_another(plan):
    gate = {"p50": 0.05, "per_second": 12}
    shared, apart = plan(gate=gate), plan(gate=gate, guide={"p50": 0.05})
    slow, fast = (
        [a.added for a in simulate(s, enough(s, 8.0), replicas=4).counted(flagged=True)]
        for s in (shared, apart)
    )
    assert mean(slow) > 1.5 * mean(fast)


def test_a_seed_gives_the_same_and_another_one_does_not(plan):
    first, same, other = (plan(seed=seed, gate={"p50": 0.05, "p95": 0.1}) for seed in (1, 1, 2))
    results = [simulate(s, enough(s, 5.0), replicas=2) for s in (first, same, other)]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_bursts_keep_the_mean_and_cost_latency(plan):
    steady, bursty = plan(), plan(burst={"factor": 4, "period": 20, "share": 0.2})
    requests = list(islice(arrivals(bursty, 10.0), 20_000))
    assert len(requests) / requests[-1].at == pytest.approx(10, rel=0.03)
    busy = sum(r.at % 20 < 4 for r in requests) / len(requests)
    assert busy == pytest.approx(0.8, abs=0.02)
    assert point(bursty, 8.0, 1).flagged["p95"] > 1.2 * point(steady, 8.0, 1).flagged["p95"]


def test_the_level_of_a_burst():
    burst = Burst(factor=3, period=10, share=0.2)
    assert burst.level(31.0) == 3
    assert burst.level(35.0) == pytest.approx(0.5)
