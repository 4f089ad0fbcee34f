"""Attention over shared beginnings, put into any transformers model that takes its attention from the registry.

The rows of a batch have two kinds of keys: their own, and those of a beginning that several rows share and that is stored
once. The products with the latter are one matrix product for all of its rows; both parts meet in one softmax.

The model is called without a cache and without a mask: keys, values and what may see what are in the `AttentionState`.
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

NAME = "ttsa_shared_prefix"
_MOST_SCORES = 2**24  # elements: longer products are done in slices of queries
_current = threading.local()


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of one beginning, for each layer: [kv heads, length, head size]."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[1]

    def first(self, n: int) -> Prefix:
        return Prefix(tuple(k[:, :n] for k in self.keys), tuple(v[:, :n] for v in self.values))

    def with_room(self, length: int) -> Prefix:
        """Room for that many tokens, of which the first are these."""
        found = Prefix(*(tuple(t.new_empty(t.shape[0], length, t.shape[2]) for t in kind) for kind in (self.keys, self.values)))
        found.put(0, self)
        return found

    def put(self, start: int, other: Prefix) -> None:
        """Fill the room from token `start` on."""
        for mine, new in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            mine[:, start : start + len(other)] = new


@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring rows that share a prefix, or have none; none of them sees the first `unseen` own keys."""

    rows: int
    prefix: Prefix | None = None
    unseen: int = 0


@dataclass(eq=False)
class AttentionState:
    """What the rows of a batch see besides the keys of the tokens that go through the model now.

    Args:
        groups: neighbouring rows that are attended to together.
        allowed: which own keys a query sees, [batch, queries, own keys]; None: those up to itself.
    """

    groups: Sequence[Group] = ()
    allowed: torch.Tensor | None = None

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All own keys and values of a layer, [batch, kv heads, n, head size], given those of the tokens of this pass."""
        return keys, values


@dataclass(eq=False)
class Capture(AttentionState):
    """Keeps the keys and values that go by."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.append(keys)
        self.values.append(values)
        return keys, values


@contextmanager
def attending(model: Any, state: AttentionState) -> Iterator[None]:
    """Calls of `model` on this thread attend as `state` says."""
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
    """The registered function: query [batch, heads, queries, head size], key and value for the kv heads."""
    if any(options.get(name) is not None for name in ("softcap", "s_aux", "sliding_window")):
        raise NotImplementedError("attention with soft caps, sinks or windows")
    state: AttentionState = _current.state
    keys, values = state.extend(module.layer_idx, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts, start = [], 0
    for group in state.groups or [Group(len(query))]:
        rows, seen = slice(start, start + group.rows), slice(group.unseen, None)
        allowed = None if state.allowed is None else state.allowed[rows, :, seen]
        own = (query[rows], keys[rows, :, seen], values[rows, :, seen], allowed, scale)
        shared = group.prefix and (group.prefix.keys[module.layer_idx], group.prefix.values[module.layer_idx])
        parts.append(_shared(*own, *shared) if shared else _plain(*own))
        start += group.rows
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(1, 2).contiguous(), None


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None, scale: float) -> torch.Tensor:
    mask = None if allowed is None else allowed[:, None]
    return scaled_dot_product_attention(
        q, k, v, mask, is_causal=mask is None and q.shape[2] > 1, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
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
    """Softmax over the keys of the prefix [kv heads, P, head size] and the own ones together."""
    batch, heads, queries, size = q.shape
    if batch == 1 and queries > 1:  # nothing is shared, and the kernel for plain attention needs no memory for scores
        seen = torch.ones(1, queries, prefix_k.shape[1] + k.shape[2], dtype=torch.bool, device=q.device)
        seen = seen.tril(seen.shape[2] - queries) if allowed is None else pad(allowed, (prefix_k.shape[1], 0), value=True)
        return _plain(q, torch.cat([prefix_k[None], k], 2), torch.cat([prefix_v[None], v], 2), seen, scale)
    if allowed is None:
        allowed = (
            torch.ones(queries, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - queries).expand(batch, -1, -1)
        )
    at_once = max(1, _MOST_SCORES // (batch * heads * prefix_k.shape[1]))
    if queries > at_once:
        slices = [slice(i, i + at_once) for i in range(0, queries, at_once)]
        return torch.cat([_shared(q[:, :, s], k, v, allowed[:, s], scale, prefix_k, prefix_v) for s in slices], 2)
    kv, group = k.shape[1], heads // k.shape[1]

    def flat(x: torch.Tensor) -> torch.Tensor:
        """[batch, kv heads, n, m] as [kv heads, batch * n, m]: all rows of the batch in one matrix product."""
        return x.transpose(0, 1).reshape(kv, -1, x.shape[-1])

    def unflat(x: torch.Tensor) -> torch.Tensor:
        return x.view(kv, batch, -1, x.shape[-1]).transpose(0, 1)

    q = (q * scale).reshape(batch, kv, group * queries, size)
    own = (q @ k.transpose(-1, -2)).float().masked_fill(~allowed.repeat(1, group, 1)[:, None], float("-inf"))
    ahead = (flat(q) @ prefix_k.transpose(-1, -2)).float()
    top = torch.maximum(own.amax(-1, keepdim=True), unflat(ahead.amax(-1, keepdim=True))).detach()
    own, ahead = _exp(own, top), _exp(ahead, flat(top))
    total = own.sum(-1, keepdim=True) + unflat(ahead.sum(-1, keepdim=True))
    mixed = unflat(ahead.to(v.dtype) @ prefix_v) + own.to(v.dtype) @ v
    return (mixed / total.to(v.dtype)).reshape(batch, heads, queries, size)


def _exp(scores: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """exp(scores - top), in place where no gradient needs the scores: they are large."""
    return (scores - top).exp() if scores.requires_grad else scores.sub_(top).exp_()


AttentionInterface.register(NAME, _attention)
