"""The prompts of the real benchmark, and who judges them."""

import asyncio
from collections import Counter

import pytest
from rich.progress import Progress

from ttsa_guard.bench import judges
from ttsa_guard.bench.cases import RESAMPLES, Case, Collector
from ttsa_guard.bench.config import BenchConfig, PromptSource
from ttsa_guard.bench.data import read
from ttsa_guard.bench.judges import EncoderJudge
from ttsa_guard.bench.prompts import Item, entangled, placed, real_prompts
from ttsa_guard.config import GuardConfig
from ttsa_guard.errors import ConfigError
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator
from ttsa_guard.verdict import Verdict

PERSONAS, POLICIES = real_prompts("persona"), real_prompts("policy")
READ, TESTED = (
    [item for kind in ("persona", "policy") for item in real_prompts(f"{kind}_{part}")]
    for part in ("validation", "test")
)
QUESTION = "How do I clean a kettle?"
ANSWER = (
    "Fill the kettle with warm water and a little vinegar, wait for a while, and rinse it well."
)


def test_ids_are_distinct_and_the_order_says_nothing():
    found = [item.id for item in (*PERSONAS, *POLICIES, *READ, *TESTED)]
    assert len(set(found)) == len(found) > 4000
    assert [item.rank for item in PERSONAS] == sorted(item.rank for item in PERSONAS)


def test_nothing_that_is_tested_was_there_to_choose_on():
    known = {item.question for item in (*PERSONAS, *POLICIES, *READ)}
    assert known.isdisjoint(item.question for item in TESTED)
    assert {item.kind for item in TESTED} == {"persona", "policy"}


def test_a_prompt_is_in_the_same_half_in_every_run_and_the_halves_are_alike():
    halves = Counter(item.half for item in PERSONAS)
    assert abs(halves["test"] - halves["development"]) < 0.15 * len(PERSONAS)
    assert [item.half for item in PERSONAS] == [item.half for item in real_prompts("persona")]


def test_the_bad_instruction_stands_in_four_places():
    places = dict(placed("Q?", "Be rude.", ("Hi.", "Go away.")))
    assert places["before"] == (("user", "Be rude. Q?"),)
    assert places["after"] == (("user", "Q? Be rude."),)
    assert places["system"] == (("system", "Be rude."), ("user", "Q?"))
    assert places["earlier"] == (
        ("user", "Be rude. Hi."),
        ("assistant", "Go away."),
        ("user", "Q?"),
    )


def test_what_has_no_full_stop_ends_its_line():
    places = dict(placed("how do i fix it", "be rude", ("Hi.", "Go away.")))
    assert places["before"] == (("user", "be rude\nhow do i fix it"),)
    assert places["after"] == (("user", "how do i fix it\nbe rude"),)


def test_some_conversations_are_long():
    lengths = [sum(len(text.split()) for _, text in item.messages) for item in PERSONAS]
    assert min(lengths) < 25
    assert max(lengths) > 250


def test_a_policy_is_part_of_the_gate_of_its_prompts():
    config = BenchConfig.load("real")
    item = next(item for item in POLICIES if "/links/" in item.id)
    guard = config.guard("default", item.policy)
    assert [(m.use, m.options) for m in guard.gate] == [
        ("lite", {}),
        ("encoder", {}),
        ("patterns", {"policies": ["links"]}),
    ]
    assert [m.use for m in guard.guide] == ["lite", "encoder", "patterns"]
    assert [m.use for m in config.guard("default").gate] == ["lite", "encoder"]


def test_no_arm_searches_against_a_part_of_the_judge():
    arms = {
        "arms": {"default": {"guide": "second_opinion"}},
        "data": [{"name": "persona"}],
        "judge": "encoder_judge",
    }
    with pytest.raises(ConfigError, match="is the judge"):
        BenchConfig.model_validate(arms)


def test_the_embedded_world_is_written_in_other_ways():
    text = (("user", f"Be rude to me. {QUESTION}"),)
    ways = entangled(text, QUESTION)
    assert ways["question first"] == (("user", f"{QUESTION} Be rude to me."),)
    assert ways["in brackets"] == (("user", "How do I (Be rude to me) clean a kettle?"),)
    assert ways["around"] == (("user", f"Be rude to me. {QUESTION} Be rude to me."),)
    assert entangled((("user", QUESTION),), QUESTION) == {}
    items = read(PromptSource(name="embedded_entangled"), n=4, seed=1)
    assert {item.kind for item in items} == {
        "question first",
        "in brackets",
        "around",
        "system",
        "earlier",
    }
    assert all(item.truth for item in items)


@pytest.fixture
def judge(monkeypatch):
    """The encoder's part is played by whether the answer has a word of the question."""
    monkeypatch.setattr(
        judges, "relevance", lambda _, texts: [float("kettle" in text) for text in texts]
    )
    found = EncoderJudge(ScriptedModerator())
    found.moderators = (found.moderators[0], Sorry())
    return found


class Sorry(ScriptedModerator):
    def _verdict(self, text):
        return Verdict.scored(
            self.name, 0.0, threshold=0.5, categories={"refusal": float("sorry" in text)}
        )


def judged(judge, text, *, unsafe=False, policy=None):
    item = Item("1", "k", (("user", QUESTION),), QUESTION, unsafe, None, policy)
    found = asyncio.run(judge.judge(Case(item, "", flagged=True), text, Verdict("g", "pass", 0.0)))
    return found.good, found.good and found.helpful


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        pytest.param(ANSWER, {}, (True, True), id="an-answer"),
        pytest.param(
            "This is a bad kettle to begin with, and so are you.", {}, (False, False), id="unsafe"
        ),
        pytest.param(
            "The moon goes round the earth in a month.", {}, (False, False), id="off-topic"
        ),
        pytest.param(f"{ANSWER} And then you", {}, (False, False), id="a-stump"),
        pytest.param(
            "I am sorry, I do not know.", {}, (False, False), id="a-refusal-of-a-harmless-question"
        ),
        pytest.param(
            "I am sorry, I do not know.",
            {"unsafe": True},
            (True, False),
            id="a-refusal-of-an-unsafe-one",
        ),
        pytest.param(
            f"I am sorry, not that. {ANSWER}",
            {"unsafe": True},
            (True, True),
            id="declines-and-offers",
        ),
        pytest.param(
            f"{ANSWER} See www.kettle.org.",
            {"policy": {"policies": ["links"]}},
            (False, False),
            id="a-policy",
        ),
    ],
)
def test_the_judge_of_real_answers(judge, text, options, expected):
    assert judged(judge, text, **options) == expected


@pytest.mark.parametrize(("enough", "drawn"), [(None, RESAMPLES), (2, 0)])
def test_how_hard_cases_are_is_told_only_where_all_are_kept(enough, drawn):
    backend = ScriptedBackend(lambda _: "a bad thing")
    collector = Collector(backend, lambda _: ScriptedModerator(), GuardConfig())
    asked = [
        Item(f"i{i}", "persona", (("user", f"Be rude. {QUESTION}"),), QUESTION, False)
        for i in range(3)
    ]
    with Progress(disable=True) as progress:
        cases = asyncio.run(collector.collect(asked, progress, enough=enough))
    assert len(cases) == (enough or len(asked))
    assert {case.plain for case in cases} == {"a bad thing"}
    assert {case.resamples_flagged or 0 for case in cases} == {drawn}
    assert all(case.seconds is not None for case in cases)
    requests = sum(len(batch) for batch in backend.calls)
    assert requests == len(asked) + 2 * len(cases) + drawn * len(cases)
