"""Compute attention over shared prefixes.

It works in any transformers model that takes its attention from the registry. The sequences of a
batch have two kinds of keys: their own, and those of a prefix that several sequences share and that
is stored once. The products with a prefix are one matrix product for all of its sequences. One
softmax covers both parts.

The model is called without a cache and without a mask. Keys, values, and what each token may see
are in the `AttentionState`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from ttsa_guard.backends.local.calibration import CalibratedScores
from ttsa_guard.messages import Calibration

NAME = "ttsa_shared_prefix"
_MOST_SCORES = 2**24  # elements of one product; larger ones are done in slices of queries
_current = threading.local()


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of one prefix, a tensor [kv heads, length, head size] for each layer."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[1]

    def first(self, n: int) -> Prefix:
        """Return the first `n` tokens of the prefix, as views."""
        return Prefix(tuple(k[:, :n] for k in self.keys), tuple(v[:, :n] for v in self.values))

    def with_room(self, length: int) -> Prefix:
        """Return a prefix with room for `length` tokens, which begins with these tokens."""
        found = Prefix(
            *(
                tuple(t.new_empty(t.shape[0], length, t.shape[2]) for t in kind)
                for kind in (self.keys, self.values)
            )
        )
        found.put(0, self)
        return found

    def put(self, start: int, other: Prefix) -> None:
        """Copy `other` into the room, from token `start` on."""
        for mine, new in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            mine[:, start : start + len(other)] = new


@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring sequences of a batch that share a prefix, or that have none.

    Args:
        sequences: number of them.
        prefix: the prefix that they share; None if they have none.
        unseen: number of own keys at the beginning that none of the sequences sees.
        calibration: the calibration that they share; None if they have none.
    """

    sequences: int
    prefix: Prefix | None = None
    unseen: int = 0
    calibration: Calibration | None = None


@dataclass(eq=False)
class AttentionState:
    """What the sequences of a batch see besides the tokens that go through the model now.

    Args:
        groups: neighbouring sequences that are attended to together.
        allowed: which own keys a query sees, [batch, queries, own keys]; None if each sees those up
            to itself.
        calibrated: the scores of each group that are raised in this pass; empty if none are.
    """

    groups: Sequence[Group] = ()
    allowed: torch.Tensor | None = None
    calibrated: Sequence[CalibratedScores | None] = ()

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all own keys and values of a layer, given those of the tokens of this pass.

        Args:
            keys, values: [batch, kv heads, new tokens, head size].

        Returns:
            Keys and values, [batch, kv heads, n, head size] each, where n counts earlier own
            tokens, too.
        """
        return keys, values


@dataclass(eq=False)
class Capture(AttentionState):
    """An attention state that keeps the keys and values of this pass, a tensor for each layer."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep `keys` and `values`, [batch, kv heads, n, head size], and return them."""
        self.keys.append(keys)
        self.values.append(values)
        return keys, values


