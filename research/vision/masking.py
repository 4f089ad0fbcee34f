"""Compare ways to find a planted patch among made features: `python -m research.vision.study`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from research.vision.features import World
from ttsa_guard.vision.base import Floats
from ttsa_guard.vision.transport import TransportOptions, patch_scores, threshold

_UNSAFE, _HARMLESS = 7, 9
"""Numbers of unsafe categories, and of other contents of patches."""
_TEXTS = 8
_PLANTED = 0.6
"""How much of its category the planted patch has."""
_SPREAD = 0.25
"""How much each patch has where the content is spread over all."""
_SHARE = 0.05
_CONSTANT = 0.42
"""GuardAlign's threshold."""
Score = Callable[[Floats, Floats], Floats]


def _by(**chosen: Any) -> Score:
    options = TransportOptions(**chosen)
    return lambda patches, texts: patch_scores(patches, texts, options)


def _mean_text(patches: Floats, texts: Floats) -> Floats:
    """Return one less the largest cosine to the mean text of a category."""
    return patch_scores(patches, texts.mean(1, keepdims=True), TransportOptions(aggregate="cosine"))


WAYS: Mapping[str, Score] = {
    "paper, printed weights": _by(aggregate="paper", weights="printed"),
    "paper, text's weights": _by(aggregate="paper", weights="text"),
    "paper, even weights": _by(aggregate="paper"),
    "nearest, printed weights": _by(weights="printed"),
    "nearest, text's weights": _by(weights="text"),
    "nearest, even weights": _by(),
    "largest cosine": _by(aggregate="cosine"),
    "largest cosine to a mean text": _mean_text,
}


def compared(m: int, *, images: int = 100) -> dict[str, dict[str, float]]:
    """Return, for each way, what it finds in images of `m` patches.

    As many safe images set the threshold at which 5 % of them lose a patch.

    Args:
        images: of each kind: safe, with one planted patch, and with a content in all patches.

    Returns:
        shares: of images whose planted patch has the lowest score ("lowest"); in which it is masked
        ("masked") or any patch of a spread content is ("spread"), at that threshold; and of all
        patches that the constant threshold masks ("constant").
    """
    found: dict[str, dict[str, list[float]]] = {
        way: {"lowest": [], "masked": [], "spread": [], "constant": []} for way in WAYS
    }
    world = World.made(m, _UNSAFE + _HARMLESS)
    texts = world.texts(_TEXTS)[:_UNSAFE]
    safe, planted, spread = (
        [_image(world, m, kind) for _ in range(images)] for kind in ("safe", "planted", "spread")
    )
    for way, score in WAYS.items():
        limit = threshold([score(patches, texts) for patches, _ in safe], _SHARE)
        own = found[way]
        for patches, place in planted:
            scores = score(patches, texts)
            own["lowest"].append(float(scores.argmin() == place))
            own["masked"].append(float(scores[place] <= limit))
            own["constant"].append(float((scores <= _CONSTANT).mean()))
        own["spread"] = [float((score(patches, texts) <= limit).any()) for patches, _ in spread]
    return {
        way: {name: round(float(np.mean(values)), 3) for name, values in own.items()}
        for way, own in found.items()
    }


def _image(world: World, m: int, kind: str) -> tuple[Floats, int]:
    """Return the patches of an image, and which of them is planted. All have harmless contents."""
    contents = np.zeros((m, _UNSAFE + _HARMLESS))
    contents[:, _UNSAFE:] = world.draw.uniform(0, 0.3, size=(m, _HARMLESS))
    place, category = int(world.draw.integers(m)), int(world.draw.integers(_UNSAFE))
    if kind == "planted":
        contents[place] = 0
        contents[place, category] = _PLANTED
    if kind == "spread":
        contents[:, category] = _SPREAD
    return world.images(contents), place
