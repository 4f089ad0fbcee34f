"""Tell everyday questions from requests for harm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

from ttsa_guard.languages import may_be_english
from ttsa_guard.moderators import minilm
from ttsa_guard.request import sentences_and_lines
from ttsa_guard.text import split_sentences

if TYPE_CHECKING:
    from ttsa_guard.moderators.minilm import Floats

EVERYDAY = 0.05
"""The harm below which a question is an everyday one.

`embedded/MODERATORS_CARD.md` says how it was chosen and what it gives.
"""
UNSAFE = 0.2
"""The harm from which on a request counts as one for harm, whatever its answer was flagged for.

Of flagged answers, 2 of 155 under personas and policies are to such a request, and 81 of 95 to
people who tried to make an assistant do harm.
"""
BESIDE = 0.5
"""The harm of a whole message from which on its question is no everyday one, whatever that asks.

Personas and other instructions about tone read like harm, too, but less.
"""
LONGEST = 600
"""Characters that are read at once."""
_MOST = 6000
"""Characters of the longest text that is read."""


@dataclass(frozen=True)
class Harm:
    """Say how much a text of a user reads like a request for harm, from 0 to 1."""

    value: float
    text: str


async def harm_of(texts: Sequence[str], *, turns: bool = False) -> Harm | None:
    """Return the harm of the worst of some texts of a user.

    It is what a small network over the embeddings of MiniLM gives that has learned from requests
    for harm as they were written for data sets, and from messages that only sound unsafe. With
    `turns`, for what was said in more than one turn, it is the larger of that and what a logistic
    regression gives that has learned from conversations with people who tried to make an assistant
    do harm: a turn says less than a request that stands alone. Questions about self-harm are
    worded like everyday ones, so a network for them counts in any case. A disguised text is read as
    it is written and as it reads, and one of more than 600 characters sentence by sentence, because
    harm would be lost among so much else.

    Returns:
        None if nothing is known: if ``ttsa-guard[encoder]`` is not installed or fails, or if a text
        is empty, longer than 6,000 characters or in another language than English, of which
        neither has learned anything.
    """
    if not minilm.installed() or not all(can_be_read(text) for text in texts):
        return None
    return await minilm.attempted(_worst, texts, turns)


def can_be_read(text: str) -> bool:
    """Return whether a text is of the kind that was learned from: English, and not very long.

    A single sentence in another language may be the one that asks for harm.
    """
    if not text.strip() or len(text) > _MOST:
        return False
    return all(may_be_english(sentence) for sentence in sentences_and_lines(text))


def _worst(texts: Sequence[str], turns: bool) -> Harm:
    import numpy as np

    from ttsa_guard.moderators.obscured import read

    weights = _weights()
    pieces = [
        (piece, text)
        for text in dict.fromkeys(texts)
        for reading in dict.fromkeys((text, read(text).plain))
        for piece in _pieces(reading)
    ]
    found = logits(minilm.embed([piece for piece, _ in pieces]), weights, turns=turns)
    worst = int(found.argmax())
    return Harm(float(1 / (1 + np.exp(-found[worst]))), pieces[worst][1])


def logits(rows: Floats, weights: Mapping[str, Floats], *, turns: bool) -> Floats:
    """Return the harm of embeddings, [n, 384], as logits, [n].

    Args:
        weights: of a network with one layer of hidden units, of another one for self-harm, whose
            names begin with "self_harm_", and of the regression `said`. The largest logit counts.
        turns: whether the regression counts.
    """
    import numpy as np

    found = network_logits(rows, weights)
    if turns:
        np.maximum(found, rows @ weights["said"] + weights["said_bias"], out=found)
    return np.maximum(found, network_logits(rows, weights, "self_harm_"), out=found)


def network_logits(rows: Floats, weights: Mapping[str, Floats], prefix: str = "") -> Floats:
    """Return what one network gives, [n], as `logits` does.

    Args:
        weights: `hidden`, [units, 384], `hidden_bias` and `out`, [units], and `out_bias`, [1].
        prefix: what their names begin with.
    """
    import numpy as np

    hidden = np.maximum(rows @ weights[f"{prefix}hidden"].T + weights[f"{prefix}hidden_bias"], 0)
    found: Floats = hidden @ weights[f"{prefix}out"] + weights[f"{prefix}out_bias"]
    return found


def _pieces(text: str) -> Iterator[str]:
    if len(text) <= LONGEST:
        yield text
        return
    for sentence in split_sentences(text):
        yield from (sentence[i : i + LONGEST] for i in range(0, len(sentence), LONGEST))


@lru_cache(maxsize=1)
def _weights() -> dict[str, Floats]:
    import numpy as np

    file = resources.files("ttsa_guard.embedded") / "requests.npz"
    with file.open("rb") as opened, np.load(opened) as held:
        return {name: held[name].astype(np.float32) for name in held.files}
