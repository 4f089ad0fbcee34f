"""Made features that lie as those of CLIP do: in two cones, one of images and one of texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ttsa_guard.vision.base import Floats, unit

DIMENSIONS = 256
_GAP = 0.25
"""Cosine of the middles of the two cones."""


@dataclass(frozen=True)
class World:
    """Directions of meaning, and the middles of the cones of texts and of images.

    Args:
        meanings: [C, dimensions], of length 1.
        draw: what is random from here on.
    """

    text: Floats
    image: Floats
    meanings: Floats
    draw: np.random.Generator

    @classmethod
    def made(cls, seed: int, categories: int) -> World:
        """Return a world with so many categories, all of whose directions are independent."""
        draw = np.random.default_rng(seed)
        text, other, *meanings = unit(draw.normal(size=(2 + categories, DIMENSIONS)))
        image = unit(_GAP * text + np.sqrt(1 - _GAP**2) * unit(other - (other @ text) * text))
        return cls(text, image, np.stack(meanings), draw)

    def texts(self, n: int, spread: float = 0.5) -> Floats:
        """Return `n` texts for each category, [C, n, dimensions], of length 1."""
        noise = unit(self.draw.normal(size=(len(self.meanings), n, DIMENSIONS)))
        return unit(self.text + 0.6 * self.meanings[:, None] + spread * noise)

    def images(self, contents: Floats, spread: float = 0.8) -> Floats:
        """Return images or patches, [n, dimensions], of length 1.

        Args:
            contents: how much of each category is in each, [n, C].
        """
        noise = unit(self.draw.normal(size=(len(contents), DIMENSIONS)))
        return unit(self.image + contents @ self.meanings + spread * noise)
