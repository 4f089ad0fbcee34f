"""Settings that differ between deployments of one configuration, from environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

VARIABLES: Mapping[str, tuple[str, ...]] = {
    "TTSA_GUARD_MODEL": ("backend", "options", "model"),
    "TTSA_GUARD_URLS": ("backend", "options", "urls"),
    "TTSA_GUARD_AUDIT": ("audit", "path"),
}
"""The setting that each variable takes the place of. An empty variable is none."""
_LISTS = ("TTSA_GUARD_URLS",)
"""Variables with several values, which commas part."""


def set_variables() -> dict[str, tuple[str, ...]]:
    """Return the variables that are set, and their settings."""
    return {name: keys for name, keys in VARIABLES.items() if os.environ.get(name, "").strip()}


def with_environment(settings: Any) -> Any:
    """Return plain settings of a guard with what the environment says instead.

    What is no mapping is returned as it is: it is refused where it is read.
    """
    if settings is not None and not isinstance(settings, Mapping):
        return settings
    for name, keys in set_variables().items():
        value: Any = os.environ[name].strip()
        if name in _LISTS:
            value = [part.strip() for part in value.split(",") if part.strip()]
        settings = _put(settings or {}, keys, value)
    return settings


def _put(settings: Any, keys: tuple[str, ...], value: Any) -> Any:
    """Return a copy of `settings` with the value under `keys`."""
    if isinstance(settings, str):  # a plugin that is just its name
        settings = {"use": settings}
    if not isinstance(settings, Mapping):
        return settings
    first, *rest = keys
    default = {"use": "transformers"} if first == "backend" else {}
    inner = _put(settings.get(first, default), tuple(rest), value) if rest else value
    return {**settings, first: inner}