@contextmanager
def attending(model: Any, state: AttentionState) -> Iterator[None]:
    """Let calls of `model` on this thread attend as `state` says."""
    config = model.config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation, _current.state = NAME, state
    try:
        yield
    finally:
        config._attn_implementation, _current.state = usual, None


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the current state says. This is the function in transformers' registry.

    Args:
        query: [batch, heads, queries, head size].
        key, value: [batch, kv heads, queries, head size].

    Returns:
        The output, [batch, queries, heads, head size], and None in place of attention weights.
    """
    if any(options.get(name) is not None for name in ("softcap", "s_aux", "sliding_window")):
        raise NotImplementedError("attention with soft caps, sinks or windows")
    state: AttentionState = _current.state
    keys, values = state.extend(module.layer_idx, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts, start = [], 0
    groups = state.groups or [Group(len(query))]
    for group, raised in zip(groups, state.calibrated or [None] * len(groups), strict=True):
        members, seen = slice(start, start + group.sequences), slice(group.unseen, None)
        allowed = None if state.allowed is None else state.allowed[members, :, seen]
        own = (query[members], keys[members, :, seen], values[members, :, seen], allowed, scale)
        shared = group.prefix and (
            group.prefix.keys[module.layer_idx],
            group.prefix.values[module.layer_idx],
        )
        if raised and raised.of(module.layer_idx):
            parts.append(_calibrated(raised, module.layer_idx, *own, *(shared or ())))
        else:
            parts.append(_shared(*own, *shared) if shared else _plain(*own))
        start += group.sequences
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(1, 2).contiguous(), None


def _calibrated(
    raised: CalibratedScores,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    allowed: torch.Tensor | None,
    scale: float,
    *prefix: torch.Tensor,
) -> torch.Tensor:
    """Attend with raised scores, to the keys of the `prefix`, if any, and to the own keys.

    The other arguments are those of `_shared`.
    """
    assert allowed is not None
    if prefix:
        k, v = (
            torch.cat([ahead.expand(len(own), -1, -1, -1), own], 2)
            for ahead, own in zip(prefix, (k, v), strict=True)
        )
        allowed = pad(allowed, (prefix[0].shape[1], 0), value=True)
    return raised.attend(layer, q, k, v, allowed, scale)


def _plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None, scale: float
) -> torch.Tensor:
    mask = None if allowed is None else allowed[:, None]
    return scaled_dot_product_attention(
        q,
        k,
        v,
        mask,
        is_causal=mask is None and q.shape[2] > 1,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _shared(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    allowed: torch.Tensor | None,
    scale: float,
    prefix_k: torch.Tensor,
    prefix_v: torch.Tensor,
) -> torch.Tensor:
    """Attend to the keys of the prefix and to the own keys, with one softmax over both.

    Args:
        q: [batch, heads, queries, head size].
        k, v: own keys and values, [batch, kv heads, own keys, head size].
        allowed: which own keys a query sees, [batch, queries, own keys]; None if each sees those up
            to itself.
        prefix_k, prefix_v: [kv heads, P, head size].

    Returns:
        [batch, heads, queries, head size].
    """
    batch, heads, queries, size = q.shape
    if batch == 1 and queries > 1:
        # Nothing is shared, and the kernel for plain attention needs no memory for scores.
        seen = torch.ones(
            1, queries, prefix_k.shape[1] + k.shape[2], dtype=torch.bool, device=q.device
        )
        seen = (
            seen.tril(seen.shape[2] - queries)
            if allowed is None
            else pad(allowed, (prefix_k.shape[1], 0), value=True)
        )
        return _plain(
            q, torch.cat([prefix_k[None], k], 2), torch.cat([prefix_v[None], v], 2), seen, scale
        )
    if allowed is None:
        allowed = (
            torch.ones(queries, k.shape[2], dtype=torch.bool, device=q.device)
            .tril(k.shape[2] - queries)
            .expand(batch, -1, -1)
        )
    at_once = max(1, _MOST_SCORES // (batch * heads * prefix_k.shape[1]))
    if queries > at_once:
        slices = [slice(i, i + at_once) for i in range(0, queries, at_once)]
        return torch.cat(
            [_shared(q[:, :, s], k, v, allowed[:, s], scale, prefix_k, prefix_v) for s in slices], 2
        )
    kv, group = k.shape[1], heads // k.shape[1]

    def flat(x: torch.Tensor) -> torch.Tensor:
        """Reshape [batch, kv heads, n, m] to [kv heads, batch * n, m], for one matrix product."""
        return x.transpose(0, 1).reshape(kv, -1, x.shape[-1])

    def unflat(x: torch.Tensor) -> torch.Tensor:
        return x.view(kv, batch, -1, x.shape[-1]).transpose(0, 1)

    q = (q * scale).reshape(batch, kv, group * queries, size)
    own = (
        (q @ k.transpose(-1, -2))
        .float()
        .masked_fill(~allowed.repeat(1, group, 1)[:, None], float("-inf"))
    )
    ahead = (flat(q) @ prefix_k.transpose(-1, -2)).float()
    top = torch.maximum(own.amax(-1, keepdim=True), unflat(ahead.amax(-1, keepdim=True))).detach()
    own, ahead = _exp(own, top), _exp(ahead, flat(top))
    total = own.sum(-1, keepdim=True) + unflat(ahead.sum(-1, keepdim=True))
    mixed = unflat(ahead.to(v.dtype) @ prefix_v) + own.to(v.dtype) @ v
    return (mixed / total.to(v.dtype)).reshape(batch, heads, queries, size)


def _exp(scores: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """Return exp(scores - top).

    It is computed in place if no gradient needs the scores, because they are large.
    """
    return (scores - top).exp() if scores.requires_grad else scores.sub_(top).exp_()


AttentionInterface.register(NAME, _attention)
