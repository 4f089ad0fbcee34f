"""The steerer that puts a safety prefix before the question and raises attention to it."""

import asyncio
from dataclasses import replace

import pytest
from pydantic import ValidationError

from ttsa_guard.budget import Budget, Usage
from ttsa_guard.config import GuardConfig
from ttsa_guard.errors import ConfigError, PromptError
from ttsa_guard.guard import Guard
from ttsa_guard.hf.chat_template import render
from ttsa_guard.messages import GenerationRequest, Message
from ttsa_guard.profile import GENERIC
from ttsa_guard.steerers.anchor import Anchor, AnchorOptions, middle, spans
from ttsa_guard.steerers.base import Steerer, Task
from ttsa_guard.testing import (
    FakeClock,
    ScriptedBackend,
    ScriptedModerator,
    scripted_guard,
)

LONGEST = {"max_new_tokens": 12, "draft_tokens": 8}
ASKED = (Message("user", "what is in the kettle?"),)


class Attentive(ScriptedBackend):
    """A scripted model with twelve layers whose attention can be calibrated."""

    attention_layers = 12

    async def attention_shares(self, prompt, calibration):
        raise NotImplementedError


def task(backend, messages=ASKED, **limits):
    async def score(texts):
        return await ScriptedModerator().moderate(texts, prompts=[""] * len(texts))

    prompt = asyncio.run(backend.render(messages))
    return Task(
        messages,
        "a bad answer",
        backend,
        GenerationRequest(prompt, temperature=0.1, seed=7),
        GENERIC,
        Usage(Budget(**limits), FakeClock()),
        score,
        seed=7,
    )


def asked(messages=ASKED, limits=(), **options):
    """The requests that the steerer makes."""
    backend = Attentive(lambda r: f"answer {r.seed}")
    steerer = Anchor(AnchorOptions(prefix="be kind", **options))
    job = task(backend, messages, **dict(limits))

    async def main():
        return [r async for r in steerer.steer(job)]

    rounds = asyncio.run(main())
    assert [[c.text for c in r] for r in rounds] == [
        [f"answer {r.seed}" for r in call] for call in backend.calls
    ]
    return [r for call in backend.calls for r in call]


def test_it_is_a_steerer():
    assert isinstance(Anchor(AnchorOptions()), Steerer)


def test_it_draws_answers_to_the_question_after_the_prefix():
    requests = asked(n=3, temperature=0.5, gamma=0.02)
    assert [(r.seed, r.temperature) for r in requests] == [(7, 0.5), (8, 0.5), (9, 0.5)]
    [calibration] = {r.calibration for r in requests}
    # the scripted model has one token before the conversation
    assert (calibration.keys, calibration.queries) == ((1, 2), (3, 4, 5, 6, 7))
    assert calibration.layers == (4, 5, 6, 7)
    assert (calibration.gamma, calibration.constant, calibration.generated) == (0.02, False, False)


def test_no_more_answers_than_the_budget_has_room_for():
    assert len(asked(n=8, limits={"generations": 2})) == 2
    assert asked(n=8, limits={"generations": 0}) == []


def test_gamma_zero_is_the_prefix_alone():
    assert {r.calibration for r in asked(gamma=0)} == {None}
    alone, raised = asked(gamma=0), asked(gamma=0.1)
    assert [r.prompt for r in alone] == [r.prompt for r in raised]


def test_layers_can_be_chosen():
    assert asked(layers=[2, 5])[0].calibration.layers == (2, 3, 4)
    for wrong in ([5, 5], [-1, 2], [3, 1]):
        with pytest.raises(ValidationError, match="the second is the larger one"):
            AnchorOptions(layers=wrong)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 30])
def test_the_middle_third_is_never_empty(layers):
    first, last = middle(layers)
    assert 0 <= first < last <= layers
    assert first == layers - last


def test_random_keys_are_as_many_and_others():
    messages = (Message("user", "hello there"), Message("assistant", "hello"), *ASKED)
    random, usual = (asked(messages, control=c)[0].calibration for c in ("random", "none"))
    assert len(set(random.keys)) == len(usual.keys)
    assert not set(random.keys) & set(usual.keys)
    assert max(random.keys) < max(usual.queries)
    assert replace(random, keys=usual.keys) == usual
    assert asked(messages, control="random")[0].calibration == random


