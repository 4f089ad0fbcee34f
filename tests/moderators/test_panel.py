import asyncio
import random
from dataclasses import replace

import pytest

from ttsa_guard.config import GuardConfig, Vote
from ttsa_guard.errors import ConfigError
from ttsa_guard.moderators.base import Moderator, moderate_safely
from ttsa_guard.moderators.panel import Panel, Seat
from ttsa_guard.testing import ScriptedModerator
from ttsa_guard.verdict import Verdict

SECRET = "the moderated text"


def scores(value, **kwargs):
    return ScriptedModerator(lambda _: value, name=f"m{value}", **kwargs)


def panel(*members, combine="any"):
    seats = tuple(member if isinstance(member, Seat) else Seat(member) for member in members)
    [verdict] = asyncio.run(Panel(seats, combine).moderate([SECRET], prompts=["hello"]))
    return verdict


@pytest.mark.parametrize(
    ("combine", "values", "decision", "score"),
    [
        ("any", (0.1, 0.2), "pass", 0.2),
        ("any", (0.1, 0.9), "flag", 0.9),
        ("any", (0.6, 0.9), "flag", 0.9),
        ("all", (0.1, 0.9), "pass", 0.1),
        ("all", (0.6, 0.9), "flag", 0.6),
    ],
)
def test_the_score_agrees_with_the_decision(combine, values, decision, score):
    verdict = panel(*map(scores, values), combine=combine)
    assert (verdict.decision, verdict.score) == (decision, score)


def test_a_lower_score_decides_if_only_that_one_flags():
    verdict = panel(scores(0.7, threshold=0.8), scores(0.5))
    assert (verdict.decision, verdict.score) == ("flag", 0.5)


@pytest.mark.parametrize(
    ("combine", "other", "flagged"),
    [("any", 0.0, True), ("all", 0.0, False), ("all", 0.9, True), ("any", 1.0, True)],
)
def test_a_failed_member_counts_as_a_flag(combine, other, flagged):
    assert panel(scores(other), scores(0.0, error=OSError()), combine=combine).flagged == flagged


DOWN = ScriptedModerator(error=OSError())


@pytest.mark.parametrize(
    ("combine", "seats", "decision", "score"),
    [
        ("weighted", [Seat(scores(0.2)), Seat(scores(0.6))], "pass", 0.4),
        ("weighted", [Seat(scores(0.2)), Seat(scores(0.6), Vote(weight=9.0))], "flag", 0.56),
        ("weighted", [Seat(scores(0.2)), Seat(DOWN)], "failed", 1.0),
        ("weighted", [Seat(scores(0.2)), Seat(DOWN, Vote(fail="open"))], "pass", 0.2),
        ("any", [Seat(scores(0.2)), Seat(DOWN, Vote(fail="open"))], "pass", 0.2),
        ("any", [Seat(scores(0.9)), Seat(DOWN, Vote(fail="open"))], "flag", 0.9),
        ("any", [Seat(DOWN, Vote(fail="open")), Seat(DOWN, Vote(fail="open"))], "failed", 1.0),
        ("all", [Seat(scores(0.9)), Seat(DOWN, Vote(fail="open"))], "flag", 0.9),
        ("lexicographic", [Seat(scores(0.6), Vote(hard=True)), Seat(scores(0.0))], "flag", 0.8),
        ("lexicographic", [Seat(scores(0.1), Vote(hard=True)), Seat(scores(0.8))], "pass", 0.4),
        ("lexicographic", [Seat(scores(0.1), Vote(hard=True)), Seat(scores(1.0))], "pass", 0.499),
        (
            "lexicographic",
            [
                Seat(scores(0.1), Vote(hard=True)),
                Seat(scores(0.2)),
                Seat(scores(0.8), Vote(weight=3.0)),
            ],
            "pass",
            0.325,
        ),
        ("lexicographic", [Seat(scores(0.4), Vote(hard=True))], "pass", 0.2),
        ("lexicographic", [Seat(DOWN, Vote(hard=True)), Seat(scores(0.0))], "failed", 1.0),
        (
            "lexicographic",
            [Seat(DOWN, Vote(hard=True, fail="open")), Seat(scores(0.0))],
            "failed",
            1.0,
        ),
        ("lexicographic", [Seat(scores(0.1), Vote(hard=True)), Seat(DOWN)], "pass", 0.499),
    ],
)
def test_rules(combine, seats, decision, score):
    verdict = panel(*seats, combine=combine)
    assert (verdict.decision, round(verdict.score, 9)) == (decision, score)


@pytest.mark.parametrize("combine", ["any", "all", "weighted", "lexicographic"])
def test_a_worse_score_never_turns_a_flag_into_a_pass(combine):
    draw = random.Random(3)
    for _ in range(200):
        values = [draw.random() for _ in range(3)]
        seats = [
            Seat(scores(v), Vote(weight=draw.uniform(0.1, 5), hard=i == 0))
            for i, v in enumerate(values)
        ]
        worse = draw.randrange(3)
        raised = [
            replace(s, moderator=scores(min(1.0, values[i] + 0.3))) if i == worse else s
            for i, s in enumerate(seats)
        ]
        before, after = panel(*seats, combine=combine), panel(*raised, combine=combine)
        assert before.flagged <= after.flagged
        assert before.flagged == (before.score >= 0.5)
        assert before.score <= after.score or combine == "all"


