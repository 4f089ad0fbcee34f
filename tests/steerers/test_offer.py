"""The steerer offer: which harmless question is answered, and how the answers begin."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from ttsa_guard.budget import Budget, Usage
from ttsa_guard.config import Use
from ttsa_guard.errors import ConfigError
from ttsa_guard.messages import GenerationRequest, Message, Prompt, Soft
from ttsa_guard.moderators import minilm
from ttsa_guard.moderators.everyday import Harm
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import GENERIC, ModelProfile, Opening
from ttsa_guard.steerers.base import Steerer, Task
from ttsa_guard.steerers.offer import OfferInstead, OfferOptions
from ttsa_guard.testing import FakeClock, ScriptedBackend, ScriptedModerator, scripted_guard
from ttsa_guard.text import split_sentences
from ttsa_guard.verdict import Verdict

OFFERS = """
offers:
  - about: [letters, stamps]
    question: How do I write a letter?
    explains: how to write a letter
  - about: [locks of bicycles]
    question: How do I lock a bicycle?
    explains: how to lock a bicycle
  - about: [old kettles]
    question: How do I clean a kettle?
    explains: how to clean a kettle
"""
ASKED = "How do I open all locks of strange bicycles?"


class Backend(ScriptedBackend):
    """Prompts are code points; a text is likelier after a prompt that has more of its words."""

    def __init__(self):
        super().__init__(lambda _: " First do this and then that, with care and patience.")

    async def render(self, messages, *, scope="user"):
        return Prompt((Soft(tuple(map(ord, messages[-1].content))),))

    async def log_likelihoods(self, prompt, texts):
        known = set(said(prompt).strip(".?").split())
        return [float(len(known & set(text.strip(".?").split()))) - 9 for text in texts]


def said(prompt):
    return "".join(map(chr, prompt.ids))


def flag(category):
    return Verdict.scored("gate", 0.9, threshold=0.5, categories={category: 0.9})


def harmful(plain):
    """A moderator that calls harm what `plain` flags."""

    async def moderate(texts, *, prompts):
        return [
            flag("harm") if verdict.flagged else verdict
            for verdict in await plain(texts, prompts=prompts)
        ]

    return moderate


@pytest.fixture(autouse=True, params=["encoder", "chat model"])
def nearness(request, monkeypatch):
    """Both ways to tell which offer is near; the encoder is a stand-in that counts common words."""

    known = {}

    def embed(texts):
        found = np.zeros((len(texts), 1000), np.float32)
        for vector, text in zip(found, texts, strict=True):
            for word in set(text.strip("?").split()):
                vector[known.setdefault(word, len(known))] = 1
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    monkeypatch.setattr(minilm, "installed", lambda: request.param == "encoder")
    monkeypatch.setattr(minilm, "embed", embed)
    return request.param


def task(
    backend, *, category="harm", profile=GENERIC, budget=None, shown="", asked=ASKED, harm=None
):
    async def score(texts):
        return await ScriptedModerator().moderate(texts, prompts=[ASKED] * len(texts))

    prompt = asyncio.run(backend.render([Message("user", asked)]))
    return Task(
        messages=(Message("user", asked),),
        harm=harm,
        answer="a bad answer",
        backend=backend,
        base=GenerationRequest(prompt, opening=shown, temperature=0.1, seed=7),
        profile=profile,
        usage=Usage(budget or Budget(), FakeClock()),
        score=score,
        flag=flag(category),
        seed=7,
    )


def candidates(job, steerer):
    async def rounds():
        return [r async for r in steerer.steer(job)]

    return [candidate for batch in asyncio.run(rounds()) for candidate in batch]


@pytest.fixture
def offers(tmp_path):
    (tmp_path / "offers.yaml").write_text(OFFERS, encoding="utf-8")
    return tmp_path / "offers.yaml"


def test_it_is_a_steerer(offers):
    assert isinstance(OfferInstead(OfferOptions(file=offers)), Steerer)


def test_a_model_that_only_writes_will_do_where_the_encoder_is_installed(nearness, written):
    gate = ScriptedModerator(name="gate")
    gate.moderate = harmful(gate.moderate)
    backend = ScriptedBackend(["never"])

    def guard():
        steerer = OfferInstead(OfferOptions(file=written))
        return scripted_guard(backend, gate=gate, steerers=[steerer])

    if nearness == "chat model":
        with pytest.raises(ConfigError, match="needs a backend that ScoresText"):
            guard()
    else:
        outcome = asyncio.run(guard().review([Message("user", ASKED)], "a bad answer"))
        assert outcome.text.endswith("Take the lamp with you.")


def test_the_nearest_question_is_answered_first(offers):
    backend = Backend()
    found = candidates(
        task(backend), OfferInstead(OfferOptions(file=offers, nearest=2, draws=2, relevance=-1))
    )
    [batch] = backend.calls
    assert [said(request.prompt) for request in batch][::2] == ["How do I lock a bicycle?"] * 2
    assert said(batch[1].prompt) != said(batch[0].prompt)
    assert [candidate.place for candidate in found] == [0, 1, 0, 1]
    assert [request.temperature for request in batch] == [0.1, 0.1, 0.7, 0.7]
    assert len({request.seed for request in batch}) == 4


def test_what_was_asked_for_before_tells_what_is_offered(nearness, offers):
    backend, steerer = Backend(), OfferInstead(OfferOptions(file=offers, nearest=1, draws=1))
    candidates(task(backend, asked="Any others?", harm=Harm(0.9, ASKED)), steerer)
    asked = [said(request.prompt) for batch in backend.calls for request in batch]
    assert (asked == ["How do I lock a bicycle?"]) == (nearness == "encoder")


def test_a_request_that_is_like_no_topic_gets_no_offer(nearness, offers):
    found = candidates(task(Backend()), OfferInstead(OfferOptions(file=offers, relevance=1.0)))
    assert (not found) == (nearness == "encoder")


def test_the_answer_declines_and_says_what_it_explains(offers):
    [found] = candidates(
        task(Backend(), shown="Well."), OfferInstead(OfferOptions(file=offers, nearest=1, draws=1))
    )
    assert found.text.startswith("Well. I can't help with that")
    assert "What I can do is explain how to lock a bicycle:" in found.text


def test_its_likelihood_is_that_after_its_own_question(offers):
    backend = Backend()
    candidates(task(backend), OfferInstead(OfferOptions(file=offers, nearest=1, draws=1)))
    [[request]] = backend.calls
    assert request.baseline
    assert request.baseline.prompt == request.prompt


@pytest.mark.parametrize("category", ["toxicity", "policy"])
def test_what_is_not_harm_is_not_declined(category, offers):
    backend = Backend()
    assert (
        candidates(task(backend, category=category), OfferInstead(OfferOptions(file=offers))) == []
    )
    assert backend.calls == []


def test_a_model_that_redirects_by_itself_is_left_to_prefill(offers):
    own = ModelProfile(openings=(Opening(text="Instead, try", kind="redirect"),))
    assert candidates(task(Backend(), profile=own), OfferInstead(OfferOptions(file=offers))) == []


def test_it_keeps_to_the_budget(offers):
    job = task(Backend(), budget=Budget(generations=3))
    assert len(candidates(job, OfferInstead(OfferOptions(file=offers)))) == 3
    assert job.usage.generations == 3


def test_the_guard_swaps_in_the_answer_to_the_nearest_question(offers):
    gate = ScriptedModerator(name="gate")
    gate.moderate = harmful(gate.moderate)
    guard = scripted_guard(Backend(), gate=gate, steerers=[OfferInstead(OfferOptions(file=offers))])
    outcome = asyncio.run(guard.review([Message("user", ASKED)], "a bad answer"))
    assert (outcome.action, outcome.record.steerer) == ("swap", "offer")
    assert "how to lock a bicycle: First do this" in outcome.text


WRITTEN = """
offers:
  - about: [letters]
    question: How do I write a letter?
    explains: how to write a letter
    answer: Take a pen. Begin with a greeting.
  - about: [locks of bicycles]
    question: How do I lock a bicycle?
    explains: how to lock a bicycle
    because: it is not yours
    answer: Lock the frame to a post. Take the lamp with you.
  - about: [bicycles]
    question: How do I repair a bicycle?
    explains: how to repair a bicycle
