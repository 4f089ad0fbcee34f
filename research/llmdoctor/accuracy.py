"""How often faces are right on held-out pairs, of the embedded model and of a public one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from research.llmdoctor import faces
from research.llmdoctor.data import (
    Choice,
    Reader,
    harm_examples,
    public_choices,
    world_choices,
)
from research.llmdoctor.faces import WORDINGS, Pairs
from ttsa_guard.steerers.prosocial import training
from ttsa_guard.steerers.prosocial.adapter import AdapterShape
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector
from ttsa_guard.steerers.prosocial.training import Plan

STRENGTHS = (0.25, 0.5, 1.0)
"""Values of c that are tried."""
SEED = 21
HARM = Plan(steps=60, batch=4, peak=1e-3, warm_up=6, decay=0.0)
"""How the harm vector of the public model is trained."""
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LONGEST = 32
"""The most tokens of an answer of the public data that are read."""
HOW = "mean, all tokens"
"""By which accuracy a wording and a strength are chosen."""
Said = Callable[[str], None]


def measure(
    model: Any,
    reader: Reader,
    choices: Sequence[Choice],
    harm: HarmVector,
    *,
    most: tuple[int, int],
    said: Said,
) -> dict[str, Any]:
    """Choose a wording and a strength on the development half, and measure them on the other.

    Args:
        choices: the pairs of all sources.
        harm: a harm vector of the model.
        most: the most pairs of a source in the development half, and in the other.
        said: called with what is done now.
    """
    model.eval()
    found = reader.short(choices)
    development, test = (
        _at_most(found, half, many)
        for half, many in zip(("development", "test"), most, strict=True)
    )
    tried: dict[str, Pairs] = {}
    for name, wording in WORDINGS.items():
        said(f"prompts, {name}")
        tried[f"prompts, {name}"] = faces.by_prompts(model, reader, development, wording)
    for strength in STRENGTHS:
        said(f"weights, {strength:g}")
        tried[f"weights, {strength:g}"] = faces.by_weights(
            model, reader.read(development), harm, strength
        )
    tables = {name: by_source(development, values) for name, values in tried.items()}
    best = {
        kind: max(
            (n for n in tables if n.startswith(kind)), key=lambda n: tables[n][ALL][HOW]["value"]
        )
        for kind in ("prompts", "weights")
    }
    said("the other half")
    tokens = reader.read(test)
    last: dict[str, Pairs] = {
        "prompts": faces.by_prompts(
            model, reader, test, WORDINGS[best["prompts"].removeprefix("prompts, ")]
        ),
        "weights": faces.by_weights(
            model, tokens, harm, float(best["weights"].removeprefix("weights, "))
        ),
        "likelihood alone": faces.plain(model, tokens),
        "the shorter": faces.lengths(tokens),
    }
    return {
        "pairs": {
            half: _counts(rows) for half, rows in (("development", development), ("test", test))
        },
        "chosen": best,
        "development": tables,
        "test": {name: by_source(test, values) for name, values in last.items()},
        "share of tokens above theta": {
            name: round(faces.kept(last[name]), 3) for name in ("prompts", "weights")
        },
    }


ALL = "mean of sources"


def by_source(choices: Sequence[Choice], values: Pairs) -> dict[str, dict[str, Any]]:
    """Return the accuracies on the pairs of each source, and the mean of the sources."""
    rows: dict[str, Pairs] = {}
    for choice, value in zip(choices, values, strict=True):
        rows.setdefault(choice.source, []).append(value)
    tables: dict[str, dict[str, Any]] = {name: faces.accuracy(own) for name, own in rows.items()}
    tables[ALL] = {
        how: {"value": sum(t[how]["value"] for t in tables.values()) / len(tables)}
        for how in next(iter(tables.values()))
    }
    return tables


def _at_most(choices: Sequence[Choice], half: str, most: int) -> list[Choice]:
    """Return the first pairs of each source in one half."""
    kept: dict[str, list[Choice]] = {}
    for choice in choices:
        own = kept.setdefault(choice.source, [])
        if choice.half == half and len(own) < most:
            own.append(choice)
    return [choice for own in kept.values() for choice in own]


def _counts(choices: Sequence[Choice]) -> dict[str, int]:
    return {name: sum(c.source == name for c in choices) for name in {c.source: 0 for c in choices}}


def in_the_world(harm: HarmVector, n: int, said: Said) -> dict[str, Any]:
    """Measure faces of the embedded model, with `n` pairs of each kind."""
    model, encode = training.load("embedded", "cpu")
    return measure(model, Reader(encode), world_choices(n, SEED), harm, most=(n // 4, n), said=said)


def of(
    name: str, data: Path, harm: HarmVector, most: tuple[int, int], said: Said
) -> dict[str, Any]:
    """Measure faces of a public model on public pairs; see `measure`."""
    model, encode = training.load(name, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        return measure(
            model, Reader(encode, LONGEST), public_choices(data), harm, most=most, said=said
        )


def harm_vector(name: str, data: Path, said: Said) -> HarmVector:
    """Train a harm vector of a public model on public data."""
    model, encode = training.load(name, "cpu")
    return training.harm_vector(
        model,
        replace(encode, longest=110),
        harm_examples(data, 1200),
        HARM,
        method="lora",
        shape=AdapterShape(rank=16, targets=TARGETS),
        on_step=lambda done, loss: said(f"harm vector, step {done}, loss {loss:.2f}"),
    )
