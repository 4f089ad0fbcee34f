"""The scores of the lite moderator, with NumPy alone: three logistic heads, and one of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttsa_guard.errors import ModelError
from ttsa_guard.moderators.categories import HEADS
from ttsa_guard.moderators.features import BUCKETS, featurise
from ttsa_guard.moderators.obscured import worst_scores

PART_MARGIN = 2.5
"""How much higher, in logits, the score of a sentence must be than that of a whole text to count as
much: a text of many sentences has many chances to hit a false alarm."""
PROMPT_BUCKETS = 1 << 14
"""Weights of `PromptHead`: each stands for `BUCKETS` // `PROMPT_BUCKETS` buckets in a row."""
LONGEST_PROMPT = 600
"""Characters of a prompt that are read."""
_BATCH = 256


@dataclass(frozen=True)
class LiteNetwork:
    """The weights of the lite moderator.

    Args:
        weights: of the heads, [BUCKETS, 3], in the order of `HEADS`.
        bias: [3].
        temperature: of each head, [3].
        prompt_head: the one that reads prompts.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float64]
    temperature: NDArray[np.float64]
    prompt_head: PromptHead

    @staticmethod
    def characters(texts: Sequence[str], prompts: Sequence[str]) -> int:
        """Return about how many characters are read of answers and their prompts."""
        longest = min(LONGEST_PROMPT, max(map(len, prompts), default=0))
        return sum(map(len, texts)) + longest * len(set(prompts))

    def worst(
        self, texts: Sequence[str], prompts: Sequence[str] | None
    ) -> tuple[NDArray[np.float64], list[float]]:
        """Return scores in [0, 1] of the worst reading, [texts, 3]; without `prompts` those of the
        answers alone.

        With them comes how obscured each text is, 0 to 1.
        """
        scores, obscured = worst_scores(
            texts, lambda some, _: self._alone(some), literal=HEADS.index("refusal")
        )
        return self._asked(np.asarray(scores, np.float64), prompts), obscured

    def literal_scores(
        self, texts: Sequence[str], prompts: Sequence[str] | None
    ) -> NDArray[np.float64]:
        """Return the same scores of the texts as they are written."""
        return self._asked(self._alone(texts), prompts)

    def _asked(
        self, scores: NDArray[np.float64], prompts: Sequence[str] | None
    ) -> NDArray[np.float64]:
        """Return `scores` with the harm of each answer as one to its prompt."""
        if prompts is None or not any(prompts):
            return scores
        harm, refusal = scores[:, HEADS.index("harm")], scores[:, HEADS.index("refusal")]
        odds = np.exp(self.prompt_head.raise_of(prompts, refusal))
        result = np.array(scores)
        result[:, HEADS.index("harm")] = harm * odds / (1.0 - harm + harm * odds)
        return result

    def _alone(self, texts: Sequence[str]) -> NDArray[np.float64]:
        rows = [self._scores(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
        return np.concatenate(rows) if rows else np.zeros((0, len(HEADS)))

    def _scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return probabilities(pooled_logits(texts, self.weights, self.bias), self.temperature)


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
def shipped() -> LiteNetwork:
    """Return the network in the package, which is read once in each process.

    Raises:
        ModelError: the weights are missing or do not fit this version.
    """
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
    return LiteNetwork(
        weights.astype(np.float32), bias.astype(np.float64), temperature.astype(np.float64), head
    )
