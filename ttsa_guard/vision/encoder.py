"""Image-text encoders of transformers: CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as pillow  # noqa: N813
from transformers import AutoImageProcessor, AutoModel

from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.hf.devices import resolve_device, resolve_dtype
from ttsa_guard.hf.loading import load
from ttsa_guard.hf.source import Source
from ttsa_guard.hf.tokens import encodable
from ttsa_guard.vision.base import Floats, unit

_WANTED = "a local folder, or the name of a CLIP or SigLIP model on the Hugging Face hub"
_BATCH = 8
"""Images that are encoded together."""


class TransformersEncoder:
    """A CLIP or SigLIP model as an `ImageTextEncoder`.

    The feature of a patch is what the model would say of the image if it pooled that patch alone.
    Neither model was trained for this.

    Args:
        model: a Hugging Face name, or a path.
        device: "auto", "cpu", "cuda", ...
        dtype: "auto", "float32", "bfloat16" or "float16". Features are always float32.

    Raises:
        ModelError: the model cannot be loaded, or is of another kind.
    """

    def __init__(self, model: str, *, device: str = "auto", dtype: str = "auto") -> None:
        device = resolve_device(device)
        loaded, self._tokenizer = load(
            Source(model),
            device=device,
            dtype=resolve_dtype(dtype, device),
            kind=AutoModel,
            wanted=_WANTED,
        )
        self._model = loaded.eval().requires_grad_(False)
        self._kind = str(loaded.config.model_type)
        if self._kind not in ("clip", "siglip"):
            raise ModelError(f"model {model!r} is of the kind {self._kind}", hint=f"give {_WANTED}")
        self._pixels = _image_processor(model)
        vision = loaded.config.vision_config
        self._size = int(vision.image_size)
        side = self._size // int(vision.patch_size)
        self.grid = (side, side)
        self.scale = float(loaded.logit_scale.float().exp())

    def texts(self, texts: Sequence[str]) -> Floats:
        """Return the features of texts, [texts, dimensions].

        Raises:
            ConfigError: a text is longer than the model takes.
        """
        longest = int(self._model.config.text_config.max_position_embeddings)
        encoded = self._tokenizer([encodable(text) for text in texts], verbose=False)
        if max(map(len, encoded["input_ids"])) > longest:
            raise ConfigError(
                f"a text for the image-text encoder has more than {longest} tokens",
                hint="describe a category in a short phrase",
            )
        # SigLIP was trained on texts that are padded to the end, without a mask.
        padded = self._kind == "siglip"
        encoded = self._tokenizer.pad(
            encoded,
            padding="max_length" if padded else True,
            max_length=longest if padded else None,
            return_tensors="pt",
        ).to(self._model.device)
        read = ("input_ids",) if padded else ("input_ids", "attention_mask")
        with torch.no_grad():
            return _features(self._model.get_text_features(**{key: encoded[key] for key in read}))

    def images(self, images: Sequence[pillow.Image]) -> Floats:
        """Return the features of RGB images, [images, dimensions]."""
        return self._encoded(images, lambda x: self._model.get_image_features(pixel_values=x))

    def patches(self, images: Sequence[pillow.Image]) -> Floats:
        """Return the features of the patches of RGB images, [images, patches, dimensions]."""
        return self._encoded(images, self._patches)

    def _encoded(self, images: Sequence[pillow.Image], encode: Any) -> Floats:
        found = []
        for start in range(0, len(images), _BATCH):
            # Squeezed here, so that no processor crops away what is then judged by nobody.
            square = [
                image.resize((self._size, self._size), pillow.Resampling.BICUBIC)
                for image in images[start : start + _BATCH]
            ]
            pixels = self._pixels(images=square, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                found.append(_features(encode(pixels.to(self._model.device, self._model.dtype))))
        return np.concatenate(found)

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        vision = self._model.vision_model
        hidden: torch.Tensor = vision(pixel_values=pixels).last_hidden_state
        if self._kind == "clip":
            # the first token stands for the whole image
            projected: torch.Tensor = self._model.visual_projection(
                vision.post_layernorm(hidden[:, 1:])
            )
            return projected
        # The head pools tokens by attention; of one token it gives that token's share.
        pooled: torch.Tensor = vision.head(hidden.flatten(0, 1)[:, None])
        return pooled.reshape(*hidden.shape[:2], -1)


def _image_processor(model: str) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(model)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ModelError(
            f"the image processor of {model!r} cannot be loaded: {type(error).__name__}",
            hint=f"give {_WANTED}",
        ) from error


def _features(found: Any) -> Floats:
    """Return features of length 1; newer versions of transformers give them within an output."""
    pooled = found if isinstance(found, torch.Tensor) else found.pooler_output
    return unit(pooled.float().cpu().numpy())
