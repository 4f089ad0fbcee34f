"""Tell everyday questions from requests that may be unsafe."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache

from ttsa_guard.moderators import minilm
from ttsa_guard.moderators.base import Moderator, moderate_safely

log = logging.getLogger(__name__)
EVERYDAY = 0.003
"""The score of the moderator `encoder` below which a question is an everyday one.

It judges the question as if it were an answer. Below are 83 % of the harmless questions of the real
benchmark and 36 % of XSTest's, which sound unsafe; and none of AdvBench's requests, 10 % of
StrongREJECT's, 9 % of HarmBench's and 14 % of XSTest's unsafe ones (development halves, and all of
XSTest).
"""


async def is_everyday(question: str) -> bool:
    """Return whether a question is so harmless that a flag for harm tells nothing about it.

    It is False where ``ttsa-guard[encoder]`` is not installed, and where the encoder fails.
    """
    if not minilm.installed():
        return False
    try:
        encoder = await asyncio.to_thread(_encoder)
    except Exception as error:
        log.warning("the encoder cannot be loaded: %s", type(error).__name__)
        return False
    [verdict] = await moderate_safely(encoder, [question], prompts=[""])
    return verdict.score < EVERYDAY


@lru_cache(maxsize=1)
def _encoder() -> Moderator:
    from ttsa_guard.moderators.encoder import Encoder

    return Encoder()
