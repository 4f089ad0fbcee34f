"""What the embedding steerer climbs: openings, and the way round a derailment."""

import asyncio

import pytest

from ttsa_guard.steerers.objectives import (
    Derailment,
    continue_kept,
    find_derailment,
    opening_objective,
)
from ttsa_guard.text import split_sentences

from .embeddings import OPENINGS, Soft, task


def derailment(answer, score=None):
    return asyncio.run(find_derailment(task(Soft(), answer=answer, score=score)))


def test_the_derailment_is_at_the_first_flagged_sentence():
    found = derailment("Good one. Fine two! Then bad words come here. More bad. Nice end.")
    assert found == Derailment("Good one. Fine two!", (" Then bad words",))


def test_a_derailment_as_an_objective_keeps_the_beginning_and_avoids_every_onset():
    found = Derailment("Good.", (" Then bad", " Or worse")).objective(aversion=0.5)
    assert found.name == "derailment"
    assert [c.spans for c in found.continuations] == [
        (("Good.", 1.0), (" Then bad", -0.5)),
        (("Good.", 1.0), (" Or worse", -0.5)),
    ]


def test_a_short_flagged_sentence_is_avoided_whole():
    assert derailment("Good one. Bad.", score=lambda t: float("Bad" in t)) == Derailment(
        "Good one.", (" Bad.",)
    )


def test_the_last_sentence_is_avoided_if_only_the_whole_is_flagged():
    assert derailment("Good one. Good two. Good three.", score=lambda _: 0.0).onsets == (
        " Good three.",
    )


@pytest.mark.parametrize(
    "answer", ["bad from the start. Then more.", "only one bad sentence.", "bad", ""]
)
def test_there_is_no_derailment_if_the_first_sentence_is_flagged(answer):
    assert derailment(answer) is None


def test_the_derailment_costs_one_moderation_call():
    job = task(Soft(), answer="One. Two. Three is bad. Four.")
    asyncio.run(find_derailment(job))
    assert (job.usage.moderation_calls, job.usage.generations) == (1, 0)


def test_other_continuations_are_candidates_and_show_other_onsets():
    tails = iter(
        [
            " You are bad at this.",
            " All is well.",
            " Fine. Then bad.",
            " You are bad at this.",
            " So bad of you all.",
        ]
    )
    backend = Soft(lambda _: next(tails))
    job = task(backend)
    candidates, found = asyncio.run(continue_kept(job, Derailment("A start.", (" Now it is",)), 5))
    assert [c.verdict.flagged for c in candidates] == [True, False, True, True, True]
    # "Fine." is no onset
    assert found == Derailment("A start.", (" Now it is", " You are bad", " So bad of"))
    assert (job.usage.generations, job.usage.decode_passes, job.usage.moderation_calls) == (5, 1, 2)
    assert {(r.opening, r.temperature) for r in backend.calls[0]} == {("A start.", 1.0)}
    assert len({r.seed for r in backend.calls[0]}) == 5


@pytest.mark.parametrize(
    ("shown", "spans"),
    [("", (("", 0.0), ("The", 1.0))), ("Fine.", (("Fine.", 0.0), (" The", 1.0)))],
)
def test_an_opening_as_an_objective(shown, spans):
    assert opening_objective(task(Soft(), shown=shown), OPENINGS[0]).continuations[0].spans == spans


@pytest.mark.parametrize(
    ("answer", "shown", "found"),
    [
        (
            "Good one. Fine two! Then bad words come.",
            "Good one.",
            Derailment("Good one. Fine two!", (" Then bad words",)),
        ),
        ("Good one. Bad or bad.", "Good one.", Derailment("Good one.", (" Bad or bad.",))),
        # the gate thought otherwise
        ("A bad one. Then fine.", "A bad one.", Derailment("A bad one.", (" Then fine.",))),
        ("Good one.", "Good one.", None),
    ],
)
def test_the_derailment_is_after_what_has_been_shown(answer, shown, found):
    assert asyncio.run(find_derailment(task(Soft(), answer=answer, shown=shown))) == found


def test_sentences():
    assert split_sentences(" One. Two!  Three?\nFour 3.5 ") == [
        "One.",
        "Two!",
        "Three?",
        "Four 3.5",
    ]
    assert split_sentences("") == []
