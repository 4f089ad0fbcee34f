"""Measure what a swap costs on the shapes of larger models, in plain answers.

``python -m research.cost FOLDER --shape 1b`` takes the cases of a finished ``bench run`` of
SmolLM2. It mends them again and keeps every call of the model. Then it makes the same calls, with
as many tokens in each, on a model of the shape with random weights, and plain answers of the same
lengths. Moderators are not part of it: what they take does not depend on the chat model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaForCausalLM

from ttsa_guard.backends.base import Continuation
from ttsa_guard.backends.local.engine import Engine, ScoringRequest
from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions
from ttsa_guard.bench.cases import Case, load
from ttsa_guard.bench.config import BenchConfig
from ttsa_guard.bench.speed import SHAPES
from ttsa_guard.config import GuardConfig
from ttsa_guard.guard import Guard
from ttsa_guard.messages import Generation, GenerationRequest, Prompt
from ttsa_guard.plugins import Plugins

Call = tuple[str, list[Any]]
"""The engine's method, and its requests."""
ARMS = ("default", "resample, checked", "tsa")


class Recorder(TransformersBackend):
    """A backend that keeps its calls."""

    calls: list[Call]

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Generate, and keep the requests with the lengths of the answers."""
        answers = await super().generate(requests)
        same = [
            r.with_(max_new_tokens=max(1, a.tokens), baseline=None)
            for r, a in zip(requests, answers, strict=True)
        ]
        self.calls.append(("generate", same))
        return answers

    async def log_likelihoods(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        """Score, and keep the texts."""
        texts_alone = [Continuation(((text, 1.0),)) for text in texts]
        self.calls.append(("values", [ScoringRequest(prompt, None, t) for t in texts_alone]))
        return await super().log_likelihoods(prompt, texts)


async def recorded(config: BenchConfig, cases: Sequence[Case], arm: str) -> list[list[Call]]:
    """Mend the cases in an arm, and return the calls of each."""
    plugins = Plugins()
    found = []
    for case in cases:
        guard_config: GuardConfig = config.guard(arm, case.item.policy)
        options = TransformersOptions(**guard_config.backend.options)
        backend = Recorder(options)
        guard = Guard.from_config(guard_config, plugins=plugins, backend=backend)
        backend.calls = []
        await guard.review(case.messages, case.answer)
        found.append(backend.calls)
    return found


async def plain(config: BenchConfig, cases: Sequence[Case]) -> list[list[Call]]:
    """Return the call that gave each flagged answer."""
    backend = Recorder(TransformersOptions(**config.backend.options))
    found = []
    for case in cases:
        backend.calls = []
        most = config.guard(None).generation.max_new_tokens
        prompt = await backend.render(case.messages)
        await backend.generate([GenerationRequest(prompt, max_new_tokens=most, temperature=0)])
        found.append(backend.calls)
    return found


def random_engine(shape: str, like: Engine) -> Engine:
    """Return a model of a shape with random weights in bfloat16, and the tokenizer of `like`."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(SHAPES[shape].config())
    finally:
        torch.set_default_dtype(torch.float32)
    return Engine(model, like.tokenizer, batch_size=like.batch_size)


def replayed(engine: Engine, calls: Sequence[Call]) -> float:
    """Make the calls again, and return their seconds."""
    hidden = engine.embedding.weight.shape[1]
    started = time.perf_counter()
    for method, requests in calls:
        if method == "generate":
            requests = [_of_size(r, hidden) for r in requests]
        getattr(engine, method)(requests, [threading.Event() for _ in requests])
    return time.perf_counter() - started


def _of_size(request: GenerationRequest, hidden: int) -> GenerationRequest:
    """Return a request whose soft embeddings fit a model. Their values do not matter."""
    if request.soft_embeds is None:
        return request
    soft = torch.zeros(request.soft_embeds.shape[0], hidden)
    return replace(request, soft_embeds=soft)


def main() -> None:
    """Print the seconds of plain answers, and the medians of what the arms take."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a finished 'bench run'")
    parser.add_argument("--config", default="real", help="the settings of that run")
    parser.add_argument("--shape", choices=("1b", "3b", "8b"), action="append", required=True)
    parser.add_argument("--n", type=int, default=6, help="cases")
    parser.add_argument("--arm", action="append", help=f"default: {', '.join(ARMS)}")
    options = parser.parse_args()
    config = BenchConfig.load(options.config)
    cases = [c for c in load(options.folder / "cases.jsonl") if not c.item.unsafe][: options.n]
    arms = options.arm or ARMS
    own = TransformersBackend(TransformersOptions(**config.backend.options))
    calls = {arm: asyncio.run(recorded(config, cases, arm)) for arm in arms}
    once = asyncio.run(plain(config, cases))
    for shape in ("smollm2", *options.shape):
        engine = own._engine if shape == "smollm2" else random_engine(shape, own._engine)
        replayed(engine, once[0])
        answers = [replayed(engine, c) for c in once]
        ratios = {
            arm: round(
                median(replayed(engine, c) / a for c, a in zip(of_arm, answers, strict=True)), 2
            )
            for arm, of_arm in calls.items()
        }
        print(json.dumps({"shape": shape, "plain, seconds": round(median(answers), 1), **ratios}))


if __name__ == "__main__":
    main()
