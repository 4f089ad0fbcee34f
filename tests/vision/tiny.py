"""Tiny image-text encoders with random weights, saved as checkpoints of transformers are."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 12,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
WORDS = "<s> </s> <unk> a photo of the sea fog storm cat kettle garden".split()
PROCESSOR = """{"image_processor_type": "%s", "do_resize": true, "size": %s, "do_rescale": true,
"rescale_factor": 0.00392156862745098, "do_normalize": true, "image_mean": [0.5, 0.4, 0.3],
"image_std": [0.25, 0.26, 0.27]%s}"""


def save(kind: str, folder: Path) -> Path:
    """Save an encoder of a kind, "clip" or "siglip", with 4 x 4 patches and 12 tokens at most."""
    torch.manual_seed(0)
    if kind == "clip":
        config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
        CLIPModel(config).save_pretrained(folder)
        size = '{"shortest_edge": 32}'
        crop = ', "do_center_crop": true, "crop_size": {"height": 32, "width": 32}'
        processor = PROCESSOR % ("CLIPImageProcessor", size, crop)
    else:
        text = {**TEXT, "projection_size": 32}
        SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(folder)
        processor = PROCESSOR % ("SiglipImageProcessor", '{"height": 32, "width": 32}', "")
    (folder / "preprocessor_config.json").write_text(processor, encoding="utf-8")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=12,
    ).save_pretrained(folder)
    return folder
