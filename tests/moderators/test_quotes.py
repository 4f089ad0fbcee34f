"""What a moderator says of a text never repeats it."""

import asyncio

import pytest

from ttsa_guard.moderators.base import MARK, moderate_safely
from ttsa_guard.verdict import Verdict

TEXT = "Mix the bad seekrit powder with the other one."


class Quoting:
    name = "quoting"

    def __init__(self, verdict):
        self.verdict = verdict

    async def moderate(self, texts, *, prompts):
        return [self.verdict] * len(texts)


def said(verdict, text=TEXT):
    [found] = asyncio.run(moderate_safely(Quoting(verdict), [text], prompts=["how?"]))
    return found


@pytest.mark.parametrize(
    "quote", [TEXT, "cannot parse 'MIX  the bad\nSeekrit powder with'", "bad seekrit powder"]
)
def test_reasons(quote):
    assert said(Verdict.failure("quoting", quote)).reason == MARK


def test_category_names_keep_the_worst_score():
    found = said(Verdict("quoting", "flag", 0.9, {TEXT: 0.9, f"{TEXT}!": 0.4, "violence": 0.1}))
    assert dict(found.categories) == {"violence": 0.1, MARK: 0.9}
    assert (found.decision, found.score) == ("flag", 0.9)


@pytest.mark.parametrize("reason", ["HTTP 503", "bad", "the service took too long", ""])
def test_words_of_their_own_stay(reason):
    verdict = Verdict("quoting", "failed", 1.0, {"powder": 0.5}, reason=reason)
    assert said(verdict) == verdict


def test_reasons_are_bounded():
    assert len(said(Verdict.failure("quoting", "x" * 10_000)).reason) == 200
