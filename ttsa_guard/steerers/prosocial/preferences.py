"""Say by weights of five attributes what an answer should be, besides safe."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ttsa_guard.errors import nearest

ATTRIBUTES = ("empathy", "sensitivity", "non_judgmental", "truthfulness", "helpfulness")
"""These are the five objectives of *ProSocialAlign* (arXiv 2512.06515)."""
EQUAL: Mapping[str, float] = dict.fromkeys(ATTRIBUTES, 1 / len(ATTRIBUTES))
"""These weights prefer no attribute."""


def checked(preferences: Mapping[str, float]) -> dict[str, float]:
    """Check the preferences and return them; attributes that are left out weigh nothing.

    Raises:
        ValueError: an attribute is unknown, a weight is negative or not finite, or the weights do
            not sum to one.
    """
    for name, weight in preferences.items():
        if name not in ATTRIBUTES:
            raise ValueError(f"there is no attribute {name!r}; {nearest(name, ATTRIBUTES)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {name} is negative or not finite")
    total = sum(preferences.values())
    if abs(total - 1) > 1e-3:
        raise ValueError(f"the weights sum to {total:g}, not to 1")
    return dict(preferences)


def vector(preferences: Mapping[str, float]) -> list[float]:
    """Return the weights in the order of `ATTRIBUTES`."""
    return [preferences.get(name, 0.0) for name in ATTRIBUTES]
