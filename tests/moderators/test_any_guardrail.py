import asyncio
import enum
import sys
from types import SimpleNamespace

import pytest

from ttsa_guard.errors import ConfigError
from ttsa_guard.moderators.any_guardrail import AnyGuardrail, AnyGuardrailOptions


class Name(enum.Enum):
    DUO = "duo_guard"
    DEEPSET = "deepset"


class Library:
    """The parts of the library's interface that the bridge uses."""

    made = None

    @staticmethod
    def get_supported_guardrails():
        return list(Name)

    @classmethod
    def create(cls, name, **options):
        cls.made = (name, options)
        return SimpleNamespace(name=name, options=options)

    @staticmethod
    def evaluate(name, guardrail, prompt, response=None):
        if name is Name.DEEPSET and response is not None:
            raise ValueError(f"no response argument; got {response!r}")
        text = prompt if response is None else response
        if "raise" in text:
            raise RuntimeError(text)
        return SimpleNamespace(valid="bad" not in text, score=guardrail.options.get("score"))


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setitem(sys.modules, "any_guardrail", SimpleNamespace(AnyGuardrail=Library))


def judge(guardrail, *texts, **options):
    moderator = AnyGuardrail(AnyGuardrailOptions(guardrail=guardrail, options=options))
    return asyncio.run(moderator.moderate(list(texts), prompts=["q"] * len(texts)))


@pytest.mark.parametrize("guardrail", ["duo_guard", "deepset"])
def test_its_verdict_decides(guardrail):
    assert [v.decision for v in judge(guardrail, "fine", "bad", score=0.3)] == ["pass", "flag"]


def test_scores_are_taken_over_and_kept_in_range():
    assert [v.score for v in judge("duo_guard", "fine", score=0.3)] == [0.3]
    assert [v.score for v in judge("duo_guard", "fine", score=1.2)] == [1.0]


def test_a_guard_without_scores_warns_once(caplog):
    assert [v.score for v in judge("duo_guard", "fine", "bad", "bad")] == [0.0, 1.0, 1.0]
    assert caplog.text.count("gives no score") == 1


def test_options_reach_the_guard():
    judge("duo_guard", model_id="some/model")
    assert Library.made == (Name.DUO, {"model_id": "some/model"})


@pytest.mark.parametrize("score", [float("nan"), "high"])
def test_faults_fail_the_text_alone(score, caplog):
    assert [v.decision for v in judge("duo_guard", "fine", "please raise", score=0.1)] == [
        "pass",
        "failed",
    ]
    assert [v.decision for v in judge("duo_guard", "fine", score=score)] == ["failed"]
    assert "please raise" not in caplog.text


def test_an_unknown_guard():
    with pytest.raises(ConfigError, match="did you mean 'duo_guard'"):
        judge("duo_gard")


def test_the_library_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "any_guardrail", None)
    with pytest.raises(ConfigError, match="pip install any-guardrail"):
        judge("duo_guard")
