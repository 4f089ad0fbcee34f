"""What differs between deployments comes from environment variables."""

import json
from pathlib import Path

import pytest
from nemoguardrails import LLMRails, RailsConfig
from typer.testing import CliRunner

from ttsa_guard.cli import app, common
from ttsa_guard.config import GuardConfig
from ttsa_guard.environment import VARIABLES, with_environment
from ttsa_guard.errors import ConfigError
from ttsa_guard.nemo import installed_guard

ROOT = Path(__file__).parents[1]


@pytest.fixture
def setting(monkeypatch, tmp_path):
    """Sets variables, by the ends of their names, and writes a file of settings."""
    monkeypatch.setenv("COLUMNS", "200")

    def set_them(text="", **variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"TTSA_GUARD_{name}", value)
        file = tmp_path / "settings.yml"
        file.write_text(text, encoding="utf-8")
        return file

    return set_them


def shown(*words):
    done = CliRunner().invoke(app, ["config", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_they_take_the_place_of_what_the_file_says(setting):
    text = "backend: {use: vllm, options: {model: a, urls: [http://x], timeout: 9}}\nseed: 3\n"
    file = setting(text, MODEL="b", URLS="http://y, http://z", AUDIT="/records/audit.jsonl")
    config = GuardConfig.deployed(file)
    options = {"model": "b", "urls": ["http://y", "http://z"], "timeout": 9}
    assert (config.backend.use, config.backend.options) == ("vllm", options)
    assert (config.audit.path, config.seed) == (Path("/records/audit.jsonl"), 3)
    assert GuardConfig.load(file).backend.options["model"] == "a"  # the file and nothing else


@pytest.mark.parametrize("text", ["", "backend: transformers", "backend: {use: transformers}"])
def test_a_backend_may_be_just_its_name_or_the_default(text, setting):
    config = GuardConfig.deployed(setting(text, MODEL="b"))
    assert (config.backend.use, config.model) == ("transformers", "b")
    assert GuardConfig.deployed(None).model == "b"


def test_an_empty_variable_is_none(setting):
    assert GuardConfig.deployed(setting("seed: 2", MODEL=" ", AUDIT="")) == GuardConfig(seed=2)


@pytest.mark.parametrize("text", ["[1]", "backend: 3", "audit: yes"])
def test_what_is_wrong_in_the_file_stays_wrong(text, setting):
    with pytest.raises(ConfigError):
        GuardConfig.deployed(setting(text, MODEL="b", AUDIT="a"))


def test_the_command_line_goes_over_the_environment(setting):
    file = setting("seed: 4", MODEL="b")
    assert common.settings(None, file).model == "b"
    assert common.settings("c", file).model == "c"


def test_the_file_itself_may_be_named_there(setting, monkeypatch):
    file = setting("gates: lite")
    monkeypatch.setenv("TTSA_GUARD_CONFIG", str(file))
    done = CliRunner().invoke(app, ["check", "hello"])
    assert done.exit_code == 2
    assert f"{file}: unknown setting" in done.stderr


def test_config_show_says_where_a_setting_comes_from(setting):
    file = setting("backend: {use: transformers}", MODEL="b", AUDIT="/records/audit.jsonl")
    origins = {key: one["from"] for key, one in json.loads(shown("show", file, "--json")).items()}
    assert origins["backend"] == f"{file}; environment: TTSA_GUARD_MODEL"
    assert origins["audit.path"] == "environment: TTSA_GUARD_AUDIT"
    assert origins["audit.texts"] == "default"


def test_config_check_looks_at_what_the_environment_says(setting):
    said = shown("check", setting("gate: lite", AUDIT="audit.jsonl"))
    assert "note: ttsa_guard.audit.path is what TTSA_GUARD_AUDIT says" in said
    file = setting("gate: lite", AUDIT=str(ROOT))
    done = CliRunner().invoke(app, ["config", "check", str(file)])
    assert done.exit_code == 1
    assert "'ttsa_guard.audit.path': it is a folder" in done.stdout


def test_an_app_of_the_host_has_them_too(setting, tmp_path):
    setting(AUDIT=str(tmp_path / "audit.jsonl"))
    folder = ROOT / "examples" / "configs" / "colang_1"
    rails = LLMRails(RailsConfig.from_path(str(folder)))
    assert installed_guard(rails).config.audit.path == tmp_path / "audit.jsonl"


def test_every_variable_is_documented_and_names_a_setting():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for name, (top, *_) in VARIABLES.items():
        assert f"`{name}`" in page
        assert top in GuardConfig.model_fields
    assert with_environment(None) is None
