"""What moderators and steerers say of a text, where it quotes the text: in no reply, record, span,
audit or log of an app."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from ttsa_guard.guard import Guard
from ttsa_guard.plugins import Plugins, hookimpl
from ttsa_guard.steerers.base import Candidate
from ttsa_guard.testing import ScriptedModerator
from ttsa_guard.verdict import Verdict

from .conftest import FALLBACK, STEERED, make_app, make_guard, say
from .test_privacy import EVERYTHING

LONG = "First mix the bad seekrit powder with the other seekrit powder, then wait."


def says(text: str) -> str:
    return f"because of: {text.upper().replace(' ', '  ')}"


class Quoting(ScriptedModerator):
    """A gate that repeats what it is asked about."""

    def __init__(self, how: str) -> None:
        super().__init__(name="gate")
        self.how = how

    async def moderate(self, texts: Any, *, prompts: Any) -> Any:
        return [self._quoting(text) for text in texts]

    def _quoting(self, text: str) -> Verdict:
        score = 1.0 if "bad" in text else 0.0
        if self.how == "failure" and score:
            return Verdict.failure("gate", str(ValueError(f"cannot judge {text!r}")))
        if self.how == "name":
            return Verdict(says(text), "flag" if score else "pass", score)
        category = {"category": says(text), "long category": "x" * 5000 + text}.get(
            self.how, "rude"
        )
        return Verdict(
            "gate", "flag" if score else "pass", score, {category: score}, reason=says(text)
        )


class Telling:
    """A steerer that says from which answer its candidate is."""

    name = "telling"
    needs = ()

    async def steer(self, task: Any) -> Any:
        [verdict] = await task.score([STEERED])
        yield [Candidate(STEERED, says(task.answer), verdict)]


class Records:
    def __init__(self) -> None:
        self.kept: list[Any] = []

    @hookimpl
    def ttsa_guard_finished(self, record: Any) -> None:
        self.kept.append(record)


def guard(gate: Any, path: Path, records: Records) -> Guard:
    plugins = Plugins()
    plugins.add(records)
    return make_guard(gate=gate, steerers=[Telling()], plugins=plugins, audit={"path": path})


@pytest.mark.parametrize("how", ["failure", "reason", "category", "long category", "name"])
def test_quotes_reach_nobody(
    how: str, tmp_path: Path, spans: Any, caplog: pytest.LogCaptureFixture
) -> None:
    records, path = Records(), tmp_path / "audit.jsonl"
    app = make_app("1.0", guard(Quoting(how), path, records), [LONG])
    with caplog.at_level(logging.DEBUG, "ttsa_guard"):
        response = say(app, options=EVERYTHING)
    assert response.response[0]["content"] == (FALLBACK if how == "failure" else STEERED)
    traced = [span.to_json() for span in spans.get_finished_spans()]
    for channel in (response, path.read_text(), traced, caplog.text, records.kept):
        assert "seekrit" not in str(channel).casefold()
        assert len(str(channel)) < 50_000
    if how == "category":
        assert records.kept[0].gate_categories == {"withheld": 1.0}
