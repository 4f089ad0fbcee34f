"""Settings of a benchmark."""

import pytest
import yaml

from ttsa_guard.bench.config import BenchConfig
from ttsa_guard.config import GuardConfig
from ttsa_guard.errors import ConfigError
from ttsa_guard.hf.profiles import find_profile

KEYS = {"data": [{"file": "prompts.csv"}], "judge": "judge", "arms": {"default": {}}}


@pytest.mark.parametrize("name", ["embedded", "passes", "quick"])
def test_shipped_benchmarks_load(name):
    config = BenchConfig.load(name)
    assert config.reference in config.arms
    assert config.guard("default").steerers == GuardConfig().steerers


def test_arms_below_the_default_vary_only_that():
    config, default = BenchConfig.load("embedded"), GuardConfig()
    cascade = [use.use for use in find_profile(None, "embedded").steerers]
    names = list(config.arms)
    varied = [config.guard(arm) for arm in names[names.index("default") + 1 :]]
    assert len(varied) >= 6
    for guard in varied:
        assert guard.steerers != default.steerers or guard.quality != default.quality
        used = [u.use for u in guard.steerers]
        assert (
            guard.steerers == default.steerers or [name for name in cascade if name in used] == used
        )


def test_n_can_be_replaced():
    assert BenchConfig.load("quick", n=7).n == 7


def test_arms_are_merged_over_the_common_settings(bench):
    common = {"gate": "gate", "guide": "gate", "quality": {"shortest": 1, "floor": -1.0}}
    arms = {"default": {}, "other": {"quality": {"floor": None}, "gate": "judging"}}
    config = bench.config(settings=common, arms=arms, seed=5, budget={"generations": 3})
    default, other = config.guard("default"), config.guard("other")
    assert (default.quality.shortest, default.quality.floor) == (1, -1.0)
    assert (other.quality.shortest, other.quality.floor) == (1, None)
    assert [member.use for member in other.gate] == ["judging"]
    assert default.budget == other.budget
    assert (other.budget.generations, other.seed, other.backend.use) == (3, 5, "fake")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"arms": {"a": {"steerer": []}}},
            "unknown setting 'arms.a.steerer'\n.*'steerers'",
            id="typo",
        ),
        pytest.param(
            {"arms": {"a": {"budget": {}}}}, "arm 'a' sets 'budget'", id="budget-of-an-arm"
        ),
        pytest.param({"settings": {"seed": 1}}, "sets 'seed'", id="seed-of-the-guards"),
        pytest.param({"arms": {}}, "bench.arms", id="no-arms"),
        pytest.param({"sed": 1}, "unknown setting 'bench.sed'\n.*'seed'", id="typo-above"),
        pytest.param(
            {"data": [{"file": "a.csv", "hub": "b"}]},
            "give one of name, file and hub",
            id="two-origins",
        ),
        pytest.param(
            {"data": [{"file": "a.csv"}, {"file": "b/a.csv"}]},
            "have the same name",
            id="two-of-a-name",
        ),
        pytest.param({"data": ["xtest"]}, "bench.data", id="unknown-data"),
        pytest.param(
            {"reference": "defult"}, "'defult' is no arm\n.*'default'", id="unknown-reference"
        ),
        pytest.param({"judge": None}, "have no exact judge\n.*under 'judge'", id="no-judge"),
        pytest.param(
            {"settings": {"gate": "judge"}},
            "'judge' is the judge and a moderator of arm",
            id="judge-is-gate",
        ),
        pytest.param(
            {"arms": {"a": {"guide": ["lite", "judge"]}}},
            "moderator of arm 'a'",
            id="judge-is-guide",
        ),
        pytest.param(
            {
                "judge": {"use": "lite", "options": {"threshold": 0.4}},
                "settings": {"gate": "lite", "guide": "lite"},
            },
            "'lite' is the judge",
            id="other-threshold",
        ),
    ],
)
def test_what_is_refused(bench, changes, message):
    with pytest.raises(ConfigError, match=message):
        bench.config(**changes)


def test_another_model_of_the_same_kind_may_judge(bench):
    judge, gate = ({"use": "classifier", "options": {"model": name}} for name in ("one", "other"))
    assert bench.config(judge=judge, settings={"gate": gate, "guide": gate}).judge.options == {
        "model": "one"
    }


def test_a_file_of_settings(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**KEYS, "n": 4}))
    assert BenchConfig.load(str(path)).data[0].label == "prompts"
    with pytest.raises(ConfigError, match="cannot read"):
        BenchConfig.load(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="did you mean 'quick'"):
        BenchConfig.load("quik")