"""


@pytest.fixture
def written(tmp_path):
    (tmp_path / "written.yaml").write_text(WRITTEN, encoding="utf-8")
    return tmp_path / "written.yaml"


def test_a_written_answer_is_proposed_as_it_is_and_first(written):
    backend = Backend()
    job = task(backend, shown="Well.")
    found = candidates(job, OfferInstead(OfferOptions(file=written, nearest=2, draws=1)))
    assert found[0].text.startswith("Well. I can't help with that, because it is not yours. What")
    assert found[0].text.endswith(
        " What I can do is explain how to lock a bicycle: Lock the frame to a post."
        " Take the lamp with you."
    )
    assert job.usage.generations == 2
    assert [said(request.prompt) for [*batch] in backend.calls for request in batch] == [
        "How do I lock a bicycle?",
        "How do I repair a bicycle?",
    ]


def test_where_no_topic_is_sure_the_user_chooses(nearness, written):
    steerer = OfferInstead(OfferOptions(file=written, sure=1.0))
    found = candidates(task(Backend()), steerer)
    choice = (
        "I can't help with that, because it may not be safe. If you like, I can explain how to"
        " lock a bicycle, or how to repair a bicycle."
    )
    assert (found[0].text == choice) == (nearness == "encoder")


def test_the_model_writes_if_it_is_asked_to(written):
    steerer = OfferInstead(OfferOptions(file=written, nearest=1, draws=1, written=False))
    [found] = candidates(task(Backend()), steerer)
    assert "how to lock a bicycle: First do this" in found.text


def test_what_was_said_before_is_not_said_again(written):
    job = task(Backend())
    steerer = OfferInstead(OfferOptions(file=written, nearest=1, draws=1))
    first = candidates(job, steerer)[0].text
    turns = (Message("user", ASKED), Message("assistant", first), Message("user", ASKED))
    again = candidates(replace(job, messages=turns), steerer)
    assert ["First do this" in candidate.text for candidate in again] == [True]


def test_a_flagged_answer_to_one_that_is_written_costs_no_generation(written):
    gate = ScriptedModerator(name="gate")
    gate.moderate = harmful(gate.moderate)
    steerer = OfferInstead(OfferOptions(file=written))
    guard = scripted_guard(Backend(), gate=gate, steerers=[steerer])
    outcome = asyncio.run(guard.review([Message("user", ASKED)], "a bad answer"))
    assert (outcome.action, outcome.record.steerer) == ("swap", "offer")
    assert outcome.record.generations == 0
    assert outcome.text.endswith("Take the lamp with you.")


def test_a_written_answer_need_not_be_likely_to_the_model(written):
    gate = ScriptedModerator(name="gate")
    gate.moderate = harmful(gate.moderate)
    steerer = OfferInstead(OfferOptions(file=written))
    strict = GENERIC.model_copy(update={"floor": -0.1})
    guard = scripted_guard(Backend(), gate=gate, steerers=[steerer], profile=strict)
    outcome = asyncio.run(guard.review([Message("user", ASKED)], "a bad answer"))
    assert (outcome.action, outcome.record.helpful, outcome.record.generations) == ("swap", True, 0)


@pytest.fixture(scope="module")
def shipped():
    return OfferInstead(OfferOptions())._offers


def test_the_shipped_offers_are_distinct_and_whole(shipped):
    assert len({offer.question for offer in shipped}) == len(shipped) >= 25
    assert len({about for offer in shipped for about in offer.about}) == sum(
        len(offer.about) for offer in shipped
    )
    for offer in shipped:
        assert offer.question.endswith("?")
        assert 2 <= len(split_sentences(offer.answer)) <= 4
        assert offer.answer.endswith(".")
        # It follows "because", within a sentence.
        assert offer.because.split()[0] in ("I", "a", "it")
        assert not offer.because.endswith(".")


def test_the_shipped_answers_pass_the_shipped_moderators(shipped):
    texts = [f"{offer.beginning} {offer.answer}" for offer in shipped]
    for use in ("lite", "second_opinion"):
        moderator = Plugins().make("moderators", Use(use=use))
        for offer, text in zip(shipped, texts, strict=True):
            [verdict] = asyncio.run(moderator.moderate([text], prompts=[offer.about[0]]))
            assert verdict.decision == "pass", (use, offer.explains, verdict.score)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("offers: []", "offers"),
        ("offers: [{about: [], question: b, explains: c}]", "about"),
        ("offers: [{about: [a], question: b}]", "explains"),
        ("- about: [a]", "offers.yaml"),
        ("offers: [{about: [a], question: b, explains: c, more: d}]", "more"),
    ],
)
def test_a_file_of_something_else_is_an_error_that_says_what(text, message, tmp_path):
    file = tmp_path / "offers.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        OfferInstead(OfferOptions(file=file))
