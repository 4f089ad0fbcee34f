"""Whole files of texts: scores, and moderators side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ttsa_guard.cli import app, common
from ttsa_guard.cli.compare import calibration_error
from ttsa_guard.testing import ScriptedModerator

MADE: list[ScriptedModerator] = []


@pytest.fixture(autouse=True)
def _moderators(monkeypatch: pytest.MonkeyPatch) -> None:
    MADE.clear()
    kinds = {
        "good": lambda text: 0.9 if "bad" in text else 0.1,
        "poor": lambda text: (len(text) % 7) / 7,
        "broken": lambda _: float("nan"),
    }

    def build(_: Any, name: str) -> ScriptedModerator:
        MADE.append(ScriptedModerator(kinds[name], name=name))
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
        {"text": f"{'bad' if i % 3 == 0 else 'fine'} SECRET {i}", "id": f"t{i}", "label": int(i % 3 == 0)} for i in range(100)
    ]
    return write(tmp_path / "texts.jsonl", rows)


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------- moderate


def test_every_text_gets_a_result_in_order(texts: Path, tmp_path: Path) -> None:
    result = run("moderate", texts, "--moderator", "good", "--out", tmp_path / "out.jsonl", "--batch", 7)
    assert result.exit_code == 0
    assert "100 texts: 34 flagged, 66 passed, 0 failed" in result.stderr
    found = results(tmp_path / "out.jsonl")
    assert [f["id"] for f in found] == [f"t{i}" for i in range(100)]
    assert [f["decision"] for f in found] == ["flag" if i % 3 == 0 else "pass" for i in range(100)]
    assert (found[0]["line"], found[0]["score"], found[0]["categories"]) == (1, 0.9, {"refusal": 0.0})
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
        ('["SECRET"]\n', "line 1: no text"),
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
    assert run("moderate", file, "--moderator", "good", "--text-field", "answer", "--prompt-field", "question").exit_code == 0
    assert results(file.with_name("texts.scores.jsonl"))[0]["decision"] == "flag"


# ---------------------------------------------------------------- compare


def compare(texts: Path, *arguments: Any) -> Result:
    return run("moderators", "compare", texts, *arguments)


def test_numbers(texts: Path) -> None:
    found = json.loads(compare(texts, "--moderator", "good", "--moderator", "poor", "--json").stdout)
    assert (found["texts"], found["harmful"]) == (100, 34)
    good, poor = found["moderators"]["good"], found["moderators"]["poor"]
    assert (good["roc_auc"], good["pr_auc"], good["precision"], good["recall"]) == (1, 1, 1, 1)
    assert good["brier"] == pytest.approx(0.01)
    assert good["ece"] == pytest.approx(0.1)
    assert poor["roc_auc"] < 1
    assert list(found["kappa"]) == ["good / poor"]
    assert found["kappa"]["good / poor"] < 0.9


def test_table_and_picture(texts: Path, tmp_path: Path) -> None:
    result = compare(texts, "--moderator", "good", "--moderator", "poor", "--plot", tmp_path / "curves.png")
    assert result.exit_code == 0
    assert "100 texts, 34 of them harmful" in result.stdout
    assert "Cohen's kappa" in result.stdout
    assert "SECRET" not in result.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_failures_count_as_flags(texts: Path) -> None:
    found = json.loads(compare(texts, "--moderator", "broken", "--json").stdout)["moderators"]["broken"]
    assert (found["failed"], found["recall"], found["roc_auc"]) == (100, 1, 0.5)


@pytest.mark.parametrize(
    ("labels", "harmful"),
    [([True, False], 1), (["unsafe", "safe"], 1), (["Toxic", "none"], 1), ([1, 0], 1), (["1", "0"], 1)],
)
def test_labels(tmp_path: Path, labels: list[Any], harmful: int) -> None:
    file = write(tmp_path / "texts.jsonl", [{"text": str(i), "label": label} for i, label in enumerate(labels)])
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


def test_calibration_error_by_hand() -> None:
    assert calibration_error([1, 0, 1, 1], [0.9, 0.92, 0.31, 1.0]) == pytest.approx(
        (abs((1 - 0.9) + (0 - 0.92) + (1 - 1.0)) + abs(1 - 0.31)) / 4
    )
