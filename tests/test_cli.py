"""The commands: what they print, how they end, and that the flagged text is never among it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from ttsa_guard.cli import app, common
from ttsa_guard.config import GuardConfig
from ttsa_guard.guard import Guard
from ttsa_guard.moderators.measured import MEASURED
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import GENERIC
from ttsa_guard.record import AuditRecord
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator, scripted_guard

COMMANDS = ("demo", "chat", "steer", "check", "plugins", "doctor", "profile")
HEAVY = {"torch", "transformers", "nemoguardrails", "matplotlib", "sklearn", "scipy", "aiohttp"}
BAD = "a bad answer that nobody may see"
GOOD = "A decent answer to your question."


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


class Backend(ScriptedBackend):
    """Gives a bad plain answer to whatever says "wicked", and decent samples; remembers the
    conversations."""

    def __init__(self) -> None:
        super().__init__(
            lambda request: (
                BAD if "wicked" in self.heard[-1] and request.temperature < 0.5 else GOOD
            )
        )
        self.heard: list[str] = []
        self.lengths: list[int] = []

    async def render(self, messages: Any, *, scope: Any = "user") -> Any:
        self.heard.append(messages[-1].content)
        self.lengths.append(len(messages))
        return await super().render(messages, scope=scope)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    made = Backend()

    def build(config: GuardConfig, plugins: Plugins | None = None) -> Guard:
        gate, guide = ScriptedModerator(name="gate"), ScriptedModerator(name="guide")
        steerers = [] if "nothing" in config.fallback else [Resample(ResampleOptions(n=4, batch=4))]
        return Guard(
            config, backend=made, gate=gate, guide=guide, steerers=steerers, plugins=plugins
        )

    monkeypatch.setattr(common, "build_guard", build)
    return made


def run(*arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert BAD not in result.output
    return result


def settings_file(folder: Path, **settings: Any) -> str:
    path = folder / "guard.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


# ---------------------------------------------------------------------- help and errors


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_version() -> None:
    assert run("--version").output.startswith("ttsa-guard 0.")


def test_commands_that_need_no_model_import_nothing_heavy(tmp_path: Path) -> None:
    texts, records = tmp_path / "texts.jsonl", tmp_path / "audit.jsonl"
    texts.write_text('{"text": "What a lovely day."}\n', encoding="utf-8")
    asyncio.run(scripted_guard([], audit={"path": records}).review("q", GOOD))
    helps = [[*words[1:], "--help"] for words in _all_commands()]
    assert len(helps) > 15
    commands = [
        ["--help"],
        *helps,
        ["--version"],
        ["plugins"],
        ["audit", "summary", str(records)],
        ["check", "hello there"],
        ["moderate", str(texts)],
    ]
    program = f"""
import sys
import ttsa_guard
assert not {{"pydantic", "numpy", "typer"}} & set(sys.modules)
from ttsa_guard.cli import main
for command in {commands!r}:
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as end:
        assert not end.code, (command, end.code)
    heavy = {HEAVY!r} & set(sys.modules)
    assert not heavy, (command, heavy)
    if command[-1] == "--help":
        assert not {{"numpy", "ttsa_guard.config"}} & set(sys.modules), command
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_help_of_every_command_has_an_example() -> None:
    words = list(_all_commands())
    groups = {tuple(outer) for outer in words for w in words if w[:-1] == outer} - {
        ("ttsa-guard", "plan")  # it does something itself
    }
    for command in (w for w in words if tuple(w) not in groups):
        shown = " ".join(run(*command[1:], "--help").output.split())
        assert f"Example: {' '.join(command)}" in shown


