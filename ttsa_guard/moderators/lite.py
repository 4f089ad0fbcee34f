"""The lite moderator: hashed n-grams and three logistic heads, shipped in the wheel, NumPy only.

It judges answers, not prompts. How it was trained and what it is worth:
``ttsa_guard/embedded/LITE_CARD.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ttsa_guard.errors import ModelError
from ttsa_guard.moderators.features import BUCKETS, featurise
from ttsa_guard.moderators.obscured import told, worst_scores
from ttsa_guard.moderators.operating_points import Threshold, cutoff
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.verdict import Verdict

HEADS = ("harm", "toxicity", "refusal")
PART_MARGIN = 2.5
"""How much higher, in logits, the score of a sentence must be than that of a whole text to count as
much: a text of many sentences has many chances to hit a false alarm."""
_BATCH = 256
_AT_ONCE = 5_000
"""Characters up to which reading and scoring take about a millisecond, which is not worth a thread.
"""


class LiteOptions(Settings):
    """Settings of the lite moderator."""

    threshold: Threshold = Field(
        0.5, description="from this score on an answer is flagged; or {false_alarms: 0.01}"
    )


class Lite:
    """Flags an answer whose worst part, or which as a whole, looks harmful or abusive.

    The score is the larger of `harm` and `toxicity`, each of which is the worst over the text and
    its sentences. `refusal`, which judges the text as a whole, is reported beside them and is no
    part of the score. A text in disguise is judged as it reads, too; `obscured` tells how much of
    it nobody could read (`moderators.obscured`).
    """

    name = "lite"

    def __init__(self, options: LiteOptions | None = None) -> None:
        """Read the weights that ship with the package (once for each process).

        Raises:
            ModelError: the weights are missing or do not fit this version.
        """
        self.options = options or LiteOptions()
        self.threshold = cutoff(self.name, self.options.threshold)
        self._weights, self._bias, self._temperature = _parameters()

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return scores in [0, 1] of the worst reading, [texts, 3], columns in the order of
        `HEADS`.
        """
        return self._read(texts)[0]

    def _read(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], list[float]]:
        return worst_scores(
            texts, lambda some, _: self.literal_scores(some), literal=HEADS.index("refusal")
        )

    def literal_scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the same of the texts as they are written."""
        rows = [self._scores(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
        return np.concatenate(rows) if rows else np.zeros((0, len(HEADS)))

    def _scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return probabilities(pooled_logits(texts, self._weights, self._bias), self._temperature)

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Return one verdict for each text; `prompts` are not looked at."""
        del prompts
        short = sum(map(len, texts)) <= _AT_ONCE
        scores, obscured = (
            self._read(texts) if short else await asyncio.to_thread(self._read, texts)
        )
        return [
            self._verdict(row, told(share))
            for row, share in zip(scores.tolist(), obscured, strict=True)
        ]

    def _verdict(self, row: list[float], more: dict[str, float]) -> Verdict:
        categories = dict(zip(HEADS, row, strict=True)) | more
        worst = max(categories["harm"], categories["toxicity"])
        return Verdict.scored(self.name, worst, threshold=self.threshold, categories=categories)


def pooled_logits(
    texts: Sequence[str], weights: NDArray[Any], bias: NDArray[Any]
) -> NDArray[np.float64]:
    """Return the logits of non-empty `texts`, [texts, 3]: the worst window for harm and toxicity,
    the whole text for refusal.
    """
    features = featurise(texts)
    windows = features.project(weights) + bias
    whole = windows[features.whole]
    logits: NDArray[np.float64] = np.maximum(features.worst(windows) - PART_MARGIN, whole)
    logits[:, HEADS.index("refusal")] = whole[:, HEADS.index("refusal")]
    return logits


def probabilities(logits: NDArray[np.float64], temperature: NDArray[Any]) -> NDArray[np.float64]:
    """Return temperature-scaled probabilities of logits [n, 3]."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits / temperature, -40.0, 40.0))))


@lru_cache(maxsize=1)
def _parameters() -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    path = resources.files("ttsa_guard.embedded") / "lite.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            weights, bias, temperature = (stored[key] for key in ("weights", "bias", "temperature"))
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(
            f"cannot read the lite moderator's weights: {error}", hint="reinstall ttsa-guard"
        ) from error
    if weights.shape != (BUCKETS, len(HEADS)):
        found = f"the lite moderator's weights have shape {weights.shape}"
        raise ModelError(found, hint="reinstall ttsa-guard")
    return weights.astype(np.float32), bias.astype(np.float64), temperature.astype(np.float64)


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: lite``."""
    register("lite", Lite, options=LiteOptions)
