"""Put sequences into one batch, and keep track of the keys that each of them may see."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ttsa_guard.backends.local.attention import AttentionState, Group, attending
from ttsa_guard.backends.local.calibration import CalibratedScores, Watch
from ttsa_guard.backends.local.prefix_cache import SharedModel
from ttsa_guard.backends.local.reference import Start, positions

SHARED_FROM = 1024
"""Sequences times tokens from which on a prefix is read once for all sequences.

Below that, every sequence gets a copy of its keys.
"""
_PADDING = 512
"""Sequences times padding keys that cost about as much as one more call of the attention."""


def neighbours(starts: Sequence[Start]) -> list[int]:
    """Return an order in which sequences with equal prefixes or similar lengths are neighbours."""
    return sorted(
        range(len(starts)),
        key=lambda i: (
            len(starts[i].prefix_ids),
            starts[i].prefix_ids,
            starts[i].calibration is not None,
            len(starts[i].suffix_embeds),
        ),
    )


class SequenceBatch(AttentionState):
    """A batch of sequences and their prefixes.

    Neighbours should have the same prefix or one of similar length. Long prefixes are shared. The
    own keys of a sequence begin with those of a short prefix, of which it has a copy; then come
    those of the tokens that have gone through the model. Sequences with fewer own keys than others
    are padded in front.

    Args:
        starts: what the sequences begin with. Only `prefix_ids` and `calibration` are read; the
            rest is given to `forward`.
        watch: is told the attention that calibrated keys get.
    """

    def __init__(
        self, model: SharedModel, starts: Sequence[Start], watch: Watch | None = None
    ) -> None:
        super().__init__()
        self._model, self._watch = model, watch
        self._calibrations = [s.calibration for s in starts]
        self._raising = any(self._calibrations)
        found = [
            (n * len(prefix or ()) >= SHARED_FROM, prefix)
            for n, prefix in model.beginnings(starts)
            for _ in range(n)
        ]
        self._shared = [prefix if share else None for share, prefix in found]
        self._copied = [None if share else prefix for share, prefix in found]
        room = torch.tensor([len(p) if p else 0 for p in self._copied], device=model.device)
        self._filled = int(room.max())
        self._valid = (
            torch.arange(self._filled, device=model.device).expand(len(starts), -1)
            >= self._filled - room[:, None]
        )
        self._next = torch.tensor([len(s.prefix_ids) for s in starts], device=model.device)[:, None]

    def forward(self, embeds: torch.Tensor, own: torch.Tensor, keep: int) -> torch.Tensor:
        """Return logits at the last `keep` of the next tokens, [batch, keep, vocabulary].

        Args:
            embeds: input embeddings of the next tokens, [batch, n, hidden].
            own: which of them are not padding, [batch, n].
        """
        n = own.shape[1]
        at = self._next + positions(own) if n > 1 else self._next
        self._next = self._next + own.sum(1, keepdim=True)
        self._valid = torch.cat([self._valid, own], 1)
        self.groups = self.groups or self._grouped()
        self.allowed = _causal(self._valid, n) if n > 1 else self._valid[:, None]
        self.calibrated = self._raised(at, own) if self._raising else ()
        # Positions only grow: after a pass with no calibrated query, none will come.
        self._raising = any(self.calibrated)
        with attending(self._model.model, self):
            logits: torch.Tensor = self._model.model(
                inputs_embeds=embeds, position_ids=at, use_cache=False, logits_to_keep=keep
            ).logits
        self._filled = self._valid.shape[1]
        return logits

    def _grouped(self) -> list[Group]:
        """Return groups of neighbours.

        Neighbours stay together as long as their padding costs less than a separate attention.
        """
        groups: list[Group] = []
        padding = 0
        # The tokens that go through the model now have to see themselves, even those of padding.
        unseen = self._valid.int().argmax(1).clamp(max=self._filled).tolist()
        for prefix, first, calibration in zip(
            self._shared, unseen, self._calibrations, strict=True
        ):
            last = groups[-1] if groups else Group(0)
            padding += last.sequences * max(0, last.unseen - first) + max(0, first - last.unseen)
            same = last.prefix is prefix and last.calibration == calibration
            if last.sequences and same and padding <= _PADDING:
                groups[-1] = Group(last.sequences + 1, prefix, min(last.unseen, first), calibration)
            else:
                groups.append(Group(1, prefix, first, calibration))
                padding = 0
        return groups

    def _raised(self, at: torch.Tensor, own: torch.Tensor) -> list[CalibratedScores | None]:
        """Return the scores of each group that are raised in this pass.

        Args:
            at: positions of the pass's tokens, [batch, n].
            own: which of them are not padding, [batch, n].
        """
        found: list[CalibratedScores | None] = []
        start = 0
        for group in self.groups:
            members = slice(start, start + group.sequences)
            found.append(self._raised_in(group, members, at[members], own[members]))
            start += group.sequences
        return found

    def _raised_in(
        self, group: Group, members: slice, at: torch.Tensor, own: torch.Tensor
    ) -> CalibratedScores | None:
        calibration = group.calibration
        if calibration is None:
            return None
        queries = _among(at, calibration.queries, calibration.generated) & own
        if not bool(queries.any()):
            return None
        keys = self._calibrated_keys(group, calibration.keys, members)
        return CalibratedScores(calibration, queries, keys, self._watch)

    def _calibrated_keys(self, group: Group, keys: Sequence[int], members: slice) -> torch.Tensor:
        """Return which keys of a group are at the positions `keys`, [sequences, keys].

        The keys of a shared prefix come first, then the own keys that the group sees.
        """
        ahead = torch.arange(len(group.prefix or ()), device=self._valid.device)
        valid = self._valid[members]
        mine = _among(positions(valid) + len(ahead), keys) & valid
        shared = _among(ahead, keys).expand(group.sequences, -1)
        return torch.cat([shared, mine[:, group.unseen :]], 1)

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the keys and values of short prefixes before those of this pass."""
        if not self._filled:
            return keys, values
        k, v = (
            torch.cat([self._front(new, kind, layer), new], 2)
            for kind, new in (("keys", keys), ("values", values))
        )
        return k, v

    def _front(self, like: torch.Tensor, kind: str, layer: int) -> torch.Tensor:
        """Return the copies of short prefixes that stand before `like`.

        Args:
            like: keys or values, [batch, kv heads, n, head size].
            kind: "keys" or "values".

        Returns:
            [batch, kv heads, filled, head size].
        """
        # Zeros, because fresh memory may hold NaN.
        front = like.new_zeros(len(like), like.shape[1], self._filled, like.shape[3])
        for i, prefix in enumerate(self._copied):
            if prefix is not None:
                front[i, :, self._filled - len(prefix) :] = getattr(prefix, kind)[layer]
        return front


