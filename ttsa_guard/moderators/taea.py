"""Zero-shot classes of images as an image moderator that adapts to the images that come.

It learns from the images that users send, so whoever sends many teaches it: see
`docs/moderators.md`. What it may learn is bounded, and off by default is most of it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image as pillow  # noqa: N813
from PIL import ImageOps
from pydantic import Field, field_validator

from ttsa_guard.errors import ImageError
from ttsa_guard.hf.devices import Device, Dtype
from ttsa_guard.images import Image
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.verdict import Verdict
from ttsa_guard.vision.adapter import AdapterOptions, DynamicAdapter, Prediction
from ttsa_guard.vision.base import Floats, ImageTextEncoder, unit
from ttsa_guard.vision.encoder import TransformersEncoder
from ttsa_guard.vision.pixels import decoded

log = logging.getLogger(__name__)
Classes = dict[str, tuple[str, ...]]
UNSAFE: Mapping[str, tuple[str, ...]] = {
    "sexual": ("a naked person", "a sexual scene"),
    "violence": ("a violent fight", "a badly injured person", "a dead body"),
    "hate": ("a hate symbol", "people who are humiliated"),
    "self-harm": ("a person who hurts themselves",),
    "weapons": ("a person with a gun", "a bomb"),
    "drugs": ("illegal drugs", "a person who takes drugs"),
}
SAFE: Mapping[str, tuple[str, ...]] = {
    "people": ("people in everyday life", "a portrait of a person in clothes"),
    "animals": ("an animal",),
    "nature": ("a landscape", "a plant"),
    "places": ("a building", "a street", "a room"),
    "things": ("an object", "food", "a vehicle"),
    "documents": ("a page of text", "a screenshot", "a diagram"),
}
_REMEMBERED = 10_000
"""Images of which it is known that they were learned from."""


class TaeaOptions(AdapterOptions):
    """Options of the image moderator ``taea``, which learns from the images that users send."""

    model: str = Field(min_length=1, description="a CLIP or SigLIP: a Hugging Face name, or a path")
    unsafe: Classes = Field(
        dict(UNSAFE), min_length=1, description="classes that are flagged: phrases by category"
    )
    safe: Classes = Field(dict(SAFE), min_length=1, description="classes that pass: likewise")
    templates: tuple[str, ...] = Field(
        ("a photo of {}.", "a drawing of {}."),
        min_length=1,
        description="sentences for the phrases; a class is the mean of all of its own",
    )
    threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="an image is flagged if the unsafe classes together are at least as probable",
    )
    device: Device = "auto"
    dtype: Dtype = "auto"

    @field_validator("unsafe", "safe")
    @classmethod
    def _has_phrases(cls, classes: Classes) -> Classes:
        if not all(classes.values()):
            raise ValueError("every class needs a phrase")
        return classes

    @field_validator("templates")
    @classmethod
    def _has_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if not all("{}" in template for template in templates):
            raise ValueError("every sentence needs {} in the place of the phrase")
        return templates


class Taea:
    """Flags an image whose most likely classes are unsafe ones. It learns from what it judges.

    An image is learned from once. Calls take their turns, so what a conversation sends is judged
    and learned as a whole; verdicts depend on what was sent before, by all conversations. What was
    learned is in memory alone, and features of images are a part of it.

    Args:
        encoder: used instead of the model that the options name.

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: a phrase is too long for it.
    """

    name = "taea"

    def __init__(self, options: TaeaOptions, encoder: ImageTextEncoder | None = None) -> None:
        self.options = options
        self._encoder = encoder or TransformersEncoder(
            options.model, device=options.device, dtype=options.dtype
        )
        self._adapter = DynamicAdapter(
            self._class_features(), scale=self._encoder.scale, options=options
        )
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self.resets = 0
        if options.positive.alpha or options.negative.alpha or options.learning_rate:
            log.warning(
                "image moderator taea learns from the images that users send, up to a drift of %g",
                options.max_drift,
            )

    async def moderate_images(self, images: Sequence[Image]) -> list[Verdict]:
        """Judge `images` one after another, and learn from each that was not seen before."""
        return await asyncio.to_thread(self._judged, list(images))

    def reset(self) -> None:
        """Forget all that was learned."""
        with self._lock:
            self._adapter.reset()
            self._seen.clear()

    def _judged(self, images: Sequence[Image]) -> list[Verdict]:
        with self._lock:
            return [self._verdict(image) for image in images]

    def _verdict(self, image: Image) -> Verdict:
        try:
            views = self._views(decoded(image))
        except ImageError as error:
            return Verdict.failure(self.name, error.message)
        if not np.isfinite(views).all():
            return Verdict.failure(self.name, "no features")
        found = self._adapter.predict(views[0], views=views, learn=self._is_new(image))
        if found.reset:
            self.resets += 1
            log.warning("image moderator taea has drifted too far and forgets what it learned")
        return self._scored(found)

    def _scored(self, found: Prediction) -> Verdict:
        unsafe = found.probabilities[: len(self.options.unsafe)]
        categories = dict(zip(self.options.unsafe, map(float, unsafe), strict=True))
        return Verdict.scored(
            self.name,
            min(1.0, float(unsafe.sum())),
            threshold=self.options.threshold,
            categories=categories,
        )

    def _is_new(self, image: Image) -> bool:
        """Remember an image, and return whether it was not known."""
        new = image.sha256 not in self._seen
        self._seen[image.sha256] = None
        self._seen.move_to_end(image.sha256)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return new

    def _views(self, pixels: pillow.Image) -> Floats:
        """Return the features of an image, and, for the blend, of its parts and mirror images."""
        views = [pixels]
        if self.options.learning_rate:
            views += parts(pixels)
            views += [ImageOps.mirror(view) for view in views]
        return self._encoder.images(views)

    def _class_features(self) -> Floats:
        """Return the features of all classes, [C, dimensions], the unsafe ones first."""
        classes = [*self.options.unsafe.values(), *self.options.safe.values()]
        means = []
        for phrases in classes:
            texts = [t.replace("{}", phrase) for phrase in phrases for t in self.options.templates]
            means.append(unit(self._encoder.texts(texts)).mean(0))
        return unit(np.stack(means))


def parts(pixels: pillow.Image) -> list[pillow.Image]:
    """Return the four corners and the middle of an image, each three quarters as wide and high."""
    width, height = (max(1, side * 3 // 4) for side in pixels.size)
    right, lower = pixels.width - width, pixels.height - height
    corners = [(x, y) for x in (0, right) for y in (0, lower)]
    return [
        pixels.crop((x, y, x + width, y + height)) for x, y in [*corners, (right // 2, lower // 2)]
    ]


@hookimpl
def ttsa_register_image_moderators(register: Register) -> None:
    """Offer the image moderator as ``use: taea`` under ``image_gate``."""
    register("taea", Taea, options=TaeaOptions)
