"""Drafts that become whole answers."""

import asyncio

import pytest

from ttsa_guard.messages import Generation
from ttsa_guard.steerers.baselines.resample import Resample, ResampleOptions
from ttsa_guard.testing import FakeClock, ScriptedBackend, scripted_guard

BAD = "a bad answer"


class Growing(ScriptedBackend):
    """Says its texts word by word: a request gets as many more words as it may have tokens. Which
    text, the seed says."""

    def __init__(self, *texts):
        super().__init__(lambda _: "")
        self.texts = [text.split(" ") for text in texts]
        self.first = None

    async def generate(self, requests):
        self.calls.append(list(requests))
        self.first = requests[0].seed if self.first is None else self.first
        return [self.grown(request) for request in requests]

    def grown(self, request):
        words = self.texts[request.seed - self.first]
        told = len(request.opening.split(" ")) if request.opening else 0
        kept = words[: told + request.max_new_tokens]
        return Generation(" ".join(kept), len(kept) - told, finished=len(kept) == len(words))


def review(*texts, clock=None, drafts=4, most=1000, steered=True, **settings):
    backend = Growing(*texts)
    steerers = [Resample(ResampleOptions(n=len(texts), batch=len(texts)))] if steered else []
    generation = {"draft_tokens": drafts, "max_new_tokens": most}
    more = {"clock": clock} if clock else {}
    guard = scripted_guard(backend, steerers=steerers, generation=generation, **more, **settings)
    return asyncio.run(guard.review("hello", BAD)), backend


def sentences(n):
    """Of five words each."""
    return " ".join(f"Say{i} what{i} you{i} like{i} here{i}." for i in range(n))


def test_whole_answers_are_compared_and_not_their_drafts():
    class Fading(Growing):
        async def log_likelihoods(self, prompt, texts):
            return [-0.5 * len(t.split()) if "fades" in t else -3.0 for t in texts]

    fading, steady = "It fades away soon, and says nothing.", "It stays what it is to the end."
    backend = Fading(fading, steady)
    guard = scripted_guard(
        backend,
        steerers=[Resample(ResampleOptions(n=2))],
        generation={"draft_tokens": 4, "max_new_tokens": 100},
    )
    assert asyncio.run(guard.review("hello", BAD)).text == steady


def test_a_draft_is_searched_and_its_answer_goes_on_to_the_end():
    whole = sentences(40)
    outcome, backend = review(whole)
    assert (outcome.action, outcome.text) == ("swap", whole)
    assert [call[0].max_new_tokens for call in backend.calls] == [4, 64, 64, 64, 64][
        : len(backend.calls)
    ]
    # it is the same answer
    assert (outcome.record.generations, outcome.record.decode_passes) == (1, 1)
    assert outcome.record.tokens == len(whole.split())


def test_the_limit_ends_it_with_a_whole_sentence():
    outcome, _ = review(sentences(40), most=33)
    assert outcome.action == "swap"
    assert outcome.text == sentences(6)


def test_one_that_goes_wrong_gives_way_to_the_next():
    outcome, _ = review(
        f"This is a fine start. {sentences(20)} Then comes a bad end.",
        f"Another fine start it is. {sentences(3)}",
    )
    assert outcome.text.startswith("Another fine start")
    assert [c.passed for c in outcome.record.candidates] == [False, True]


def test_when_all_go_wrong_the_fallback_is_given():
    outcome, _ = review("This is a fine start. But then a bad end.")
    assert (outcome.action, outcome.record.reason) == ("fallback", "no good candidate")


def test_what_goes_round_in_circles_ends_before_it_does():
    outcome, _ = review(
        "Here is the first thing. And one more for you. Here is the first thing. And so on and on"
        " and on."
    )
    assert outcome.text == "Here is the first thing. And one more for you."


def test_numbers_of_a_list_do_not_make_a_sentence_new():
    outcome, _ = review(
        "Do it with care then.\n1. Take a cup.\n2. Wash a cup.\n3. Take a cup.\n4. Wash a cup."
        " More."
    )
    assert outcome.text == "Do it with care then.\n1. Take a cup.\n2. Wash a cup."


def test_no_time_for_the_rest_ends_it_with_its_last_whole_sentence():
    clock = FakeClock()

    class Slow(Growing):
        async def generate(self, requests):
            clock.advance(4)
            return await super().generate(requests)

    backend = Slow(sentences(200))
    steerers = [Resample(ResampleOptions(n=1))]
    guard = scripted_guard(
        backend,
        steerers=steerers,
        clock=clock,
        budget={"seconds": 10},
        generation={"draft_tokens": 4},
    )
    outcome = asyncio.run(guard.review("hello", BAD))
    assert outcome.action == "swap"
    # 4 tokens, then a piece of 64; another one would come too late
    assert outcome.text == sentences(13)
    assert len(backend.calls) == 2


def test_what_the_deadline_interrupts_ends_with_its_last_whole_sentence():
    class Hanging(Growing):
        async def generate(self, requests):
            if self.calls:
                await asyncio.sleep(60)
            return await super().generate(requests)

    steerers = [Resample(ResampleOptions(n=1))]
    guard = scripted_guard(
        Hanging(sentences(9)),
        steerers=steerers,
        budget={"seconds": 0.3},
        generation={"draft_tokens": 12},
    )
    outcome = asyncio.run(guard.review("hello", BAD))
    assert (outcome.action, outcome.text, outcome.record.reason) == (
        "swap",
        sentences(2),
        "budget used up",
    )


def test_tokens_are_a_budget_of_their_own():
    outcome, backend = review(sentences(40), budget={"tokens": 36})
    assert [call[0].max_new_tokens for call in backend.calls] == [4, 32]
    assert (outcome.record.tokens, outcome.text) == (36, sentences(7))
    outcome, backend = review(sentences(40), budget={"tokens": 0})
    assert (outcome.action, outcome.record.reason, backend.calls) == (
        "fallback",
        "budget used up",
        [],
    )


def test_an_answer_that_ends_in_its_draft_is_not_continued():
    outcome, backend = review("All in four words.")
    assert outcome.text == "All in four words."
    assert len(backend.calls) == 1


@pytest.mark.parametrize("broken", [RuntimeError, asyncio.CancelledError])
def test_a_backend_that_breaks_in_the_middle_lets_nothing_half_checked_out(broken):
    class Breaking(Growing):
        async def generate(self, requests):
            if self.calls:
                raise broken
            return await super().generate(requests)

    steerers = [Resample(ResampleOptions(n=1))]
    guard = scripted_guard(
        Breaking(sentences(40)), steerers=steerers, generation={"draft_tokens": 4}
    )
    outcome = asyncio.run(guard.review("hello", BAD))
    assert outcome.action == "fallback"


def test_the_whole_answer_is_what_the_gate_checks():
    outcome, backend = review(sentences(30))
    assert outcome.record.final_score == 0.0
    assert backend.calls[1][0].opening == "Say0 what0 you0 like0"
