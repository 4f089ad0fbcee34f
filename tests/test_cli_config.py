"""The commands `config`: everything that is wrong, what holds, and the schema, loading nothing."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

from ttsa_guard.cli import app
from ttsa_guard.config import GuardConfig
from ttsa_guard.guard import Guard
from ttsa_guard.nemo import rails_path
from ttsa_guard.schema import FILE, shipped_schema

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "configs"
SECRET = "sk-4f9aThisLooksLikeAKey"
HOST = {
    "models": [{"type": "main", "engine": "ttsa_guard", "model": "embedded"}],
    "import_paths": [rails_path()],
    "rails": {"output": {"flows": ["ttsa steer output"]}},
}
MAIN = "import guardrails\nflow output rails $output_text\n  ttsa steer output\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without profiles and keys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "AZURE_CONTENT_SAFETY_KEY", "COLANGPATH"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["config", *map(str, arguments)])


def check(path: Path) -> dict[str, Any]:
    result = run("check", path, "--json")
    report: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (0 if report["ok"] else 1)
    return report


def file_of(settings: Any, name: str = "settings.yml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return path


def folder_of(colang: str = "", guard: Any = None, **changes: Any) -> Path:
    """A folder of the host, with `changes` to a configuration that is right."""
    custom = {} if guard is None else {"custom_data": {"ttsa_guard": guard}}
    file_of({**HOST, **custom, **changes}, "host/config.yml")
    if colang:
        file_of(colang, "host/main.co")
    return Path("host")


def folder_2(colang: str = MAIN, guard: Any = None, **changes: Any) -> Path:
    return folder_of(colang, guard, **{"colang_version": "2.x", "rails": {}, **changes})


SETTINGS = [
    ("top-key", "stearers: []", "unknown setting 'ttsa_guard.stearers'", "steerers"),
    ("nested-key", "budget: {secnods: 3}", "'ttsa_guard.budget.secnods'", "seconds"),
    (
        "range",
        "budget: {seconds: -1}",
        "'ttsa_guard.budget.seconds': it should be greater",
        "Time limit",
    ),
    (
        "type",
        "gate_seconds: soon",
        "'ttsa_guard.gate_seconds': it should be a number",
        "default: 10",
    ),
    (
        "choice",
        "streaming: fast",
        "'ttsa_guard.streaming': it should be 'buffered'",
        "What streams",
    ),
    ("a-list", "[gate, lite]", "ttsa_guard holds a list, not settings", "give a mapping"),
    ("empty-gate", "gate: []", "a guard needs at least one moderator here", "it means"),
    ("weight", "gate: [{use: lite, weight: 2}]", "weights count in weighted", "change it"),
    (
        "hard",
        "gate: [{use: lite, hard: true}]",
        "hard members and combine: lexicographic",
        "change",
    ),
    ("open", "gate: [{use: lite, fail: open}]", "fail: open needs another member", "change"),
    (
        "plugin",
        "gate: lit",
        "ttsa_guard.gate[0]: no plugin named 'lit' is installed",
        "did you mean 'lite'? or pip install",
    ),
    (
        "kind",
        "gate: prefill",
        "ttsa_guard.gate[0]: plugin 'prefill' registers no moderator",
        "it is a steerer; ttsa-guard plugins lists all moderators",
    ),
    ("kind-2", "steerers: [classifier]", "registers no steerer of that name", ""),
    (
        "option",
        "gate: {use: lite, options: {treshold: 0.5}}",
        "unknown setting 'ttsa_guard.gate[0].options.treshold'",
        "did you mean 'threshold'?",
    ),
    (
        "option-of-torch",
        "steerers: [erase, {use: embedding, options: {continuation: x}}]",
        "unknown setting 'ttsa_guard.steerers[1].options.continuation'",
        "did you mean 'continuations'?",
    ),
    (
        "option-of-a-backend",
        "backend: {use: transformers, options: {batch_size: 0}}",
        "setting 'ttsa_guard.backend.options.batch_size'",
        "it means: most answers decoded together",
    ),
    (
        "required",
        "backend: {use: vllm, options: {model: a/b}}",
        "setting 'ttsa_guard.backend.options.urls': it is missing",
        "",
    ),
    ("threshold", "gate: {use: lite, options: {threshold: 7}}", "gate[0].options.threshold", ""),
    (
        "profile",
        "backend: {use: transformers, options: {profile: gone.json}}",
        "'ttsa_guard.backend.options.profile': gone.json is not a model profile",
        "make one with: ttsa-guard profile MODEL",
    ),
    (
        "model",
        "backend: {use: transformers, options: {model: ./gone}}",
        "'ttsa_guard.backend.options.model': there is no such file or folder",
        "paths begin in the folder",
    ),
    ("audit-folder", "audit: {path: .}", "'ttsa_guard.audit.path': it is a folder", "name a file"),
    (
        "audit-in-a-file",
        "audit: {path: settings.yml/a.jsonl}",
        "is a file, not a folder",
        "choose another",
    ),
    (
        "no-key",
        "gate: openai",
        "ttsa_guard.gate[0]: moderator 'openai' has no key",
        "set the environment variable OPENAI_API_KEY",
    ),
    (
        "key-in-the-file",
        f"gate: {{use: openai, options: {{key: {SECRET}}}}}",
        "'ttsa_guard.gate[0].options.key' names no variable",
        "give the NAME of an environment variable",
    ),
    ("host-rail", "gate: {use: nemo_rail, options: {flow: x}}", "works only in a NeMo", "choose"),
]
"""Wrong settings: a name, the settings, what is said, and how to mend it."""


@pytest.mark.parametrize(("settings", "said", "mend"), [s[1:] for s in SETTINGS], ids=[
    s[0] for s in SETTINGS
])  # fmt: skip
def test_wrong_settings(settings: str, said: str, mend: str) -> None:
    report = check(file_of(settings))
    [problem] = report["problems"]
    assert problem["where"] == "settings.yml"
    assert said in problem["message"]
    assert mend in problem["hint"]
    assert report["expect"] == {}
    assert SECRET not in json.dumps(report)


OUTPUT = {"flows": ["ttsa steer output"]}
FOLDERS = [
    (
        "unused",
        lambda: folder_of(rails={}),
        "the flow 'ttsa steer output' is imported but not used",
        "rails.output.flows",
    ),
    (
        "not-imported",
        lambda: folder_of(import_paths=[]),
        "nothing brings the guard into this configuration",
        "import_paths: [ttsa_guard/rails]",
    ),
    (
        "lost-import",
        lambda: folder_of(import_paths=[rails_path(), "gone/rails"]),
        "import_paths: 'gone/rails' leads nowhere",
        "COLANGPATH",
    ),
    (
        "parallel",
        lambda: folder_of(rails={"output": {**OUTPUT, "parallel": True}}),
        "rails.output.parallel undoes rewrites",
        "remove parallel: true",
    ),
    (
        "streaming",
        lambda: folder_of(rails={"output": {**OUTPUT, "streaming": {"enabled": True}}}),
        "rails.output.streaming shows an answer in chunks",
        "streaming: progressive",
    ),
    (
        "misplaced",
        lambda: folder_of(rails={"output": OUTPUT, "config": {"ttsa_guard": {}}}),
        "config.yml has 'ttsa_guard' under rails.config",
        "move it to custom_data.ttsa_guard",
    ),
    (
        "other-weights",
        lambda: folder_of(guard={"backend": {"use": "transformers", "options": {"model": "a/b"}}}),
        "but the guard's backend has 'a/b'",
        "model: a/b",
    ),
    (
        "too-late",
        lambda: folder_of(
            guard={"streaming": "progressive"},
            rails={"output": {"flows": ["ttsa steer output", "self check output"]}},
        ),
        "sentences before the rail 'self check output' has seen the answer",
        "streaming: buffered",
    ),
    (
        "single-call",
        lambda: folder_of(
            guard={"streaming": "progressive"},
            rails={"output": OUTPUT, "dialog": {"single_call": {"enabled": True}}},
        ),
        "never ends in an app with rails.dialog.single_call",
        "streaming: buffered",
    ),
    (
        "2-not-run",
        lambda: folder_2("import guardrails\nflow output rails $output_text\n  self check\n"),
        "this Colang 2.x app does not run our output rail",
        "with the line: ttsa steer output",
    ),
    (
        "2-commented-out",
        lambda: folder_2(MAIN.replace("  ttsa", "  pass\n  # ttsa")),
        "this Colang 2.x app does not run our output rail",
        "with the line: ttsa steer output",
    ),
    (
        "2-tracing",
        lambda: folder_2(tracing={"enabled": True}),
        "tracing.enabled makes every answer of a Colang 2.x app fail",
        "remove it",
    ),
]
"""Wrong folders of the host: a name, the folder, what is said, and how to mend it."""


@pytest.mark.parametrize(("make", "said", "mend"), [f[1:] for f in FOLDERS], ids=[
    f[0] for f in FOLDERS
])  # fmt: skip
def test_wrong_folders(make: Any, said: str, mend: str) -> None:
    report = check(make())
    [problem] = report["problems"]
    assert problem["where"] in ("host", "host/config.yml")
    assert said in problem["message"]
    assert mend in problem["hint"]


def test_all_problems_are_told_at_once() -> None:
    gate = ["lit", {"use": "lite", "options": {"x": 1}}]
    guard = {"gate": gate, "budget": {"y": 2}, "seed": "z", "audit": {"path": "."}}
    result = run("check", folder_of(guard=guard, rails={"output": {**OUTPUT, "parallel": True}}))
    assert result.exit_code == 1
    told = " ".join(result.stdout.split())
    for said in (
        "'lit'",
        "gate[1].options.x",
        "budget.y",
        "ttsa_guard.seed",
        "parallel: true",
        "audit.path",
    ):
        assert said in told
    assert "6 problems in host" in told


@pytest.mark.parametrize(
    "path", [EXAMPLES / "settings.yml", EXAMPLES / "colang_1", EXAMPLES / "colang_2"]
)
def test_what_is_right_says_what_to_expect(path: Path) -> None:
    report = check(path)
    assert report["problems"] == []
    assert "finds 74% of bad answers" in report["expect"]["gate"]
    assert "3.4% false alarms" in report["expect"]["gate"]
    assert "candidates" in report["expect"]["a flagged answer"]
    assert "nothing is wrong" in run("check", path).stdout


def test_an_old_name_is_told() -> None:
    assert check(file_of("steerers: [kick]"))["notes"] == [
        "ttsa_guard.steerers[0]: kick is now called random_perturbation; the old name works for a"
        " while"
    ]


def test_a_weak_gate_is_told() -> None:
    settings = {"backend": {"use": "transformers", "options": {"model": "a/b"}}, "gate": "lite"}
    assert "the gate is lite alone" in check(file_of(settings))["expect"]["gate"]


def test_a_flow_may_call_the_rail_and_a_file_may_bring_it() -> None:
    folder = folder_of("define subflow mine\n  do ttsa steer output\n", rails={}, import_paths=[])
    file_of("from ttsa_guard.nemo import init\n", "host/config.py")
    assert check(folder)["ok"]
    assert check(folder_2("import ttsa_guard.rails\n" + MAIN, import_paths=[]))["ok"]


def test_our_flows_import_those_of_the_host() -> None:
    colang = MAIN.replace("import guardrails\n", "")
    assert check(folder_2(colang))["ok"]
    folder = folder_2(colang, import_paths=[])
    file_of("from ttsa_guard.nemo import init\n", "host/config.py")
    [problem] = check(folder)["problems"]
    assert "import guardrails" in problem["hint"]


def test_flows_may_stand_in_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(MAIN, "lib/own/rails.co")
    monkeypatch.setenv("COLANGPATH", "lib")
    assert check(folder_2("import core\nimport own.rails\n"))["ok"]
    assert not check(folder_2("import core\nimport other.rails\n"))["ok"]


@pytest.mark.parametrize(
    ("make", "said", "mend"),
    [
        (lambda: Path("gone.yml"), "cannot read gone.yml", "config folder"),
        (lambda: file_of(f"gate: [{SECRET}"), "cannot read settings.yml at line 1", "YAML"),
        (lambda: file_of(HOST), "is a file of NeMo Guardrails", "give its folder"),
        (lambda: file_of("x", "bare/main.co").parent, "bare holds no YAML file", "config.yml"),
        (lambda: file_of("a: [", "bad/config.yml").parent, "cannot read bad/config.yml", "mend"),
    ],
)
@pytest.mark.parametrize("command", ["check", "show"])
def test_what_cannot_be_read(make: Any, said: str, mend: str, command: str) -> None:
    result = run(command, make())
    assert result.exit_code == 2
    assert said in result.stderr
    assert mend in result.stderr
    assert SECRET not in result.output


def test_what_is_shown_are_the_settings_that_hold() -> None:
    shown = yaml.safe_load(run("show").stdout)
    held = GuardConfig.parse(shown)
    guard = Guard.from_config(GuardConfig())
    assert [use.use for use in held.steerers] == [steerer.name for steerer in guard.steerers]
    assert held.quality == guard.quality
    assert held.budget == guard.config.budget
    assert [member.use for member in held.gate] == ["lite"]


def test_each_setting_says_where_it_comes_from() -> None:
    Path("own.json").write_text(json.dumps({"model": "own", "steerers": ["trim"], "floor": -2}))
    options = {"profile": "own.json"}
    path = file_of(
        {
            "seed": 3,
            "budget": {"seconds": 9},
            "backend": {"use": "transformers", "options": options},
        }
    )
    lines = run("show", path).stdout.splitlines()
    assert "seed: 3  # settings.yml" in lines
    assert "  seconds: 9.0  # settings.yml" in lines
    assert "  generations: 96  # default" in lines
    assert "steerers: [{use: trim}]  # profile of own" in lines
    assert "  floor: -2.2  # profile of own" in lines
    assert "gate: [{use: lite}]  # default; auto is lite here" in lines
    found = json.loads(run("show", path, "--json").stdout)
    assert found["budget.seconds"] == {"value": 9.0, "from": "settings.yml"}


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    gate = [
        {"use": "openai", "options": {"key": "MY_KEY"}},
        {"use": "openai", "options": {"key": SECRET}},
        {"use": "guard_llm", "options": {"base_url": f"https://me:{SECRET}@host/v1?k={SECRET}"}},
    ]
    result = run("show", file_of({"gate": gate}))
    assert result.exit_code == 0
    assert "MY_KEY is set in the environment" in result.stdout
    assert SECRET not in result.output


def test_the_schema_in_the_package_is_what_the_code_says() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_schema.py"))["text"]()
    assert FILE.read_text(encoding="utf-8") == made, "stale; run: python docs/make_schema.py"


def test_the_schema_takes_what_the_guard_takes() -> None:
    schema = json.loads(run("schema").stdout)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    written = yaml.safe_load((EXAMPLES / "settings.yml").read_text())
    for settings in ({"gate": "lite"}, {"steerers": []}, {"backend": "transformers"}, written):
        GuardConfig.parse(settings)
        validator.validate(settings)
    for _, settings, *_ in SETTINGS[:6]:
        assert not validator.is_valid(yaml.safe_load(settings))
    wrong = {"gate": [{"use": "lite", "options": {"treshold": 1}}]}
    assert not validator.is_valid(wrong)
    assert schema["$defs"].keys() >= shipped_schema()["$defs"].keys()
    assert schema["properties"]["budget"]["description"]
    assert run("schema", "--out", "s.json").exit_code == 0
    assert json.loads(Path("s.json").read_text()) == schema
    assert "no folder gone" in run("schema", "--out", "gone/s.json").stderr


@pytest.mark.parametrize("command", ["check", "show"])
def test_nothing_heavy_is_imported(command: str) -> None:
    backend = {"use": "transformers", "options": {"model": "a/b"}}
    folder = folder_of(guard={"backend": backend}, models=[])
    program = f"""
