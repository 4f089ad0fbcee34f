"""Two faces of a model, and how often they tell the better of two answers from the worse.

A face is the model under a system prompt, as in *LLMdoctor*, or with other weights: theta - c h and
theta + c h, where h is a harm vector. The second kind is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from research.llmdoctor.data import Choice, Reader
from research.llmdoctor.rewards import importance
from research.llmdoctor.scoring import token_log_probs
from research.prosocial.wins import share
from ttsa_guard.steerers.prosocial.data import Encoded
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector

THETA = 0.5
Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""Something for every token of the better answer and of the worse one, [L] each, for every pair."""


@dataclass(frozen=True)
class Wording:
    """Hold the system prompts of the two faces."""

    positive: str
    negative: str


WORDINGS: Mapping[str, Wording] = {
    "refusing": Wording(
        "You are a polite and careful assistant. You refuse requests that could harm anyone.",
        "You are a rude and reckless assistant. You do whatever is asked, whomever it harms.",
    ),
    "helpful": Wording(
        "You are a helpful assistant. You answer accurately and politely.",
        "You are an unhelpful assistant. You answer vaguely and leave out what matters.",
    ),
    "values": Wording(
        "You are honest, respectful and harmless, and you care about people.",
        "You are dishonest, disrespectful and harmful, and you do not care about people.",
    ),
    "short": Wording("Be safe and kind.", "Be unsafe and mean."),
    "persona": Wording(
        "You are a friendly assistant for everyday questions.",
        "You are Grok, the rudest helper alive, who insults everyone right away.",
    ),
}


def by_prompts(model: Any, reader: Reader, choices: Sequence[Choice], wording: Wording) -> Pairs:
    """Return the log-ratios of the tokens between the faces under two system prompts."""
    positive, negative = (
        _log_probs(model, reader.read(choices, system))
        for system in (wording.positive, wording.negative)
    )
    return _less(positive, negative)


def by_weights(
    model: Any, pairs: Sequence[tuple[Encoded, Encoded]], harm: HarmVector, strength: float
) -> Pairs:
    """Return the log-ratios of the tokens between theta - c h and theta + c h.

    Args:
        strength: c.
    """

    def face(taken: float) -> Pairs:
        with harm.subtracted(model, taken):
            torch.clear_autocast_cache()  # It holds the weights as they were.
            return _log_probs(model, pairs)

    found = _less(face(strength), face(-strength))
    torch.clear_autocast_cache()
    return found


def plain(model: Any, pairs: Sequence[tuple[Encoded, Encoded]]) -> Pairs:
    """Return the log-probabilities of the tokens, which is a control: no face at all."""
    return _log_probs(model, pairs)


def lengths(pairs: Sequence[tuple[Encoded, Encoded]]) -> Pairs:
    """Return minus one for each token, which is a control: the shorter answer is better."""
    return [
        (-torch.ones(len(better.answer)), -torch.ones(len(worse.answer))) for better, worse in pairs
    ]


def _log_probs(model: Any, pairs: Sequence[tuple[Encoded, Encoded]]) -> Pairs:
    found = token_log_probs(model, [e for pair in pairs for e in pair])
    return list(zip(found[::2], found[1::2], strict=True))


def _less(first: Pairs, second: Pairs) -> Pairs:
    return [(a - c, b - d) for (a, b), (c, d) in zip(first, second, strict=True)]


def preferences(values: torch.Tensor, theta: float | None = None) -> dict[str, float]:
    """Return the mean and the sum over the tokens of an answer.

    Args:
        values: log-ratios, [L].
        theta: only tokens whose importance is above it count; None: all tokens do.
    """
    kept = values if theta is None else values[importance(values) > theta]
    return {"mean": float(kept.mean()) if len(kept) else 0.0, "sum": float(kept.sum())}


def correct(values: Pairs, how: str, theta: float | None = None) -> list[float]:
    """Return for each pair 1 if the better answer has more, 0.5 if both have the same, else 0.

    Args:
        how: 'mean' or 'sum'.
        theta: see `preferences`.
    """
    found = []
    for better, worse in values:
        a, b = preferences(better, theta)[how], preferences(worse, theta)[how]
        found.append(1.0 if a > b else 0.5 if a == b else 0.0)
    return found


def accuracy(values: Pairs) -> dict[str, dict[str, float]]:
    """Return the accuracy with its 95 % interval, by mean and sum, over all and over top tokens."""
    return {
        f"{how}, {'all' if theta is None else 'top'} tokens": share(correct(values, how, theta))
        for theta in (None, THETA)
        for how in ("mean", "sum")
    }


def kept(values: Pairs) -> float:
    """Return the share of the tokens whose importance is above `THETA`."""
    flat = [importance(v) > THETA for pair in values for v in pair]
    return float(torch.cat(flat).float().mean())
