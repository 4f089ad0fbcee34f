"""The steerers without mathematics: resample and prefill."""

import asyncio
from dataclasses import replace

import pytest

from ttsa_guard.budget import Budget, Usage
from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.profile import GENERIC, ModelProfile, Opening
from ttsa_guard.steerers.base import Steerer, Task
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.steerers.prefill import Prefill, PrefillOptions, mixed_openings
from ttsa_guard.testing import FakeClock, ScriptedBackend, ScriptedModerator
from ttsa_guard.verdict import Verdict

PROMPT = asyncio.run(ScriptedBackend([]).render([Message("user", "hello")]))
BASE = GenerationRequest(PROMPT, temperature=0.1, seed=7)


def task(backend, profile=GENERIC, flag=None):
    async def score(texts):
        return await ScriptedModerator().moderate(texts, prompts=["hello"] * len(texts))

    usage = Usage(Budget(), FakeClock())
    return Task(
        (Message("user", "hello"),),
        "a bad answer",
        backend,
        BASE,
        profile,
        usage,
        score,
        flag=flag,
        seed=7,
    )


def rounds(steerer, task):
    async def main():
        return [r async for r in steerer.steer(task)]

    return asyncio.run(main())


def numbered():
    return ScriptedBackend(lambda request: f"answer {request.seed}")


@pytest.mark.parametrize(
    "steerer", [Resample(ResampleOptions()), Prefill(PrefillOptions())], ids=lambda s: s.name
)
def test_they_are_steerers(steerer):
    assert isinstance(steerer, Steerer)


def test_one_sample_at_the_base_temperature_is_plain_generation():
    backend = numbered()
    rounds(Resample(ResampleOptions(n=1, temperature=BASE.temperature)), task(backend))
    [[request]] = backend.calls
    assert vars(request) == vars(BASE)


def test_resample_draws_n_different_samples_in_batches():
    backend = numbered()
    found = rounds(Resample(ResampleOptions(n=5, batch=2, temperature=1.0)), task(backend))
    assert [[c.text for c in r] for r in found] == [
        ["answer 7", "answer 8"],
        ["answer 9", "answer 10"],
        ["answer 11"],
    ]
    assert {r.temperature for batch in backend.calls for r in batch} == {1.0}


@pytest.mark.parametrize(
    "steerer",
    [Resample(ResampleOptions(n=2, question=True)), Prefill(PrefillOptions(always=True))],
    ids=lambda s: s.name,
)
def test_the_question_is_answered_without_what_stands_around_it(steerer):
    backend = numbered()
    asked = asyncio.run(backend.render([Message("user", "How do I swim?")]))
    rounds(steerer, replace(task(backend), asked=(asked, PROMPT)))
    assert {request.prompt for batch in backend.calls for request in batch} == {asked}


def test_generations_are_charged():
    job = task(numbered())
    rounds(Resample(ResampleOptions(n=5, batch=2)), job)
    assert (job.usage.generations, job.usage.decode_passes) == (5, 3)


def opening(text, kind):
    return Opening(text=text, kind=kind)


PROFILE = ModelProfile(
    openings=(
        opening("Sorry 1", "refusal"),
        opening("Sure 1", "answer"),
        opening("Sure 2", "answer"),
        opening("Sure 3", "answer"),
        opening("Instead 1", "redirect"),
    )
)


def test_prefill_takes_the_kinds_in_turn():
    assert [o.text for o in mixed_openings(PROFILE, 9)] == [
        "Sure 1",
        "Instead 1",
        "Sorry 1",
        "Sure 2",
        "Sure 3",
    ]
    assert [o.text for o in mixed_openings(PROFILE, 2)] == ["Sure 1", "Instead 1"]
    assert mixed_openings(ModelProfile(), 2) == []


def flagged(category):
    return Verdict.scored("gate", 1.0, threshold=0.5, categories={category: 1.0})


def test_prefill_tries_its_openings_in_one_batch_and_declines_where_none_will_do():
    backend = ScriptedBackend(lambda _: ", and so on. And on.")
    begun, declined = rounds(Prefill(PrefillOptions(openings=2, draws=1)), task(backend, PROFILE))
    assert [c.text for c in begun] == [
        "Sure 1, and so on. And on.",
        "Instead 1, and so on. And on.",
    ]
    assert [c.text for c in declined] == ["Sorry 1, and so on."]  # no more than that
    assert vars(backend.calls[0][1]) == vars(replace(BASE, opening="Instead 1", seed=8))
    assert [len(call) for call in backend.calls] == [2, 1]


def test_prefill_draws_an_opening_more_than_once_and_remembers_its_place():
    backend = numbered()
    [found] = rounds(
        Prefill(PrefillOptions(openings=2, draws=2)), task(backend, PROFILE, flag=flagged("policy"))
    )
    assert [c.place for c in found] == [0, 1, 0, 1]
    assert [(r.opening, r.temperature, r.seed) for r in backend.calls[0]] == [
        ("Sure 1", 0.1, 7),
        ("Sure 2", 0.1, 8),
        ("Sure 1", 0.7, 9),
        ("Sure 2", 0.7, 10),
    ]


@pytest.mark.parametrize(
    ("category", "begun"),
    [
        ("harm", [["Instead 1"], ["Sorry 1"]]),
        ("self_harm", [["Instead 1"], ["Sorry 1"]]),
        # the question can be answered, so nothing declines
        ("toxicity", [["Sure 1", "Sure 2", "Sure 3"]]),
        ("policy", [["Sure 1", "Sure 2", "Sure 3"]]),
    ],
)
def test_how_prefill_begins_depends_on_what_the_flag_was_for(category, begun):
    backend = numbered()
    rounds(Prefill(PrefillOptions(draws=1)), task(backend, PROFILE, flag=flagged(category)))
    assert [[r.opening for r in call] for call in backend.calls] == begun
