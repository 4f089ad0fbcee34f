"""Adapt zero-shot classes of images to the images that come: caches of TDA, bounded by a twin.

TDA (repository kdiAAA/TDA) keeps features of images with sure predictions, and takes classes away
from images that lie near unsure ones. TAEA (arXiv 2411.15735) has the second of these caches, and a
learned gate (`vision.blend`). Whoever chooses the images chooses what is learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ttsa_guard.settings import Settings
from ttsa_guard.vision.base import Floats, entropy, softmax, unit
from ttsa_guard.vision.blend import ClassBlend


class CacheOptions(Settings):
    """A cache of image features: its size, and how much it says."""

    size: int = Field(3, ge=1, description="images kept for each predicted class")
    alpha: float = Field(0.0, ge=0, description="what it says is times this; at 0 it is off")
    beta: float = Field(5.0, gt=0, description="how fast that falls with the distance of an image")


class NegativeCacheOptions(CacheOptions):
    """A cache of images with unsure predictions, as TDA has it for ImageNet."""

    size: int = Field(2, ge=1, description="images kept for each predicted class")
    alpha: float = Field(0.117, ge=0, description="what it says is times this; at 0 it is off")
    beta: float = Field(1.0, gt=0, description="how fast that falls with the distance of an image")
    entropy: tuple[float, float] = Field(
        (0.2, 0.5),
        description=(
            "images are kept if the entropy of their prediction lies between these: in nats, over"
            " the binary logarithm of the number of classes, so 0.69 is the highest"
        ),
    )
    probability: tuple[float, float] = Field(
        (0.03, 1.0), description="classes are taken away if their probability lies between these"
    )


class AdapterOptions(Settings):
    """What is learned from the images that come, and how far it may go."""

    positive: CacheOptions = Field(
        CacheOptions(),
        description=(
            "adds the predicted class of the surest images to those near them. TDA's alpha is 2;"
            " TAEA has no such cache"
        ),
    )
    negative: NegativeCacheOptions = Field(
        NegativeCacheOptions(),
        description="takes the likely classes of unsure images away from those near them",
    )
    learning_rate: float = Field(
        0.0,
        ge=0,
        description=(
            "of the blend of what texts and images say of a class, one step an image: our"
            " reconstruction of TAEA's gate, 12 times as slow. At 0 it is off"
        ),
    )
    max_drift: float = Field(
        0.1,
        ge=0,
        le=1,
        description=(
            "most that the probability of any classes together may differ from what was never"
            " adapted. Beyond, that counts, and all that was learned is forgotten. At 1 there is no"
            " bound"
        ),
    )


@dataclass(frozen=True)
class Entry:
    """An image in a cache.

    Args:
        feature: [dimensions], of length 1.
        entropy: of its prediction without adaptation, in nats.
        classes: what it adds to or takes from each class, [C], of zeros and ones.
    """

    feature: Floats
    entropy: float
    classes: Floats


class Cache:
    """The images of the lowest entropy for each predicted class."""

    def __init__(self, options: CacheOptions) -> None:
        self.options = options
        self.entries: dict[int, list[Entry]] = {}

    def admit(self, predicted: int, entry: Entry) -> None:
        """Keep an image, if its class has room or another image of a higher entropy."""
        kept = self.entries.setdefault(predicted, [])
        if len(kept) == self.options.size:
            if entry.entropy >= kept[-1].entropy:
                return
            kept.pop()
        kept.append(entry)
        kept.sort(key=lambda one: one.entropy)

    def logits(self, feature: Floats) -> Floats | float:
        """Return what the images near `feature` say of each class, [C]; 0 without images."""
        kept = [entry for _, entries in sorted(self.entries.items()) for entry in entries]
        if not kept:
            return 0.0
        affinity = np.stack([entry.feature for entry in kept]) @ feature
        nearness = np.exp(-self.options.beta * (1 - affinity))
        said: Floats = self.options.alpha * (nearness @ np.stack([e.classes for e in kept]))
        return said


@dataclass(frozen=True)
class Prediction:
    """What an adapter says of an image.

    Args:
        probabilities: of the classes, [C]; those without adaptation if it was reset.
        drift: how far the adapted probabilities are from those without: half of the sum of their
            differences, in [0, 1]. No set of classes differs by more.
        reset: whether the drift was too large, so that all was forgotten.
    """

    probabilities: Floats
    drift: float
    reset: bool


class DynamicAdapter:
    """Zero-shot probabilities of classes that adapt to the images that come.

    It is not safe for threads: calls must not overlap.

    Args:
        classes: features of the classes, [C, dimensions], with two classes at least.
        scale: what cosines are multiplied with.
    """

    def __init__(
        self, classes: Floats, *, scale: float, options: AdapterOptions | None = None
    ) -> None:
        self.options = options or AdapterOptions()
        self._classes = classes.astype(np.float64)
        self._scale = scale
        self.reset()

    def reset(self) -> None:
        """Forget all that was learned."""
        rate = self.options.learning_rate
        self.positive = Cache(self.options.positive)
        self.negative = Cache(self.options.negative)
        self._blend = ClassBlend(self._classes, scale=self._scale, rate=rate) if rate else None

    def plain(self, feature: Floats) -> Floats:
        """Return the probabilities without adaptation, [C]."""
        return softmax(self._logits(unit(feature.astype(np.float64)), self._classes))

    def predict(
        self, feature: Floats, *, views: Floats | None = None, learn: bool = True
    ) -> Prediction:
        """Learn from an image, and say of which class it is, in that order.

        Args:
            feature: of the image, [dimensions].
            views: features of parts and mirror images of it, [views, dimensions]; those of the
                image itself by default. Only the blend needs them.
            learn: False for an image that nothing is to be learned from.
        """
        feature = unit(feature.astype(np.float64))
        views = feature[None] if views is None else unit(views.astype(np.float64))
        plain = self._logits(feature, self._classes)
        if learn:
            self._learn(feature, plain, views)
        classes = self._blend.classes(views) if self._blend else self._classes
        logits = self._logits(feature, classes)
        adapted = logits + self.positive.logits(feature) - self.negative.logits(feature)
        before, after = softmax(plain), softmax(adapted)
        drift = float(np.abs(after - before).sum() / 2)
        if drift <= self.options.max_drift:
            return Prediction(after, drift, reset=False)
        self.reset()  # also where the drift is no number
        return Prediction(before, drift, reset=True)

    def _logits(self, feature: Floats, classes: Floats) -> Floats:
        found: Floats = self._scale * (unit(classes) @ feature)
        return found

    def _learn(self, feature: Floats, plain: Floats, views: Floats) -> None:
        probabilities = softmax(plain)
        spread, predicted = float(entropy(probabilities)), int(plain.argmax())
        if self.options.positive.alpha:
            one = np.eye(len(plain))[predicted]
            self.positive.admit(predicted, Entry(feature, spread, one))
        negative = self.options.negative
        if negative.alpha and _within(spread / math.log2(len(plain)), negative.entropy):
            likely = _within(probabilities, negative.probability)
            self.negative.admit(predicted, Entry(feature, spread, np.asarray(likely, dtype=float)))
        if self._blend:
            self._blend.step(views)


def _within(
    values: Floats | float, limits: tuple[float, float]
) -> NDArray[np.bool_] | bool | np.bool_:
    found: NDArray[np.bool_] | bool = (limits[0] < values) & (values < limits[1])
    return found
