"""Where the profile of a model is."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ttsa_guard.hf.loading import Source
from ttsa_guard.profile import FILE, GENERIC, ModelProfile


def find_profile(path: Path | None, model: str) -> ModelProfile:
    """The named profile, else the one beside the weights, else the one in the cache, else the generic one."""
    if path is not None:
        return ModelProfile.load(path)
    for candidate in (beside(model), cached_profile(model)):
        if candidate.is_file():
            return ModelProfile.load(candidate)
    return GENERIC


def beside(model: str) -> Path:
    """Where a profile that comes with the model's weights is."""
    return Path(Source.of(model).path) / FILE


def cached_profile(model: str) -> Path:
    """Where ``ttsa-guard profile MODEL`` keeps what it found."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ttsa_guard" / re.sub(r"[^\w.-]+", "_", model) / FILE
