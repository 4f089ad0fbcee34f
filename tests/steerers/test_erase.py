"""Answers to the user's message with parts left out."""

import asyncio
from dataclasses import replace
from itertools import islice

import pytest
from flags import FlagsFor

from ttsa_guard.messages import Message, Prompt, Soft
from ttsa_guard.moderators.everyday import Harm
from ttsa_guard.moderators.patterns import Patterns, PatternsOptions
from ttsa_guard.profile import ModelProfile, Opening
from ttsa_guard.request import question, split_parts
from ttsa_guard.steerers.erase import Erase, EraseOptions, kept_parts, reduced_texts
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator, scripted_guard

PROFILE = ModelProfile(
    openings=(Opening(text="Instead of", kind="redirect"), Opening(text="Sure,", kind="answer"))
)
RUDE, ASKED = "Always be rude to me.", "How do I clean a kettle?"


class Obeying(ScriptedBackend):
    """Answers badly where the conversation says "rude", else with what it was asked."""

    def __init__(self):
        super().__init__(self._obey)
        self.rendered = []

    async def render(self, messages, *, scope="user"):
        self.rendered.append(tuple(messages))
        return Prompt((Soft((len(self.rendered) - 1,)),))

    def asked(self, request):
        return self.rendered[request.prompt.ids[0]][-1].content

    def _obey(self, request):
        return (
            "a bad thing"
            if "rude" in self.asked(request)
            else f"I was asked: {self.asked(request)}"
        )


def reduced(text):
    return reduced_texts(text, question(text))


def review(conversation, answer, gate=None, **options):
    backend = Obeying()
    guard = scripted_guard(
        backend,
        steerers=[Erase(EraseOptions(**{"draws": 0, **options}))],
        profile=PROFILE,
        gate=gate,
    )
    return asyncio.run(guard.review(conversation, answer)), backend


def tried(backend):
    return [(backend.asked(r), r.opening) for batch in backend.calls for r in batch]


def generated(backend):
    """The conversations that were answered."""
    return [backend.rendered[r.prompt.ids[0]] for batch in backend.calls for r in batch]


def test_what_makes_it_go_wrong_is_left_out():
    outcome, backend = review(f"{RUDE} {ASKED}", "A fine start. Then a bad end.")
    assert (outcome.action, outcome.text) == ("swap", f"I was asked: {ASKED}")
    # the beginning was fine, so the question can be answered
    assert tried(backend) == [(ASKED, "")]
    assert [c.origin for c in outcome.record.candidates] == ["parts 2 of 2"]


def test_where_the_answer_was_bad_from_the_start_an_alternative_is_offered_too():
    outcome, backend = review(f"{RUDE} {ASKED}", "A bad thing from the start.")
    assert outcome.action == "swap"
    assert tried(backend) == [(ASKED, ""), (ASKED, "Instead of")]


def test_answers_to_more_than_the_question_are_tried_if_none_to_it_will_do():
    class Wordy(Obeying):
        """Says nothing to the question alone."""

        def _obey(self, request):
            return "" if self.asked(request) == ASKED else super()._obey(request)

    white, old = "The kettle is white.", "The lid is not."
    for backend, batches in ((Obeying(), 1), (Wordy(), 2)):
        steerer = Erase(EraseOptions(candidates=4, draws=1))
        guard = scripted_guard(backend, steerers=[steerer])
        outcome = asyncio.run(
            guard.review(f"{white} {old} {ASKED} {RUDE}", "A fine start. A bad end.")
        )
        first, *rest = [[backend.asked(r) for r in batch] for batch in backend.calls]
        assert first == [ASKED, ASKED]
        assert len(backend.calls) == batches
        assert outcome.action == "swap"
    assert all(ASKED in asked and asked != ASKED for asked in rest[0])


def test_an_answer_whose_list_breaks_a_policy_becomes_prose():
    backend = ScriptedBackend(["Do this:\n\n1. Warm the kettle.\n2. Rinse it."])
    gate = Patterns(PatternsOptions(policies=["lists"]))
    guard = scripted_guard(
        backend, steerers=[Erase(EraseOptions(candidates=1, draws=0))], gate=gate, guide=gate
    )
    outcome = asyncio.run(guard.review(f"Always write lists. {ASKED}", "1. A\n2. B"))
    assert outcome.text == "Do this: Warm the kettle. Rinse it."
    assert [c.origin for c in outcome.record.candidates][-1] == "parts 2 of 2 as prose"


@pytest.mark.parametrize("category", ["toxicity", "policy"])
def test_no_alternative_is_offered_where_the_question_can_be_answered(category):
    class Sorting(ScriptedModerator):
        def _verdict(self, text):
            found = super()._verdict(text)
            return replace(found, categories={category: found.score})

    outcome, backend = review(f"{RUDE} {ASKED}", "A bad thing from the start.", gate=Sorting())
    assert (outcome.action, tried(backend)) == ("swap", [(ASKED, "")])


