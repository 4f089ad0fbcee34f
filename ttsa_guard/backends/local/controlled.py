"""Generate with controlled decoding.

It is a plain loop in which a `ControlledDecoding` gives the logits of every step.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache

from ttsa_guard.backends.base import ControlledDecoding
from ttsa_guard.backends.local.engine import Engine
from ttsa_guard.backends.local.reference import left_padded, positions
from ttsa_guard.backends.local.sampling import SequenceSampler
from ttsa_guard.errors import ModelError
from ttsa_guard.messages import Generation, GenerationRequest


class Cached:
    """A model with a cache of its own.

    A controlled decoding may run several of them side by side.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._cache = model, {cache_argument(model): DynamicCache(config=model.config)}

    def __call__(self, embeds: torch.Tensor, valid: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Return the logits after the last token, [batch, vocabulary].

        The arguments are those of `DecodingStep`: `embeds` [batch, n, hidden], `valid` [batch,
        length], `at` [batch, n].
        """
        found: torch.Tensor = self._model(
            inputs_embeds=embeds,
            attention_mask=valid.long(),
            position_ids=at,
            use_cache=True,
            logits_to_keep=1,
            **self._cache,
        ).logits[:, -1]
        return found


def cache_argument(model: Any) -> str:
    """Return the name of the argument for the cache in `model.forward`.

    Versions of transformers rename it, one architecture after another.
    """
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def fingerprint(model: torch.nn.Module) -> str:
    """Return the SHA-256 over the names, shapes and values of all parameters.

    Values are taken as bfloat16. So the result is the same for a checkpoint in float32 or in
    bfloat16, and on any device.
    """
    found = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        found.update(f"{name} {tuple(weight.shape)}\n".encode())
        found.update(
            weight.detach()
            .to("cpu", torch.bfloat16)
            .contiguous()
            .view(torch.int16)
            .numpy()
            .tobytes()
        )
    return found.hexdigest()


def generate(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    decoding: ControlledDecoding,
    stop: threading.Event,
) -> list[Generation]:
    """Generate answers with a controlled decoding; see `ExposesLogits.generate_controlled`.

    It runs on the model's worker thread.

    Args:
        stop: ends all answers at the next token when it is set.

    Raises:
        ModelError: a request has a calibration.
    """
    if any(r.calibration for r in requests):
        raise ModelError(
            "a controlled decoding calibrates no attention", hint="leave one of the two out"
        )
    found: list[Generation] = []
    for start in range(0, len(requests), engine.batch_size):
        found += _batch(engine, requests[start : start + engine.batch_size], decoding, stop)
    return found


@torch.no_grad()
def _batch(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    decoding: ControlledDecoding,
    stop: threading.Event,
) -> list[Generation]:
    openings = [engine.encode(r.opening) for r in requests]
    room = [
        engine.context_length - len(r.prompt) - len(o)
        for r, o in zip(requests, openings, strict=True)
    ]
    most = [max(1, min(r.max_new_tokens, tokens)) for r, tokens in zip(requests, room, strict=True)]
    sampler = SequenceSampler(
        [r.temperature for r in requests], [r.seed for r in requests], engine.device
    )
    new: list[list[int]] = [[] for _ in requests]
    likelihoods = [0.0] * len(requests)
    running = set(range(len(requests)))
    with decoding.over(engine.model) as step:
        # The embeddings are weights, too, so they are read while the decoding is in force.
        starts = [
            engine.start(r.prompt, r.soft_embeds, o)
            for r, o in zip(requests, openings, strict=True)
        ]
        embeds, valid = left_padded(
            [torch.cat([engine.embed(s.prefix_ids), s.suffix_embeds]) for s in starts]
        )
        at = positions(valid)
        while running and not stop.is_set():
            logits = step(embeds, valid, at).float()
            tokens = sampler.noisy(logits).argmax(-1)
            drawn = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].tolist()
            for i in list(running):
                token = int(tokens[i])
                new[i].append(token)
                likelihoods[i] += drawn[i]
                if token in engine.ends or len(new[i]) >= most[i]:
                    running.discard(i)
            embeds, at = engine.embedding(tokens)[:, None], at[:, -1:] + 1
            valid = torch.cat([valid, valid.new_ones(len(requests), 1)], 1)
    return [
        replace(engine.answer(r, o, ids), log_likelihood=total / max(1, len(ids)))
        for r, o, ids, total in zip(requests, openings, new, likelihoods, strict=True)
    ]
