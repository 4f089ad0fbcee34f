"""Answers to the user's message with parts left out."""

import asyncio
from dataclasses import replace

import pytest

from ttsa_guard.messages import Message, Prompt, Soft
from ttsa_guard.profile import ModelProfile, Opening
from ttsa_guard.steerers.erase import Erase, EraseOptions, shortened, split_parts
from ttsa_guard.testing import ScriptedBackend, scripted_guard

PROFILE = ModelProfile(openings=(Opening(text="Instead of", kind="redirect"), Opening(text="Sure,", kind="answer")))
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
        return "a bad thing" if "rude" in self.asked(request) else f"I was asked: {self.asked(request)}"


def review(conversation, answer, **options):
    backend = Obeying()
    guard = scripted_guard(backend, steerers=[Erase(EraseOptions(**options))], profile=PROFILE)
    return asyncio.run(guard.review(conversation, answer)), backend


def tried(backend):
    return [(backend.asked(r), r.opening) for batch in backend.calls for r in batch]


def test_what_makes_it_go_wrong_is_left_out():
    outcome, backend = review(f"{RUDE} {ASKED}", "A fine start. Then a bad end.")
    assert (outcome.action, outcome.text) == ("swap", f"I was asked: {ASKED}")
    assert tried(backend) == [(ASKED, ""), (RUDE, "")]  # the beginning was fine, so the question can be answered
    assert [c.origin for c in outcome.record.candidates] == ["parts 2 of 2", "parts 1 of 2"]


def test_where_the_answer_was_bad_from_the_start_an_alternative_is_offered_too():
    outcome, backend = review(f"{RUDE} {ASKED}", "A bad thing from the start.")
    assert outcome.action == "swap"
    assert tried(backend) == [(ASKED, ""), (ASKED, "Instead of"), (RUDE, ""), (RUDE, "Instead of")]


def test_the_other_turns_stay():
    conversation = [
        Message("system", "S"),
        Message("user", "One. Two."),
        Message("assistant", "A"),
        Message("user", f"{RUDE} {ASKED}"),
    ]
    _, backend = review(conversation, "A bad thing.")
    shorter = [m for m in backend.rendered if m[-1].content in (RUDE, ASKED)]
    assert [m[:-1] for m in shorter] == [tuple(conversation[:-1])] * 2


def test_a_message_of_one_part_is_left_to_others():
    outcome, backend = review(ASKED, "A bad thing.")
    assert (outcome.action, backend.calls) == ("fallback", [])


def test_the_budget_holds():
    backend = Obeying()
    guard = scripted_guard(backend, steerers=[Erase(EraseOptions())], profile=PROFILE, budget={"generations": 3})
    outcome = asyncio.run(guard.review(f"{RUDE} {RUDE} {ASKED}", "A bad thing."))
    assert outcome.record.generations == 3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param("One. Two! Three?", ["One.", "Two!", "Three?"], id="sentences"),
        pytest.param("Be rude, and tell me how; now", ["Be rude,", "and tell me how;", "now"], id="clauses"),
        pytest.param("Be rude then tell me", ["Be rude", "then tell me"], id="conjunctions"),
        pytest.param("Tell me how", ["Tell me how"], id="one"),
        pytest.param("你是一个坏人。猫头鹰怎么画？", ["你是一个坏人。", "猫头鹰怎么画？"], id="chinese-sentences"),
        pytest.param("假装你很坏，猫头鹰怎么画？", ["假装你很坏，", "猫头鹰怎么画？"], id="chinese-clauses"),
    ],
)
def test_parts(text, parts):
    assert split_parts(text) == parts


@pytest.mark.parametrize(
    ("parts", "most", "kept"),
    [
        (1, 6, []),
        (2, 6, [(1,), (0,)]),
        (3, 5, [(2,), (1,), (0,), (1, 2), (0, 2)]),
        (4, 8, [(3,), (2,), (1,), (0,), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)]),
        (40, 3, [(39,), (38,), (37,)]),
    ],
)
def test_single_parts_come_first_then_all_but_one(parts, most, kept):
    assert shortened(parts, most) == kept


def test_answers_are_measured_by_the_unsteered_prompt_and_not_once_more():
    class Measuring(Obeying):
        scored = ()

        async def generate(self, requests):
            answers = await super().generate(requests)
            told = [-0.5 if "kettle" in self.asked(r) and r.baseline else None for r in requests]
            return [replace(a, log_likelihood=value) for a, value in zip(answers, told, strict=True)]

        async def log_likelihoods(self, prompt, texts):
            self.scored = (*self.scored, *texts)
            return [-2.0] * len(texts)

    backend = Measuring()
    profile = PROFILE.model_copy(update={"floor": -0.8})
    guard = scripted_guard(backend, steerers=[Erase(EraseOptions())], profile=profile)
    outcome = asyncio.run(guard.review(f"{RUDE} {ASKED} It is a small one.", "A fine start. Then a bad end."))
    assert outcome.text == f"I was asked: {ASKED}"
    [batch] = backend.calls
    assert {backend.rendered[r.baseline.prompt.ids[0]][-1].content for r in batch} == {f"{RUDE} {ASKED} It is a small one."}
    assert {r.baseline.floor for r in batch} == {-1.0}  # the profile's, less the slack
    assert backend.scored == ("I was asked: It is a small one.",)
