"""A model together with the keys and values of prefixes.

They are computed once and kept for later calls.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from ttsa_guard.backends.local.attention import Capture, Group, Prefix, attending
from ttsa_guard.backends.local.reference import Start

KEPT_TOKENS = 8192
"""Tokens of prefixes whose keys are kept for later calls."""
_PREFILL_TOKENS = 8192
"""Tokens of several prefixes, with padding, that go through the model at once."""
_PIECE = 512
"""Tokens of one long prefix that go through the model at once.

The activations of more would need more memory than its keys.
"""


class SharedModel:
    """A model whose layers all have full attention and take it from transformers' registry."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._embedding = model.get_input_embeddings()
        self.device = self._embedding.weight.device
        self._kept: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of token ids of shape [...], as [..., hidden]."""
        found: torch.Tensor = self._embedding(ids)
        return found

    @torch.no_grad()
    def beginnings(self, starts: Sequence[Start]) -> list[tuple[int, Prefix | None]]:
        """Return, for each run of neighbours with the same prefix, their number and the prefix.

        The prefix is None if they have none.
        """
        counts = [
            (ids, len(list(same))) for ids, same in groupby(starts, key=lambda s: s.prefix_ids)
        ]
        found = self._prefixes([ids for ids, _ in counts if ids])
        return [(n, found.get(ids)) for ids, n in counts]

    @property
    def kept_tokens(self) -> int:
        """Number of tokens in all prefixes that are kept."""
        return sum(map(len, self._kept))

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
            # As many as fit with their padding to the longest of them.
            n = max(1, sum((i + 1) * len(ids) <= _PREFILL_TOKENS for i, ids in enumerate(new)))
            found.update(zip(new[:n], self._computed(new[:n], None), strict=True))
            del new[:n]
        self._keep(found)
        return {ids: prefix for ids, prefix in found.items() if prefix}

    def _continued(self, ids: tuple[int, ...], prefix: Prefix | None) -> Prefix:
        """Return the prefix of `ids`.

        Args:
            prefix: the prefix of their beginning, if that is known.
        """
        if prefix and len(prefix) == len(ids):
            return prefix
        whole = prefix.with_room(len(ids)) if prefix else None
        for start in range(len(prefix) if prefix else 0, len(ids), _PIECE):
            [rest] = self._computed(
                [ids[start : start + _PIECE]], whole.first(start) if whole else None
            )
            if whole:
                whole.put(start, rest)
            else:
                whole = rest.with_room(len(ids))
        assert whole is not None
        return whole

    def _lookup(self, ids: tuple[int, ...]) -> Prefix | None:
        """Return the prefix of `ids`, or of their longest beginning that is kept, or None."""
        best: Prefix | None = None
        for kept, prefix in self._kept.items():
            if kept[: len(ids)] == ids:
                return prefix.first(len(ids))
            if ids[: len(kept)] == kept and (best is None or len(kept) > len(best)):
                best = prefix
        return best

    def _computed(self, texts: Sequence[tuple[int, ...]], after: Prefix | None) -> list[Prefix]:
        """Return the prefixes of texts that all come after the same prefix `after`.

        The texts are padded on the right, where nothing sees the padding.
        """
        longest = max(map(len, texts))
        ids = torch.tensor(
            [[*t, *([t[-1]] * (longest - len(t)))] for t in texts], device=self.device
        )
        start = len(after) if after else 0
        at = torch.arange(start, start + longest, device=self.device).expand(len(texts), -1)
        seen = Capture([Group(len(texts), after)])
        with attending(self.model, seen):
            self.model(
                inputs_embeds=self._embedding(ids),
                position_ids=at,
                use_cache=False,
                logits_to_keep=1,
            )
        if len(texts) == 1:
            return [Prefix(tuple(k[0] for k in seen.keys), tuple(v[0] for v in seen.values))]
        # These are copies, because a view would keep the keys of the whole batch alive.
        return [
            Prefix(
                tuple(k[i, :, : len(t)].clone() for k in seen.keys),
                tuple(v[i, :, : len(t)].clone() for v in seen.values),
            )
            for i, t in enumerate(texts)
        ]

    def _keep(self, found: dict[tuple[int, ...], Prefix | None]) -> None:
        for ids, prefix in found.items():
            if prefix:
                longer = next((kept for kept in self._kept if kept[: len(ids)] == ids), ids)
                self._kept.setdefault(longer, prefix)
                self._kept.move_to_end(longer)
        while len(self._kept) > 1 and self.kept_tokens > KEPT_TOKENS:
            self._kept.popitem(last=False)