def _all_commands() -> Iterator[list[str]]:
    def below(words: list[str], command: Any) -> Iterator[list[str]]:
        yield words
        for name, found in getattr(command, "commands", {}).items():
            yield from below([*words, name], found)

    return below(["ttsa-guard"], typer.main.get_command(app))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["demo"], "the demo keeps nothing; the same command begins anew"),
        (["profile", "embedded"], "--no-trials or fewer --samples take less time"),
        (["plan", "validate", "--out", "results"], "fewer --seconds take less time"),
        (["moderate", "texts.jsonl"], "the same command goes on from there"),
        (["moderators", "tune", "texts.jsonl", "--false-alarms", "0.5"], "goes on from there"),
        (["steer", "hello"], "stopped"),
    ],
)
def test_ctrl_c_is_one_line_that_says_how_to_go_on(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text('{"text": "What a lovely day."}\n' * 2, encoding="utf-8")
    for builder in ("build_guard", "build_moderator"):
        monkeypatch.setattr(common, builder, stop)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (130, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("stopped")
    assert line.endswith(told)


def test_the_console_script_sets_the_wait_policy_before_torch() -> None:
    program = (
        "import os, sys; os.environ.pop('OMP_WAIT_POLICY', 0); import ttsa_guard.cli as c; c.app ="
        " lambda: None; c.main()"
    )
    program += "; assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE' and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steer", "hello", "--model", "/no/such/model"], "cannot be loaded"),
        (["steer", "hello", "--model", " "], "--model is empty"),
        (["steer", " "], "no user text"),
        (["steer", "hello", "--steerer", "embeding"], "did you mean 'embedding'"),
        (["steer", "hello", "--config", "/no/such/file.yaml"], "cannot read"),
        (["chat", "--model", "/no/such/model"], "cannot be loaded"),
        (["check", "hello", "--moderator", "light"], "did you mean 'lite'"),
        (["check", "hello", "--moderator", "prefill"], "registers no moderator"),
        (["check", ""], "no text to judge"),
        (["profile", "/no/such/model"], "cannot be loaded"),
        (["demo", "--plot", "plot.txt"], "cannot draw to plot.txt"),
        (["demo", "--plot", "no/such/plot.png"], "there is no folder"),
    ],
)
def test_errors_are_one_line_and_a_hint(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert message in result.stderr


def test_a_typo_in_the_settings_is_named(tmp_path: Path) -> None:
    result = run("steer", "hello", "--config", settings_file(tmp_path, gats="lite"))
    assert result.exit_code == 2
    assert "unknown setting 'ttsa_guard.gats'" in result.stderr
    assert "did you mean 'gate'?" in result.stderr


# ---------------------------------------------------------------------- settings


def test_the_command_line_goes_over_the_file(tmp_path: Path) -> None:
    steerers = [{"use": "resample", "options": {"n": 3}}, "prefill"]
    backend = {"use": "transformers", "options": {"model": "a", "device": "cpu"}}
    found = common.settings(
        "b", Path(settings_file(tmp_path, backend=backend, steerers=steerers)), "resample"
    )
    assert found.backend.options == {"model": "b", "device": "cpu"}
    assert [(s.use, s.options) for s in found.steerers] == [("resample", {"n": 3})]
    assert found.model == "b"
    assert GuardConfig().model == "embedded"


# ---------------------------------------------------------------------- steer


@pytest.mark.usefixtures("backend")
def test_steer_passes_a_good_answer_on() -> None:
    result = run("steer", "hello")
    assert (result.exit_code, result.stdout) == (0, GOOD + "\n")
    assert "passed by the gate" in result.stderr


def test_steer_mends_a_flagged_answer(backend: Backend) -> None:
    result = run("steer", "be wicked")
    assert (result.exit_code, result.stdout) == (0, GOOD + "\n")
    assert "answer adjusted by resample: 4 candidates" in result.stderr
    assert backend.closed


@pytest.mark.usefixtures("backend")
def test_steer_gives_the_fallback(tmp_path: Path) -> None:
    result = run(
        "steer", "be wicked", "--config", settings_file(tmp_path, fallback="nothing to say")
    )
    assert result.stdout == "nothing to say\n"
    assert "no answer given" in result.stderr


@pytest.mark.usefixtures("backend")
def test_the_json_record_has_no_texts_even_if_the_audit_has_them(tmp_path: Path) -> None:
    config = settings_file(tmp_path, audit={"texts": True, "path": str(tmp_path / "audit.jsonl")})
    result = run("steer", "be wicked", "--json", "--config", config)
    found = json.loads(result.stdout)
    assert (found["text"], found["action"]) == (GOOD, "swap")
    assert "texts" not in found["record"]
    assert [set(c) & {"text"} for c in found["record"]["candidates"]] == [set()] * 4
    assert found["record"]["generations"] == 4


def test_no_control_sequences_reach_the_terminal() -> None:
    assert common.plain("a\x1b[31mb\rc\x07\ud800 [red]d\n").plain == "a[31mbc? [red]d\n"


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("pass", "passed by the gate"),
        ("swap", "adjusted by prefill, a refusal: 0 candidates"),
        ("fallback", "no answer given (why)"),
    ],
)
def test_a_review_in_words(action: Any, words: str) -> None:
    record = AuditRecord(
        "1", 0.0, action, "why", gate_score=0.9, final_score=None, steerer="prefill"
    )
    assert words in common.happened(record)


