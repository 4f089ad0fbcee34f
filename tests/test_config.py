import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from ttsa_guard.config import GuardConfig, Member, Use
from ttsa_guard.errors import ConfigError
from ttsa_guard.guard import Guard
from ttsa_guard.plugins import Plugins, hookimpl
from ttsa_guard.settings import validated
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator


class FakeModerator:
    @hookimpl
    def ttsa_register_moderators(self, register):
        register("fake", lambda _: ScriptedModerator())


def message(settings):
    with pytest.raises(ConfigError) as caught:
        GuardConfig.parse(settings)
    return str(caught.value)


@pytest.mark.parametrize("settings", [None, {}], ids=["none", "empty"])
def test_the_defaults_are_valid(settings):
    assert GuardConfig.parse(settings) == GuardConfig()


def test_a_plugin_may_be_just_a_name():
    config = GuardConfig.parse(
        {"gate": "lite", "guide": "lite", "steerers": ["resample", {"use": "prefill"}]}
    )
    assert config.gate == config.guide == (Member(use="lite"),)
    assert config.steerers == (Use(use="resample"), Use(use="prefill"))


@pytest.mark.parametrize(
    ("settings", "key", "meant"),
    [
        pytest.param({"stearers": []}, "stearers", "steerers", id="top"),
        pytest.param({"budget": {"secnods": 1}}, "budget.secnods", "seconds", id="nested"),
        pytest.param({"quality": {"slak": 1}}, "quality.slak", "slack", id="nested-2"),
        pytest.param(
            {"backend": {"use": "x", "optoins": {}}}, "backend.optoins", "options", id="plugin"
        ),
        pytest.param({"backend": {"uze": "x"}}, "backend.uze", "use", id="typo-in-a-required-key"),
        pytest.param(
            {"gate": ["lite", {"use": "x", "optoins": {}}]}, "gate[1].optoins", "options", id="list"
        ),
        pytest.param(
            {"gate": {"use": "x", "optoins": {}}}, "gate[0].optoins", "options", id="list-of-one"
        ),
    ],
)
def test_a_typo_names_the_full_key_and_the_nearest_one(settings, key, meant):
    assert (
        message(settings) == f"unknown setting 'ttsa_guard.{key}'\n  hint: did you mean {meant!r}?"
    )


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "prefill",
            {"openingz": 3},
            "unknown setting 'steerers.prefill.openingz'\n  hint: did you mean 'openings'?",
        ),
        (
            "resample",
            {"n": 0},
            (
                "setting 'steerers.resample.n': it should be greater than or equal to 1\n  hint:"
                " it means: samples in all; default: 16"
            ),
        ),
    ],
)
def test_options_of_a_plugin_are_checked_too(name, options, expected):
    plugins = Plugins()
    plugins.add(FakeModerator())
    config = GuardConfig.parse(
        {"gate": "fake", "guide": "fake", "steerers": {"use": name, "options": options}}
    )
    with pytest.raises(ConfigError) as caught:
        Guard.from_config(config, plugins=plugins, backend=ScriptedBackend([]))
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        pytest.param({"budget": {"seconds": 0}}, "budget.seconds", id="zero-seconds"),
        pytest.param({"budget": {"seconds": float("inf")}}, "budget.seconds", id="endless"),
        pytest.param({"budget": {"generations": -1}}, "budget.generations", id="negative"),
        pytest.param(
            {"budget": {"generations": "many"}}, "budget.generations", id="text-for-number"
        ),
        pytest.param({"budget": None}, "budget", id="blank-section"),
        pytest.param({"generation": {"temperature": 2.1}}, "generation.temperature", id="too-hot"),
        pytest.param({"quality": {"floor": "low"}}, "quality.floor", id="member-of-a-union"),
        pytest.param({"quality": {"floor": float("nan")}}, "quality.floor", id="nan"),
        pytest.param({"combine": "most"}, "combine", id="not-a-choice"),
        pytest.param({"gate": []}, "gate", id="no-gate"),
        pytest.param({"gate": 3}, "gate", id="number-for-list"),
        pytest.param({"gate": ["lite", 3]}, "gate[1]", id="number-in-list"),
        pytest.param({"gate": [{"options": {}}]}, "gate[0].use", id="missing"),
        pytest.param({"fallback": ""}, "fallback", id="no-fallback"),
        pytest.param({1: 2}, "1", id="number-for-key"),
    ],
)
def test_a_wrong_value_names_the_full_key(settings, key):
    assert message(settings).startswith(f"setting 'ttsa_guard.{key}': ")


