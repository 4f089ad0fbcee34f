"""CLIP and SigLIP as encoders, with tiny random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pillow  # noqa: N813
from transformers import AutoModel

from tests.vision.tiny import save
from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.hf.source import Source
from ttsa_guard.vision.encoder import TransformersEncoder

TEXTS = ["a photo of the sea", "a kettle", "the storm the fog"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: Any, tmp_path_factory: Any) -> Path:
    return save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TransformersEncoder:
    return TransformersEncoder(str(folder), device="cpu")


def pictures(n: int = 10) -> list[pillow.Image]:
    draw = np.random.default_rng(0)
    return [pillow.fromarray(draw.integers(0, 255, (40, 64, 3), dtype=np.uint8)) for _ in range(n)]


def test_features_have_length_1_and_are_the_same_alone(encoder: TransformersEncoder) -> None:
    images = pictures()
    for encode, things in (
        (encoder.texts, TEXTS),
        (encoder.images, images),
        (encoder.patches, images),
    ):
        together = encode(things)
        assert together.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, atol=1e-5)
        assert np.ptp(together, axis=0).max() > 0.01
        for thing, expected in zip(things, together, strict=True):
            np.testing.assert_allclose(encode([thing])[0], expected, atol=1e-5)
    assert encoder.patches(images).shape[:2] == (10, 16)
    assert encoder.grid == (4, 4)


def test_cosines_and_scale_are_those_of_the_model(
    folder: Path, encoder: TransformersEncoder
) -> None:
    model = AutoModel.from_pretrained(folder).eval().requires_grad_(False)
    images = [image.resize((32, 32)) for image in pictures(3)]
    pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
    normed = (pixels - np.array([0.5, 0.4, 0.3])) / np.array([0.25, 0.26, 0.27])
    ids = [[0, 3, 10, 1], [0, 9, 8, 1]]
    if model.config.model_type == "siglip":
        ids = [row + [1] * 8 for row in ids]
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(ids),
            pixel_values=torch.tensor(normed.transpose(0, 3, 1, 2), dtype=torch.float32),
        )
    logits = found.logits_per_image.numpy()
    if model.config.model_type == "siglip":
        logits = logits - float(model.logit_bias)
    ours = encoder.scale * encoder.images(images) @ encoder.texts(["a cat", "storm fog"]).T
    np.testing.assert_allclose(ours, logits, atol=1e-4)


def test_the_whole_of_a_wide_image_is_seen(encoder: TransformersEncoder) -> None:
    """A processor that crops the middle out would not see the left edge."""
    wide = pillow.new("RGB", (320, 40), (90, 90, 90))
    edge = wide.copy()
    edge.paste((255, 0, 0), (0, 0, 60, 40))
    assert np.abs(encoder.images([wide]) - encoder.images([edge])).max() > 1e-3
    changed = np.abs(encoder.patches([wide]) - encoder.patches([edge]))[0].max(-1).reshape(4, 4)
    assert changed[:, 0].min() > changed[:, 1:].max()


def test_a_text_that_is_too_long_is_refused(encoder: TransformersEncoder) -> None:
    with pytest.raises(ConfigError, match="more than 12 tokens"):
        encoder.texts([*TEXTS, "the sea " * 20])


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is of the kind llama"):
        TransformersEncoder(Source.of("embedded").path, device="cpu")
    with pytest.raises(ModelError, match="cannot be loaded"):
        TransformersEncoder(str(tmp_path / "nothing"), device="cpu")
