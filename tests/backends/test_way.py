"""The way of a candidate from the guard to the attention stays short."""

import asyncio
import inspect
import traceback
from pathlib import Path

from transformers import AttentionInterface

import ttsa_guard
from ttsa_guard import Guard, GuardConfig
from ttsa_guard.backends.local import attention
from ttsa_guard.backends.local.batching import Batcher

OURS = str(Path(ttsa_guard.__file__).parent)


def test_a_candidate_takes_at_most_fifteen_of_our_functions(monkeypatch):
    above, below = [], []
    attend, ask, review = attention._attention, Batcher.__call__, Guard.review

    def seen(*args, **options):
        below.append([frame.name for frame in traceback.extract_stack() if OURS in frame.filename])
        return attend(*args, **options)

    async def asked(self, items):
        above.append([frame.function for frame in inspect.stack() if OURS in frame.filename])
        return await ask(self, items)

    monkeypatch.setattr(Batcher, "__call__", asked)
    AttentionInterface.register(attention.NAME, seen)
    try:
        guard = Guard.from_config(GuardConfig.parse({"gate": "lite", "steerers": ["resample"]}))
        outcome = asyncio.run(
            review(
                guard,
                "How do I draw an owl?",
                "Listen, you lazy fool, even a child can draw the owl.",
            )
        )
    finally:
        AttentionInterface.register(attention.NAME, attend)
    assert outcome.record.candidates
    # without the trial of the loop
    decoding = [way for way in below if "step" in way and "choose" not in way]
    # The cascade is a task of its own: `review`, `Search.run` and `within` wait for it. The spies
    # stand for two more.
    whole = 3 + 2 + max(len(way) for way in above if "propose" in way) + max(map(len, decoding))
    assert whole <= 15, (above, decoding)