# ---------------------------------------------------------------------- chat


def test_chat_keeps_the_history_and_marks_adjusted_answers(backend: Backend) -> None:
    result = run("chat", stdin="hello\n\nbe wicked\n/reset\nhello again\n/quit\nnever heard\n")
    assert result.exit_code == 0
    assert result.stdout.count(GOOD) == 3
    assert result.stdout.count("answer adjusted by resample") == 1
    # a search renders twice more
    assert backend.heard == ["hello", "be wicked", "be wicked", "be wicked", "hello again"]
    assert backend.lengths == [1, 3, 3, 1, 1]
    assert backend.closed


@pytest.mark.usefixtures("backend")
def test_chat_ends_with_its_input() -> None:
    assert run("chat", stdin="hello").stdout == GOOD + "\n"
    assert run("chat", stdin="").exit_code == 0


def test_chat_forgets_the_oldest_turns_of_a_conversation_that_is_too_long(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ttsa_guard.errors import PromptError

    render = backend.render

    async def short(messages: Any, *, scope: Any = "user") -> Any:
        if len(messages) > 3 or "much too long" in messages[-1].content:
            raise PromptError("the prompt is too long", hint="shorten the conversation")
        return await render(messages, scope=scope)

    monkeypatch.setattr(backend, "render", short)
    result = run("chat", stdin="one\ntwo\nthree\nmuch too long\nfour\n")
    assert result.stdout.count(GOOD) == 4
    assert result.stderr.count("error: the prompt is too long") == 1
    assert backend.lengths == [1, 3, 3, 1]


# ---------------------------------------------------------------------- check


def test_check_passes_and_flags() -> None:
    polite, rude = (
        run("check", "Wipe the table with a damp cloth."),
        run("check", "You are a stupid idiot, get lost."),
    )
    assert (polite.exit_code, rude.exit_code) == (0, 1)
    assert polite.stdout.startswith("pass  lite")
    assert rude.stdout.startswith("flag  lite")
    assert "stupid" not in rude.output


def test_check_reads_stdin_and_prints_json() -> None:
    result = run("check", "-", "--json", stdin="You are a stupid idiot, get lost.\n")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (found["moderator"], found["decision"]) == ("lite", "flag")
    assert {"harm", "toxicity", "refusal"} <= set(found["categories"])
    assert 0.5 <= found["score"] <= 1


def test_check_uses_the_options_of_the_settings(tmp_path: Path) -> None:
    strict = settings_file(tmp_path, gate=[{"use": "lite", "options": {"threshold": 0.0}}])
    assert run("check", "Wipe the table with a damp cloth.", "--config", strict).exit_code == 1


def test_a_failing_moderator_is_neither_pass_nor_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        common, "build_moderator", lambda *_: ScriptedModerator(error=RuntimeError(BAD))
    )
    result = run("check", "hello")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "failed: RuntimeError" in result.stderr


# ---------------------------------------------------------------------- plugins


def test_plugins_are_listed_without_importing_them() -> None:
    lines = run("plugins").stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.count("  ")}
    assert rows["lite"] == ["moderator", "ttsa-guard", "0.1.0"]
    assert rows["transformers"][0] == "backend"
    assert rows["prefill"][0] == "steerer"


def test_an_old_name_is_listed_as_an_alias_alone() -> None:
    lines = [line for line in run("plugins").stdout.splitlines() if "kick" in line]
    assert lines == ["kick is an old name of random_perturbation, for one more release"]


def test_verbose_shows_the_options() -> None:
    output = run("plugins", "--verbose").stdout
    assert "lite (moderator)" in output
    assert "from this score on, an answer is flagged" in output
    assert "'auto', 'float32'" in output


