"""The command `init`: what it writes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from nemoguardrails.utils import get_examples_data_path
from typer.testing import CliRunner

from ttsa_guard.cli import app

from .conftest import KEY, init

API = ("--chat", "api", "--model", "gpt-4o-mini")
ASKED_AGAIN = {
    "backend": {
        "use": "chat_completions",
        "options": {
            "model": "gpt-4o-mini",
            "url": "https://api.openai.com/v1",
            "key": "OPENAI_API_KEY",
        },
    },
    "steerers": ["trim", "ask_again"],
    "gate": "auto",
}
REMOTE = ("--chat", "api", "--model", "m", "--url", "http://host:1/v1")


def files(folder: str | Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): p.read_text()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def content(path: str | Path) -> Any:
    return yaml.safe_load(Path(path).read_text())


def settings(folder: str) -> Any:
    return content(f"{folder}/config.yml")["custom_data"]["ttsa_guard"]


def is_right(path: str) -> bool:
    """Whether `config check` finds nothing wrong."""
    found = CliRunner().invoke(app, ["config", "check", path, "--json"])
    return bool(json.loads(found.stdout)["ok"])


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


# ------------------------------------------------------------------ new


def test_a_new_app_whose_model_is_asked_again() -> None:
    result = init("app", "--host", "colang-1", *API)
    assert result.exit_code == 0, result.output
    found = content("app/config.yml")
    assert found.pop("custom_data") == {"ttsa_guard": ASKED_AGAIN}
    assert found == {
        "models": [{"type": "main", "engine": "openai", "model": "gpt-4o-mini"}],
        "passthrough": True,
        "rails": {"output": {"flows": ["ttsa steer output"]}},
    }
    assert result.stdout.split("Try it:\n")[1].splitlines() == [
        "  export OPENAI_API_KEY=...   # its key is not set",
        "  nemoguardrails chat --config app",
    ]


CHOICES = {
    "api": ("--host", "colang-2", *API),
    "api-elsewhere": ("--host", "colang-1", *REMOTE, "--key-env", "MY_KEY"),
    "api-steered": ("--host", "none", *REMOTE, "--steering", "embedded"),
    "vllm": ("--host", "colang-1", "--chat", "vllm", "--model", "embedded", "--url", "http://h:8"),
    "vllm-alone": ("--host", "none", "--chat", "vllm", "--model", "embedded", "--url", "http://h"),
    "local": ("--host", "colang-2", "--chat", "local", "--gate", "lite", "--gate", "patterns"),
}


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_a_choice_gives_what_config_check_finds_right_and_again_changes_nothing(
    choices: tuple[str, ...],
) -> None:
    first = init("app", *choices)
    assert first.exit_code == 0, first.output
    assert is_right("app/settings.yml" if "none" in choices else "app")
    before = files("app")
    for again in (choices, ()):
        result = init("app", *again)
        assert "app: nothing to change" in result.stdout, result.output
        assert files("app") == before


def test_without_a_host_the_key_of_another_api_is_not_sent_to_it() -> None:
    result = init("--host", "none", *REMOTE)
    assert content("settings.yml")["backend"]["options"] == {
        "model": "m",
        "url": "http://host:1/v1",
    }
    assert (
        result.stdout.splitlines()[-1]
        == "  ttsa-guard serve --upstream http://host:1/v1 --config settings.yml"
    )
    init("app", "--host", "colang-1", *REMOTE)
    [main] = content("app/config.yml")["models"]
    assert main["engine"] != "openai"  # the host sends OPENAI_API_KEY to what has that name
    assert main["parameters"] == {"base_url": "http://host:1/v1"}


def test_it_asks_for_what_no_option_says() -> None:
    said = ["colang-2", "api", "http://host:1", "my-model", "MY_KEY", "none", "lite", "y"]
    result = init("app", said="\n".join(said) + "\n")
    assert result.exit_code == 0, result.output
    options = {"model": "my-model", "url": "http://host:1/v1", "key": "MY_KEY"}
    backend = {"use": "chat_completions", "options": options}
    assert settings("app") == {**ASKED_AGAIN, "backend": backend, "gate": "lite"}
    assert "flow output rails $output_text\n  ttsa steer output\n" in files("app")["main.co"]


def test_a_wrong_choice_is_asked_for_again_and_a_no_writes_nothing() -> None:
    said = ["colang2", "colang-2", "local", "", "", "n"]
    result = init("app", said="\n".join(said) + "\n")
    assert "did you mean 'colang-2'?" in result.stdout
    assert "nothing was written" in result.stdout
    assert not Path("app").exists()


def test_model_names_that_look_like_something_else_stay_names() -> None:
    init("app", "--host", "colang-1", "--chat", "api", "--model", "4")
    assert content("app/config.yml")["models"][0]["model"] == "4"


# ------------------------------------------------------------------ what is there

COMMENTED = """\
# Ours. Ask Jo before you change it.
models:
- type: main   # the big one
  engine: openai
  model: 'gpt-4o'
  parameters: {temperature: 0.10, logit_bias: ~}