class GrowingBatch(SequenceBatch):
    """A batch of sequences that grow: `forward` may be called again.

    The own keys are in buffers that are filled in place, so there are no gradients.

    Args:
        most: the largest number of tokens for all calls of `forward` together.
    """

    def __init__(self, model: SharedModel, starts: Sequence[Start], most: int) -> None:
        super().__init__(model, starts)
        self._most = self._filled + most
        self._buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values to the buffers, and return all that is filled."""
        if layer not in self._buffers:
            self._buffers[layer] = (
                self._buffer(keys, "keys", layer),
                self._buffer(values, "values", layer),
            )
        start, end = self._filled, self._filled + keys.shape[2]
        for buffer, new in zip(self._buffers[layer], (keys, values), strict=True):
            buffer[:, :, start:end] = new
        return self._buffers[layer][0][:, :, :end], self._buffers[layer][1][:, :, :end]

    def _buffer(self, like: torch.Tensor, kind: str, layer: int) -> torch.Tensor:
        sequences, heads, _, size = like.shape
        buffer = like.new_empty(sequences, heads, self._most, size)
        buffer[:, :, : self._filled] = self._front(like, kind, layer)
        return buffer

    def retain(self, keep: Sequence[int]) -> None:
        """Drop all sequences but those at the indices `keep`."""
        self._shared = [self._shared[i] for i in keep]
        self._copied = [self._copied[i] for i in keep]
        self._calibrations = [self._calibrations[i] for i in keep]
        index = torch.tensor(keep, device=self._model.device)
        self._valid, self._next, self.groups = self._valid[index], self._next[index], ()
        # One layer at a time: copies of all layers at once would be the peak of memory.
        for layer, (keys, values) in self._buffers.items():
            self._buffers[layer] = (self._kept(keys, index), self._kept(values, index))

    def _kept(self, buffer: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return a buffer, [len(index), kv heads, room, head size], with the sequences at `index`.

        What is filled is copied, the room behind it is not.
        """
        kept = buffer.new_empty(len(index), *buffer.shape[1:])
        torch.index_select(buffer[:, :, : self._filled], 0, index, out=kept[:, :, : self._filled])
        return kept


def _among(at: torch.Tensor, wanted: Sequence[int], later: bool = False) -> torch.Tensor:
    """Return which of the positions `at` are among `wanted`, or, if `later`, after all of them."""
    found = torch.isin(at, torch.tensor(wanted, device=at.device))
    return found | (at > max(wanted)) if later else found


def _causal(valid: torch.Tensor, queries: int) -> torch.Tensor:
    """Return which keys the last `queries` of them see, [batch, queries, keys].

    These are the valid keys up to themselves. Padding sees itself, because a softmax over nothing
    is NaN.

    Args:
        valid: which keys are not padding, [batch, keys].
    """
    keys = valid.shape[1]
    ahead = torch.ones(queries, keys, dtype=torch.bool, device=valid.device).tril(keys - queries)
    return (ahead & valid[:, None]) | ahead.triu(keys - queries)
