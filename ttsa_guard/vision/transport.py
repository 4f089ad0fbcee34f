"""Score the patches of an image by optimal transport to texts: the masking half of GuardAlign.

Experimental. GuardAlign (arXiv 2602.24027, equations 5 to 11) gives the steps, and not the entropy
term, the temperatures, nor the number of texts. Those here are of the code of AWT (repository
MCG-NJU/AWT), whose steps they resemble. `docs/moderators.md` says what was found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.settings import Settings
from ttsa_guard.vision.base import Floats, entropy, softmax, unit

_PRECISION = 1e-9
_ITERATIONS = 10_000


class TransportOptions(Settings):
    """How the patches of an image are scored."""

    aggregate: Literal["nearest", "paper", "cosine"] = Field(
        "nearest",
        description=(
            "nearest: the mean cost of a patch to the nearest category, our reconstruction; paper:"
            " the printed sum over categories, each times the weight of the patch; cosine: one less"
            " the largest cosine to any text, without transport"
        ),
    )
    weights: Literal["even", "text", "printed"] = Field(
        "even",
        description=(
            "of patches and texts. printed: those with a high entropy over the categories weigh"
            " more, as equation 7 has it; text: those with a low one, as the text after it says;"
            " even: all the same"
        ),
    )
    epsilon: float = Field(0.1, gt=0, description="entropy term of Sinkhorn's algorithm")
    scale: float = Field(100.0, gt=0, description="of cosines, before the softmax over categories")
    temperature: float = Field(0.5, gt=0, description="of the softmax over entropies")


@dataclass(frozen=True)
class Transport:
    """Optimal transport from M patches to the N texts of each of C categories.

    Args:
        patch_weights: [M], with the sum 1.
        text_weights: [C, N], with the sum 1 for each category.
        costs: [C, M, N], one less the cosine, in [0, 2].
        plans: [C, M, N]; their sums over texts are the patch weights, and over patches the text
            weights.
    """

    patch_weights: Floats
    text_weights: Floats
    costs: Floats
    plans: Floats


def patch_scores(patches: Floats, texts: Floats, options: TransportOptions | None = None) -> Floats:
    """Return a score for each patch, [M]. The lower it is, the closer the patch is to the texts.

    Args:
        patches: features of the patches of one image, [M, dimensions], of any length.
        texts: features of the texts of unsafe categories, [C, N, dimensions].

    Raises:
        ModelError: the package for optimal transport is missing, or a feature is no finite number.
        ConfigError: the shapes do not fit.
    """
    options = options or TransportOptions()
    if options.aggregate == "cosine":
        nearest: Floats = _costs(patches, texts).min((0, 2))
        return nearest
    found = transport(patches, texts, options)
    by_category: Floats = (found.plans * found.costs).sum(-1)
    if options.aggregate == "paper":
        total: Floats = by_category.sum(0)
        return total
    lowest: Floats = (by_category / found.patch_weights).min(0)
    return lowest


def transport(patches: Floats, texts: Floats, options: TransportOptions | None = None) -> Transport:
    """Return the weights, the costs and the plans behind `patch_scores`."""
    options = options or TransportOptions()
    costs = _costs(patches, texts)
    a, b = _weights(unit(patches), unit(texts), options)
    plans = [_plan(a, row, cost, options.epsilon) for row, cost in zip(b, costs, strict=True)]
    return Transport(a, b, costs, np.stack(plans))


def threshold(safe: Sequence[Floats], share: float = 0.01) -> float:
    """Return the largest threshold at which at most a `share` of safe images loses a patch.

    A patch is masked if its score is at most the threshold. So this is a quantile of the lowest
    scores of the images.

    Args:
        safe: the scores of the patches of each safe image.
        share: in [0, 1).

    Raises:
        ConfigError: there is no image, or `share` is out of range.
    """
    if not safe or not 0 <= share < 1:
        raise ConfigError(
            "a threshold needs safe images, and a share of them in [0, 1)",
            hint="give the scores of some hundred images of your own",
        )
    lowest = sorted(float(np.min(scores)) for scores in safe)
    return math.nextafter(lowest[int(share * len(lowest))], -math.inf)


def _costs(patches: Floats, texts: Floats) -> Floats:
    if patches.ndim != 2 or texts.ndim != 3 or patches.shape[-1] != texts.shape[-1]:
        raise ConfigError(
            f"patches {patches.shape} and texts {texts.shape} do not fit",
            hint="give [patches, dimensions] and [categories, texts, dimensions]",
        )
    if not (np.isfinite(patches).all() and np.isfinite(texts).all()):
        # No score below a threshold would look like a safe patch.
        raise ModelError("the encoder gave features that are no numbers", hint="try float32")
    costs: Floats = 1 - np.einsum("md,cnd->cmn", unit(patches), unit(texts))
    return costs


def _weights(patches: Floats, texts: Floats, options: TransportOptions) -> tuple[Floats, Floats]:
    """Return the weights of patches, [M], and of the texts of each category, [C, N]."""
    (categories, n, _), m = texts.shape, len(patches)
    if options.weights == "even":
        return np.full(m, 1 / m), np.full((categories, n), 1 / n)
    sign = 1 if options.weights == "printed" else -1
    logits = options.scale * np.einsum("md,cnd->cmn", patches, texts).mean(-1)  # [C, M]
    image = np.broadcast_to(logits.mean(-1), (categories, n, categories)).copy()
    # The paper has texts weighted "analogously". As in AWT, a text takes the place of its category
    # in the scores of the whole image.
    own = options.scale * np.einsum("d,cnd->cn", patches.mean(0), texts)
    image[np.arange(categories), :, np.arange(categories)] = own
    return tuple(
        softmax(sign * entropy(softmax(found)) / options.temperature) for found in (logits.T, image)
    )  # type: ignore[return-value]


def _plan(a: Floats, b: Floats, cost: Floats, epsilon: float) -> NDArray[Any]:
    try:
        import ot
    except ImportError as error:
        raise ModelError(
            "the package for optimal transport is not installed",
            hint="pip install 'ttsa-guard[masking]'",
        ) from error
    plan: NDArray[Any] = ot.sinkhorn(
        a,
        b,
        cost,
        epsilon,
        method="sinkhorn_log",
        stopThr=_PRECISION,
        numItermax=_ITERATIONS,
        warn=False,
    )
    return plan
