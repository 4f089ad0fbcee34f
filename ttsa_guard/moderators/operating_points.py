"""Find the score from which on a moderator flags.

Users give that score, or the share of harmless texts that may be flagged. The scores for such
shares are in ``ttsa_guard/embedded/operating_points.yaml``; ``python -m
research.embedded.operating_points`` measures them on harmless chat. A threshold changes decisions
but no score. So scores stay probabilities, as far as the moderator is calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from ttsa_guard.errors import ConfigError
from ttsa_guard.settings import Settings

RATES = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
"""False-alarm rates that are measured. Rates between them are interpolated."""
FILE = "operating_points.yaml"


class FalseAlarms(Settings):
    """An operating point: ``{false_alarms: 0.01}`` flags one in a hundred harmless texts."""

    false_alarms: float = Field(
        ge=RATES[-1], le=RATES[0], description="share of harmless chat that is flagged"
    )


def _threshold(value: Any) -> Any:
    try:
        return (
            FalseAlarms.model_validate(value)
            if isinstance(value, Mapping | FalseAlarms)
            else _NUMBER.validate_python(value)
        )
    except ValidationError:
        lowest, highest = RATES[-1], RATES[0]
        raise ValueError(
            f"give a number from 0 to 1, or {{false_alarms: SHARE}} with {lowest} to {highest}"
        ) from None


_NUMBER: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(ge=0, le=1)])
Threshold = Annotated[float | FalseAlarms, BeforeValidator(_threshold)]
"""The threshold of a moderator for which operating points are shipped."""


def cutoff(moderator: str, threshold: float | FalseAlarms) -> float:
    """Return the score from which on `moderator` flags.

    Raises:
        ConfigError: `threshold` is a false-alarm rate, and no operating points of the moderator are
            known.
    """
    if not isinstance(threshold, FalseAlarms):
        return threshold
    if moderator not in points():
        hint = (
            "find the number on texts of your own: ttsa-guard moderators tune FILE.jsonl"
            f" --moderator {moderator}"
        )
        raise ConfigError(f"the false alarms of {moderator!r} have not been measured", hint=hint)
    return interpolated(points()[moderator]["scores"], threshold.false_alarms)


def interpolated(scores: Mapping[float, float], rate: float) -> float:
    """Return the score for the false-alarm rate `rate`.

    It is interpolated between neighbouring rates, linearly in the logarithm of the rate.

    Args:
        scores: the measured scores, by false-alarm rate.
    """
    if rate in scores:
        return scores[rate]
    high, low = next((a, b) for a, b in pairwise(sorted(scores, reverse=True)) if b < rate < a)
    share = math.log(rate / high) / math.log(low / high)
    return scores[high] + share * (scores[low] - scores[high])


@lru_cache(maxsize=1)
def points() -> dict[str, dict[str, Any]]:
    """Return the measured operating points, by moderator.

    Each has `scores` by false-alarm rate, the number of `texts` that were measured, and `weights`,
    a digest of the moderator's weights.
    """
    data = yaml.safe_load(
        (resources.files("ttsa_guard.embedded") / FILE).read_text(encoding="utf-8")
    )
    return dict(data)
