"""Whole files of texts: scores, and moderators side by side."""

from __future__ import annotations

import gzip
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from ttsa_guard.cli import app, common
from ttsa_guard.testing import ScriptedModerator

MADE: list[ScriptedModerator] = []
pytestmark = pytest.mark.usefixtures("interruptible")
STOPS_AT: list[tuple[str, str]] = []
"""While such a moderator judges such a text, Ctrl-C is pressed."""


@pytest.fixture(autouse=True)
def _moderators(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    MADE.clear()
    STOPS_AT.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kinds = {
        "good": lambda text: 0.9 if "bad" in text else 0.1,
        "poor": lambda text: (len(text) % 7) / 7,
        "broken": lambda _: float("nan"),
    }

    def build(_: Any, name: str) -> ScriptedModerator:
        def score(text: str) -> float:
            if (name, text) in STOPS_AT:
                signal.raise_signal(signal.SIGINT)
            return kinds[name](text)

        MADE.append(ScriptedModerator(score, name=name))
        return MADE[-1]

    monkeypatch.setattr(common, "build_moderator", build)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [
        {
            "text": f"{'bad' if i % 3 == 0 else 'fine'} SECRET {i}",
            "id": f"t{i}",
            "label": int(i % 3 == 0),
        }
        for i in range(100)
    ]
    return write(tmp_path / "texts.jsonl", rows)


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------- moderate


def test_every_text_gets_a_result_in_order(texts: Path, tmp_path: Path) -> None:
    result = run(
        "moderate", texts, "--moderator", "good", "--out", tmp_path / "out.jsonl", "--batch", 7
    )
    assert result.exit_code == 0
    assert "100 texts: 34 flagged, 66 passed, 0 failed" in result.stderr
    found = results(tmp_path / "out.jsonl")
    assert [f["id"] for f in found] == [f"t{i}" for i in range(100)]
    assert [f["decision"] for f in found] == ["flag" if i % 3 == 0 else "pass" for i in range(100)]
    assert (found[0]["line"], found[0]["score"], found[0]["categories"]) == (
        1,
        0.9,
        {"refusal": 0.0},
    )
    assert "SECRET" not in (tmp_path / "out.jsonl").read_text()
    assert max(map(len, MADE[0].calls)) == 7


def test_the_results_stand_beside_the_texts(texts: Path) -> None:
    assert run("moderate", texts, "--moderator", "good").exit_code == 0
    assert len(results(texts.with_name("texts.scores.jsonl"))) == 100


@pytest.mark.parametrize("rest", ["", '{"line": 41, "deci', '{"line"'])
def test_a_run_that_was_stopped_goes_on(texts: Path, tmp_path: Path, rest: str) -> None:
    out = tmp_path / "out.jsonl"
    run("moderate", texts, "--moderator", "good", "--out", out)
    whole = out.read_text()
    out.write_text("".join(whole.splitlines(keepends=True)[:40]) + rest)
    MADE.clear()
    assert run("moderate", texts, "--moderator", "good", "--out", out).exit_code == 0
    assert out.read_text() == whole
    assert sum(map(len, MADE[0].calls)) == 60


def test_results_of_other_texts_are_left_alone(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run("moderate", texts, "--moderator", "good", "--out", out)
    before = out.read_text()
    write(texts, [{"text": "another"}, *({"text": "x"} for _ in range(200))])
    result = run("moderate", texts, "--moderator", "good", "--out", out)
    assert result.exit_code == 2
    assert "the results of other texts" in result.stderr
    assert out.read_text() == before


def test_failures_are_results_too(texts: Path, tmp_path: Path) -> None:
    result = run("moderate", texts, "--moderator", "broken", "--out", tmp_path / "out.jsonl")
    assert "100 failed" in result.stderr
    assert results(tmp_path / "out.jsonl")[0]["reason"] == "ModeratorError"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\nnot json SECRET\n', "line 2: not JSON"),
        ('{"text": "a"}\n\n{"words": "SECRET"}\n', "line 3: no text in the field 'text'"),
        ('["SECRET"]\n', "line 1: no JSON object"),
        ('{"text": 3}\n', "line 1: no text"),
        (b"\xff\xfe", "cannot read"),
    ],
)
def test_lines_that_are_wrong_are_named(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("moderate", file, "--moderator", "good")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "SECRET" not in result.stderr + result.stdout


def test_fields_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "texts.jsonl", [{"answer": "a bad one", "question": "q"}])
    assert (
        run(
            "moderate",
            file,
            "--moderator",
            "good",
            "--text-field",
            "answer",
            "--prompt-field",
            "question",
        ).exit_code
        == 0
    )
    assert results(file.with_name("texts.scores.jsonl"))[0]["decision"] == "flag"


