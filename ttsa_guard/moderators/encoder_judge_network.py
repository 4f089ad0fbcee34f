"""The scores of the moderator `encoder_judge`: three heads over embeddings of MiniLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from ttsa_guard.errors import ModelError
from ttsa_guard.moderators.categories import HEADS
from ttsa_guard.moderators.minilm import embed

Floats = NDArray[np.float32]
_WINDOW = 96
"""Words of a text that are encoded together. The longest sequence of the encoder is 256 tokens."""


@dataclass(frozen=True)
class EncoderJudgeNetwork:
    """The weights of the heads.

    Args:
        weights: [1152, 3], in the order of `HEADS`.
        bias: [3].
    """

    weights: Floats
    bias: Floats

    def scores(self, texts: Sequence[str], prompts: Sequence[str]) -> Floats:
        """Return scores in [0, 1], [texts, 3], with columns in the order of `HEADS`.

        A score is that of the worst window; for refusal, that of the first one.
        """
        owners, windows = [], []
        for i, text in enumerate(texts):
            for window in windowed(text):
                owners.append(i)
                windows.append(window)
        found = np.zeros((len(texts), len(HEADS)), np.float32)
        if not windows:
            return found
        logits = features(embed(windows), embed(prompts)[owners]) @ self.weights + self.bias
        chances = 1 / (1 + np.exp(-logits))
        first = [owners.index(i) for i in range(len(texts))]
        np.maximum.at(found, owners, chances)
        found[:, HEADS.index("refusal")] = chances[first, HEADS.index("refusal")]
        return found


def windowed(text: str) -> list[str]:
    """Return `text` in overlapping windows of words, at least one."""
    words = text.split()
    starts = range(0, max(1, len(words) - _WINDOW // 2), _WINDOW // 2)
    return (
        [" ".join(words[start : start + _WINDOW]) for start in starts]
        if len(words) > _WINDOW
        else [text]
    )


def features(answers: Floats, prompts: Floats) -> Floats:
    """Return the input of the heads, [n, 1152].

    Args:
        answers: embeddings of answers, [n, 384].
        prompts: embeddings of the prompts that they belong to, [n, 384].
    """
    return np.concatenate([answers, prompts, answers * prompts * 20], axis=1)


@lru_cache(maxsize=1)
def shipped() -> EncoderJudgeNetwork:
    """Return the heads in the package, which are read once in each process.

    Raises:
        ModelError: they are missing or damaged.
    """
    path = resources.files("ttsa_guard.embedded") / "encoder_judge.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return EncoderJudgeNetwork(
                stored["weights"].astype(np.float32), stored["bias"].astype(np.float32)
            )
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(
            f"cannot read the heads of the judge: {error}", hint="reinstall ttsa-guard"
        ) from error
