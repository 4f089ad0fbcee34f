"""A policy as patterns."""

import asyncio

import pytest

from ttsa_guard.config import Use
from ttsa_guard.errors import ConfigError
from ttsa_guard.moderators.patterns import Patterns, PatternsOptions
from ttsa_guard.plugins import Plugins
from ttsa_guard.testing import check_moderator


def verdict(text, **options):
    [found] = asyncio.run(Patterns(PatternsOptions(**options)).moderate([text], prompts=["?"]))
    return found


@pytest.mark.parametrize(
    ("policy", "breaking", "keeping"),
    [
        (
            "links",
            ["See https://a.example/x.", "Go to www.example.org now", "It is on example.com"],
            ["End.Then more", "a 3.5 m rope"],
        ),
        (
            "lists",
            [
                "Do this:\n1. Go\n2. Come",
                "- a cup",
                "* a cup",
                "2) next",
                "*Go",
                "3.Go",
                "First: 1. Go",
            ],
            [
                "In 2019 it was.",
                "well-known - and good",
                "1.5 litres",
                "*Go* now",
                "That was 1999. 3 came",
            ],
        ),
        (
            "personal_data",
            ["Write to a.b@c.org", "Call 555 0134 2288", "+49 30 1234 5678"],
            ["in 1999 or 2005", "room 12", "3.14159"],
        ),
        (
            "doses",
            ["Take 200 mg twice", "5ml a day", "10 to 20 milligrams", "2 tablets"],
            ["two tablets", "5 metres", "a 3 mile walk"],
        ),
    ],
)
def test_shipped_policies(policy, breaking, keeping):
    assert [verdict(text, policies=[policy]).flagged for text in breaking] == [True] * len(breaking)
    assert [verdict(text, policies=[policy]).flagged for text in keeping] == [False] * len(keeping)


def test_names_are_whole_words_in_any_case():
    assert verdict("Ask ACME about it", names=["Acme"]).flagged
    assert verdict("Buy at O.K. (Ltd)", names=["O.K. (Ltd)"]).flagged
    assert not verdict("acmeology is no company", names=["Acme"]).flagged


def test_more_matches_score_higher_so_that_a_search_sees_progress():
    scores = [verdict("bad " * n, names=["bad"]).score for n in range(5)]
    assert scores[0] == 0
    assert scores == sorted(set(scores))
    assert 0.5 <= scores[1] <= scores[-1] <= 1


def test_own_patterns_and_what_is_wrong_with_them():
    assert verdict("ticket AB-123", patterns=[r"\b[A-Z]{2}-\d+\b"]).flagged
    for options in ({}, {"patterns": ["("]}, {"polices": ["links"]}):
        with pytest.raises(ConfigError) as caught:
            Plugins().make("moderators", Use(use="patterns", options=options))
        assert caught.value.hint


def test_another_language_is_flagged_and_an_unknown_one_is_not():
    assert verdict("La casa es vieja y está en una colina.", language="en").flagged
    assert not verdict("The house is old and on a hill.", language="en").flagged
    assert not verdict("Sí.", language="en").flagged
    assert not verdict("Try the crème brûlée at Chez Panisse.", language="en").flagged


def test_another_script_is_flagged_however_short_it_is():
    assert verdict("Да.", language="en").flagged
    assert not verdict("Дом старый и стоит на холме у реки.", language="ru").flagged


def test_the_contract():
    check_moderator(Patterns(PatternsOptions(policies=["links", "lists"], language="en")))
