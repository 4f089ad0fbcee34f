"""What work takes: measured points, shapes, settings."""

import asyncio

import pytest
import yaml

from ttsa_guard.errors import ConfigError
from ttsa_guard.guard import Guard
from ttsa_guard.plan.config import PlanConfig
from ttsa_guard.plan.costs import Costs, Moderation, ReplicaShape
from ttsa_guard.plan.measure import measure


def test_a_step_is_linear_between_points_and_goes_on_after_them():
    costs = Costs(step=((1, 0.1), (3, 0.3), (5, 0.4)), rows=7)
    assert costs.steps[1:] == pytest.approx([0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5])


def test_rows_leave_a_batch_when_they_end():
    costs = Costs(step=((1, 1.0), (3, 3.0)), rows=3, call=10.0, prefill=0.5)
    assert costs.decoding([4, 1, 2]) == 3 + 2 + 1 + 1
    assert costs.calling([1, 1, 1, 1], 6) == 3 + (10 + 3) + (10 + 1)


def test_a_shape_reads_its_weights_until_the_arithmetic_takes_longer():
    shape = ReplicaShape(
        bandwidth=1e12,
        flops=1e14,
        efficiency=1,
        parameters=1e9,
        kv_heads=1,
        layers=1,
        head_size=1,
        most_rows=128,
    )
    steps = shape.costs().steps
    assert steps[1] == pytest.approx(2e9 / 1e12, rel=0.01)
    assert steps[50] == pytest.approx(steps[1], rel=0.01)
    assert steps[128] == pytest.approx(128 * 2e9 / 1e14, rel=0.01)


def test_the_keys_of_all_rows_fit_into_the_memory():
    assert ReplicaShape(context=8192).costs().rows < ReplicaShape(context=1024).costs().rows
    with pytest.raises(ValueError, match="does not fit"):
        ReplicaShape(parameters=7e10).costs()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("ratee: 3", "did you mean 'rate'"),
        ("costs: {step: [[4, 0.1], [2, 0.2]]}", "rows rise"),
        ("shape: {parameters: 7.0e+10}", "does not fit"),
        ("burst: {factor: 5, share: 0.5}", "at most 1"),
        ("gate: {p50: 0.2, p95: 0.1}", "at least the median"),
        ("[1, 2]", "not settings"),
        ("costs: none.yml", "plan measure"),
    ],
)
def test_wrong_settings(settings, told, tmp_path):
    file = tmp_path / "plan.yml"
    file.write_text(settings)
    with pytest.raises(ConfigError, match=told):
        PlanConfig.load(file)


def test_costs_are_found_beside_the_settings(tmp_path):
    (tmp_path / "costs.yml").write_text(
        yaml.safe_dump(Costs(step=((1, 0.5),)).model_dump(mode="json"))
    )
    (tmp_path / "plan.yml").write_text("costs: costs.yml\nrate: 7\n")
    plan = PlanConfig.load(tmp_path / "plan.yml", rate=9.0)
    assert (plan.measured.steps[1], plan.rate) == (0.5, 9)


def test_the_percentiles_of_a_moderator():
    assert Moderation(p50=0.1, p95=0.1).sigma == 0
    assert Moderation(p50=0.1, p95=0.3).sigma == pytest.approx(0.668, abs=0.001)


@pytest.fixture(scope="module")
def measured():
    from ttsa_guard.config import GuardConfig

    return asyncio.run(measure(Guard.from_config(GuardConfig()), rows=4, repeats=1))


def test_what_is_measured(measured):
    seconds = [s for _, s in measured.step]
    assert [n for n, _ in measured.step] == [1, 2, 4]
    assert seconds == sorted(seconds)
    assert 1e-5 < seconds[0] < 1
    assert 0 < measured.gate.p50 <= measured.gate.p95 < 1
    assert measured.about["model"] == "embedded"


def test_measured_costs_can_be_stored(measured, tmp_path):
    (tmp_path / "costs.yml").write_text(yaml.safe_dump(measured.model_dump(mode="json")))
    assert Costs.load(tmp_path / "costs.yml") == measured