# ---------------------------------------------------------------- compare


def compare(texts: Path, *arguments: Any) -> Result:
    return run("moderators", "compare", texts, *arguments)


def test_numbers(texts: Path) -> None:
    found = json.loads(
        compare(texts, "--moderator", "good", "--moderator", "poor", "--json").stdout
    )
    assert (found["texts"], found["harmful"]) == (100, 34)
    good, poor = found["moderators"]["good"], found["moderators"]["poor"]
    assert (good["roc_auc"], good["pr_auc"], good["precision"], good["recall"]) == (1, 1, 1, 1)
    assert good["brier"] == pytest.approx(0.01)
    assert good["ece"] == pytest.approx(0.1)
    assert poor["roc_auc"] < 1
    assert list(found["kappa"]) == ["good / poor"]
    assert found["kappa"]["good / poor"] < 0.9


def test_table_and_picture(texts: Path, tmp_path: Path) -> None:
    result = compare(
        texts, "--moderator", "good", "--moderator", "poor", "--plot", tmp_path / "curves.png"
    )
    assert result.exit_code == 0
    assert "100 texts, 34 of them harmful" in result.stdout
    assert "Cohen's kappa" in result.stdout
    assert "SECRET" not in result.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_failures_count_as_flags(texts: Path) -> None:
    found = json.loads(compare(texts, "--moderator", "broken", "--json").stdout)["moderators"][
        "broken"
    ]
    assert (found["failed"], found["recall"], found["roc_auc"]) == (100, 1, 0.5)


@pytest.mark.parametrize(
    ("labels", "harmful"),
    [
        ([True, False], 1),
        (["unsafe", "safe"], 1),
        (["Toxic", "none"], 1),
        ([1, 0], 1),
        (["1", "0"], 1),
    ],
)
def test_labels(tmp_path: Path, labels: list[Any], harmful: int) -> None:
    file = write(
        tmp_path / "texts.jsonl",
        [{"text": str(i), "label": label} for i, label in enumerate(labels)],
    )
    assert json.loads(compare(file, "--moderator", "good", "--json").stdout)["harmful"] == harmful


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": 1}], "texts of one kind only"),
        ([{"text": "a", "label": 1}, {"text": "b"}], "line 2: no label in the field 'label'"),
    ],
)
def test_labels_that_are_missing(tmp_path: Path, rows: list[Any], message: str) -> None:
    result = compare(write(tmp_path / "texts.jsonl", rows), "--moderator", "good")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("label", ["dangerous", 2, 0.5, "SECRET", -1, "un safe"])
