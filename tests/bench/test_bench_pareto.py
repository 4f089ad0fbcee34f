"""Trade-offs between attributes: values that can be worked out by hand."""

import numpy as np
import pytest

from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES

pytest.importorskip("moocore")
pytest.importorskip("sklearn")

import torch
from transformers import AutoModelForCausalLM

from research.prosocial import pareto
from ttsa_guard.steerers.prosocial.adapter import Adapter, AdapterShape

WEIGHTS = np.array([[prefer.get(name, 0.0) for name in ATTRIBUTES] for prefer in pareto.GRID])


def test_the_grid_has_corners_even_pairs_and_equal_weights():
    assert np.allclose(WEIGHTS.sum(axis=1), 1)
    assert sorted((WEIGHTS > 0).sum(axis=1).tolist()) == [1] * 5 + [2] * 10 + [5]
    assert len(np.unique(WEIGHTS, axis=0)) == 16


@pytest.mark.parametrize(
    ("points", "volume"),
    [
        ([[1.0, 0.5], [0.5, 1.0]], 0.75),
        ([[1.0, 0.5], [0.5, 1.0], [0.5, 0.5]], 0.75),  # the last is dominated
        ([[1.0, 0.5], [1.0, 0.5]], 0.5),
        ([[0.5, 0.5, 0.5], [1.0, 0.2, 0.5]], 0.125 + 0.5 * 0.2 * 0.5),
        ([[0.5] * 5], 0.5**5),
        ([[0.0, 0.0], [1.0, 0.0]], 0.0),
    ],
)
def test_hypervolume(points, volume):
    assert pareto.hypervolume(np.array(points)) == pytest.approx(volume)


def test_area_is_the_mean_over_the_pairs():
    assert pareto.area(np.array([[1.0, 1.0, 0.0, 0.0, 0.0]])) == pytest.approx(1 / 10)
    assert pareto.area(np.eye(5) + np.eye(5)[[1, 0, 2, 3, 4]]) == pytest.approx(1 / 10)


def test_the_front_has_what_nothing_dominates():
    assert pareto.front(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.4, 0.5], [0.5, 0.5]])) == 3


def test_intervals_hold_the_value_and_differences_are_paired():
    drawn = np.random.default_rng(0).random((1, 20, 5))
    found = pareto.volumes({"a": drawn, "b": drawn, "c": drawn / 2}, pareto.hypervolume)
    exact = pareto.hypervolume(drawn.mean(axis=1))
    assert found["a"]["value"] == pytest.approx(exact, rel=1e-2)
    assert found["a"]["low"] < exact < found["a"]["high"]
    assert found["b"]["minus a"] == {"value": 0, "low": 0, "high": 0}
    assert found["c"]["minus a"]["value"] == pytest.approx(-exact * (1 - 2**-5), rel=1e-2)
    assert found["c"]["minus a"]["high"] < 0


def test_answers_that_are_not_good_count_nothing_in_the_second_volume():
    values = {"a": np.repeat(WEIGHTS[:, None], 3, axis=1)}
    # not at equal weights
    good = {"a": np.repeat((WEIGHTS.max(axis=1) >= 0.5).astype(float)[:, None], 3, axis=1)}
    found = pareto.summary(values, good)
    assert {kind: e["value"] for kind, e in found["good"]["a"].items()} == {
        "all": pytest.approx(15 / 16, abs=1e-4),
        "corners": 1,
        "even pairs": 1,
        "equal weights": 0,
    }
    assert found["on the front"] == {"a": 16}
    assert found["hypervolume"]["a"]["value"] == pytest.approx(0.2**5, rel=1e-2)
    assert found["hypervolume, good answers alone"]["a"]["value"] == 0
    assert found["area"] == found["area, good answers alone"]


def test_direction_compares_corners_and_even_pairs():
    values = np.repeat((WEIGHTS**2)[:, None], 3, axis=1)
    for found in pareto.direction(values).values():
        assert {key: e["value"] for key, e in found.items()} == {
            "at 0": 0,
            "at 0.5": 0.25,
            "at 1": 1,
            "rise": 1,
        }


def test_a_soup_is_the_weighted_sum_of_updates(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    parts = []
    for i in range(2):
        adapter = Adapter(model, AdapterShape(rank=2, objectives=0), base="")
        for weight in adapter.parameters():
            torch.nn.init.normal_(weight)
        adapter.save(tmp_path / f"{i}.safetensors")
        parts.append(Adapter.load(tmp_path / f"{i}.safetensors"))
    joined = pareto.soup(parts, [0.25, 0.75]).on(model)
    updates = [[part.delta(None) for part in adapter.on(model).parts.values()] for adapter in parts]
    for found, first, second in zip(joined.parts.values(), *updates, strict=True):
        assert torch.allclose(found.delta(None), 0.25 * first + 0.75 * second, atol=1e-4)


def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    pareto.plot({"trained": WEIGHTS, "untrained": WEIGHTS / 4}, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
