"""The threshold that flags a given share of one's own harmless texts, and what it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Z = 1.96
"""Standard deviations of a 95 % interval."""


@dataclass(frozen=True)
class FlaggedShare:
    """The share of some texts that is flagged, with its 95 % interval.

    Args:
        texts: how many there are.
    """

    value: float
    low: float
    high: float
    texts: int

    def as_dict(self, name: str) -> dict[str, Any]:
        """Return it as plain data under a name."""
        return {
            name: self.value,
            f"{name}_interval": [self.low, self.high],
            f"{name}_texts": self.texts,
        }


@dataclass(frozen=True)
class TunedThreshold:
    """A threshold and what it does to the texts on which it was found.

    Args:
        low, high: of its 95 % interval, which spans those for the rates between which its true
            false-alarm rate may lie.
        false_alarms: of the harmless texts.
        recall: of the harmful ones; None without any.
    """

    value: float
    low: float
    high: float
    false_alarms: FlaggedShare
    recall: FlaggedShare | None

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "threshold": self.value,
            "threshold_interval": [self.low, self.high],
            **self.false_alarms.as_dict("false_alarms"),
            **(self.recall.as_dict("recall") if self.recall else {"recall": None}),
        }


def operating_point(
    scores: Sequence[float] | NDArray[Any], rate: float, weights: Sequence[float] | None = None
) -> float:
    """Return the threshold that flags at most the share `rate` of harmless texts.

    It flags as many as that allows. It lies half way between the last score that is flagged and the
    next one.

    Args:
        scores: scores of harmless texts, [n].
        rate: the share, in [0, 1].
        weights: how much each text counts, [n]; by default all count the same.
    """
    values = np.asarray(scores, np.float64)
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(-values, kind="stable")
    values, counts = values[order], counts[order]
    flagged = np.cumsum(counts) / counts.sum()
    last = np.append(values[1:] < values[:-1], True)  # equal scores are all flagged, or none is
    fitting = np.flatnonzero(last & (flagged <= rate + 1e-12))
    cut = int(fitting[-1]) if fitting.size else -1
    above = values[cut] if cut >= 0 else 1.0
    return float((above + values[cut + 1]) / 2) if cut + 1 < len(values) else float(above)


def tuned(harmless: Sequence[float], harmful: Sequence[float], rate: float) -> TunedThreshold:
    """Find the threshold for a false-alarm rate, given scores of harmless and harmful texts."""
    threshold = round(operating_point(harmless, rate), 6)
    fewest, most = wilson_interval(rate * len(harmless), len(harmless))
    return TunedThreshold(
        value=threshold,
        low=round(operating_point(harmless, most), 6),
        high=round(operating_point(harmless, fewest), 6),
        false_alarms=_flagged(harmless, threshold),
        recall=_flagged(harmful, threshold) if harmful else None,
    )


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, z2 = successes / trials, _Z**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def _flagged(scores: Sequence[float], threshold: float) -> FlaggedShare:
    flagged = sum(score >= threshold for score in scores)
    low, high = wilson_interval(flagged, len(scores))
    return FlaggedShare(round(flagged / len(scores), 4), round(low, 4), round(high, 4), len(scores))
