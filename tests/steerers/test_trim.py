"""What passes of a flagged answer."""

import asyncio

import pytest

from ttsa_guard.moderators.patterns import Patterns, PatternsOptions
from ttsa_guard.steerers.trim import Trim, TrimOptions
from ttsa_guard.testing import ScriptedModerator, scripted_guard
from ttsa_guard.verdict import Verdict

FINE = "Warm the kettle with a little water. Then pour it out and rinse it well."


class Sorting(ScriptedModerator):
    """Flags "bad" for the given category."""

    def __init__(self, category, **options):
        super().__init__(**options)
        self.category = category

    def _verdict(self, text):
        score = float("bad" in text)
        return Verdict.scored(
            self.name, score, threshold=0.5, categories={self.category: score, "refusal": 0.0}
        )


def review(answer, category="toxicity", **options):
    gate, guide = (Sorting(category, name=name) for name in ("gate", "guide"))
    guard = scripted_guard([], gate=gate, guide=guide, steerers=[Trim(TrimOptions(**options))])
    return asyncio.run(guard.review("How do I clean a kettle?", answer))


@pytest.mark.parametrize("category", ["toxicity", "policy"])
def test_sentences_that_are_flagged_alone_are_left_out(category):
    outcome = review(f"{FINE} You are a bad cleaner.", category)
    assert (outcome.action, outcome.text, outcome.record.steerer) == ("swap", FINE, "trim")
    assert outcome.record.generations == 0


def test_lines_keep_their_places():
    outcome = review(
        "First you do this thing.\n\n- take a cup of water\n- ask a bad man\n- pour it in"
        " slowly\n\nThat was all of it."
    )
    assert (
        outcome.text
        == "First you do this thing.\n\n- take a cup of water\n- pour it in slowly\n\nThat was all"
        " of it."
    )


def test_of_an_answer_that_helps_with_harm_the_rest_does_too():
    assert review(f"{FINE} Then do the bad thing.", "harm").action == "fallback"


def test_an_answer_of_which_little_is_left_is_no_answer():
    assert (
        review(f"You are bad, bad, bad at all that you have ever tried to do. {FINE}").action
        == "fallback"
    )
    assert (
        review(
            f"You are bad, bad, bad at all that you have ever tried to do. {FINE}", kept=0.3
        ).text
        == FINE
    )


def test_one_sentence_has_no_parts():
    assert review("This is all bad.").action == "fallback"


def test_lists_that_break_a_policy_become_prose():
    gate = Patterns(PatternsOptions(policies=["lists"]))
    guard = scripted_guard([], gate=gate, guide=gate, steerers=[Trim(TrimOptions())])
    answer = "Do this:\n\n1. Warm the kettle with water.\n2. Rinse it well"
    outcome = asyncio.run(guard.review("How do I clean a kettle?", answer))
    assert outcome.text == "Do this: Warm the kettle with water."


def test_what_was_shown_stays_before_a_list_that_becomes_prose():
    gate = Patterns(PatternsOptions(policies=["lists"]))
    guard = scripted_guard([], gate=gate, guide=gate, steerers=[Trim(TrimOptions())])

    async def review():
        stream_gate = guard.stream_gate("hello")

        async def grow():
            yield "Here is how. "

        assert [piece async for piece in stream_gate.stream(grow())] == ["Here is how."]
        answer = "Here is how.\n\n1. Warm the kettle.\n2. Rinse it well."
        return await guard.review("hello", answer, stream_gate=stream_gate)

    assert asyncio.run(review()).text == "Here is how. Warm the kettle. Rinse it well."
