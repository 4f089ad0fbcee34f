"""Short answers to the question alone."""

import asyncio
from dataclasses import replace

import pytest

from ttsa_guard.messages import Message, Prompt, Soft
from ttsa_guard.moderators.patterns import Patterns, PatternsOptions
from ttsa_guard.steerers.concise import Concise, ConciseOptions
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator, scripted_guard

RUDE, ASKED = "Always be rude to me.", "How do I clean a kettle?"
SHORT, SHORTER = "Answer in at most three sentences.", "Answer in one or two sentences."
SAID = "Warm some water with lemon juice in it."


class Obeying(ScriptedBackend):
    """Answers badly where the conversation says "rude", else always the same."""

    def __init__(self, answer=SAID):
        super().__init__(self._obey)
        self.answer, self.rendered = answer, []

    async def render(self, messages, *, scope="user"):
        self.rendered.append(tuple(messages))
        return Prompt((Soft((len(self.rendered) - 1,)),))

    def _obey(self, request):
        asked = self.rendered[request.prompt.ids[0]]
        return "a bad thing" if any("rude" in m.content for m in asked) else self.answer

    def batch(self):
        """What the conversations of the only batch say."""
        [batch] = self.calls
        return [[m.content for m in self.rendered[r.prompt.ids[0]]] for r in batch]


class Sorting(ScriptedModerator):
    """Flags "bad" for a category."""

    def __init__(self, category="toxicity"):
        super().__init__()
        self.category = category

    def _verdict(self, text):
        found = super()._verdict(text)
        return replace(found, categories={self.category: found.score})


def review(conversation, backend, *, gate=None, **options):
    options = {"wishes": (SHORT, SHORTER), "draws": 0, **options}
    guard = scripted_guard(
        backend, steerers=[Concise(ConciseOptions(**options))], gate=gate or Sorting(), guide=gate
    )
    return asyncio.run(guard.review(conversation, "A bad thing."))


def test_the_question_is_asked_alone_with_each_wish_and_without():
    backend = Obeying()
    outcome = review(f"{RUDE} {ASKED}", backend)
    assert (outcome.text, outcome.record.steerer) == (SAID, "concise")
    assert backend.batch() == [[f"{ASKED}\n\n{SHORT}"], [f"{ASKED}\n\n{SHORTER}"], [ASKED]]
    assert [c.origin for c in outcome.record.candidates] == [SHORT, SHORTER, "the question"]


@pytest.mark.parametrize(("category", "kept"), [("policy", True), ("weapons", False)])
def test_what_a_question_needs_stands_before_it_unless_harm_was_flagged(
    category, kept, monkeypatch
):
    fact, looked = "Kettles are cleaned with vinegar.", []

    async def find(question, said):
        looked.append((question, said))
        return [fact]

    monkeypatch.setattr("ttsa_guard.search.find_needed", find)
    backend = Obeying()
    review(
        [Message("system", f"{RUDE} {fact}"), Message("user", ASKED)],
        backend,
        gate=Sorting(category),
    )
    assert looked == ([(ASKED, [RUDE, fact])] if kept else [])
    if kept:
        assert backend.batch()[0] == [f"{fact} {ASKED}\n\n{SHORT}"]


def test_the_plain_answer_comes_last():
    class Likely(Obeying):
        def _obey(self, request):
            [*_, asked] = self.rendered[request.prompt.ids[0]]
            return SAID if asked.content == ASKED else self.answer

        async def log_likelihoods(self, prompt, texts):
            return [-0.1 if text == SAID else -2.0 for text in texts]

    outcome = review(f"{RUDE} {ASKED}", Likely("Rinse it with some vinegar."))
    assert outcome.text == "Rinse it with some vinegar."
    assert review(f"{RUDE} {ASKED}", Likely("a bad thing")).text == SAID