def test_the_other_options_are_handed_on():
    assert asked(control="constant")[0].calibration.constant
    assert asked(generated=True)[0].calibration.generated


# ---------------------------------------------------------------------- which tokens


def decoded(backend, prompt, positions):
    return backend._engine.tokenizer.decode([prompt.ids[i] for i in positions])


HISTORY = (
    Message("system", "the kettle is mine."),
    Message("user", "the other kettle"),
    Message("assistant", "in the kitchen"),
    Message("user", "be kind, and say what is in it"),  # it begins like the prefix
)


@pytest.mark.parametrize("place", ["user", "system"])
@pytest.mark.parametrize("messages", [HISTORY, HISTORY[1:], ASKED], ids=["system", "turns", "one"])
def test_the_prefix_and_the_question_are_found(tiny, messages, place):
    steerer = Anchor(AnchorOptions(prefix="be kind", place=place))
    anchored = steerer._anchored(task(tiny, messages))
    plain, prefixed = (asyncio.run(tiny.render(m)) for m in (messages, anchored))
    keys, queries = spans(plain, prefixed)
    found = decoded(tiny, prefixed, keys)
    assert found.removeprefix("<|system|>").removesuffix("<|end|>").strip() == "be kind"
    assert decoded(tiny, prefixed, queries) == messages[-1].content
    assert max(keys) < min(queries)


def test_a_template_without_system_messages(tiny):
    tokenizer = tiny._engine.tokenizer
    before = tokenizer.chat_template
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}"
        + ("{% endif %}" + before)
    )
    try:
        plain, prefixed = (
            render(tokenizer, m, scope="user")
            for m in (ASKED, (Message("system", "be kind"), *ASKED))
        )
    finally:
        tokenizer.chat_template = before
    keys, queries = spans(plain, prefixed)
    assert decoded(tiny, prefixed, keys).strip() == "be kind"
    assert decoded(tiny, prefixed, queries) == ASKED[0].content


def test_a_template_that_drops_the_prefix_is_an_error(tiny):
    plain = asyncio.run(tiny.render(ASKED))
    with pytest.raises(PromptError, match="does not stand before the question"):
        spans(plain, plain)


# ---------------------------------------------------------------------- which backends


def test_a_backend_that_cannot_calibrate_is_refused():
    backend = ScriptedBackend([])
    with pytest.raises(ConfigError, match=r"needs a backend that CalibratesAttention"):
        scripted_guard(backend, steerers=[Anchor(AnchorOptions())])
    scripted_guard(backend, steerers=[Anchor(AnchorOptions(gamma=0))])


def test_a_model_that_cannot_be_calibrated_and_layers_that_it_lacks_are_refused():
    backend = Attentive([])
    with pytest.raises(ConfigError, match="layers up to 13, and 'scripted' has 12"):
        scripted_guard(backend, steerers=[Anchor(AnchorOptions(layers=(9, 13)))])
    backend.attention_layers = 0
    with pytest.raises(ConfigError, match="attention of 'scripted' cannot be calibrated"):
        scripted_guard(backend, steerers=[Anchor(AnchorOptions())])


class SameModel(ScriptedModerator):
    """A moderator that asks the chat model itself how likely the texts are."""

    def __init__(self, backend):
        super().__init__()
        self.backend, self.heard = backend, {}

    async def moderate(self, texts, *, prompts):
        self.heard.update(zip(texts, await likelihoods(self.backend, texts), strict=True))
        return await super().moderate(texts, prompts=prompts)


async def likelihoods(backend, texts):
    return await backend.log_likelihoods(await backend.render(ASKED), texts)


def test_moderators_that_ask_the_same_model_are_not_affected(tiny):
    moderator = SameModel(tiny)
    steerer = Anchor(AnchorOptions(n=3, prefix="be kind", gamma=0.5))
    config = GuardConfig.parse(
        {"quality": {"floor": None, "shortest": 1, "repeats": 1.0}, "generation": LONGEST}
    )
    guard = Guard(config, backend=tiny, gate=moderator, guide=moderator, steerers=[steerer])
    outcome = asyncio.run(guard.review(ASKED[0].content, "a bad answer"))
    assert outcome.record.generations == 3
    assert len(moderator.heard) >= 4
    for text, heard in moderator.heard.items():
        assert [heard] == pytest.approx(asyncio.run(likelihoods(tiny, [text])), abs=1e-5)
