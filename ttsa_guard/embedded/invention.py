"""Made-up objects: a model that meets them has to copy what the user asks about, for it cannot
remember it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_ONSETS = "b ch d f g h j k l m n p qu r s t v w y z br cl st tr".split()
_SYLLABLES = tuple(
    onset + vowel + coda for onset in _ONSETS for vowel in "aeiou" for coda in ["", *"lnrstme"]
)


def invented_object(rng: random.Random, known: Sequence[str]) -> str:
    """Invent an object of one or two words.

    They are `known` words in a new pair, halves of two of them, or syllables.
    """
    words = []
    for _ in range(rng.choice((1, 1, 2))):
        form = rng.random()
        first, second = rng.choice(known), rng.choice(known)
        if form < 0.2:
            words.append(first)
        elif form < 0.7:
            words.append(first[: rng.randint(2, 5)] + second[-rng.randint(2, 5) :])
        else:
            words.append("".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 3))))
    return " ".join(words)