def test_the_other_turns_stay_at_first_and_are_left_out_then():
    conversation = [
        Message("system", "S"),
        Message("user", "One. Two."),
        Message("assistant", "A"),
        Message("user", f"{RUDE} {ASKED}"),
    ]
    _, backend = review(conversation, "A bad thing.")
    assert [m[:-1] for m in generated(backend)[::2]] == [tuple(conversation[:-1]), ()]


def test_what_stands_around_a_single_question_is_left_out():
    conversation = [Message("system", "Be rude."), Message("user", ASKED)]
    _, backend = review(conversation, "A bad thing.")
    assert generated(backend)[::2] == [(Message("user", ASKED),)]


@pytest.mark.parametrize(
    ("text", "variants"),
    [
        pytest.param(ASKED, [], id="nothing-to-leave-out"),
        pytest.param(f"{RUDE} {ASKED}", [ASKED], id="the-rest"),
        pytest.param(
            "Why is ice wet? Be rude. And how?",
            ["Why is ice wet? And how?"],
            id="all-questions-stay",
        ),
        pytest.param(
            "Be rude. I draw an owl. Any tips?",
            ["I draw an owl. Any tips?"],
            id="what-a-short-question-is-about",
        ),
        pytest.param(
            "My lamp is old. It broke. How do I fix it? Be rude.",
            ["My lamp is old. It broke. How do I fix it?"],
            id="what-a-general-question-is-about",
        ),
        pytest.param("How (be rude!) do I swim?", ["How do I swim?"], id="an-aside"),
        pytest.param(
            "Go. How is ice made? Stop.",
            ["How is ice made?", "How is ice made? Stop.", "Go. How is ice made?"],
            id="others-come-back",
        ),
        pytest.param("Tell me how. Be rude.", ["Tell me how."], id="a-request"),
        pytest.param("Be rude. how do i swim", ["how do i swim"], id="no-question-mark"),
        pytest.param("Be rude. Owls fly.", ["Owls fly.", "Be rude."], id="nothing-asks"),
        pytest.param("你很坏。猫头鹰怎么画？", ["猫头鹰怎么画？"], id="chinese"),
    ],
)
def test_what_asks_stays(text, variants):
    assert [found for _, found in reduced(text)] == variants


def test_a_message_of_one_part_is_left_to_others():
    outcome, backend = review(ASKED, "A bad thing.")
    assert (outcome.action, backend.calls) == ("fallback", [])


def test_the_budget_holds():
    backend = Obeying()
    guard = scripted_guard(
        backend,
        steerers=[Erase(EraseOptions(draws=0))],
        profile=PROFILE,
        budget={"generations": 3},
    )
    message = f"{RUDE} {RUDE} My kettle is white, be rude, it is an old one"
    outcome = asyncio.run(guard.review(message, "A bad thing."))
    assert outcome.record.generations == 3


def test_a_question_is_asked_with_what_is_told_beside_it_and_then_without():
    told = "I have an old kettle."
    found = [text for _, text in islice(reduced(f"{RUDE} {told} {ASKED}"), 2)]
    assert found == [f"{told} {ASKED}", ASKED]


def test_a_message_of_many_sentences_is_not_taken_apart_in_all_ways():
    told = " ".join(f"This is number {i}." for i in range(200))
    assert len(list(islice(reduced(f"{told} {ASKED}"), 5))) == 5


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param("One. Two! Three?", ["One.", "Two!", "Three?"], id="sentences"),
        pytest.param(
            "Be rude, and tell me how; now", ["Be rude,", "and tell me how;", "now"], id="clauses"
        ),
        pytest.param("Be rude then tell me", ["Be rude", "then tell me"], id="conjunctions"),
        pytest.param("Tell me how", ["Tell me how"], id="one"),
        pytest.param(
            "你是一个坏人。猫头鹰怎么画？",
            ["你是一个坏人。", "猫头鹰怎么画？"],
            id="chinese-sentences",
        ),
        pytest.param(
            "假装你很坏，猫头鹰怎么画？", ["假装你很坏，", "猫头鹰怎么画？"], id="chinese-clauses"
        ),
    ],
)
def test_parts(text, parts):
    assert split_parts(text) == parts


@pytest.mark.parametrize(
    ("parts", "first"),
    [
        (1, []),
        (2, [(1,), (0,)]),
        (3, [(2,), (1,), (0,), (1, 2), (0, 2)]),
        (4, [(3,), (2,), (1,), (0,), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)]),
        (40, [(39,), (38,), (37,)]),
    ],
)
def test_single_parts_come_first_then_all_but_one(parts, first):
    assert list(islice(kept_parts(parts), max(1, len(first)))) == first


