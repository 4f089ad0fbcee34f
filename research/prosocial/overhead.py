"""Measure what controlled decoding costs: time compared with plain decoding, and memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from research import SHIPPED
from ttsa_guard.backends.transformers import TransformersBackend
from ttsa_guard.bench.measure import estimate
from ttsa_guard.messages import GenerationRequest
from ttsa_guard.steerers.prosocial.product import Product
from ttsa_guard.steerers.prosocial.steerer import HARM_VECTOR, REWARD

_REPEATS = 3
Spent = tuple[float, int]
"""Seconds and tokens."""


async def overhead(
    backend: TransformersBackend,
    requests: Sequence[GenerationRequest],
    decodings: Mapping[str, Product | None],
) -> dict[str, Any]:
    """Measure the time of answers that are drawn alone.

    Numbers are medians over the requests; for each request the fastest of three runs counts. All
    decodings take turns at every request, and ratios are between runs of the same request. So other
    work of the machine has little influence.

    Args:
        decodings: controlled decodings by name; None is plain decoding. The others are compared
            with the first two.
    """
    spent: dict[str, list[Spent]] = {name: [] for name in decodings}
    for request in requests:
        rounds = [
            [await _timed(backend, request, decoding) for decoding in decodings.values()]
            for _ in range(_REPEATS)
        ]
        for name, runs in zip(decodings, zip(*rounds, strict=True), strict=True):
            spent[name].append(min(runs))
    bases = list(decodings)[:2]
    return {
        name: {
            "seconds": _median([s for s, _ in own]),
            "tokens": _median([n for _, n in own]),
            "milliseconds a token": _median([1000 * s / n for s, n in own]),
            **{f"times {base}": _ratios(own, spent[base]) for base in bases if base != name},
        }
        for name, own in spent.items()
    }


def memory(decoding: Product) -> dict[str, Any]:
    """Return the bytes of the shipped harm vector and reward model, in files and loaded."""
    assert decoding.harm is not None
    assert decoding.reward is not None
    folder = SHIPPED / "prosocial"
    files = {name: len((folder / name).read_bytes()) for name in (HARM_VECTOR, REWARD)}
    entries = [
        tensor for e in decoding.harm.entries.values() for tensor in (e.indices(), e.values())
    ]
    parameters = sum(t.numel() for t in decoding.reward.tensors.values())
    return {
        "reward model": {
            "parameters": parameters,
            "in the file": files[REWARD],
            "in use, float32": 4 * parameters,
        },
        "harm vector": {
            "entries": len(decoding.harm),
            "in the file": files[HARM_VECTOR],
            "loaded": sum(t.numel() * t.element_size() for t in entries),
        },
    }


async def _timed(
    backend: TransformersBackend, request: GenerationRequest, decoding: Product | None
) -> Spent:
    started = time.perf_counter()
    [answer] = await (
        backend.generate_controlled([request], decoding)
        if decoding
        else backend.generate([request])
    )
    return time.perf_counter() - started, max(1, answer.tokens)


def _ratios(own: Sequence[Spent], base: Sequence[Spent]) -> dict[str, Any]:
    pairs = list(zip(own, base, strict=True))
    return {
        "an answer": _median([s / t for (s, _), (t, _) in pairs]),
        "a token": _median([(s / n) / (t / m) for (s, n), (t, m) in pairs]),
    }


def _median(values: Sequence[float]) -> dict[str, float]:
    middle = estimate(values, median=True)
    assert middle is not None
    return middle.as_dict()