def test_plugins_as_json() -> None:
    [lite] = [
        p for p in json.loads(run("plugins", "--json").stdout)["plugins"] if p["name"] == "lite"
    ]
    assert lite["kinds"] == ["moderator"]
    assert lite["options"] == {}
    listed = json.loads(run("plugins", "--verbose", "--json").stdout)["plugins"]
    [lite] = [p for p in listed if p["name"] == "lite"]
    assert "threshold" in lite["options"]["moderator"]["properties"]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    added = {
        "absent": "ttsa_guard.no_such_module",
        "orphan": "no_such_package.module",
        "silent": "ttsa_guard.budget",
        "resample": "another_package.resample",
    }
    points = [
        *entry_points(group="ttsa_guard"),
        *(EntryPoint(name, value, "ttsa_guard") for name, value in added.items()),
    ]

    def found(**wanted: str) -> EntryPoints:
        return EntryPoints(points).select(**wanted)

    monkeypatch.setattr("ttsa_guard.plugins.entry_points", found)
    monkeypatch.setattr("ttsa_guard.cli.listing.entry_points", found)


@pytest.mark.usefixtures("broken")
def test_broken_plugins_are_listed_with_their_error() -> None:
    brief, verbose = run("plugins"), run("plugins", "--verbose")
    assert brief.exit_code == verbose.exit_code == 0
    assert "absent is broken: there is no module" in brief.stdout
    assert (
        brief.stdout.count("resample is broken: two packages")
        == verbose.stdout.count("resample is broken: two packages")
        == 2
    )
    for name, error in (
        ("absent", "ModuleNotFoundError"),
        ("orphan", "ModuleNotFoundError"),
        ("silent", "registers nothing"),
    ):
        assert f"{name} is broken: " in verbose.stdout
        assert error in verbose.stdout
    assert "lite (moderator)" in verbose.stdout


# ---------------------------------------------------------------------- doctor


@pytest.mark.usefixtures("backend")
def test_doctor_is_content() -> None:
    result = run("doctor")
    assert result.exit_code == 0
    for word in (
        "python",
        "torch",
        "nemoguardrails",
        "generic",
        "ttsa-guard profile embedded",
        "6 words in",
        "gate: pass",
    ):
        assert word in result.stdout
    expected = MEASURED["lite"]
    assert f"gate lite finds {expected.recall:.0%} of bad answers" in " ".join(
        result.stdout.split()
    )
    assert f"{expected.false_alarms:.1%} false alarms" in " ".join(result.stdout.split())


@pytest.mark.usefixtures("backend")
def test_doctor_as_json() -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)["findings"]
    assert {finding["level"] for finding in found} == {"ok", "note"}
    [profile] = [finding for finding in found if finding["subject"] == "profile"]
    assert profile["hint"].endswith("ttsa-guard profile embedded")


@pytest.mark.usefixtures("broken")
def test_doctor_names_what_is_broken(tmp_path: Path) -> None:
    result = run(
        "doctor", "--config", settings_file(tmp_path, backend="absent", steerers="prefill")
    )
    assert result.exit_code == 1
    rows = {
        " ".join(line.split()[1:3]): line.split()[0]
        for line in result.stdout.splitlines()
        if line.strip()
    }
    assert (rows["plugin absent"], rows["plugin orphan"]) == ("broken", "note")
    assert "cannot be imported" in result.stdout