def test_settings_that_are_no_mapping():
    assert "holds a list, not settings" in message(["lite"])


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: str = ""


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    api_key: SecretStr = SecretStr("")
    maybe: Inner | None = None
    either: Inner | Use | None = None
    by_name: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("options", "key"),
    [
        pytest.param({"maybe": {"color": ""}}, "maybe.color", id="optional"),
        pytest.param({"either": {"color": ""}}, "either.color", id="union"),
        pytest.param({"by_name": {"sky": {"color": ""}}}, "by_name.sky.color", id="mapping"),
    ],
)
def test_keys_are_found_in_every_kind_of_part(options, key):
    with pytest.raises(ConfigError) as caught:
        validated(Options, options, where="x")
    assert str(caught.value) == f"unknown setting 'x.{key}'\n  hint: did you mean 'colour'?"


@pytest.mark.parametrize(
    "options", [{"api_key": ["hunter2"]}, {"api_kee": "hunter2"}], ids=["wrong-type", "wrong-key"]
)
def test_values_are_never_shown(options):
    with pytest.raises(ConfigError) as caught:
        validated(Options, options, where="x")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value)


def test_a_file(tmp_path):
    file = tmp_path / "guard.yaml"
    file.write_text("gate: [lite]\nbudget: {seconds: 5}\n")
    assert GuardConfig.load(file).budget.seconds == 5
    file.write_text("# nothing\n")
    assert GuardConfig.load(file) == GuardConfig()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"gate: [lite\napi_key: hunter2\n", "at line 2, column 8", id="not-yaml"),
        pytest.param(b"api_key: *hunter2", "at line 1, column 10", id="unknown-alias"),
        pytest.param(b"api_key: !hunter2 x", "it is not YAML", id="unknown-tag"),
        pytest.param(b"gate: lite\napi_key: hunter2\ngate: x", "at line 3, column 1", id="twice"),
        pytest.param(b"- hunter2\n", "holds a list", id="not-a-mapping"),
        pytest.param(b"\xff\xfe\x00", "it is not text in UTF-8", id="not-text"),
        pytest.param(b"day: 2024-99-99\n", "ValueError", id="not-a-date"),
        pytest.param(None, "there is no such file", id="missing"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, content, expected):
    file = tmp_path / "guard.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        GuardConfig.load(file)
    assert caught.value.hint
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": [{"use": "lite", "weight": 2}, "openai"]}, "weights count in"),
        ({"guide": [{"use": "lite", "hard": True}, "openai"]}, "need each other"),
        ({"gate": ["lite", "openai"], "combine": "lexicographic"}, "need each other"),
        ({"gate": [{"use": "lite", "fail": "open"}]}, "another member that can decide"),
        ({"gate": [], "guide": "lite"}, "at least one moderator"),
        ({"guide": []}, "at least one moderator"),
    ],
    ids=str,
)
def test_panels_whose_settings_would_not_count(settings, message):
    with pytest.raises(ConfigError, match=message):
        GuardConfig.parse(settings)


def test_panels():
    members = [{"use": "openai", "hard": True}, {"use": "lite", "weight": 2, "fail": "open"}]
    config = GuardConfig.parse(
        {
            "gate": members,
            "combine": "lexicographic",
            "guide": members,
            "guide_combine": "lexicographic",
        }
    )
    assert (
        config.gate
        == config.guide
        == (Member(use="openai", hard=True), Member(use="lite", weight=2, fail="open"))
    )


def test_reasoning_cannot_count_where_the_answer_is_shown_while_it_grows():
    assert "needs streaming: buffered" in message(
        {"reasoning": "regenerate", "streaming": "progressive"}
    )
