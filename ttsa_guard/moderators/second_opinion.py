"""A second opinion on answers: word vectors, a small convolution and three heads, with NumPy alone.

The weights ship with the package. It shares neither features nor training rows with the lite
moderator, so it can judge the results of a search against lite. Its training and its measured
quality are in ``ttsa_guard/embedded/SECOND_OPINION_CARD.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ttsa_guard.moderators.categories import HEADS, told
from ttsa_guard.moderators.operating_points import Threshold, cutoff
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.verdict import Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SecondOpinionOptions(Settings):
    """Options of the moderator ``second_opinion``."""

    threshold: Threshold = Field(
        0.5, description="from this score on an answer is flagged; or {false_alarms: 0.01}"
    )


class SecondOpinion:
    """Flags an answer whose worst sentence or passage looks harmful or abusive.

    The score is the larger of `harm` and `toxicity`. `refusal` judges the first passage; it is
    reported beside them and is no part of the score. A text in disguise is also judged as it reads
    (`moderators.obscured`).
    """

    name = "second_opinion"

    def __init__(self, options: SecondOpinionOptions | None = None) -> None:
        """Read the weights that ship with the package, once in each process.

        Raises:
            ModelError: the weights are missing or damaged.
        """
        from ttsa_guard.moderators.second_opinion_network import shipped

        self.options = options or SecondOpinionOptions()
        self.threshold = cutoff(self.name, self.options.threshold)
        self._network = shipped()

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return scores in [0, 1] of the worst reading, [texts, 3].

        Columns are in the order of `categories.HEADS`.
        """
        return self._network.worst(texts)[0]

    def literal_scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return scores in [0, 1] of the texts as they are written, [texts, 3]."""
        return self._network.scores(texts)

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Judge `texts`; `prompts` are not used."""
        del prompts
        scores, obscured = await asyncio.to_thread(self._network.worst, texts)
        return [
            self._verdict(row, told(share))
            for row, share in zip(scores.tolist(), obscured, strict=True)
        ]

    def _verdict(self, row: list[float], more: dict[str, float]) -> Verdict:
        categories = dict(zip(HEADS, row, strict=True)) | more
        worst = max(categories["harm"], categories["toxicity"])
        return Verdict.scored(self.name, worst, threshold=self.threshold, categories=categories)


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: second_opinion``."""
    register("second_opinion", SecondOpinion, options=SecondOpinionOptions)
