"""The lite moderator: hashed n-grams and three logistic heads, shipped in the wheel, NumPy only.

It judges answers, and more strictly those that comply with a prompt that asks for harm. How it was
trained and what it is worth: ``ttsa_guard/embedded/LITE_CARD.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
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
PROMPT_BUCKETS = 1 << 14
"""Weights of `PromptHead`: each stands for `BUCKETS` // `PROMPT_BUCKETS` buckets in a row."""
LONGEST_PROMPT = 600
"""Characters of a prompt that are read."""
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

    A prompt that asks for harm raises the harm of its answer, as far as the answer is no refusal.
    An answer whose prompt is unknown or empty is judged alone.
    """

    name = "lite"

    def __init__(self, options: LiteOptions | None = None) -> None:
        """Read the weights that ship with the package (once for each process).

        Raises:
            ModelError: the weights are missing or do not fit this version.
        """
        self.options = options or LiteOptions()
        self.threshold = cutoff(self.name, self.options.threshold)
        self._weights, self._bias, self._temperature, self._prompt_head = _parameters()

    def scores(
        self, texts: Sequence[str], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float64]:
        """Return scores in [0, 1] of the worst reading, [texts, 3], columns in the order of
        `HEADS`; of the answers alone if there are no `prompts`.
        """
        return self._read(texts, prompts)[0]

    def _read(
        self, texts: Sequence[str], prompts: Sequence[str] | None
    ) -> tuple[NDArray[np.float64], list[float]]:
        scores, obscured = worst_scores(
            texts, lambda some, _: self._alone(some), literal=HEADS.index("refusal")
        )
        return self._asked(np.asarray(scores, np.float64), prompts), obscured

    def literal_scores(
        self, texts: Sequence[str], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float64]:
        """Return the same of the texts as they are written."""
        return self._asked(self._alone(texts), prompts)

    def _asked(
        self, scores: NDArray[np.float64], prompts: Sequence[str] | None
    ) -> NDArray[np.float64]:
        """Return `scores` with the harm of each answer as one to its prompt."""
        if prompts is None or not any(prompts):
            return scores
        harm, refusal = scores[:, HEADS.index("harm")], scores[:, HEADS.index("refusal")]
        odds = np.exp(self._prompt_head.raise_of(prompts, refusal))
        result = np.array(scores)
        result[:, HEADS.index("harm")] = harm * odds / (1.0 - harm + harm * odds)
        return result

    def _alone(self, texts: Sequence[str]) -> NDArray[np.float64]:
        rows = [self._scores(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
        return np.concatenate(rows) if rows else np.zeros((0, len(HEADS)))

    def _scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return probabilities(pooled_logits(texts, self._weights, self._bias), self._temperature)

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Return one verdict for each text, which is judged as an answer to its prompt."""
        read, distinct = min(LONGEST_PROMPT, max(map(len, prompts), default=0)), len(set(prompts))
        short = sum(map(len, texts)) + read * distinct <= _AT_ONCE
        scores, obscured = (
            self._read(texts, prompts)
            if short
            else await asyncio.to_thread(self._read, texts, prompts)
        )
        return [
            self._verdict(row, told(share))
            for row, share in zip(scores.tolist(), obscured, strict=True)
        ]

    def _verdict(self, row: list[float], more: dict[str, float]) -> Verdict:
        categories = dict(zip(HEADS, row, strict=True)) | more
        worst = max(categories["harm"], categories["toxicity"])
        return Verdict.scored(self.name, worst, threshold=self.threshold, categories=categories)


@dataclass(frozen=True)
class PromptHead:
    """Tells how much a prompt asks for harm, and what that means for an answer.

    Args:
        weights: [BUCKETS, 1].
        bias: of the logit that a prompt asks for harm.
        strength: logits of harm that full compliance with a sure request for harm adds.
    """

    weights: NDArray[Any]
    bias: float
    strength: float

    def asks(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return how surely each prompt asks for harm, 0 to 1, [prompts]; 0 of an empty one."""
        distinct = list(dict.fromkeys(prompts))
        features = featurise([prompt[:LONGEST_PROMPT] for prompt in distinct])
        logits = features.project(self.weights)[features.whole, 0] + self.bias
        found = dict(zip(distinct, (1.0 / (1.0 + np.exp(-logits))).tolist(), strict=True))
        return np.array([found[prompt] if prompt.strip() else 0.0 for prompt in prompts])

    def raise_of(self, prompts: Sequence[str], refusal: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what to add to the logits of harm of answers with these chances of being a
        refusal, [prompts].
        """
        return np.asarray(self.strength * self.asks(prompts) * (1.0 - refusal))


def widened(weights: NDArray[Any]) -> NDArray[np.float32]:
    """Return the weights of a prompt head for all buckets, [BUCKETS, 1], of [PROMPT_BUCKETS]."""
    return np.repeat(weights.astype(np.float32), BUCKETS // PROMPT_BUCKETS)[:, None]


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
def _parameters() -> tuple[
    NDArray[np.float32], NDArray[np.float64], NDArray[np.float64], PromptHead
]:
    path = resources.files("ttsa_guard.embedded") / "lite.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            weights, bias, temperature = (stored[key] for key in ("weights", "bias", "temperature"))
            asking, (prompt_bias, strength) = stored["prompt_weights"], stored["prompt"].tolist()
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(
            f"cannot read the lite moderator's weights: {error}", hint="reinstall ttsa-guard"
        ) from error
    if (weights.shape, asking.shape) != ((BUCKETS, len(HEADS)), (PROMPT_BUCKETS,)):
        found = f"the lite moderator's weights have shapes {weights.shape} and {asking.shape}"
        raise ModelError(found, hint="reinstall ttsa-guard")
    head = PromptHead(widened(asking), prompt_bias, strength)
    return (
        weights.astype(np.float32),
        bias.astype(np.float64),
        temperature.astype(np.float64),
        head,
    )


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: lite``."""
    register("lite", Lite, options=LiteOptions)
