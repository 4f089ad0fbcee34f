"""Chat templates of models that reason, for models that do not."""

from __future__ import annotations

import shutil
from pathlib import Path

TEMPLATES = {
    "qwen3": (
        "<|assistant|>{% if enable_thinking is defined and enable_thinking is false"
        " %}<think>\n\n</think>\n\n{% endif %}"
    ),
    "deepseek": "<|assistant|><think>\n",
}
"""What stands in the place of ``<|assistant|>``. The one reasons unless it is told not to, and
opens the block itself; of the other the template always opens the block."""


def reasoning_copy(model: Path, folder: Path, style: str) -> Path:
    """A copy of the `model` in `folder`, with a template of that style."""
    shutil.copytree(model, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|assistant|>", TEMPLATES[style]))
    return folder