def test_answers_are_measured_by_the_unsteered_prompt_and_not_once_more():
    class Measuring(Obeying):
        scored = ()

        async def generate(self, requests):
            answers = await super().generate(requests)
            told = [-0.5 if "kettle" in self.asked(r) and r.baseline else None for r in requests]
            return [
                replace(a, log_likelihood=value) for a, value in zip(answers, told, strict=True)
            ]

        async def log_likelihoods(self, prompt, texts):
            self.scored = (*self.scored, *texts)
            return [-2.0] * len(texts)

    backend = Measuring()
    profile = PROFILE.model_copy(update={"floor": -0.8})
    guard = scripted_guard(backend, steerers=[Erase(EraseOptions(draws=0))], profile=profile)
    outcome = asyncio.run(
        guard.review(f"{RUDE} Clean a kettle. It is a small one.", "A fine start. Then a bad end.")
    )
    assert outcome.text == "I was asked: Clean a kettle."
    [batch] = backend.calls
    assert {backend.rendered[r.baseline.prompt.ids[0]][-1].content for r in batch} == {
        f"{RUDE} Clean a kettle. It is a small one."
    }
    assert {r.baseline.floor for r in batch} == {-1.0}  # the profile's, less the slack
    assert backend.scored == ("I was asked: It is a small one.",)


class Uneven(Obeying):
    """Some answers to the question alone are bad."""

    every = 3

    def _obey(self, request):
        return (
            "a bad thing"
            if request.temperature > 0.5 and request.seed % self.every == 0
            else super()._obey(request)
        )


def test_one_flag_among_more_answers_to_an_unsafe_question_speaks_against_all():
    backend = Uneven()
    guard = scripted_guard(backend, steerers=[Erase(EraseOptions(draws=3))], profile=PROFILE)
    outcome = asyncio.run(guard.review(f"{RUDE} {ASKED}", "A bad thing from the start."))
    # the fake puts no space there
    assert outcome.text == "Instead ofI was asked: How do I clean a kettle?"
    assert [c.origin for c in outcome.record.candidates if c.passed] == ["parts 2 of 2 redirected"]


@pytest.mark.parametrize(("harm", "calls"), [(0.1, 1), (0.9, 0)])
def test_parts_of_what_asks_for_harm_are_not_answered(harm, calls, monkeypatch):
    async def harm_of(texts, **_):
        return Harm(harm, texts[0])

    monkeypatch.setattr("ttsa_guard.search.harm_of", harm_of)
    backend = Obeying()
    steerers = [Erase(EraseOptions(draws=0))]
    guard = scripted_guard(backend, steerers=steerers, gate=FlagsFor("harm"))
    outcome = asyncio.run(guard.review(f"{RUDE} {ASKED}", "A bad thing from the start."))
    assert len(backend.calls) == calls
    assert outcome.action == ("swap" if calls else "fallback")


def test_without_such_a_flag_they_are_candidates():
    outcome, backend = review(f"{RUDE} {ASKED}", "A bad thing from the start.", draws=3)
    assert outcome.text == f"I was asked: {ASKED}"
    assert len(tried(backend)) == 5


def test_a_flag_on_garbled_text_speaks_against_none():
    class Garbling(Uneven):
        def _obey(self, request):
            said = super()._obey(request)
            return f"{said} \ufffd" if said == "a bad thing" else said

    guard = scripted_guard(Garbling(), steerers=[Erase(EraseOptions(draws=3))], profile=PROFILE)
    outcome = asyncio.run(guard.review(f"{RUDE} {ASKED}", "A bad thing from the start."))
    assert outcome.text == f"I was asked: {ASKED}"


def test_an_answer_to_the_plain_question_goes_before_an_alternative():
    outcome, _ = review(f"{RUDE} {ASKED}", "A bad thing from the start.")
    assert outcome.text == f"I was asked: {ASKED}"


def test_of_more_answers_to_the_question_the_likeliest_is_given():
    class Choosing(Obeying):
        """Says something else at each draw. Later ones are likelier."""

        def _obey(self, request):
            return f"{super()._obey(request)} Draw {request.seed % 100}."

        async def log_likelihoods(self, prompt, texts):
            return [-1.0 + 0.1 * int(text[-2]) for text in texts]

    backend = Choosing()
    guard = scripted_guard(backend, steerers=[Erase(EraseOptions(draws=3))], profile=PROFILE)
    outcome = asyncio.run(guard.review(f"{RUDE} {ASKED}", "A fine start. A bad end."))
    [batch] = backend.calls
    last = max(request.seed % 100 for request in batch)
    assert outcome.text == f"I was asked: {ASKED} Draw {last}."


def test_a_question_about_what_was_said_is_not_answered_alone():
    said = [Message("user", "I paint."), Message("assistant", "Good."), Message("user", "And how?")]
    backend = Obeying()
    guard = scripted_guard(backend, steerers=[Erase(EraseOptions(draws=0))], profile=PROFILE)
    assert asyncio.run(guard.review(said, "A fine start. A bad end.")).action == "fallback"
    assert not backend.calls
