"""Our own decoding loop over a transformers model: what rows share is computed once and read once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from ttsa_guard.backends.attention import Capture, Pass, Prefix, attending
from ttsa_guard.backends.reference import Decoder, OnToken, ReferenceDecoder, Start, left_padded, positions
from ttsa_guard.backends.sampling import RowSampler

SHARED_FROM = 1024
"""Rows times tokens from which on a beginning is read once for all rows; below that every row gets a copy of its keys."""
KEPT_TOKENS = 8192
"""Tokens of beginnings whose keys are kept for later calls."""
_PREFILL_TOKENS = 8192
_PIECE = 512
"""Tokens of one long beginning that go through the model at once: activations of more need more memory than its keys."""


class SharedDecoder:
    """Our loop. The beginning of a row is computed once for all rows that have it, and is kept for later calls; rows leave
    the batch when they are finished.

    For models whose layers all have full attention and take it from the registry; `choose` finds out.
    """

    def __init__(self, model: Any, ends: Sequence[int]) -> None:
        self._model, self._ends = model, frozenset(ends)
        self._embedding = model.get_input_embeddings()
        self._device = self._embedding.weight.device
        self._kept: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    @torch.no_grad()
    def decode(self, starts: Sequence[Start], on_token: OnToken | None = None) -> list[list[int]]:
        order = sorted(range(len(starts)), key=lambda i: starts[i].fixed)
        batch = _Batch(self, [starts[i] for i in order])
        first = order.index(0)
        while True:
            emitted = list(batch.step(self._ends))
            if not emitted:
                return [batch.new[order.index(i)] for i in range(len(starts))]
            for row, token in emitted:
                if on_token and row == first:
                    on_token(token)

    def logits(self, starts: Sequence[Start], keep: int) -> torch.Tensor:
        order = sorted(range(len(starts)), key=lambda i: starts[i].fixed)
        rows = _Rows(self, [starts[i] for i in order])
        found = self.forward(rows.embeds, rows.at, rows.seeing(rows.embeds.shape[1]), keep)
        return found[[order.index(i) for i in range(len(starts))]]

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._embedding(ids)
        return found

    def forward(self, embeds: torch.Tensor, at: torch.Tensor, now: Pass, keep: int) -> torch.Tensor:
        with attending(self._model, now):
            logits: torch.Tensor = self._model(inputs_embeds=embeds, position_ids=at, use_cache=False, logits_to_keep=keep).logits
        return logits

    def groups(self, rows: Sequence[Start]) -> list[tuple[int, Prefix | None]]:
        """Neighbours with the same beginning: how many, and its keys and values."""
        counts = [(ids, len(list(same))) for ids, same in groupby(rows, key=lambda r: r.fixed)]
        found = self._prefixes([ids for ids, _ in counts if ids])
        return [(n, found.get(ids)) for ids, n in counts]

    # ------------------------------------------------------------------ beginnings

    def _prefixes(self, wanted: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Prefix]:
        found = {ids: self._lookup(ids) for ids in wanted}
        new: list[tuple[int, ...]] = []
        for ids, prefix in found.items():
            if prefix is None and len(ids) <= _PIECE:
                new.append(ids)
            else:
                found[ids] = self._continued(ids, prefix)
        new.sort(key=len)
        while new:
            n = max(1, sum((i + 1) * len(ids) <= _PREFILL_TOKENS for i, ids in enumerate(new)))  # padded to the longest
            found.update(zip(new[:n], self._computed(new[:n], None), strict=True))
            del new[:n]
        self._keep(found)
        return {ids: prefix for ids, prefix in found.items() if prefix}

    def _continued(self, ids: tuple[int, ...], prefix: Prefix | None) -> Prefix:
        """Keys of `ids`, of which `prefix` is the beginning."""
        for start in range(len(prefix) if prefix else 0, len(ids), _PIECE):
            [rest] = self._computed([ids[start : start + _PIECE]], prefix)
            prefix = prefix.followed_by(rest) if prefix else rest
        assert prefix is not None
        return prefix

    def _lookup(self, ids: tuple[int, ...]) -> Prefix | None:
        """Keys of `ids`, or of the longest beginning of it that has been kept."""
        best: Prefix | None = None
        for kept, prefix in self._kept.items():
            if kept[: len(ids)] == ids:
                return prefix.first(len(ids))
            if ids[: len(kept)] == kept and (best is None or len(kept) > len(best)):
                best = prefix
        return best

    def _computed(self, texts: Sequence[tuple[int, ...]], after: Prefix | None) -> list[Prefix]:
        """Keys and values of texts, all of which come after the same beginning. Padding is on the right: nothing sees it."""
        longest = max(map(len, texts))
        ids = torch.tensor([[*t, *([t[-1]] * (longest - len(t)))] for t in texts], device=self._device)
        start = len(after) if after else 0
        at = torch.arange(start, start + longest, device=self._device).expand(len(texts), -1)
        seen = Capture([(len(texts), after)])
        self.forward(self._embedding(ids), at, seen, 1)
        if len(texts) == 1:
            return [Prefix(tuple(k[0] for k in seen.keys), tuple(v[0] for v in seen.values))]
        # Copies: a view would keep the keys of the whole batch.
        return [
            Prefix(tuple(k[i, :, : len(t)].clone() for k in seen.keys), tuple(v[i, :, : len(t)].clone() for v in seen.values))
            for i, t in enumerate(texts)
        ]

    def _keep(self, found: dict[tuple[int, ...], Prefix | None]) -> None:
        for ids, prefix in found.items():
            if prefix:
                longer = next((kept for kept in self._kept if kept[: len(ids)] == ids), ids)
                self._kept.setdefault(longer, prefix)
                self._kept.move_to_end(longer)
        while len(self._kept) > 1 and sum(map(len, self._kept)) > KEPT_TOKENS:
            self._kept.popitem(last=False)


class _Rows(Pass):
    """Rows of different conversations in one batch.

    Long beginnings are shared. A row's own keys are first those of a short beginning, of which it has a copy, then those of
    its rest; what is shorter than in other rows is padded in front, and `valid` says what is not padding.
    """

    def __init__(self, decoder: SharedDecoder, rows: Sequence[Start]) -> None:
        with torch.no_grad():
            groups = decoder.groups(rows)
        prefixes = [(n * len(prefix or ()) >= SHARED_FROM, prefix) for n, prefix in groups for _ in range(n)]
        self.shared = [prefix if share else None for share, prefix in prefixes]
        self._copied = [None if share else prefix for share, prefix in prefixes]
        self.embeds, own = left_padded([r.rest for r in rows])
        room = torch.tensor([len(p) if p else 0 for p in self._copied], device=own.device)
        self.filled = int(room.max())
        copied = torch.arange(self.filled, device=own.device).expand(len(rows), -1) >= self.filled - room[:, None]
        self.valid = torch.cat([copied, own], 1)
        self.at = positions(own) + torch.tensor([len(r.fixed) for r in rows], device=own.device)[:, None]
        super().__init__(self.grouped())

    def grouped(self) -> list[tuple[int, Prefix | None]]:
        return [(len(list(same)), prefix) for prefix, same in groupby(self.shared)]

    def seeing(self, queries: int) -> Pass:
        """This pass, for the next `queries` tokens."""
        valid = self.valid[:, : self.filled + queries]
        self.allowed = _causal(valid, queries) if queries > 1 else valid[:, None]
        return self

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.filled:
            return keys, values
        k, v = (torch.cat([self._front(new, kind, layer), new], 2) for kind, new in (("keys", keys), ("values", values)))
        return k, v

    def _front(self, like: torch.Tensor, kind: str, layer: int) -> torch.Tensor:
        """The copies in front of `like`."""
        front = like.new_zeros(len(like), like.shape[1], self.filled, like.shape[3])  # not the NaN that fresh memory may hold
        for row, prefix in enumerate(self._copied):
            if prefix is not None:
                front[row, :, self.filled - len(prefix) :] = getattr(prefix, kind)[layer]
        return front


class _Batch(_Rows):
    """Rows that are being decoded: their own keys in buffers that are filled in place."""

    def __init__(self, decoder: SharedDecoder, rows: Sequence[Start]) -> None:
        super().__init__(decoder, rows)
        self._decoder, self._rows = decoder, list(rows)
        self.new: list[list[int]] = [[] for _ in rows]
        self._slots = list(range(len(rows)))
        self._running = set(self._slots)
        self._buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.valid = torch.cat([self.valid, self.valid.new_ones(len(rows), max(r.most for r in rows))], 1)
        self._sampler = RowSampler([r.temperature for r in rows], [r.seed for r in rows], self.valid.device)

    def step(self, ends: frozenset[int]) -> Iterator[tuple[int, int]]:
        """One token for every running row, as (row, token); finished rows leave. Nothing comes when all are finished."""
        self._running -= {i for i in self._running if self._rows[i].stop.is_set()}
        if not self._running:
            return
        logits = self._decoder.forward(self.embeds, self.at, self.seeing(self.embeds.shape[1]), 1)[:, -1]
        self.filled += self.embeds.shape[1]
        tokens = self._sampler.noisy(logits).argmax(-1)
        for row, token in zip(self._slots, tokens.tolist(), strict=True):
            if row in self._running:
                self.new[row].append(token)
                if token in ends or len(self.new[row]) >= self._rows[row].most:
                    self._running.discard(row)
                yield row, token
        keep = [slot for slot, row in enumerate(self._slots) if row in self._running]
        if keep and (len(self._slots) - len(keep)) * 8 >= len(self._slots):
            self._retain(keep)
            tokens = tokens[keep]
        self.embeds, self.at = self._decoder.embedded(tokens)[:, None], self.at[:, -1:] + 1

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self._buffers:
            self._buffers[layer] = (self._buffer(keys, "keys", layer), self._buffer(values, "values", layer))
        start, end = self.filled, self.filled + keys.shape[2]
        for buffer, new in zip(self._buffers[layer], (keys, values), strict=True):
            buffer[:, :, start:end] = new
        return self._buffers[layer][0][:, :, :end], self._buffers[layer][1][:, :, :end]

    def _buffer(self, like: torch.Tensor, kind: str, layer: int) -> torch.Tensor:
        rows, heads, _, size = like.shape
        buffer = like.new_empty(rows, heads, self.valid.shape[1], size)
        buffer[:, :, : self.filled] = self._front(like, kind, layer)
        return buffer

    def _retain(self, keep: Sequence[int]) -> None:
        self._slots = [self._slots[slot] for slot in keep]
        self.shared = [self.shared[slot] for slot in keep]
        index = torch.tensor(keep, device=self.at.device)
        self.valid, self.at = self.valid[index], self.at[index]
        self._buffers = {layer: (self._kept(k, index), self._kept(v, index)) for layer, (k, v) in self._buffers.items()}
        self._sampler.keep(keep)
        self.groups = self.grouped()

    def _kept(self, buffer: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """These rows of it: what is filled is copied, the room behind it is not."""
        kept = buffer.new_empty(len(index), *buffer.shape[1:])
        torch.index_select(buffer[:, :, : self.filled], 0, index, out=kept[:, :, : self.filled])
        return kept


def choose(model: Any, ends: Sequence[int]) -> tuple[Decoder, str]:
    """Our loop if the model can take it and agrees with its own `generate` on a trial; why it does not otherwise."""
    reference = ReferenceDecoder(model, ends)
    problem = _unfit(model.config.get_text_config())
    if not problem:
        shared = SharedDecoder(model, ends)
        try:
            problem = _disagreement(shared, reference, model)
        except Exception as error:  # whatever the model's code makes of a call that it was not written for
            problem = f"a trial ended in {type(error).__name__}"
    return (reference, problem) if problem else (SharedDecoder(model, ends), "")


def _unfit(config: Any) -> str:
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        return f"it has layers of kind {', '.join(sorted(kinds - {'full_attention'}))}"
    if not kinds and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "it has sliding-window attention"
    return ""


@torch.no_grad()
def _disagreement(shared: SharedDecoder, reference: ReferenceDecoder, model: Any) -> str:
    """Logits of rows of several lengths on a shared beginning, and in float32 the tokens that follow."""
    embedding = model.get_input_embeddings()
    ids = (torch.arange(24, device=embedding.weight.device) * 7919) % embedding.weight.shape[0]
    fixed = tuple(ids[:12].tolist())
    starts = [Start(fixed, embedding(ids[12:n]), most=6) for n in (15, 24, 13)]
    ours, theirs = shared.logits(starts, 1).float(), reference.logits(starts, 1).float()
    exact = embedding.weight.dtype == torch.float32
    if not bool((ours - theirs).abs().max() <= (1e-3 if exact else 0.1) * theirs.abs().max()):
        return "its logits differ in a trial"
    if exact and shared.decode(starts) != reference.decode(starts):
        return "its tokens differ in a trial"
    return ""


def _causal(valid: torch.Tensor, queries: int | None = None) -> torch.Tensor:
    """What the last `queries` of the keys see: valid ones up to themselves. Padding sees itself, for a softmax over nothing
    is NaN. [batch, queries, keys]"""
    keys = valid.shape[1]
    ahead = torch.ones(keys, keys, dtype=torch.bool, device=valid.device).tril()[keys - (queries or keys) :]
    itself = torch.eye(keys, dtype=torch.bool, device=valid.device)[keys - (queries or keys) :]
    return (ahead & valid[:, None]) | itself
