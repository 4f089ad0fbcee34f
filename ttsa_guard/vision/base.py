"""The contract of an image-text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow  # noqa: N813

Floats: TypeAlias = NDArray[np.floating[Any]]


class ImageTextEncoder(Protocol):
    """Puts images, their patches and texts into one space, as vectors of length 1.

    It sees the whole image: the image is squeezed to the square that the model takes, and nothing
    is cropped away.
    """

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; the patches of an image go row by row."""
        ...

    @property
    def scale(self) -> float:
        """What cosines are multiplied with before a softmax over texts; positive."""
        ...

    def texts(self, texts: Sequence[str]) -> Floats:
        """Return the features of texts, [texts, dimensions].

        Raises:
            ConfigError: a text is longer than the model takes.
        """
        ...

    def images(self, images: Sequence[pillow.Image]) -> Floats:
        """Return the features of RGB images, [images, dimensions]."""
        ...

    def patches(self, images: Sequence[pillow.Image]) -> Floats:
        """Return the features of the patches of RGB images, [images, patches, dimensions]."""
        ...


def unit(vectors: Floats) -> Floats:
    """Return vectors, [..., dimensions], of the same directions and of length 1."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    shortened: Floats = vectors / np.maximum(length, 1e-12)
    return shortened


def softmax(logits: Floats) -> Floats:
    """Return the probabilities over the last axis."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    shares: Floats = raised / raised.sum(-1, keepdims=True)
    return shares


def entropy(probabilities: Floats) -> Floats:
    """Return the entropy over the last axis, in nats."""
    logs = np.log(np.maximum(probabilities, np.finfo(float).tiny))
    found: Floats = -(probabilities * logs).sum(-1)
    return found
