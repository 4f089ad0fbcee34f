"""Answers to the user's message without spans of its tokens."""

import asyncio

import pytest
import torch

from ttsa_guard.errors import ConfigError
from ttsa_guard.messages import Message, Prompt, Soft, Tokens
from ttsa_guard.profile import ModelProfile, Opening
from ttsa_guard.steerers.occlude import Occlude, OccludeOptions, left_out, spans
from ttsa_guard.testing import ScriptedBackend, scripted_guard

PROFILE = ModelProfile(
    openings=(Opening(text="Instead of", kind="redirect"), Opening(text="Sure,", kind="answer"))
)
BAD, WORDS = 3, 8
MESSAGE = "one two rude four five six seven eight"
LATE, EARLY = "A fine start. Then a bad end.", "A bad thing from the start."


class Reading(ScriptedBackend):
    """Answers badly if the third token of the message is in the prompt and its row is not zero."""

    token_norm = 2.0

    def __init__(self):
        super().__init__(
            lambda request: (
                "a bad thing" if self._reads(request) else f"{len(request.prompt)} tokens read"
            )
        )

    def _reads(self, request):
        if BAD not in request.prompt.ids:
            return False
        return request.soft_embeds is None or bool(
            request.soft_embeds[request.prompt.soft_ids.index(BAD)].any()
        )

    async def embed(self, ids):
        return torch.ones(len(ids), 4)

    async def log_likelihoods(self, prompt, texts):
        return [0.0] * len(texts)


def review(message, answer, *, backend=None, **options):
    backend = backend or Reading()
    guard = scripted_guard(backend, steerers=[Occlude(OccludeOptions(**options))], profile=PROFILE)
    return asyncio.run(guard.review(message, answer)), [r for batch in backend.calls for r in batch]


@pytest.mark.parametrize("blank", [False, True])
def test_what_makes_it_go_wrong_is_hidden(blank):
    outcome, tried = review(MESSAGE, LATE, blank=blank)
    assert outcome.action == "swap"
    passed = [
        BAD not in r.prompt.ids if r.soft_embeds is None else not r.soft_embeds[BAD - 1].any()
        for r in tried
    ]
    assert [c.passed for c in outcome.record.candidates] == passed
    assert True in passed
    assert False in passed
    assert outcome.record.decode_passes == 1


def test_left_out_tokens_are_gone_and_the_rest_is_as_it_was():
    _, tried = review(MESSAGE, LATE)
    whole = tuple(range(1, WORDS + 1))
    assert all(r.soft_embeds is None for r in tried)
    for r in tried:
        soft = r.prompt.soft_ids
        assert 0 < len(soft) < WORDS
        assert set(soft) < set(whole)
        assert r.prompt.ids == (0, *soft, 0)


def test_blanked_tokens_are_zero_and_the_rest_is_as_it_was():
    _, tried = review(MESSAGE, LATE, blank=True)
    for r in tried:
        assert r.prompt.ids == (0, *range(1, WORDS + 1), 0)
        assert {tuple(row) for row in r.soft_embeds.tolist()} == {(0.0,) * 4, (1.0,) * 4}


def test_where_the_answer_was_bad_from_the_start_an_alternative_is_offered_too():
    _, tried = review(MESSAGE, EARLY, candidates=4)
    assert [r.opening for r in tried] == ["", "Instead of"] * 2
    assert tried[0].prompt == tried[1].prompt


def test_it_stays_within_the_budget():
    backend = Reading()
    guard = scripted_guard(
        backend, steerers=[Occlude(OccludeOptions())], profile=PROFILE, budget={"generations": 3}
    )
    assert asyncio.run(guard.review(MESSAGE, LATE)).record.generations == 3


def test_a_message_of_one_token_is_left_to_others():
    outcome, tried = review("rude", LATE)
    assert (outcome.action, tried) == ("fallback", [])


def test_a_span_counts_the_tokens_of_the_message_alone():
    prompt = Prompt((Tokens((7, 8)), Soft((1, 2)), Tokens((9,)), Soft((3, 4)), Tokens((0,))))
    assert left_out(prompt, range(1, 3)) == Prompt(
        (Tokens((7, 8)), Soft((1,)), Tokens((9,)), Soft((4,)), Tokens((0,)))
    )


def test_leaving_out_needs_nothing_of_a_backend_and_blanking_does():
    class Closed(ScriptedBackend):
        """Takes no embeddings."""

    scripted_guard(Closed(["x"]), steerers=[Occlude(OccludeOptions())])
    with pytest.raises(ConfigError, match="TakesEmbeddings"):
        scripted_guard(Closed(["x"]), steerers=[Occlude(OccludeOptions(blank=True))])


def test_the_other_turns_stay():
    class Turns(Reading):
        async def render(self, messages, *, scope="user"):
            *before, last = (len(m.content.split()) for m in messages)
            return Prompt(
                (
                    *(Tokens(tuple(range(100, 100 + n))) for n in before),
                    Soft(tuple(range(1, last + 1))),
                )
            )

    conversation = [
        Message("user", "hello there"),
        Message("assistant", "hi"),
        Message("user", MESSAGE),
    ]
    _, tried = review(conversation, LATE, backend=Turns())
    assert all(r.prompt.ids[:3] == (100, 101, 100) for r in tried)
    assert all(3 < len(r.prompt) < 3 + WORDS for r in tried)


@pytest.mark.parametrize("shares", [(0.01, 0.99), (0.3, 0.85), (0.5, 0.5)])
@pytest.mark.parametrize("n", [1, 2, 8, 24])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 60])
def test_spans_are_distinct_parts_of_the_message(size, n, shares):
    found = spans(size, n, *shares)
    assert len(found) <= n
    assert len(set(found)) == len(found)
    assert all(0 <= s.start < s.stop <= size and 0 < len(s) < size for s in found)
    assert bool(found) == (size > 1)


def test_spans_lie_at_the_start_the_end_and_in_the_middle():
    found = spans(100, 6, 0.2, 0.8)
    assert [(s.start, s.stop) for s in found] == [
        (0, 35),
        (65, 100),
        (32, 67),
        (0, 65),
        (35, 100),
        (18, 83),
    ]
