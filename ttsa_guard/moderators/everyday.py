"""Tell everyday questions from requests that may be unsafe, by how harmful they seem."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

from ttsa_guard.moderators import minilm
from ttsa_guard.moderators.obscured import read
from ttsa_guard.moderators.patterns import language

if TYPE_CHECKING:
    from ttsa_guard.moderators.minilm import Floats

log = logging.getLogger(__name__)
EVERYDAY = 0.05
"""The harm below which a question is an everyday one."""
LONGEST = 600
"""Characters of a text that are read."""


async def harm_of(texts: Sequence[str]) -> float:
    """Return how much the worst of some texts of a user reads like a request for harm, 0 to 1.

    It is a logistic regression over the embeddings of MiniLM. A disguised text is read as it is
    written and as it reads. The harm is 1 where nothing is known: where ``ttsa-guard[encoder]`` is
    not installed or fails, for an empty text, and for one in another language than English, of
    which the regression has learned nothing.
    """
    if not minilm.installed() or not all(text.strip() for text in texts):
        return 1.0
    if any(language(text) not in ("en", None) for text in texts):
        return 1.0
    try:
        return await asyncio.to_thread(_harm, texts)
    except Exception as error:
        log.warning("the sentence encoder cannot be used: %s", type(error).__name__)
        return 1.0


def _harm(texts: Sequence[str]) -> float:
    import numpy as np

    weights, bias = _regression()
    readings = {text[:LONGEST] for written in texts for text in (written, read(written).plain)}
    logits = minilm.embed(sorted(readings)) @ weights + bias
    return float(1 / (1 + np.exp(-logits.max())))


@lru_cache(maxsize=1)
def _regression() -> tuple[Floats, float]:
    """Read the weights of the regression, [384], and its bias."""
    import numpy as np

    file = resources.files("ttsa_guard.embedded") / "requests.npz"
    with file.open("rb") as opened, np.load(opened) as held:
        return held["weights"].astype(np.float32), float(held["bias"])
