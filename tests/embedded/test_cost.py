"""What a swap costs on the embedded model. Run with -s to read the figures; times are compared
within one run."""

import asyncio
import gc
import time
from statistics import median

import pytest

from research.embedded.evaluate import answers, flags, messages
from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.config import GuardConfig
from ttsa_guard.embedded.world import World
from ttsa_guard.guard import Guard
from ttsa_guard.messages import GenerationRequest
from ttsa_guard.moderators.lite import Lite

pytestmark = [pytest.mark.slow, pytest.mark.timing]
PUBLISHED = {"steerers": [{"use": "tsa"}], "quality": {"floor": None}}


@pytest.fixture(scope="module")
def backend():
    return TransformersBackend(TransformersOptions(device="cpu", batch_size=128))


@pytest.fixture(scope="module")
def flagged(backend):
    """16 conversations with their flagged answers, both kinds of failure."""
    world, found = World.load(), []
    for request, wrapper in (("unsafe", "content"), ("benign", "tone")):
        cases = world.cases(request, wrapper, 20, seed=11)
        texts = asyncio.run(answers(backend, cases, temperature=0.1))
        hits = asyncio.run(flags(Lite(), cases, texts))
        found += [(messages(c), t) for c, t, hit in zip(cases, texts, hits, strict=True) if hit][:8]
    return found


def guard(backend, settings):
    return Guard.from_config(
        GuardConfig.parse({**settings, "budget": {"seconds": 300}}), backend=backend
    )


async def timed(work):
    gc.collect()  # or it falls into one of the times that are compared
    started = time.perf_counter()
    result = await work
    return result, time.perf_counter() - started


async def plain_seconds_a_token(backend, conversation):
    request = GenerationRequest(await backend.render(conversation), max_new_tokens=96)
    [answer], seconds = await timed(backend.generate([request]))
    return seconds / answer.tokens


def test_a_swap_costs_little_more_than_an_answer_of_its_length(backend, flagged):
    tokenizer = backend._loaded.engine.tokenizer
    arms = {"ours": guard(backend, {}), "tsa": guard(backend, PUBLISHED)}
    seconds, lengths, passes = {name: [] for name in arms}, {name: [] for name in arms}, []
    for conversation, answer in flagged[::2]:
        plain = asyncio.run(plain_seconds_a_token(backend, conversation))
        for name, arm in arms.items():
            outcome, taken = asyncio.run(timed(arm.review(conversation, answer)))
            seconds[name].append(taken)
            lengths[name].append(taken / plain / len(tokenizer.encode(outcome.text)))
            passes += [outcome.record.decode_passes] if name == "ours" else []
    ratios = {name: median(values) for name, values in lengths.items()}
    print(
        f"\na swap takes {ratios['ours']:.2f} plain answers of its length, with tsa"
        f" {ratios['tsa']:.2f}"
    )
    usual, total = (how(seconds["tsa"]) / how(seconds["ours"]) for how in (median, sum))
    print(
        f"a conversation takes {usual:.1f} times as long with tsa, all of them together {total:.1f}"
        " times"
    )
    assert median(passes) <= 1.3
    assert ratios["tsa"] > 2 * ratios["ours"]


def test_conversations_at_once_are_mended_as_alone_and_faster(backend, flagged):
    ours = guard(backend, {})

    async def one_by_one():
        return [await ours.review(conversation, answer) for conversation, answer in flagged]

    async def at_once():
        return await asyncio.gather(
            *(ours.review(conversation, answer) for conversation, answer in flagged)
        )

    alone, slow = asyncio.run(timed(one_by_one()))
    together, fast = asyncio.run(timed(at_once()))
    assert [o.text for o in together] == [o.text for o in alone]
    print(
        f"\n{len(flagged)} conversations at once are mended {slow / fast:.1f} times faster than"
        " one after the other"
    )
    assert slow / fast > 2