def told(text, flagged):
    return ScriptedModerator(lambda found: 0.9 if found == text else 0.1, name=flagged)


@pytest.mark.parametrize(
    ("answer", "prompt", "decision"),
    [("bad", "bad", "flag"), ("fine", "bad", "pass"), ("bad", "fine", "pass")],
)
def test_a_member_can_read_the_prompt_as_evidence(answer, prompt, decision):
    seats = (Seat(told("bad", "answers")), Seat(told("bad", "prompts"), Vote(reads="prompt")))
    [verdict] = asyncio.run(Panel(seats, "all").moderate([answer], prompts=[prompt]))
    assert verdict.decision == decision


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"combine": "any"}, "a bad prompt alone"),
        ({"combine": "weighted"}, "weigh less"),
        (
            {
                "combine": "weighted",
                "gate": [
                    {"use": "lite", "fail": "open"},
                    {"use": "second_opinion", "reads": "prompt"},
                ],
            },
            "need one",
        ),
        (
            {"combine": "all", "gate": [{"use": "lite", "reads": "prompt"}]},
            "need one that reads the answer",
        ),
        (
            {
                "combine": "lexicographic",
                "gate": ["lite", {"use": "patterns", "reads": "prompt", "hard": True}],
            },
            "a bad prompt alone",
        ),
    ],
)
def test_no_prompt_decides_alone(settings, message):
    gate = ["lite", {"use": "second_opinion", "reads": "prompt"}]
    with pytest.raises(ConfigError, match=message):
        GuardConfig.parse({"gate": gate, **settings})


def test_evidence_that_cannot_decide_alone_is_taken():
    light = {"use": "second_opinion", "reads": "prompt", "weight": 0.4}
    assert (
        GuardConfig.parse({"gate": ["lite", light], "combine": "weighted"}).gate[1].reads
        == "prompt"
    )
    assert GuardConfig.parse(
        {"gate": ["lite", {"use": "second_opinion", "reads": "prompt"}], "combine": "all"}
    )


def test_categories_carry_the_name_of_their_moderator():
    assert panel(scores(0.1), scores(0.2)).categories == {"m0.1/refusal": 0.0, "m0.2/refusal": 0.0}


@pytest.mark.parametrize("combine", ["any", "all"])
def test_the_categories_are_those_of_the_members_that_decided(combine):
    passed, flagged = scores(0.7, threshold=0.8), scores(0.6)
    decided = flagged if combine == "any" else passed
    assert panel(passed, flagged, combine=combine).categories.keys() == {f"{decided.name}/refusal"}


def test_a_batch_keeps_its_order_and_the_members_run_together():
    async def main():
        seats = (Seat(ScriptedModerator(delay=0.05)), Seat(ScriptedModerator(delay=0.05)))
        return await asyncio.wait_for(
            Panel(seats).moderate(["good", "bad", "fine"], prompts=["hello"] * 3), 5
        )

    assert [v.flagged for v in asyncio.run(main())] == [False, True, False]


def test_a_panel_is_a_moderator():
    assert isinstance(Panel(()), Moderator)


class NotAwaitable(ScriptedModerator):
    def moderate(self, texts, *, prompts):
        return [Verdict.scored("m", 0.0, threshold=0.5) for _ in texts]


class RaisesAtOnce(ScriptedModerator):
    def moderate(self, texts, *, prompts):
        raise ValueError(SECRET)


GOOD = Verdict.scored("m", 0.0, threshold=0.5)


@pytest.mark.parametrize(
    "moderator",
    [
        pytest.param(ScriptedModerator(error=ValueError(SECRET)), id="raises"),
        pytest.param(ScriptedModerator(error=asyncio.CancelledError()), id="cancelled-inside"),
        pytest.param(ScriptedModerator(delay=60), id="hangs"),
        pytest.param(ScriptedModerator(lambda _: float("nan")), id="nan"),
        pytest.param(ScriptedModerator(instead=None), id="none"),
        pytest.param(ScriptedModerator(instead=[]), id="too-few"),
        pytest.param(ScriptedModerator(instead=[GOOD] * 3), id="too-many"),
        pytest.param(ScriptedModerator(instead=[True, False]), id="not-verdicts"),
        pytest.param(ScriptedModerator(instead=(GOOD, GOOD)), id="not-a-list"),
        pytest.param(NotAwaitable(), id="not-awaitable"),
        pytest.param(RaisesAtOnce(), id="raises-at-once"),
    ],
)
def test_every_fault_is_a_failed_verdict_for_each_text(moderator, caplog):
    verdicts = asyncio.run(
        moderate_safely(moderator, [SECRET, "other"], prompts=["a", "b"], seconds=0.05)
    )
    assert [v.decision for v in verdicts] == ["failed", "failed"]
    assert SECRET not in caplog.text + repr(verdicts)
    assert "moderator scripted" in caplog.text
