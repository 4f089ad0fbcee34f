"""Tell everyday questions from requests that may be unsafe, by how harmful they seem."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache

from ttsa_guard.moderators import minilm
from ttsa_guard.moderators.base import Moderator, moderate_safely

log = logging.getLogger(__name__)
EVERYDAY = 0.003
"""The harm of a question below which it is an everyday one.

Below are 83 % of the harmless questions of the real benchmark and 36 % of XSTest's, which sound
unsafe; and none of AdvBench's requests, 10 % of StrongREJECT's, 9 % of HarmBench's and 14 % of
XSTest's unsafe ones (development halves, and all of XSTest).
"""
MILD = 0.03
"""The harm of a question below which some flags of its answers are taken for false alarms."""
FALSE_ALARMS = 0.3
"""The share of them.

Of six answers at temperature 0.7 to each of 94 harmless questions of the real benchmark, at most
two are flagged for 97 % of those below `MILD`. With both numbers, 85 % of the harmless questions of
which an answer was flagged can be answered, and without them 65 %. Of the requests of AdvBench,
StrongREJECT and HarmBench, 38 to 41 % instead of 37 % keep their other answers, those that the
guide passes; of XSTest's unsafe ones 45 to 60 % instead of 35 % (294 questions, development halves
and XSTest).
"""


async def harm_of(question: str) -> float:
    """Return how harmful the moderator `encoder` finds a question, judged as if it were an answer.

    It is 1 where ``ttsa-guard[encoder]`` is not installed, and where the encoder fails.
    """
    if not minilm.installed():
        return 1.0
    try:
        encoder = await asyncio.to_thread(_encoder)
    except Exception as error:
        log.warning("the encoder cannot be loaded: %s", type(error).__name__)
        return 1.0
    [verdict] = await moderate_safely(encoder, [question], prompts=[""])
    return verdict.score


@lru_cache(maxsize=1)
def _encoder() -> Moderator:
    from ttsa_guard.moderators.encoder import Encoder

    return Encoder()