import sys
from ttsa_guard.cli import main
sys.argv[1:] = ["config", {command!r}, {str(folder)!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "transformers", "nemoguardrails"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    note = "checked by the schema alone, because importing transformers needs torch"
    assert (note in " ".join(done.stdout.split())) == (command == "check")


REQUIRED = {
    "any_guardrail": {"guardrail": "some_guard"},
    "azure": {"endpoint": "https://name.cognitiveservices.azure.com"},
    "classifier": {"model": "a/b"},
    "guard_llm": {"model": "a/b"},
    "nemo_rail": {"flow": "self check output"},
    "taea": {"model": "a/b"},
    "chat_completions": {"model": "a/b", "url": "http://localhost:8000/v1"},
    "transformers": {"model": "a/b"},
    "vllm": {"model": "a/b", "urls": ["http://localhost:8000"]},
}
KEYS = ("MISTRAL_API_KEY", "OPENAI_API_KEY", "AZURE_CONTENT_SAFETY_KEY", "PERSPECTIVE_API_KEY")


def of_kind(kind: str) -> list[dict[str, Any]]:
    """All plugins of a kind that are in the package, with the options that they require."""
    names = [key.split(".")[1] for key in shipped_schema()["$defs"] if key.startswith(f"{kind}.")]
    return [{"use": name, "options": REQUIRED.get(name, {})} for name in dict.fromkeys(names)]


@pytest.mark.parametrize("backend", of_kind("backends"), ids=lambda backend: backend["use"])
def test_no_plugin_of_the_package_makes_the_check_slow(backend: dict[str, Any]) -> None:
    """Numbers, templates and models are imported when a plugin is made, not when it is named."""
    members = {
        "gate": of_kind("moderators"),
        "image_gate": of_kind("image_moderators"),
        "steerers": of_kind("steerers"),
    }
    folder = folder_of(guard={"backend": backend, **members}, models=[])
    program = f"""
import sys
from ttsa_guard.cli import main
sys.argv[1:] = ["config", "check", {str(folder)!r}, "--json"]
try:
    main()
finally:
    slow = {{"torch", "transformers", "nemoguardrails", "numpy", "jinja2"}} & set(sys.modules)
    print(*slow, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **dict.fromkeys(KEYS, "a-key")},
    )
    assert done.stderr.split() == []
    found = [problem["message"] for problem in json.loads(done.stdout)["problems"]]
    assert [message for message in found if not message.endswith("is not there")] == []


HOOK = "from pydantic import BaseModel\nfrom ttsa_guard import hookimpl\n"
PLUGIN = (
    HOOK
    + """
class {title}Options(BaseModel, extra="forbid"):
    strength: int = 1

@hookimpl
def ttsa_register_moderators(register):
    register("{name}", lambda options: None, options={title}Options)
"""
)


def test_plugins_of_other_packages(tmp_path: Path) -> None:
    """Their options are checked, unless importing them needs what is heavy."""
    for name, first in (("gentle", ""), ("heavy", "import torch\n")):
        source = first + PLUGIN.format(name=name, title=name.title())
        file_of(source, f"site/{name}_plugin.py")
        points = f"[ttsa_guard]\n{name} = {name}_plugin\n"
        file_of(points, f"site/{name}_plugin-1.dist-info/entry_points.txt")
        meta = f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1\n"
        file_of(meta, f"site/{name}_plugin-1.dist-info/METADATA")
    gate = [{"use": name, "options": {"strenth": 2}} for name in ("gentle", "heavy")]
    path = file_of({"gate": gate})
    program = "from ttsa_guard.cli import main; main()"
    told = [
        subprocess.run(
            [sys.executable, "-c", program, "config", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        ).stdout
        for arguments in (["check", str(path), "--json"], ["schema"])
    ]
    report, schema = map(json.loads, told)
    [problem] = report["problems"]
    assert problem["message"] == "unknown setting 'ttsa_guard.gate[0].options.strenth'"
    assert report["notes"] == [
        "ttsa_guard.gate[1].options: not checked, because importing heavy needs torch"
    ]
    assert "moderators.gentle" in schema["$defs"]
    assert "moderators.heavy" not in schema["$defs"]


@pytest.mark.parametrize(
    ("settings", "extra"),
    [({"gate": "encoder"}, "encoder"), ({"image_gate": "open_nsfw"}, "images")],
)
def test_a_missing_extra(
    settings: dict[str, str], extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.yml"
    file.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr("ttsa_guard.checking.settings.find_spec", lambda _: None)
    [problem] = check(file)["problems"]
    assert "is not there" in problem["message"]
    assert problem["hint"] == f"pip install 'ttsa-guard[{extra}]'"
