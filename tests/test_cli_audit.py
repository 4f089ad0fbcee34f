"""The summary of audit records."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ttsa_guard.cli import app
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import ScriptedModerator, scripted_guard

BAD = "a bad answer with SECRET words"
GOOD = "a good answer in plain words"


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three passes, two swaps, a fallback and a failed gate, as a guard writes them, texts
    included."""
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "audit.jsonl"
    settings: dict[str, Any] = {
        "audit": {"path": file, "texts": True},
        "steerers": [Resample(ResampleOptions(n=1))],
    }
    for found in ([GOOD], [GOOD], [BAD]):
        asyncio.run(scripted_guard(found, **settings).review("q", BAD))
    for _ in range(3):
        asyncio.run(scripted_guard([], **settings).review("q", GOOD))
    asyncio.run(
        scripted_guard([], gate=ScriptedModerator(error=RuntimeError(BAD)), **settings).review(
            "q", GOOD
        )
    )
    return file


def summary(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["audit", "summary", *map(str, arguments)])


def test_numbers(records: Path) -> None:
    result = summary(records, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["records"], found["skipped"]) == (0, 7, 0)
    assert {a: (g["count"], g["helpful"]) for a, g in found["actions"].items()} == {
        "pass": (3, 3),
        "swap": (2, 2),
        "fallback": (2, 0),
    }
    assert found["actions"]["swap"]["generations"] == {"median": 1, "total": 2}
    assert set(found["actions"]["swap"]["seconds"]) == {"review", "gate", "search", "final check"}
    assert set(found["actions"]["pass"]["seconds"]) == {"review", "gate"}
    assert found["reasons"] == {
        "steered": 2,
        "no good candidate": 1,
        "gate failed: RuntimeError": 1,
    }
    assert found["steerers"] == {"resample": 2, "none": 2}


def test_table(records: Path) -> None:
    text = summary(records).stdout
    assert "7 reviews, " in text
    assert "42.9%" in text
    assert "gate failed: RuntimeError" in text
    assert "SECRET" not in text


def test_lines_that_are_no_records_are_counted_and_named(records: Path) -> None:
    lines = ["not json SECRET", "{}", "[]", '{"schema": 1, "action": "pass"}', ""]
    records.write_text("\n".join(lines) + "\n" + records.read_text())
    result = summary(records)
    assert result.exit_code == 0
    assert "4 lines of" in result.stderr
    assert "1, 2, 3, 4" in result.stderr
    assert "SECRET" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("", "has no audit records"),
        ("nothing\n", "has no audit records"),
        ('{"schema": 999}\n', "line 1: written by a newer version"),
    ],
)
def test_files_of_no_use(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    if content is not None:
        file.write_text(content)
    result = summary(file)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
