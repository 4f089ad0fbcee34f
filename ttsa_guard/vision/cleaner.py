"""Mask the patches of an image that are close to unsafe texts. Experimental."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow  # noqa: N813

from ttsa_guard.errors import ConfigError
from ttsa_guard.images import DEFAULT_LIMITS, Image, ImageLimits
from ttsa_guard.vision import transport
from ttsa_guard.vision.base import Floats, ImageTextEncoder
from ttsa_guard.vision.pixels import decoded
from ttsa_guard.vision.transport import TransportOptions, patch_scores

_JPEG_QUALITY = 95
_BATCH = 8
"""Images that are decoded at a time."""


@dataclass(frozen=True)
class Cleaned:
    """A copy of an image, and what was masked in it.

    Args:
        image: the copy, upright and without metadata; the image as it was if nothing is masked.
        mask: [rows, columns] of patches; true where pixels were set to zero. A JPEG keeps that only
            nearly.
        scores: of the patches, [rows, columns]; low ones are close to the unsafe texts.
    """

    image: Image
    mask: NDArray[np.bool_]
    scores: Floats


class ImageCleaner:
    """Sets the patches of an image to zero that are close to texts of unsafe categories.

    Experimental: which patches that are depends on the encoder and the threshold, and no encoder
    has been measured. Calls take as long as the encoder does, so run them in a thread.

    Args:
        encoder: any `ImageTextEncoder`, for example a `TransformersEncoder`.
        unsafe: the texts of each unsafe category, by its name. Each has as many.
        threshold: patches with at most this score are masked. It depends on the encoder, the texts
            and the options, so `calibrate` finds it. GuardAlign has 0.42.

    Raises:
        ConfigError: there is no category, or not all have as many texts.
    """

    def __init__(
        self,
        encoder: ImageTextEncoder,
        unsafe: Mapping[str, Sequence[str]],
        *,
        threshold: float | None = None,
        options: TransportOptions | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        if len({len(texts) for texts in unsafe.values()}) != 1 or not all(unsafe.values()):
            raise ConfigError(
                "the unsafe categories need texts, each as many",
                hint="unsafe={'violence': ['...', '...'], 'hate': ['...', '...']}",
            )
        self.encoder = encoder
        self.threshold = threshold
        self.options = options or TransportOptions()
        self.limits = limits
        features = encoder.texts([text for texts in unsafe.values() for text in texts])
        self._texts = features.reshape(len(unsafe), -1, features.shape[-1])

    def clean(self, data: bytes) -> Cleaned:
        """Mask the image in `data`, the bytes of a PNG, JPEG, GIF or WebP file.

        The copy is a JPEG if the image is one, else a PNG.

        Raises:
            ImageError: the image exceeds the limits, is broken or moves; or the copy exceeds them.
            ModelError: as `patch_scores` does.
            ConfigError: there is no threshold.
        """
        if self.threshold is None:
            raise ConfigError(
                "the image cleaner has no threshold", hint="call calibrate(safe images) first"
            )
        image = Image.from_bytes(data, self.limits)
        pixels = decoded(image)
        [scores] = self._scores([pixels])
        mask: NDArray[np.bool_] = scores <= self.threshold
        if mask.any():
            kind = "JPEG" if image.media_type == "image/jpeg" else "PNG"
            image = Image.from_bytes(_file(masked(pixels, mask), kind), self.limits)
        return Cleaned(image, mask, scores)

    def calibrate(self, safe: Sequence[bytes], share: float = 0.01) -> float:
        """Set and return the threshold at which at most a `share` of safe images loses a patch.

        Images that are like those of your users, and a good many more than ``1 / share`` of them,
        make it a good one.

        Raises:
            ImageError: as `clean` does.
            ConfigError: there is no image, or `share` is not in [0, 1).
        """
        scores: list[Floats] = []
        for start in range(0, len(safe), _BATCH):
            batch = safe[start : start + _BATCH]
            scores += self._scores([decoded(Image.from_bytes(d, self.limits)) for d in batch])
        self.threshold = transport.threshold(scores, share)
        return self.threshold

    def _scores(self, images: Sequence[pillow.Image]) -> list[Floats]:
        return [
            patch_scores(patches, self._texts, self.options).reshape(self.encoder.grid)
            for patches in self.encoder.patches(images)
        ]


def masked(pixels: pillow.Image, mask: NDArray[np.bool_]) -> pillow.Image:
    """Return a copy of an RGB image in which the patches of `mask`, [rows, columns], are black.

    The patches are an even grid over the whole image. A pixel that is only partly in a masked patch
    is black, too.
    """
    copy = pixels.copy()
    for box in _boxes(mask, *pixels.size):
        copy.paste((0, 0, 0), box)
    return copy


def _boxes(mask: NDArray[np.bool_], width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield left, upper, right and lower edge of each masked patch, in pixels."""
    rows, columns = mask.shape
    for row, column in np.argwhere(mask).tolist():
        yield (
            column * width // columns,
            row * height // rows,
            -(-(column + 1) * width // columns),
            -(-(row + 1) * height // rows),
        )


def _file(pixels: pillow.Image, kind: str) -> bytes:
    file = io.BytesIO()
    pixels.save(file, kind, **({"quality": _JPEG_QUALITY} if kind == "JPEG" else {}))
    return file.getvalue()
