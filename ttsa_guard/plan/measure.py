"""What the work of a local model takes, on this machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Awaitable, Sequence
from importlib.metadata import version
from statistics import median

import numpy as np

from ttsa_guard.backends.base import Backend, device_of
from ttsa_guard.embedded.world import World
from ttsa_guard.errors import ModelError
from ttsa_guard.guard import Guard
from ttsa_guard.messages import GenerationRequest, Message, Prompt
from ttsa_guard.plan.costs import Costs, Moderation

_SHORT, _LONG = 2, 34
"""Tokens of two answers, of which the difference is steps alone."""
_JOINED = 6
"""Questions in a long prompt."""
_GATE_CALLS = 100


async def measure(guard: Guard, *, rows: int, repeats: int = 7, seed: int = 0) -> Costs:
    """Measure the costs of the guard's backend and gate.

    Args:
        rows: most rows that the backend decodes together.
        repeats: how often everything is timed; what counts is the median.
        seed: of the questions; answers are drawn greedily.

    Raises:
        ModelError: hardly any answer of the model is long enough to time its steps.
    """
    step = await _steps(guard.backend, rows, repeats, seed)
    prefill, call = await _prompts(guard.backend, step[0][1], repeats, seed)
    gate = await _gate(guard, seed)
    return Costs(
        step=tuple(step),
        prefill=prefill,
        call=call,
        rows=rows,
        gate=gate,
        about=about(guard.backend),
    )


def about(backend: Backend) -> dict[str, str]:
    """Say what is measured, on what."""
    versions = {name: version(name) for name in ("ttsa-guard", "torch", "transformers")}
    machine = {"device": device_of(backend), "machine": platform.machine()}
    return {"model": backend.name, **machine, "python": platform.python_version(), **versions}


async def seconds(work: Awaitable[object]) -> float:
    """Return how many seconds the work takes."""
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def _questions(n: int, seed: int) -> list[str]:
    return [case.question for case in World.load().cases("benign", None, n, seed=seed)]


async def _rendered(backend: Backend, texts: Sequence[str]) -> list[Prompt]:
    return [await backend.render(Message.conversation(text)) for text in texts]


async def _steps(backend: Backend, rows: int, repeats: int, seed: int) -> list[tuple[int, float]]:
    """Measure the seconds of a step with 1, 2, 4, ... rows.

    They are the median difference of long and short answers to the same prompts, by token.
    """
    prompts = await _long_answered(backend, rows, seed)
    sizes = sorted({*(2**i for i in range(rows.bit_length())), rows})
    by_size: dict[int, list[float]] = {n: [] for n in sizes}
    for repeat in range(repeats + 1):
        for n in sizes:
            long = await seconds(backend.generate(_requests(prompts[:n], _LONG)))
            short = await seconds(backend.generate(_requests(prompts[:n], _SHORT)))
            if repeat:  # the first round warms up
                by_size[n].append((long - short) / (_LONG - _SHORT))
    fastest = 0.0
    points = []
    for n in sizes:  # noise must not make a step with more rows faster
        fastest = max(fastest, median(by_size[n]), 1e-9)
        points.append((n, fastest))
    return points


async def _long_answered(backend: Backend, rows: int, seed: int) -> list[Prompt]:
    """Return `rows` prompts, repeated if need be, with answers of at least `_LONG` tokens."""
    prompts = await _rendered(backend, _questions(2 * rows + 16, seed))
    answers = await backend.generate(_requests(prompts, _LONG))
    long = [
        prompt for prompt, answer in zip(prompts, answers, strict=True) if answer.tokens >= _LONG
    ]
    if not long:
        raise ModelError(
            f"no answer of the model has {_LONG} tokens", hint="choose an instruction-tuned model"
        )
    return [long[i % len(long)] for i in range(rows)]


def _requests(prompts: Sequence[Prompt], most: int) -> list[GenerationRequest]:
    return [GenerationRequest(prompt, max_new_tokens=most, temperature=0.0) for prompt in prompts]


async def _prompts(backend: Backend, step: float, repeats: int, seed: int) -> tuple[float, float]:
    """Measure the seconds of a prompt token, and of a call without its prompt and steps.

    Prompts are new each time: a backend may keep what it has computed of others.
    """
    questions = _questions(2 * repeats * (1 + _JOINED), seed + 1)
    kinds = []
    for joined in (1, _JOINED):
        texts = [" ".join(questions.pop() for _ in range(joined)) for _ in range(2 * repeats)]
        prompts = await _rendered(backend, texts)
        timed = [await seconds(backend.generate(_requests([prompt], 1))) for prompt in prompts]
        kinds.append((float(np.median([len(p) for p in prompts])), median(timed)))
    (few, fast), (many, slow) = kinds
    prefill = max(0.0, (slow - fast) / (many - few))
    return prefill, max(0.0, fast - few * prefill - step)


async def _gate(guard: Guard, seed: int) -> Moderation:
    texts = _questions(_GATE_CALLS, seed)
    timed = [await seconds(guard.gate.moderate([text], prompts=[text])) for text in texts]
    return Moderation(p50=float(np.median(timed)), p95=float(np.percentile(timed, 95)))
