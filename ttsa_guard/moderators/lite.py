"""The lite moderator: hashed n-grams and three logistic heads, shipped in the wheel, NumPy only.

It judges answers, and more strictly those that comply with a prompt that asks for harm. How it was
trained and what it is worth: ``ttsa_guard/embedded/LITE_CARD.md``.
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
        from ttsa_guard.moderators.lite_network import shipped

        self.options = options or LiteOptions()
        self.threshold = cutoff(self.name, self.options.threshold)
        self._network = shipped()

    def scores(
        self, texts: Sequence[str], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float64]:
        """Return scores in [0, 1] of the worst reading, [texts, 3], columns in the order of
        `HEADS`; of the answers alone if there are no `prompts`.
        """
        return self._network.worst(texts, prompts)[0]

    def literal_scores(
        self, texts: Sequence[str], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float64]:
        """Return the same of the texts as they are written."""
        return self._network.literal_scores(texts, prompts)

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Return one verdict for each text, which is judged as an answer to its prompt."""
        scores, obscured = (
            self._network.worst(texts, prompts)
            if self._network.characters(texts, prompts) <= _AT_ONCE
            else await asyncio.to_thread(self._network.worst, texts, prompts)
        )
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
    """Offer the moderator as ``use: lite``."""
    register("lite", Lite, options=LiteOptions)
