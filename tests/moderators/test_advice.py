"""A gate that is weaker than its user may think is told."""

from __future__ import annotations

import logging

import pytest
from typer.testing import CliRunner

from ttsa_guard import guard as guard_module
from ttsa_guard.cli import app, common
from ttsa_guard.config import GuardConfig
from ttsa_guard.guard import Guard
from ttsa_guard.moderators.advice import weak_gate
from ttsa_guard.testing import ScriptedBackend

LITE = {"gate": "lite", "guide": "lite", "steerers": "resample"}


@pytest.fixture(autouse=True)
def _unsaid() -> None:
    guard_module._warn_once.cache_clear()


def built(name: str, **settings: object) -> Guard:
    backend = ScriptedBackend(lambda _: "A fine answer of some words.")
    backend.name = name
    return Guard.from_config(GuardConfig.parse({**LITE, **settings}), backend=backend)


def test_a_real_model_behind_lite_is_told_once_with_what_is_better(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "ttsa_guard"):
        for _ in range(3):
            built("owner/model")
    [record] = caplog.records
    problem, *better = record.getMessage().splitlines()
    assert "the gate is lite alone, which finds 21% of the harmful answers" in problem
    assert len(better) == 2
    assert "ttsa-guard[encoder]" in better[0]
    assert "guard_llm" in better[1]


@pytest.mark.parametrize(
    ("model", "gate"),
    [
        ("embedded", "lite"),
        ("owner/model", "second_opinion"),
        ("owner/model", ["lite", "second_opinion"]),
    ],
)
def test_other_gates_are_not_told(
    caplog: pytest.LogCaptureFixture, model: str, gate: object
) -> None:
    with caplog.at_level(logging.WARNING, "ttsa_guard"):
        built(model, gate=gate)
    assert not caplog.records


def test_two_members_of_lite_are_lite() -> None:
    assert weak_gate("owner/model", ["lite", "lite"]) == weak_gate("owner/model", ["lite"]) != ""


def test_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(common, "build_guard", lambda _: built("owner/model"))
    said = CliRunner().invoke(app, ["doctor"]).stdout
    assert "the gate is lite alone" in said
    assert "better: pip install 'ttsa-guard[encoder]'" in said
