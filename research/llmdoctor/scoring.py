"""Log-probabilities of the tokens of answers, many at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from ttsa_guard.backends.local.controlled import cache_argument
from ttsa_guard.steerers.prosocial.data import Encoded

_BATCH = 16


@torch.no_grad()
def token_log_probs(model: Any, examples: Sequence[Encoded]) -> list[torch.Tensor]:
    """Return the log-probability of each token of each answer, in nats, [L] each, float32.

    What all prompts begin with, such as a system prompt, is computed once.
    """
    shared = _shared([e.prompt for e in examples])
    cache = DynamicCache(config=model.config)
    if shared:
        model(input_ids=torch.tensor([shared]), use_cache=True, **{cache_argument(model): cache})
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt + examples[i].answer))
    found: dict[int, torch.Tensor] = {}
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        own = copy.deepcopy(cache)
        if shared:
            own.batch_repeat_interleave(len(rows))
        found |= zip(
            rows, _batch(model, [examples[i] for i in rows], len(shared), own), strict=True
        )
    return [found[i] for i in range(len(examples))]


def _batch(
    model: Any, examples: Sequence[Encoded], shared: int, cache: DynamicCache
) -> list[torch.Tensor]:
    texts = [[*e.prompt, *e.answer][shared:] for e in examples]
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    # Padding is on the right, where no token attends to it.
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    logits = model(input_ids=ids, use_cache=True, **{cache_argument(model): cache}).logits
    found = []
    for row, own, example in zip(ids, logits, examples, strict=True):
        first = len(example.prompt) - shared
        asked = slice(first, first + len(example.answer))
        said = own[first - 1 : asked.stop - 1].float().log_softmax(-1)
        found.append(said.gather(-1, row[asked, None])[:, 0])
    return found


def _shared(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return what all prompts begin with, without the last token of any."""
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    least = min(len(p) for p in prompts) - 1
    same = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    return [*first[: min(same, least)]]