def test_doctor_reports_a_moderator_that_is_down(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = ScriptedModerator(name="gate", error=OSError("down"))
    monkeypatch.setattr(common, "build_guard", lambda _: scripted_guard(backend, gate=gate))
    result = run("doctor")
    assert result.exit_code == 1
    assert "gate failed: OSError" in result.stdout


@pytest.mark.usefixtures("backend")
def test_doctor_reports_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from ttsa_guard.cli import doctor

    def version(package: str) -> str:
        if package in ("transformers", "matplotlib"):
            raise PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(doctor, "version", version)
    result = run("doctor")
    assert result.exit_code == 1
    assert "pip install transformers" in result.stdout
    assert "ttsa-guard[plot]" in result.stdout


# ---------------------------------------------------------------------- openings


@pytest.mark.usefixtures("backend")
def test_openings_go_to_the_cache(tmp_path: Path) -> None:
    probes = tmp_path / "probes.yaml"
    probes.write_text(
        "harmless: ['How do I draw a cat?']\nunsafe: ['How do I steal a cat?']\n", encoding="utf-8"
    )
    result = run("profile", "some/model", "--samples", "2", "--prompts", str(probes))
    assert result.exit_code == 0
    path = tmp_path / "cache" / "ttsa_guard" / "some_model" / "ttsa_profile.json"
    assert str(path) in result.stdout
    profile = json.loads(path.read_text(encoding="utf-8"))
    assert profile["openings"][0] == {"text": "A decent answer to", "kind": "answer", "count": 1}
    # how answers to unsafe questions began is none of them
    declining = [o["text"] for o in profile["openings"][1:]]
    assert declining == [o.text for o in GENERIC.openings if o.kind != "answer"]


@pytest.mark.usefixtures("backend")
def test_openings_go_to_a_file(tmp_path: Path) -> None:
    result = run(
        "profile", "some/model", "--samples", "1", "--out", str(tmp_path / "deep" / "profile.json")
    )
    assert (tmp_path / "deep" / "profile.json").is_file()
    assert "backend.options.profile" in result.stdout
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = run(
        "profile", "some/model", "--samples", "1", "--out", str(tmp_path / "file" / "profile.json")
    )
    assert result.exit_code == 2
    assert "there is a file where a folder should be" in result.stderr


def stop(*_: Any, **__: Any) -> None:
    """Press Ctrl-C."""
    raise KeyboardInterrupt


@pytest.mark.usefixtures("backend")
def test_a_profile_that_was_stopped_goes_on_with_its_openings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ttsa_guard import profiling
    from ttsa_guard.steerers import openings

    whole, kept = tmp_path / "whole.json", tmp_path / "kept.json"
    command = ("profile", "some/model", "--samples", "1")
    run(*command, "--out", str(whole))
    with monkeypatch.context() as patch:
        patch.setattr(profiling, "learned", stop)
        assert run(*command, "--out", str(kept)).exit_code == 130
    assert not kept.exists()
    monkeypatch.setattr(openings, "collect", stop)
    assert run(*command, "--out", str(kept), "--samples", "2").exit_code == 130  # other samples
    assert run(*command, "--out", str(kept)).exit_code == 0
    assert kept.read_text(encoding="utf-8") == whole.read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.usefixtures("backend")
def test_a_profile_that_was_stopped_while_its_state_was_written_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(path: Path, text: str, **_: Any) -> None:
        path.write_bytes(text[: len(text) // 2].encode())
        raise KeyboardInterrupt

    whole, cut = tmp_path / "whole.json", tmp_path / "out" / "cut.json"
    command = ("profile", "some/model", "--samples", "1")
    run(*command, "--out", str(whole))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", cut_off)
        assert run(*command, "--out", str(cut)).exit_code == 130
    assert list(cut.parent.iterdir()) == []
    assert run(*command, "--out", str(cut)).exit_code == 0
    assert cut.read_text(encoding="utf-8") == whole.read_text(encoding="utf-8")


@pytest.mark.usefixtures("backend")
def test_a_damaged_state_of_a_profile_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ttsa_guard import profiling

    monkeypatch.setattr(profiling, "learned", stop)
    command = ("profile", "some/model", "--samples", "1", "--out", str(tmp_path / "p.json"))
    assert run(*command).exit_code == 130
    [state] = tmp_path.glob("p.*.part")
    state.write_text("{", encoding="utf-8")
    result = run(*command)
    assert result.exit_code == 2
    assert f"cannot go on from {state}: it is damaged" in result.stderr
    assert "hint: remove it to begin again" in result.stderr


@pytest.mark.usefixtures("backend")
def test_openings_say_if_another_profile_wins(tmp_path: Path) -> None:
    (tmp_path / "ttsa_profile.json").write_text("{}", encoding="utf-8")
    assert (
        "it is not used as long as there is"
        in run("profile", str(tmp_path), "--samples", "1").stdout
    )


@pytest.mark.parametrize(
    "text",
    ["harmless: [a]", "harmless: [a]\nunsafe: b", "harmless: [a]\nunsafe: [1]", "- a", "{", "\x00"],
)
def test_probe_files_are_checked(tmp_path: Path, text: str) -> None:
    probes = tmp_path / "probes.yaml"
    probes.write_text(text, encoding="utf-8")
    result = run("profile", "some/model", "--prompts", str(probes))
    assert result.exit_code == 2
    assert "harmless" in result.stderr


# ---------------------------------------------------------------------- the embedded model


def test_doctor_and_steer_with_the_embedded_model() -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.stdout
    assert "embedded, device" in result.stdout
    found = json.loads(run("steer", "How do I clean a wooden table?", "--json").stdout)
    assert found["action"] == "pass"
    assert found["text"]
