"""Tell everyday questions from requests that may be unsafe, by how harmful they seem."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

from ttsa_guard.moderators import minilm
from ttsa_guard.text import split_sentences

if TYPE_CHECKING:
    from ttsa_guard.moderators.minilm import Floats

log = logging.getLogger(__name__)
EVERYDAY = 0.05
"""The harm below which a question is an everyday one.

Below are 3 % of the requests for harm that it was chosen by. `embedded/MODERATORS_CARD.md` has what
it gives on others.
"""
LONGEST = 600
"""Characters that are read at once."""
_MOST = 6000
"""Characters of the longest text that is read."""


async def harm_of(texts: Sequence[str]) -> float:
    """Return how much the worst of some texts of a user reads like a request for harm, 0 to 1.

    It is a logistic regression over the embeddings of MiniLM. A disguised text is read as it is
    written and as it reads, and one of more than 600 characters sentence by sentence, because harm
    would be lost among so much else. The harm is 1 where nothing is known: where
    ``ttsa-guard[encoder]`` is not installed or fails, for a text that is empty or longer than 6,000
    characters, and for one in another language than English, of which the regression has learned
    nothing.
    """
    if not minilm.installed() or not all(can_be_read(text) for text in texts):
        return 1.0
    try:
        return await asyncio.to_thread(_harm, texts)
    except Exception as error:
        log.warning("the sentence encoder cannot be used: %s", type(error).__name__)
        return 1.0


def can_be_read(text: str) -> bool:
    """Return whether a text is of the kind that was learned from: English, and not very long."""
    from ttsa_guard.moderators.patterns import language

    if not text.strip() or len(text) > _MOST:
        return False
    return language(text) in ("en", None)


def _harm(texts: Sequence[str]) -> float:
    import numpy as np

    from ttsa_guard.moderators.obscured import read

    weights, bias = _regression()
    pieces = {
        piece
        for text in texts
        for reading in (text, read(text).plain)
        for piece in _pieces(reading)
    }
    logits = minilm.embed(sorted(pieces)) @ weights + bias
    return float(1 / (1 + np.exp(-logits.max())))


def _pieces(text: str) -> Iterator[str]:
    if len(text) <= LONGEST:
        yield text
        return
    for sentence in split_sentences(text):
        yield from (sentence[i : i + LONGEST] for i in range(0, len(sentence), LONGEST))


@lru_cache(maxsize=1)
def _regression() -> tuple[Floats, float]:
    """Read the weights of the regression, [384], and its bias."""
    import numpy as np

    file = resources.files("ttsa_guard.embedded") / "requests.npz"
    with file.open("rb") as opened, np.load(opened) as held:
        return held["weights"].astype(np.float32), float(held["bias"])
