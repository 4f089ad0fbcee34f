"""Rows of different conversations in one batch, and what they see of one another's and of their own keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ttsa_guard.backends.local.attention import AttentionState, Group
from ttsa_guard.backends.local.prefix_cache import SharedModel
from ttsa_guard.backends.local.reference import Start, positions

SHARED_FROM = 1024
"""Rows times tokens from which on a beginning is read once for all rows; below that every row gets a copy of its keys."""
_PADDING = 512
"""Rows times keys of padding that cost about as much as one more call of the attention."""


def neighbours(starts: Sequence[Start]) -> list[int]:
    """The order in which rows with the same beginning, and rows of similar lengths, are neighbours."""
    return sorted(
        range(len(starts)), key=lambda i: (len(starts[i].prefix_ids), starts[i].prefix_ids, len(starts[i].suffix_embeds))
    )


class SequenceBatch(AttentionState):
    """Rows after their beginnings; neighbours should have the same, or similarly long ones.

    Long beginnings are shared. A row's own keys are first those of a short beginning, of which it has a copy, then those of
    the tokens that have gone through the model; what is shorter than in other rows is padded in front.
    """

    def __init__(self, model: SharedModel, starts: Sequence[Start]) -> None:
        super().__init__()
        self._model = model
        found = [(n * len(prefix or ()) >= SHARED_FROM, prefix) for n, prefix in model.beginnings(starts) for _ in range(n)]
        self._shared = [prefix if share else None for share, prefix in found]
        self._copied = [None if share else prefix for share, prefix in found]
        room = torch.tensor([len(p) if p else 0 for p in self._copied], device=model.device)
        self._filled = int(room.max())
        self._valid = torch.arange(self._filled, device=model.device).expand(len(starts), -1) >= self._filled - room[:, None]
        self._next = torch.tensor([len(s.prefix_ids) for s in starts], device=model.device)[:, None]

    def forward(self, embeds: torch.Tensor, own: torch.Tensor, keep: int) -> torch.Tensor:
        """Logits at the last `keep` of the next tokens, [batch, keep, vocabulary].

        Args:
            embeds: input embeddings of these tokens, [batch, n, hidden].
            own: which of them are no padding, [batch, n].
        """
        n = own.shape[1]
        at = self._next + positions(own) if n > 1 else self._next
        self._next = self._next + own.sum(1, keepdim=True)
        self._valid = torch.cat([self._valid, own], 1)
        self.groups = self.groups or self._grouped()
        self.allowed = _causal(self._valid, n) if n > 1 else self._valid[:, None]
        logits = self._model.forward(embeds, at, self, keep)
        self._filled = self._valid.shape[1]
        return logits

    def _grouped(self) -> list[Group]:
        """Neighbours stay together for as long as their padding costs less than an attention of their own."""
        groups: list[Group] = []
        padding = 0
        # What goes through the model now has to see itself, be it padding or not.
        unseen = self._valid.int().argmax(1).clamp(max=self._filled).tolist()
        for prefix, first in zip(self._shared, unseen, strict=True):
            last = groups[-1] if groups else Group(0)
            padding += last.rows * max(0, last.unseen - first) + max(0, first - last.unseen)
            if last.rows and last.prefix is prefix and padding <= _PADDING:
                groups[-1] = Group(last.rows + 1, prefix, min(last.unseen, first))
            else:
                groups.append(Group(1, prefix, first))
                padding = 0
        return groups

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._filled:
            return keys, values
        k, v = (torch.cat([self._front(new, kind, layer), new], 2) for kind, new in (("keys", keys), ("values", values)))
        return k, v

    def _front(self, like: torch.Tensor, kind: str, layer: int) -> torch.Tensor:
        """The copies in front of `like`."""
        front = like.new_zeros(len(like), like.shape[1], self._filled, like.shape[3])  # not the NaN that fresh memory may hold
        for row, prefix in enumerate(self._copied):
            if prefix is not None:
                front[row, :, self._filled - len(prefix) :] = getattr(prefix, kind)[layer]
        return front


class GrowingBatch(SequenceBatch):
    """Rows that go on: `forward` may be called again, with up to `most` tokens in all. Their own keys are in buffers that are
    filled in place, so there are no gradients."""

    def __init__(self, model: SharedModel, starts: Sequence[Start], most: int) -> None:
        super().__init__(model, starts)
        self._most = self._filled + most
        self._buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self._buffers:
            self._buffers[layer] = (self._buffer(keys, "keys", layer), self._buffer(values, "values", layer))
        start, end = self._filled, self._filled + keys.shape[2]
        for buffer, new in zip(self._buffers[layer], (keys, values), strict=True):
            buffer[:, :, start:end] = new
        return self._buffers[layer][0][:, :, :end], self._buffers[layer][1][:, :, :end]

    def _buffer(self, like: torch.Tensor, kind: str, layer: int) -> torch.Tensor:
        rows, heads, _, size = like.shape
        buffer = like.new_empty(rows, heads, self._most, size)
        buffer[:, :, : self._filled] = self._front(like, kind, layer)
        return buffer

    def retain(self, keep: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._shared = [self._shared[row] for row in keep]
        self._copied = [self._copied[row] for row in keep]
        index = torch.tensor(keep, device=self._model.device)
        self._valid, self._next, self.groups = self._valid[index], self._next[index], ()
        for layer, (keys, values) in self._buffers.items():  # one by one: all of them twice would be the peak of memory
            self._buffers[layer] = (self._kept(keys, index), self._kept(values, index))

    def _kept(self, buffer: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """These rows of it: what is filled is copied, the room behind it is not."""
        kept = buffer.new_empty(len(index), *buffer.shape[1:])
        torch.index_select(buffer[:, :, : self._filled], 0, index, out=kept[:, :, : self._filled])
        return kept


def _causal(valid: torch.Tensor, queries: int) -> torch.Tensor:
    """What the last `queries` of the keys see: valid ones up to themselves. Padding sees itself, for a softmax over nothing
    is NaN. [batch, queries, keys]"""
    keys = valid.shape[1]
    ahead = torch.ones(queries, keys, dtype=torch.bool, device=valid.device).tril(keys - queries)
    return (ahead & valid[:, None]) | ahead.triu(keys - queries)