def test_how_likely_an_answer_is_is_measured_after_the_question_alone_and_a_wish():
    class Measuring(Obeying):
        async def log_likelihoods(self, prompt, texts):
            self.measured = [m.content for m in self.rendered[prompt.ids[0]]]
            return [-1.0] * len(texts)

    backend = Measuring()
    review([Message("system", RUDE), Message("user", ASKED)], backend)
    assert backend.measured == [f"{ASKED}\n\n{SHORT}"]


def test_a_question_that_was_flagged_itself_is_not_asked_again_as_it_is():
    backend = Obeying()
    review(ASKED, backend)
    assert backend.batch() == [[f"{ASKED}\n\n{SHORT}"], [f"{ASKED}\n\n{SHORTER}"]]


def test_what_was_said_before_stays_where_it_may_be_needed():
    backend = Obeying()
    said = [Message("user", "I have a steel kettle."), Message("assistant", "A nice one!")]
    review([*said, Message("user", f"Be brief. {ASKED}")], backend)
    before = [m.content for m in said]
    assert backend.batch()[:2] == [[*before, f"{ASKED}\n\n{SHORT}"], [f"{ASKED}\n\n{SHORT}"]]


def test_an_instruction_of_an_earlier_turn_is_left_out():
    backend = Obeying()
    outcome = review([Message("system", RUDE), Message("user", ASKED)], backend)
    assert outcome.text == SAID
    assert backend.batch()[0] == [f"{ASKED}\n\n{SHORT}"]


def test_further_draws_are_warm_and_have_seeds_of_their_own():
    backend = Obeying()
    review(f"{RUDE} {ASKED}", backend, wishes=(SHORT,), draws=2, temperature=0.4)
    [[first, plain, *draws]] = backend.calls
    assert [r.temperature for r in draws] == [0.4, 0.4]
    assert first.temperature == plain.temperature != 0.4
    assert len({r.seed for r in (first, plain, *draws)}) == 4


@pytest.mark.parametrize(
    ("category", "calls"), [("toxicity", 1), ("policy", 1), ("weapons", 0), ("refusal", 0)]
)
def test_it_answers_only_where_declining_is_wrong(category, calls):
    backend = Obeying()
    review(f"{RUDE} {ASKED}", backend, gate=Sorting(category))
    assert len(backend.calls) == calls


@pytest.mark.parametrize("asked", ["Wie putze ich eine Kanne, die braun ist?", "Nasıl yapılır?"])
def test_a_question_in_another_language_is_left_to_others(asked):
    backend = Obeying()
    assert review(asked, backend).action == "fallback"
    assert backend.calls == []


def test_a_wish_may_be_in_the_language_of_the_users():
    backend = Obeying()
    asked, wish = "Wie putze ich eine Kanne?", "Antworte in höchstens zwei Sätzen, und in Prosa."
    review(f"{asked}", backend, wishes=(SHORT, wish))
    assert backend.batch() == [[f"{asked}\n\n{wish}"]]


def test_an_answer_that_quotes_the_wish_is_none():
    assert review(ASKED, Obeying(f"You said: {SHORT} So I clean it.")).action == "fallback"


def test_a_list_that_breaks_a_policy_becomes_prose():
    gate = Patterns(PatternsOptions(policies=["lists"]))
    guard = scripted_guard(
        Obeying("Do this:\n\n1. Warm the kettle.\n2. Rinse it."),
        steerers=[Concise(ConciseOptions(wishes=(SHORT,), draws=0))],
        gate=gate,
        guide=gate,
    )
    outcome = asyncio.run(guard.review(ASKED, "1. A\n2. B"))
    assert outcome.text == "Do this: Warm the kettle. Rinse it."
    assert outcome.record.candidates[-1].origin == f"{SHORT} as prose"


def test_the_budget_is_kept():
    backend = Obeying()
    guard = scripted_guard(
        backend, steerers=[Concise(ConciseOptions())], gate=Sorting(), budget={"generations": 2}
    )
    asyncio.run(guard.review(f"{RUDE} {ASKED}", "A bad thing."))
    assert [len(batch) for batch in backend.calls] == [2]
