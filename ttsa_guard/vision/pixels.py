"""Decode images, and never more of them than their headers promise."""

from __future__ import annotations

import io
import logging

from PIL import Image as pillow  # noqa: N813
from PIL import ImageOps

from ttsa_guard.errors import ImageError
from ttsa_guard.images import Image

# For debugging, Pillow logs the tags of a file with their values: places, names, descriptions.
logging.getLogger("PIL").setLevel(logging.INFO)


def decoded(image: Image) -> pillow.Image:
    """Return the pixels of `image`: RGB, and upright where its file says that it lies.

    Colours behind transparent pixels are shown, since models that drop the transparency see them.

    Raises:
        ImageError: the image is broken, larger than its header says, or moves. One frame would say
            nothing of the others. The message is the reason and holds nothing of the image.
    """
    kind = image.media_type.removeprefix("image/").upper()
    try:
        with pillow.open(io.BytesIO(image.data), formats=[kind]) as opened:
            # The limits were checked against the size in the header.
            if opened.size != (image.width, image.height):
                raise ImageError("of another size than its header says")
            if getattr(opened, "is_animated", False):
                raise ImageError("animated")
            return ImageOps.exif_transpose(opened).convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # a decoder may fail in any way at what a sender has made
        raise ImageError(f"not decoded: {type(error).__name__}") from None
