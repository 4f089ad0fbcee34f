"""What a user may get wrong: each command says what is wrong, where, and how to mend it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ttsa_guard.cli import app

FILES = {
    "broken.yml": "gate: [lite\nseed: :",
    "list.yml": "- lite",
    "twice.yml": "gate: lite\nseed: 1\ngate: patterns",
    "word.yml": "seed: often",
    "range.yml": "gate_seconds: -1",
    "key.yml": "gates: lite",
    "deep.yml": "budget: {second: 3}",
    "choice.yml": "combine: most",
    "nothing.yml": "steerers:",
    "no_gate.yml": "gate: []",
    "weight.yml": "gate: [{use: lite, weight: 2}]",
    "host.yml": "custom_data: {ttsa_guard: {gate: lite}}",
    "option.yml": "gate: {use: lite, options: {treshold: 0.5}}",
    "share.yml": "gate: {use: lite, options: {threshold: 2}}",
    "server.yml": "backend: {use: vllm, options: {urls: [http://host:8000]}}",
    "address.yml": "backend: {use: vllm, options: {model: m, urls: [host]}}",
    "kind.yml": "steerers: [lite]",
    "key_itself.yml": "gate: {use: openai, options: {key: not-a-name-but-a-key}}",
    "texts.jsonl": '{"text": "fine"}\n',
    "cut.jsonl": '{"text": "fine"}\n{"text": \n',
    "other.jsonl": '{"body": "fine"}\n',
    "array.jsonl": "[1]\n",
    "label.jsonl": '{"text": "fine", "label": "maybe"}\n',
    "pairs.jsonl": '{"prompt": "how?", "chosen": "so", "rejected": "no"}\n',
    "rate.yml": "rate: fast",
    "burst.yml": "burst: {factor: 20}",
    "sets.yml": "data: nothing",
    "probes.yml": "harmless: [how]",
}

# The command; what is wrong and where; how to mend it.
WRONG = [
    ("frobnicate", "No such command 'frobnicate'", "--help"),
    ("steer hello --modell x", "No such option: --modell", "--model"),
    ("steer", "Missing argument 'prompt'", "steer --help"),
    ("steer hello --config gone.yml", "gone.yml: there is no such file", "a YAML file"),
    ("steer hello --config .", "cannot read .: it is a folder", "a YAML file"),
    ("steer hello --config broken.yml", "broken.yml at line 2, column 5: it is not YAML", "YAML"),
    ("steer hello --config latin.yml", "latin.yml: it is not text in UTF-8", "a YAML file"),
    ("steer hello --config list.yml", "list.yml: ttsa_guard holds a list", "a mapping such as"),
    ("steer hello --config twice.yml", "twice.yml at line 3, column 1: a key", "guard's"),
    ("steer hello --config word.yml", "seed': it should be a whole number and is a", "Seed"),
    ("steer hello --config range.yml", "gate_seconds': it should be greater than 0", "default: 10"),
    ("steer hello --config key.yml", "key.yml: unknown setting 'ttsa_guard.gates'", "'gate'?"),
    ("steer hello --config deep.yml", "'ttsa_guard.budget.second'", "did you mean 'seconds'?"),
    ("steer hello --config choice.yml", "combine': it should be 'any', 'all',", "one member flags"),
    ("steer hello --config nothing.yml", "steerers': it should be a list", "The cascade"),
    ("steer hello --config no_gate.yml", "gate': a guard needs at least one", "decide what a user"),
    ("steer hello --config weight.yml", "setting 'ttsa_guard': weights", "config schema"),
    ("steer hello --config host.yml", "host.yml is a file of NeMo", "custom_data.ttsa_guard"),
    ("steer hello --config option.yml", "'moderators.lite.treshold'", "did you mean 'threshold'?"),
    ("steer hello --config share.yml", "moderators.lite.threshold': give a number", "is flagged"),
    ("steer hello --config server.yml", "backends.vllm.model': it is missing", "servers run"),
    ("steer hello --config address.yml", "an address begins with http", "http://host:8000"),
    ("steer hello --config key_itself.yml", "'openai' has no key", "never the key itself"),
    ("steer hello --config kind.yml", "'lite' registers no steerer", "it is a moderator"),
    ("steer hello --steerer prefil", "no plugin named 'prefil'", "did you mean 'prefill'?"),
    ("steer hello --prefer empathy=1", "--prefer is for the steerer", "add: --steerer prosocial"),
    ("demo --model ./gone", "'./gone' cannot be loaded: there is no such folder", "'embedded'"),
    ("demo --plot page.txt", "cannot draw to page.txt", ".png, .svg, .pdf"),
    ("demo --plot gone/plot.png", "there is no folder gone", "change --plot"),
    ("serve --upstream localhost", "--upstream is no address", "http://127.0.0.1:8000/v1"),
    ("serve --upstream http://a/v1 --api-key-env NOT_SET", "without a key", "variable NOT_SET"),
    ("init app --host none --chat api --yes", "--model is missing", "name of the chat model"),
    ("check hello --moderator classifier", "classifier.model': it is missing", "a path"),
    ("check ''", "there is no text to judge", "give a text"),
    ("moderate gone.jsonl", "cannot read gone.jsonl: there is no such file", "JSON lines"),
    ("moderate cut.jsonl", "cut.jsonl, line 2: not JSON", "one JSON object"),
    ("moderate other.jsonl", "other.jsonl, line 1: no text in the field 'text'", "--text-field"),
    ("moderate array.jsonl", "array.jsonl, line 1: no JSON object", '{"text": "..."}'),
    ("moderate texts.jsonl --out gone/x", "there is no folder gone", "change --out"),
    ("moderate texts.jsonl --out .", ". is a folder", "--out ./FILE"),
    ("moderate texts.jsonl --batch 0", "'--batch': Input should be greater", "moderate --help"),
    ("moderators compare label.jsonl --moderator lite", "line 1: the label in", "harmful are: 1"),
    ("moderators tune texts.jsonl", "texts.jsonl has only 1 harmless", "100 are the fewest"),
    ("doctor --config key.yml", "unknown setting 'ttsa_guard.gates'", "did you mean 'gate'?"),
    ("profile embedded --prompts probes.yml", "probes.yml does not hold the two", "'unsafe:'"),
    ("profile embedded --out texts.jsonl/x", "cannot make the folder texts.jsonl", "--out FOLDER"),
    ("view texts.jsonl", "texts.jsonl has no audit records", "audit: {path: FILE}"),
    ("view gone.jsonl --html gone/page.html", "there is no folder gone", "change --html"),
    ("audit summary gone.jsonl", "gone.jsonl: there is no such file", "audit.path"),
    ("audit sumary", "No such command 'sumary'", "Did you mean 'summary'?"),
    ("config check gone.yml", "gone.yml: there is no such file", "or a config folder"),
    ("config show host.yml", "host.yml is a file of NeMo", "give its folder"),
    ("config schema --out gone/x.json", "there is no folder gone", "change --out"),
    ("bench run quik --out out", "no benchmark is called 'quik'", "did you mean 'quick'?"),
    ("bench run sets.yml --out out", "bench.data[0].name': it should be 'embedded'", "known set"),
    ("bench run quick --out texts.jsonl", "cannot make the folder texts.jsonl", "--out FOLDER"),
    ("bench run quick --out out --arm none", "there is no arm 'none'", "valid: base"),
    ("bench run real --out out", "strongreject.csv is not part", "--data DIR"),
    ("bench report .", ". has no benchmark", "bench run quick --out DIR"),
    ("bench speed --shape big", "no shape is called 'big'", "tiny"),
    ("plan --config rate.yml", "plan.rate': it should be a number and is a text", "a second"),
    ("plan --config burst.yml", "plan.burst': factor times share is at most 1", "the rate varies"),
    ("plan --flags 3", "plan.flags': it should be less than or equal to 1", "gate flags"),
    ("plan measure --out .", ". is a folder", "--out ./FILE"),
    ("plan validate --out texts.jsonl", "texts.jsonl: there is a file where", "--out FOLDER"),
    ("prosocial train m --pairs cut.jsonl --out x", "cut.jsonl, line 2: no JSON", "one object"),
    ("prosocial train m --pairs pairs.jsonl --out x", "unknown attribute", "ATTRIBUTE=FILE"),
    ("prosocial harm-vector m --examples pairs.jsonl --out x", "field 'answer'", "prosocial"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "latin.yml").write_bytes(b"fallback: caf\xe9")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("command", "what", "how"), WRONG, ids=[words[0] for words in WRONG])
def test_an_error_says_what_where_and_how_to_mend_it(command: str, what: str, how: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command), prog_name="ttsa-guard")
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stdout) == (2, "")
    said = " ".join(done.stderr.split())
    assert what in said
    assert how in said
    assert "Error:" in said or ("error: " in said and " hint: " in said)


def test_no_command_is_left_out() -> None:
    tried = {command.split()[0] for command, *_ in WRONG}
    named = {command.name or command.callback.__name__ for command in app.registered_commands}
    named |= {group.name for group in app.registered_groups}
    assert named - tried == {"chat", "plugins"}  # as steer; takes nothing