sample_conversation: |
  user "Hi there."
    express greeting
  bot express greeting
    "Hello! How can I help?"   # not a comment

rails:
  dialog:
    single_call: {enabled: False}
# The end.
"""


def test_an_app_is_amended_and_all_else_stays_as_it_is_written() -> None:
    write("app/config.yml", COMMENTED)
    result = init("app")
    assert result.exit_code == 0, result.output
    after = Path("app/config.yml").read_text().splitlines()
    removed = [line for line in COMMENTED.splitlines() if line not in after]
    assert removed == []
    assert [line for line in result.stdout.splitlines() if line.startswith("-")] == [
        "--- app/config.yml",
        "--- /dev/null",
    ]
    assert content("app/config.yml")["rails"]["output"]["flows"] == ["ttsa steer output"]
    assert settings("app")["backend"]["options"]["model"] == "gpt-4o"
    assert is_right("app")


@pytest.mark.parametrize("bot", ["abc", "abc_v2", "hello_world"])
def test_only_what_has_to_be_changed_in_the_hosts_own_examples(bot: str) -> None:
    shutil.copytree(Path(get_examples_data_path("bots")) / bot, bot)
    before = files(bot)
    assert init(bot).exit_code == 0
    assert is_right(bot)
    for name, text in before.items():
        lost = set(text.splitlines()) - set(files(bot)[name].splitlines())
        assert {line.strip(" -") for line in lost} <= {"self check output"}
    checked = settings(bot)["gate"]
    assert checked == (
        "auto"
        if bot == "hello_world"
        else [{"use": "nemo_rail", "options": {"flow": "self check output"}}]
    )


def test_other_rails_go_behind_ours_and_settings_that_are_there_stay() -> None:
    custom = "custom_data: {ttsa_guard: {gate: lite, budget: {seconds: 9}}}\n"
    flows = "rails: {output: {flows: [my own rail]}}\n"
    write("app/config.yml", COMMENTED.split("rails:")[0] + flows + custom)
    write("app/rails.co", "define subflow my own rail\n  execute nothing\n")
    assert init("app").exit_code == 0
    found = content("app/config.yml")
    assert found["rails"]["output"]["flows"] == ["ttsa steer output", "my own rail"]
    assert settings("app")["gate"] == "lite"
    assert settings("app")["budget"] == {"seconds": 9}


COLANG = '''\
import core
import llm

flow main
  activate llm continuation

flow output rails $output_text
  """Ours."""
    my own rail  # keeps the peace

flow my own rail
  return
'''


def test_colang_2_calls_our_rail_first_and_keeps_the_others() -> None:
    write("app/config.yml", 'colang_version: "2.x"\n' + COMMENTED)
    write("app/main.co", COLANG)
    assert init("app").exit_code == 0
    expected = COLANG.replace("    my own", "    ttsa steer output\n    my own")
    assert Path("app/main.co").read_text() == f"import guardrails\n{expected}"
    assert is_right("app")


def test_an_app_whose_own_rail_calls_ours_is_left_alone() -> None:
    flows = "rails: {output: {flows: [my own rail]}}\n"
    write("app/config.yml", COMMENTED.split("rails:")[0] + flows)
    write("app/rails.co", "define subflow my own rail\n  do ttsa steer output\n")
    assert init("app").exit_code == 0
    assert content("app/config.yml")["rails"]["output"]["flows"] == ["my own rail"]


def test_output_rails_that_are_imported_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    write("app/config.yml", 'colang_version: "2.x"\n' + COMMENTED)
    write("app/main.co", "import core\nimport shared\n")
    write("elsewhere/shared.co", COLANG)
    monkeypatch.setenv("COLANGPATH", "elsewhere")
    result = init("app")
    assert result.exit_code == 2, result.output
    assert "is in a file that it imports" in result.stderr


def test_what_somebody_has_changed_since_stays() -> None:
    init("app", "--host", "none", *REMOTE)
    path = Path("app/settings.yml")
    path.write_text(path.read_text().replace("model: m\n", "model: m\n    timeout: 7 # slow\n"))
    init("app", "--gate", "lite")
    assert "timeout: 7 # slow" in path.read_text()
    assert content(path)["gate"] == "lite"
    init("app", "--chat", "api", "--model", "other")
    assert content(path)["backend"]["options"]["model"] == "other"
    assert "timeout: 7 # slow" in path.read_text()
    init("app", "--steering", "embedded", *REMOTE)
    assert content(path)["backend"] == {"use": "transformers", "options": {"model": "embedded"}}
    assert "steerers" not in content(path)


@pytest.mark.parametrize("engine", ["ttsa_guard", "openai"])
def test_a_backend_that_an_app_has_stays(engine: str) -> None:
    custom = (
        "custom_data: {ttsa_guard: {backend: {use: transformers, options: {model: some/model}}}}\n"
    )
    app = COMMENTED.replace("'gpt-4o'", "some/model").replace("engine: openai", f"engine: {engine}")
    write("app/config.yml", app + custom)
    assert init("app").exit_code == 0
    assert settings("app") == {
        "backend": {"use": "transformers", "options": {"model": "some/model"}},
        "gate": "auto",
    }


def test_line_ends_of_windows_stay() -> None:
    write("app/config.yml", "")
    Path("app/config.yml").write_bytes(COMMENTED.replace("\n", "\r\n").encode())
    assert init("app").exit_code == 0
    after = Path("app/config.yml").read_bytes()
    assert after.count(b"\r\n") == after.count(b"\n")
    assert b"# Ours. Ask Jo before you change it.\r\n" in after


def test_a_config_py_gets_one_line() -> None:
    write("app/config.yml", COMMENTED)
    write("app/config.py", "ANSWER = 42\n")
    assert init("app").exit_code == 0
    lines = Path("app/config.py").read_text().splitlines()
    assert lines[0] == "ANSWER = 42"
    assert "from ttsa_guard.nemo import init" in lines[-1]


def test_where_config_py_has_an_init_the_rails_are_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ttsa_guard

    write("app/config.yml", COMMENTED)
    write("app/config.py", "def init(app):\n    pass\n")
    monkeypatch.setenv("COLANGPATH", str(Path(ttsa_guard.__file__).parent.parent))
    result = init("app")
    assert result.exit_code == 0, result.output
    assert content("app/config.yml")["import_paths"] == ["ttsa_guard/rails"]
    assert "def init" in Path("app/config.py").read_text()
    assert is_right("app")


# ------------------------------------------------------------------ what is wrong

AZURE = "models:\n  - {type: main, engine: azure, model: gpt-4o}\n"
STREAMING = COMMENTED.replace("rails:\n", "rails:\n  output: {streaming: {enabled: True}}\n")


@pytest.mark.parametrize(
    ("before", "arguments", "told", "how"),
    [
        ({}, ("--host", "colang-1", "--chat", "api"), "--model is missing", "--model"),
        ({}, ("--host", "none", "--chat", "vllm"), "--model is missing", "--model"),
        ({}, ("--host", "none", *API, "--url", "nowhere"), "--url is no address", "http://"),
        ({}, ("--host", "none", *API, "--url", f"http://h?key={KEY}"), "--url holds", "without a"),
        ({}, ("--host", "none", *API, "--key-env", KEY), "--key-env names no variable", "NAME"),
        ({}, ("--chat", "local", "--url", "http://h"), "a local chat model has no --url", "leave"),
        ({}, ("--chat", "local", "--steering", "none"), "--steering is for", "leave it out"),
        ({}, ("--chat", "local", "--gate", "host"), "no output rail", "--gate auto"),
        ({}, ("--chat", "local", "--gate", "host", "--gate", "lite"), "comes alone", "settings"),
        ({"file": ""}, ("file", "--chat", "local"), "file is a file", "name a folder"),
        ({"docker.yml": "a: 1\n"}, ("--host", "colang-1", *API), "would read docker.yml", "my_app"),
        ({"sub/x.co": ""}, ("--host", "colang-2", *API), "would read sub/x.co", "my_app"),
        ({"app/config.yml": "a: [\n"}, ("app",), "cannot read app/config.yml", "mend"),
        ({"app/config.yml": "models: [\tb]\n"}, ("app",), "cannot read app/config.yml", "mend"),
        ({"app/config.yml": COMMENTED}, ("app", "--host", "none"), "app holds", "another folder"),
        ({"app/config.yml": COMMENTED}, ("app", *API), "another chat model: gpt-4o", "models"),
        ({"app/config.yml": AZURE}, ("app",), "app is not behind", "--steering MODEL"),
        (
            {"app/config.yml": COMMENTED, "app/config.py": "def init(app): ...\n"},
            ("app",),
            "app/config.py has an init of its own",
            "COLANGPATH",
        ),
    ],
)
def test_an_error_says_what_where_and_how(
    before: dict[str, str], arguments: tuple[str, ...], told: str, how: str
) -> None:
    for name, text in before.items():
        write(name, text)
    result = init(*arguments)
    assert result.exit_code == 2, result.output
    error, hint = result.stderr.split("hint:")
    assert told in error
    assert how in hint
    assert KEY not in result.output
    assert files(".") == before


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        (STREAMING, (), "rails.output.streaming shows"),
        (COMMENTED, ("--gate", "ligt"), "no plugin named 'ligt'"),
        (COMMENTED, ("--gate", "openai"), "moderator 'openai' has no key"),
        (COMMENTED, ("--steering", "./nowhere"), "there is no such file or folder"),
    ],
)
def test_what_would_not_work_is_not_written(
    text: str, arguments: tuple[str, ...], told: str
) -> None:
    write("app/config.yml", text)
    result = init("app", *arguments)
    assert result.exit_code == 1, result.output
    assert f"app/config.yml: {told}" in result.stdout or f": {told}" in result.stdout
    assert "nothing was written" in result.stdout
    assert files("app") == {"config.yml": text}


def test_nobody_to_answer_is_told() -> None:
    result = init("app", said="")
    assert result.exit_code == 2
    assert "add --yes" in result.stderr
