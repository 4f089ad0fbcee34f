"""Find the profile of a model."""

from __future__ import annotations

import re
from pathlib import Path

from ttsa_guard.files import cache_folder
from ttsa_guard.hf.source import Source
from ttsa_guard.profile import FILE, GENERIC, ModelProfile


def find_profile(path: Path | None, model: str) -> ModelProfile:
    """Return the profile of a model.

    It is the one at `path`, else the one beside the weights, else the one in the cache, else
    `GENERIC`.
    """
    if path is not None:
        return ModelProfile.load(path)
    for candidate in (beside(model), cached_profile(model)):
        if candidate.is_file():
            return ModelProfile.load(candidate)
    return GENERIC


def beside(model: str) -> Path:
    """Return the path of a profile that comes with the model's weights. The file need not exist."""
    return Path(Source.of(model).path) / FILE


def cached_profile(model: str) -> Path:
    """Return the path at which ``ttsa-guard profile MODEL`` keeps its result."""
    return cache_folder() / re.sub(r"[^\w.-]+", "_", model) / FILE
