"""How the guard gets into an app, and what is refused at start-up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.testing import FakeLLMModel

from ttsa_guard.config import GuardConfig
from ttsa_guard.errors import ConfigError
from ttsa_guard.guard import Guard
from ttsa_guard.nemo import BackendModel, init, install, installed_guard, rails_path
from ttsa_guard.testing import scripted_guard

from .conftest import (
    CHAT_V2,
    COLANG,
    FLAGGED,
    SAFE,
    STEERED,
    make_app,
    make_config,
    make_guard,
    say,
)

FLOWS = {"output": {"flows": ["ttsa steer output"]}}
EMBEDDED = [{"type": "main", "engine": "ttsa_guard", "model": "embedded"}]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[GuardConfig]:
    """The configurations from which `init` built guards; the guards are scripted."""
    configs: list[GuardConfig] = []

    def from_config(config: GuardConfig, **_: Any) -> Guard:
        configs.append(config)
        return make_guard([SAFE, FLAGGED, STEERED])

    monkeypatch.setattr(Guard, "from_config", from_config)
    return configs


def imported(version: str, **settings: Any) -> RailsConfig:
    """A configuration that imports the shipped folder."""
    rails = {"rails": FLOWS} if version == "1.0" else {}
    return make_config(version, **{"import_paths": [rails_path()], **rails, **settings})


def start(config: RailsConfig) -> LLMRails:
    return LLMRails(config, llm=FakeLLMModel(responses=[FLAGGED]))


def refusal(config: RailsConfig) -> str:
    """Why an app does not start."""
    with pytest.raises(RuntimeError, match="Failed to initialize") as caught:
        LLMRails(config)
    assert isinstance(caught.value.__cause__, ConfigError)
    return str(caught.value.__cause__)


# ------------------------------------------------------------------ ways in


def test_import_path(version: str, built: list[GuardConfig]) -> None:
    app = start(imported(version, custom_data={"ttsa_guard": {"fallback": "No.", "gate": "lite"}}))
    assert built == [GuardConfig.parse({"fallback": "No.", "gate": "lite"})]
    assert installed_guard(app) is not None


def test_import_by_name_from_the_folder_of_the_package(
    version: str, built: list[GuardConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(rails_path()).parent.parent)
    if version == "1.0":
        config = make_config(version, import_paths=["ttsa_guard/rails"], rails=FLOWS)
    else:
        config = make_config(
            version, COLANG[version].replace("import guardrails", "import ttsa_guard.rails")
        )
    start(config)
    assert built == [GuardConfig()]


@pytest.mark.parametrize("twice", [False, True])
def test_config_module(version: str, twice: bool, built: list[GuardConfig], tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("from ttsa_guard.nemo import init\n")
    (tmp_path / "main.co").write_text(COLANG[version])
    yaml = f"models: []\ncolang_version: '{version}'\n"
    if version == "1.0":
        yaml += "rails: {output: {flows: [ttsa steer output]}}\n"
    if twice:
        yaml += f"import_paths: ['{rails_path()}']\n"
    (tmp_path / "config.yml").write_text(yaml)
    app = LLMRails(
        RailsConfig.from_path(str(tmp_path)), llm=FakeLLMModel(responses=[FLAGGED, SAFE])
    )
    assert built == [GuardConfig()]
    assert say(app)["content"] == SAFE


def test_rails_in_yaml_for_colang_2(built: list[GuardConfig]) -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        config = imported("2.x", colang=CHAT_V2, rails=FLOWS)
    start(config)
    assert len(built) == 1


@pytest.mark.usefixtures("built")
def test_flow_that_calls_ours_is_enough() -> None:
    colang = "define subflow my rail\n  do ttsa steer output\n"
    app = start(imported("1.0", colang=colang, rails={"output": {"flows": ["my rail"]}}))
    assert say(app)["content"] == SAFE


def test_install_replaces_the_guard(version: str) -> None:
    app = make_app(version, make_guard([SAFE]), [FLAGGED])
    second = make_guard([STEERED])
    install(app, second)
    assert installed_guard(app) is second
    assert say(app)["content"] == STEERED


def test_app_without_a_guard() -> None:
    assert installed_guard(LLMRails(make_config("1.0"), llm=FakeLLMModel(responses=[]))) is None


# ------------------------------------------------------------------ one backend for both


@pytest.mark.usefixtures("built")
def test_chat_and_steering_share_the_backend(version: str) -> None:
    app = LLMRails(imported(version, models=EMBEDDED))
    guard = installed_guard(app)
    assert guard is not None
    assert isinstance(app.llm, BackendModel)
    assert app.llm.backend is guard.backend
    assert [say(app)["content"], say(app)["content"]] == [SAFE, STEERED]


@pytest.mark.usefixtures("built")
def test_two_apps_keep_their_own_backends() -> None:
    apps = [LLMRails(imported("1.0", models=EMBEDDED)) for _ in range(2)]
    guards = [installed_guard(app) for app in apps]
    assert guards[0] is not guards[1]
    assert [app.llm.backend for app in apps] == [guard and guard.backend for guard in guards]


@pytest.mark.usefixtures("built")
def test_model_parameters() -> None:
    model = {**EMBEDDED[0], "parameters": {"max_tokens": 7, "temperature": 0.5, "seed": 3}}
    app = LLMRails(imported("1.0", models=[model]))
    say(app)
    [[request]] = app.llm.backend.calls
    assert (request.max_new_tokens, request.temperature) == (7, 0.5)
    assert app.llm.seed == 3


@pytest.mark.usefixtures("built")
def test_unknown_model_parameter() -> None:
    with pytest.raises(
        ConfigError, match=r"models\.embedded\.parameters\.max_token.*\n.*'max_tokens'"
    ):
        LLMRails(imported("1.0", models=[{**EMBEDDED[0], "parameters": {"max_token": 7}}]))


@pytest.mark.parametrize(
    ("backend", "model", "starts"),
    [
        ({}, "embedded", True),
        ({}, "other/model", False),
        (
            {"backend": {"use": "transformers", "options": {"model": "other/model"}}},
            "other/model",
            True,
        ),
        (
            {"backend": {"use": "transformers", "options": {"model": "other/model"}}},
            "embedded",
            False,
        ),
        ({"backend": "mine"}, "any", True),
    ],
)
def test_settings_name_the_weights(
    built: list[GuardConfig], backend: Any, model: str, starts: bool
) -> None:
    config = imported(
        "1.0", models=[{**EMBEDDED[0], "model": model}], custom_data={"ttsa_guard": backend}
    )
    if starts:
        LLMRails(config)
    else:
        assert "custom_data.ttsa_guard.backend" in refusal(config)
    assert len(built) == starts


# ------------------------------------------------------------------ refusals


def test_unknown_setting(version: str) -> None:
    assert "did you mean 'budget'" in refusal(
        imported(version, custom_data={"ttsa_guard": {"budgett": {}}})
    )


def test_settings_that_are_no_mapping(version: str) -> None:
    assert "not settings" in refusal(imported(version, custom_data={"ttsa_guard": ["gate"]}))


def test_parallel_output_rails() -> None:
    assert "remove parallel: true" in refusal(
        imported("1.0", rails={"output": {**FLOWS["output"], "parallel": True}})
    )


def test_streaming_in_chunks() -> None:
    output = {**FLOWS["output"], "streaming": {"enabled": True}}
    assert "custom_data.ttsa_guard.streaming: progressive" in refusal(
        imported("1.0", rails={"output": output})
    )


def test_flow_that_nothing_uses() -> None:
    assert "add 'ttsa steer output' to rails.output.flows" in refusal(imported("1.0", rails={}))


@pytest.mark.parametrize(
    "colang", [CHAT_V2, CHAT_V2 + "\nflow output rails $output_text\n  bot say $output_text\n"]
)
def test_colang_2_without_our_rail(colang: str) -> None:
    assert "flow output rails $output_text" in refusal(imported("2.x", colang=colang))


def test_install_refuses_too() -> None:
    app = LLMRails(make_config("2.x", CHAT_V2), llm=FakeLLMModel(responses=[]))
    with pytest.raises(ConfigError, match="does not run our output rail"):
        install(app, make_guard())
    with pytest.raises(ConfigError):
        init(app)


@pytest.mark.parametrize("where", ["the top level", "rails.config"])
def test_settings_where_the_host_drops_them(where: str, tmp_path: Path) -> None:
    ours = {"ttsa_guard": {"seed": 3}}
    config: dict[str, Any] = {"models": [], "import_paths": [rails_path()], "rails": FLOWS}
    config |= ours if where == "the top level" else {"rails": {**FLOWS, "config": ours}}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    assert f"under {where}" in refusal(RailsConfig.from_path(str(tmp_path)))


def test_tracing_in_colang_2() -> None:
    assert "tracing.enabled makes every answer" in refusal(
        imported("2.x", tracing={"enabled": True})
    )


def test_something_else_than_an_app() -> None:
    with pytest.raises(ConfigError, match="build the app with LLMRails"):
        install(object(), scripted_guard([]))


def test_switching_on_iorails_leaves_the_rail_in_charge(tmp_path: Path) -> None:
    code = (
        "from nemoguardrails import Guardrails, RailsConfig\nfrom ttsa_guard.nemo import"
        " installed_guard, rails_path\nconfig = RailsConfig.from_content(config={'models':"
        " [{'type': 'main', 'engine': 'ttsa_guard', 'model': 'embedded'}],\n    'import_paths':"
        " [rails_path()], 'rails': {'output': {'flows': ['ttsa steer"
        " output']}}})\nprint(installed_guard(Guardrails(config).rails_engine))\n"
    )
    env = {**os.environ, "NEMO_GUARDRAILS_IORAILS_ENGINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "ttsa_guard.guard.Guard" in found.stdout
