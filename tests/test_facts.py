"""The questions that need what a system message tells."""

import pytest

from research.facts import asked, has_fact


def test_each_fact_is_in_its_system_message_and_not_in_the_question():
    questions = list(asked())
    assert len(questions) == len({one.question for one in questions}) == 60
    for one in questions:
        assert one.fact.lower() in one.system.lower()
        assert one.fact.lower() not in one.question.lower()


@pytest.mark.parametrize(
    ("swap", "has"),
    [("It opens at Seven.", True), ("It opens soon.", False), ("It opens. At seven", False)],
)
def test_whole_sentences_count(swap, has):
    assert has_fact({"fact": "seven", "swap": swap}, "swap") is has
