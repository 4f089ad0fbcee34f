"""An image cleaner over an encoder that sees colours: what is masked, and what is left."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow  # noqa: N813

from tests.pictures import SVG, bomb, png
from tests.vision.tiny import save
from ttsa_guard.errors import ConfigError, ImageError
from ttsa_guard.images import Image, ImageLimits
from ttsa_guard.vision.base import Floats, unit
from ttsa_guard.vision.cleaner import ImageCleaner, masked
from ttsa_guard.vision.encoder import TransformersEncoder
from ttsa_guard.vision.transport import TransportOptions

RED, GREY = (255, 0, 0), (90, 90, 90)
COLOURS = {"red": (1, 0, 0), "crimson": (1, 0.1, 0.1), "blue": (0, 0, 1), "navy": (0.1, 0, 1)}


class Colours:
    """An encoder whose features are colours; it has 4 x 4 patches."""

    grid = (4, 4)
    scale = 100.0

    def texts(self, texts: Sequence[str]) -> Floats:
        return unit(np.array([COLOURS[text] for text in texts], dtype=float))

    def images(self, images: Sequence[pillow.Image]) -> Floats:
        return self.patches(images).mean(1)

    def patches(self, images: Sequence[pillow.Image]) -> Floats:
        small = [np.asarray(i.resize((4, 4), pillow.Resampling.BOX), dtype=float) for i in images]
        return unit(np.stack(small).reshape(len(images), 16, 3) + 1e-3)


def cleaner(**more: Any) -> ImageCleaner:
    return ImageCleaner(
        Colours(),
        {"reds": ["red", "crimson"], "blues": ["blue", "navy"]},
        **{"threshold": 0.2, **more},
    )


def file(pixels: pillow.Image, kind: str = "PNG", **more: Any) -> bytes:
    out = io.BytesIO()
    pixels.save(out, kind, **more)
    return out.getvalue()


def pixels_of(image: Image) -> np.ndarray[Any, Any]:
    return np.asarray(pillow.open(io.BytesIO(image.data)).convert("RGB"))


def picture(width: int = 64, height: int = 48) -> pillow.Image:
    """Grey, with one red patch: of the second row, the last column."""
    made = pillow.new("RGB", (width, height), GREY)
    made.paste(RED, (width * 3 // 4, height // 4, width, height // 2))
    return made


@pytest.mark.parametrize("aggregate", ["nearest", "cosine"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_patch_of_an_unsafe_colour_is_masked(kind: str, aggregate: Any) -> None:
    data = file(picture(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    found = cleaner(options=TransportOptions(aggregate=aggregate)).clean(data)
    assert np.argwhere(found.mask).tolist() == [[1, 3]]
    assert found.scores.shape == (4, 4)
    assert found.image.media_type == ("image/jpeg" if kind == "JPEG" else "image/png")
    after = pixels_of(found.image)
    assert after.shape == (48, 64, 3)
    assert after[14:22, 50:62].max() < 12
    assert np.abs(after[26:, :].astype(int) - 90).max() < 12


def test_an_image_of_which_nothing_is_masked_stays_as_it_is() -> None:
    data = file(pillow.new("RGB", (10, 10), GREY), "JPEG")
    found = cleaner().clean(data)
    assert not found.mask.any()
    assert found.image.data == data


@pytest.mark.parametrize("size", [(64, 48), (61, 47), (3, 2), (4001, 5)])
def test_patches_cover_all_pixels_of_any_size(size: tuple[int, int]) -> None:
    white = pillow.new("RGB", size, (255, 255, 255))
    assert not np.asarray(masked(white, np.ones((7, 7), dtype=bool))).any()
    one = np.zeros((4, 4), dtype=bool)
    one[1, 3] = True
    left = np.asarray(masked(white, one)).any(-1)
    width, height = size
    # every pixel that is partly in the patch, and no other
    black = np.zeros((height, width), dtype=bool)
    black[height // 4 : -(-height // 2), width * 3 // 4 :] = True
    assert (left != black).all()


def test_a_picture_that_lies_is_masked_as_it_is_seen_and_loses_its_metadata() -> None:
    about = pillow.Exif()
    about[0x0112] = 6  # turn it to the right
    about[0x010E] = "where it was taken"
    data = file(picture().transpose(pillow.Transpose.ROTATE_90), "JPEG", exif=about, quality=95)
    found = cleaner().clean(data)
    assert np.argwhere(found.mask).tolist() == [[1, 3]]
    assert (found.image.width, found.image.height) == (64, 48)
    assert b"where it was taken" in data
    assert b"where it was taken" not in found.image.data


def test_what_is_behind_transparent_pixels_is_judged() -> None:
    hidden = picture().convert("RGBA")
    hidden.putalpha(0)
    found = cleaner().clean(file(hidden))
    assert found.mask.sum() == 1
    assert pillow.open(io.BytesIO(found.image.data)).mode == "RGB"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bomb(), "60000 x 60000 pixels"),
        (SVG, "SVG"),
        (b"hello", "no known kind"),
        (png(40, 40)[:-20], "cut off"),
        (png(broken=True), "not decoded"),
        (file(picture(), "GIF", save_all=True, append_images=[picture(32, 24)]), "animated"),
        (file(picture(), "GIF")[:6] + b"\1\0\1\0" + file(picture(), "GIF")[10:], "another size"),
    ],
)
def test_hostile_pictures_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        cleaner().clean(data)
    with pytest.raises(ImageError, match=reason):
        cleaner().calibrate([data])


def test_limits_hold_for_the_image_and_for_its_copy() -> None:
    data = file(picture(), "PNG")
    with pytest.raises(ImageError, match="bytes"):
        cleaner(limits=ImageLimits(max_bytes=len(data) - 1)).clean(data)
    with pytest.raises(ImageError, match="pixels"):
        cleaner(limits=ImageLimits(max_pixels=100)).clean(data)
    lossy = file(noise(64).convert("RGB"), "WEBP", quality=1)
    with pytest.raises(ImageError, match="bytes"):  # as a PNG it is larger
        cleaner(limits=ImageLimits(max_bytes=len(lossy)), threshold=2.0).clean(lossy)


def noise(size: int, seed: int = 0) -> pillow.Image:
    draw = np.random.default_rng(seed)
    return pillow.fromarray(draw.integers(60, 120, (size, size, 3), dtype=np.uint8))


def test_calibration_masks_in_few_safe_images_and_still_finds_what_is_unsafe() -> None:
    safe = [file(noise(16, seed)) for seed in range(40)]
    own = cleaner(threshold=None)
    with pytest.raises(ConfigError, match="no threshold"):
        own.clean(safe[0])
    assert own.calibrate(safe, 0.05) == own.threshold
    assert sum(own.clean(data).mask.any() for data in safe) == 2
    assert own.clean(file(picture())).mask[1, 3]


@pytest.mark.parametrize("unsafe", [{}, {"a": []}, {"a": ["red"], "b": ["red", "blue"]}])
def test_every_category_needs_as_many_texts(unsafe: Any) -> None:
    with pytest.raises(ConfigError, match="each as many"):
        ImageCleaner(Colours(), unsafe, threshold=0.2)


def test_nothing_of_an_image_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Not by Pillow either, which tells the values of a file's tags."""
    about = pillow.Exif()
    about[0x010E] = "where it was taken"
    data = file(picture(), "JPEG", exif=about)
    with caplog.at_level(logging.DEBUG):
        found = cleaner().clean(data)
    assert "where it was taken" not in caplog.text
    assert [record for record in caplog.records if record.name.startswith("ttsa_guard")] == []
    assert repr(found.image.data)[2:40] not in repr(found)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_over_an_encoder_of_transformers(kind: str, tmp_path: Path) -> None:
    encoder = TransformersEncoder(str(save(kind, tmp_path)), device="cpu")
    own = ImageCleaner(encoder, {"weather": ["the storm", "fog"], "other": ["cat", "a kettle"]})
    own.calibrate([file(noise(40, seed)) for seed in range(6)], 0.5)
    first, again = (own.clean(file(noise(40))) for _ in range(2))
    assert first.image == again.image
    assert (first.scores >= 0).all()
    assert (own.clean(file(noise(40, 1))).scores != first.scores).any()
