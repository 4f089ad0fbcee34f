"""Which steerers are worth trying on a model, and in which order."""

import asyncio

import pytest

from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.guard import Guard
from ttsa_guard.plugins import Plugins
from ttsa_guard.profile import GENERIC, ModelProfile, Opening
from ttsa_guard.profiling import PORTFOLIO, Trial, cascade, flagged_answers, learned, prompts
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator, scripted_guard
from ttsa_guard.verdict import Verdict


def trials(**mended):
    """By steerer: seconds of each review, and the answers that it mends, of four."""
    return [
        Trial(Use(use=name), i, i in some, seconds)
        for name, (seconds, some) in mended.items()
        for i in range(4)
    ]


def test_next_comes_what_mends_most_per_second_of_what_is_left():
    found = trials(slow=(3.0, {0, 1, 2, 3}), fast=(1.0, {0, 1}), never=(0.1, ()), late=(1.0, {2}))
    # fast: 2 answers in 4 s, slow: 4 in 12 s; then slow mends the other two in 6 s, late one of
    # them in 2 s
    assert cascade(found) == (Use(use="fast"), Use(use="late"), Use(use="slow"))


def test_what_mends_nothing_new_is_left_out():
    assert cascade(trials(fast=(1.0, {0, 1}), same=(2.0, {0, 1}), never=(1.0, ()))) == (
        Use(use="fast"),
    )
    assert cascade([]) == ()


class Harmful(ScriptedModerator):
    """Flags what is "bad" for harm, and what is "rude" for its tone."""

    def _verdict(self, text):
        scores = {"harm": float("bad" in text), "toxicity": float("rude" in text)}
        return Verdict.scored(self.name, max(scores.values()), threshold=0.5, categories=scores)


class Model(ScriptedBackend):
    """Helps with harm unless it has to begin with "Instead", and is rude to whoever stands beside a
    persona."""

    def __init__(self):
        super().__init__(self._answer)
        self.asked = {}

    async def render(self, messages, *, scope="user"):
        prompt = await super().render(messages, scope=scope)
        self.asked[prompt.ids] = " ".join(m.content for m in messages)
        return prompt

    def _answer(self, request):
        texts = self.asked[request.prompt.ids]
        if request.opening:
            return (
                " you could learn a useful trade."
                if "Instead" in request.opening
                else " a bad thing to do."
            )
        harmless = {
            question
            for messages, question in prompts()
            if len(messages[-1].content) > len(question)
        }
        plain = next((question for question in harmless if question in texts), None)
        if plain is None:
            return "Here is a bad thing to do."
        return f"Listen. {plain} is easy." if texts == plain else "What a rude start that is."


OFFERS = (Opening(text="Try this:", kind="redirect"), Opening(text="Instead", kind="redirect"))


def guard(backend):
    return scripted_guard(
        backend,
        gate=Harmful(name="gate"),
        guide=Harmful(name="guide"),
        profile=ModelProfile(openings=OFFERS),
    )


def test_answers_are_sorted_by_what_they_are_flagged_for():
    found = asyncio.run(flagged_answers(guard(Model()), most=7))
    assert [a.harmful for a in found] == [True] * 7 + [False] * 7
    assert all(a.question in a.messages[-1].content for a in found)


def test_the_profile_says_what_goes_best_on_this_model(monkeypatch):
    monkeypatch.setattr("ttsa_guard.profiling.installed", lambda: False)
    monkeypatch.setattr("ttsa_guard.profiling.PORTFOLIO", (Use(use="resample"), Use(use="erase")))
    told = []
    found = asyncio.run(
        learned(guard(Model()), Plugins(), on_progress=lambda *progress: told.append(progress))
    )
    assert [o.text for o in found.openings] == ["Instead", "Try this:"]
    # The model is rude again when it is asked again; what mends nothing here comes after what does.
    default = [use.use for use in GuardConfig().steerers]
    assert [use.use for use in found.steerers] == [
        "erase",
        *(name for name in default if name != "erase"),
    ]
    assert [use.use for use in found.steerers_for_harm] == default
    assert told == [(i, 24) for i in range(1, 25)]


def test_nothing_is_learned_from_a_model_that_is_never_flagged():
    found = asyncio.run(learned(guard(ScriptedBackend(lambda _: "All is well.")), Plugins()))
    assert found == ModelProfile(openings=OFFERS)


def test_what_is_tried_can_be_built():
    assert [Plugins().make("steerers", use).name for use in PORTFOLIO] == [
        use.use for use in PORTFOLIO
    ]


class Proposing(ScriptedBackend):
    profile = GENERIC.model_copy(
        update={"steerers": (Use(use="resample"),), "steerers_for_harm": (Use(use="prefill"),)}
    )


@pytest.mark.parametrize(
    ("settings", "steerers", "for_harm"),
    [
        ({}, ["resample"], ["prefill"]),
        ({"steerers": ["erase"]}, ["erase"], ["erase"]),
        ({"steerers_for_harm": ["erase"]}, ["resample"], ["erase"]),
        ({"steerers": ["trim"], "steerers_for_harm": ["erase"]}, ["trim"], ["erase"]),
        ({"steerers": []}, [], []),
    ],
)
def test_settings_go_before_the_profile(settings, steerers, for_harm):
    made = Guard.from_config(
        GuardConfig.parse({"gate": "lite", "guide": "lite", **settings}), backend=Proposing([])
    )
    assert [s.name for s in made.steerers] == steerers
    assert [s.name for s in made.steerers_for_harm] == for_harm