def test_labels_that_say_neither_are_refused(tmp_path: Path, label: Any) -> None:
    file = write(
        tmp_path / "texts.jsonl",
        [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": label}],
    )
    result = compare(file, "--moderator", "good")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "line 3: the label in 'label' is none that is known" in said
    assert "harmless are: 0, benign" in said
    assert "SECRET" not in said


@pytest.mark.parametrize(
    "label", [False, 0, 0.0, "0", "False", "non_toxic", "NOT HARMFUL", "benign", " safe "]
)
def test_labels_of_harmless_texts(tmp_path: Path, label: Any) -> None:
    file = write(
        tmp_path / "texts.jsonl",
        [{"text": "a", "label": "offensive"}, {"text": "b", "label": label}],
    )
    assert json.loads(compare(file, "--moderator", "good", "--json").stdout)["harmful"] == 1


def test_compressed_files(texts: Path, tmp_path: Path) -> None:
    packed = tmp_path / "texts.jsonl.gz"
    packed.write_bytes(gzip.compress(texts.read_bytes()))
    assert (
        compare(packed, "--moderator", "good", "--json").stdout
        == compare(texts, "--moderator", "good", "--json").stdout
    )
    packed.write_bytes(gzip.compress(texts.read_bytes())[:-20])
    result = compare(packed, "--moderator", "good")
    assert result.exit_code == 2
    assert "cannot read" in result.stderr


def test_sources_by_themselves(tmp_path: Path) -> None:
    """Within each source the moderator ranks nothing; pooled, it seems to."""
    rows = [{"text": f"bad {i}", "source": "attack", "label": int(i % 10 > 0)} for i in range(40)]
    rows += [{"text": f"fine {i}", "source": "chat", "label": int(i % 10 == 0)} for i in range(40)]
    rows += [{"text": "fine", "label": 0}]
    file = write(tmp_path / "texts.jsonl", rows)
    found = json.loads(compare(file, "--moderator", "good", "--json").stdout)
    assert found["moderators"]["good"]["roc_auc"] > 0.85
    assert {
        name: part["moderators"]["good"]["roc_auc"] for name, part in found["sources"].items()
    } == {
        "attack": 0.5,
        "chat": 0.5,
        "": None,
    }
    attack = found["sources"]["attack"]["moderators"]["good"]
    assert (attack["precision"], attack["recall"], attack["false_alarms"]) == (0.9, 1, 1)
    table = compare(file, "--moderator", "good").stdout
    assert "attack: 40 texts, 36 of them harmful" in table
    assert "no source: 1 text, 0 of them harmful" in table


def test_one_source_is_told_once(texts: Path) -> None:
    assert "sources" not in json.loads(compare(texts, "--moderator", "good", "--json").stdout)


# ---------------------------------------------------------------- tune


def tune(file: Path, *arguments: Any) -> Result:
    return run("moderators", "tune", file, *arguments)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """1,400 harmless texts, a seventh of which "poor" gives each of 0, 1/7 .. 6/7, and 100 harmful
    ones."""
    rows = [{"text": "x" * (i + 1), "label": "safe"} for i in range(1400)]
    rows += [{"text": "y" * (4 + i % 4), "label": "unsafe"} for i in range(100)]
    return write(tmp_path / "own.jsonl", rows)


def test_the_threshold_for_a_share_of_false_alarms(own: Path) -> None:
    found = json.loads(tune(own, "--moderator", "poor", "--false-alarms", 0.3, "--json").stdout)
    assert found["threshold"] == pytest.approx(4.5 / 7, abs=1e-5)
    assert (found["false_alarms"], found["false_alarms_texts"]) == (
        pytest.approx(2 / 7, abs=1e-4),
        1400,
    )
    assert found["false_alarms_interval"] == pytest.approx([0.2626, 0.3100], abs=1e-3)
    assert found["threshold_interval"][0] <= found["threshold"] <= found["threshold_interval"][1]
    assert (found["recall"], found["recall_texts"]) == (0.5, 100)
    assert found["recall_interval"] == pytest.approx([0.4038, 0.5962], abs=1e-3)
    assert found["gate"] == [{"use": "poor", "options": {"threshold": found["threshold"]}}]


def test_it_prints_what_to_paste(own: Path) -> None:
    said = tune(own, "--moderator", "poor", "--false-alarms", 0.3).stdout
    assert "flags 28.6% of 1,400 harmless texts" in said
    assert "finds 50.0% of 100 harmful ones" in said
    assert yaml.safe_load(said.partition("\n\n")[2]) == {
        "gate": [{"use": "poor", "options": {"threshold": 0.642857}}]
    }


def test_texts_without_labels_are_harmless(tmp_path: Path) -> None:
    file = write(tmp_path / "texts.jsonl", [{"text": "x" * (i + 1)} for i in range(140)])
    found = json.loads(tune(file, "--moderator", "poor", "--false-alarms", 0.2, "--json").stdout)
    assert (found["false_alarms"], found["recall"]) == (pytest.approx(1 / 7, abs=1e-4), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--moderator", "poor", "--false-alarms", 0.0005],
            "has only 1400 harmless texts hint: for 0.0005, 2000 are the fewest",
        ),
        (["--moderator", "broken"], "broken failed on 1500 texts"),
    ],
)
def test_what_cannot_be_tuned(own: Path, arguments: list[Any], message: str) -> None:
    result = tune(own, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_what_the_settings_say_of_thresholds_is_left_out(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def build(settings: Any, name: str) -> ScriptedModerator:
        given.append(common.named(name, settings.gate).options)
        return ScriptedModerator(lambda text: (len(text) % 7) / 7, name=name)

    monkeypatch.setattr(common, "build_moderator", build)
    config = tmp_path / "guard.yml"
    options = {"model": "m", "threshold": 0.9, "thresholds": {"a": 0.1}}
    config.write_text(yaml.safe_dump({"gate": [{"use": "classifier", "options": options}]}))
    found = json.loads(
        tune(
            own, "--moderator", "classifier", "--false-alarms", 0.3, "--config", config, "--json"
        ).stdout
    )
    assert given == [{"model": "m"}]
    assert found["gate"][0]["options"] == {"model": "m", "threshold": found["threshold"]}


# ---------------------------------------------------------------- compare and tune, stopped


COMMANDS = (
    ["compare", "--moderator", "good", "--moderator", "poor", "--json"],
    ["tune", "--moderator", "poor", "--false-alarms", 0.3, "--json"],
)


def stopped(file: Path, command: list[Any]) -> Path:
    """Press Ctrl-C while the last moderator judges, and return the folder of the state."""
    STOPS_AT.append(("poor", "x" * 1000))
    result = run("moderators", command[0], file, *command[1:])
    STOPS_AT.clear()
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == (
        "stopped: the scores so far are kept; the same command goes on from there\n"
    )
    return file.parent / "cache" / "ttsa_guard"


def judged() -> list[str]:
    return [text for moderator in MADE for call in moderator.calls for text in call]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_what_was_judged_before_ctrl_c_is_not_judged_again(own: Path, command: list[Any]) -> None:
    whole = run("moderators", command[0], own, *command[1:])
    assert whole.exit_code == 0
    texts = len(judged())
    MADE.clear()
    folder = stopped(own, command)
    assert "xx" not in "".join(path.read_text() for path in folder.iterdir())
    before = len(judged())
    MADE.clear()
    again = run("moderators", command[0], own, *command[1:])
    assert (again.exit_code, again.stdout, again.stderr) == (0, whole.stdout, "")
    assert [made.name for made in MADE] == ["poor"]  # one that had finished is not even loaded
    assert before + len(judged()) == texts + 64  # the batch that was under way
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_scores_of_other_texts_or_options_are_not_gone_on_from(
    own: Path, tmp_path: Path, command: list[Any]
) -> None:
    stopped(own, command)
    MADE.clear()
    config = tmp_path / "guard.yml"
    uses = [{"use": name, "options": {"model": "another"}} for name in ("good", "poor")]
    config.write_text(yaml.safe_dump({"gate": uses}))
    texts = 1500 * command.count("--moderator")
    assert run("moderators", command[0], own, *command[1:], "--config", config).exit_code == 0
    assert len(judged()) == texts
    MADE.clear()
    own.write_text(own.read_text().replace('"xx"', '"zz"'))
    assert run("moderators", command[0], own, *command[1:]).exit_code == 0
    assert len(judged()) == texts


def test_a_line_of_the_scores_that_was_cut_off_is_judged_again(own: Path) -> None:
    whole = tune(own, *COMMANDS[1][1:])
    [state] = stopped(own, COMMANDS[1]).iterdir()
    kept = len(results(state))
    state.write_text(state.read_text()[:-20])
    MADE.clear()
    assert tune(own, *COMMANDS[1][1:]).stdout == whole.stdout
    assert len(judged()) == 1500 - kept + 1


def test_damaged_scores_are_told_and_left_alone(own: Path) -> None:
    [state] = stopped(own, COMMANDS[1]).iterdir()
    state.write_text(state.read_text().replace('"score": 0', '"score": 7', 1))
    before = state.read_text()
    result = tune(own, *COMMANDS[1][1:])
    assert result.exit_code == 2
    assert f"cannot go on from {state}: it is damaged" in result.stderr
    assert "hint: remove it to begin again" in result.stderr
    assert state.read_text() == before
    state.unlink()
    assert tune(own, *COMMANDS[1][1:]).exit_code == 0


def test_failed_verdicts_are_not_kept_for_the_next_tuning(own: Path) -> None:
    for _ in range(2):
        MADE.clear()
        assert tune(own, "--moderator", "broken").exit_code == 2
        assert len(judged()) == 1500


def test_a_cache_that_cannot_be_written_to_is_told(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    result = compare(texts, "--moderator", "good")
    assert result.exit_code == 2
    assert "there is a file where a folder should be" in result.stderr
    assert "XDG_CACHE_HOME" in result.stderr
