"""A BERT encoder for one processor core: no padding, and products of whole numbers where the
processor is fast at them.

The sequences of a batch lie behind each other in one matrix, so that nothing is computed for
padding; only attention sees them one by one. Where there are instructions for it (AVX-512 VNNI),
the linear maps multiply int8 by int8. Each row of the weights and each token has a scale of its
own, so the numbers of a text do not depend on its neighbours. On other processors the maps are
those of the model, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch.nn import functional

Linear = Callable[[torch.Tensor], torch.Tensor]
Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids, marks included, of two segments of one sequence."""
_TOKENS = 512
"""Of a batch, unless one sequence is longer; more would not stay in the processor's cache."""
_LARGEST = 127
_SMALLEST_SCALE = 1e-12


class Int8Linear:
    """A linear map in int8.

    Args:
        weight: [out, in].
        bias: [out].
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        whole, scale = _rounded(weight.float())
        self._weight, self._scale, self._bias = (
            whole.t().contiguous(),
            scale.t().contiguous(),
            bias.float(),
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, out] of `x` [tokens, in], float32."""
        whole, scale = _rounded(x)
        return (
            torch._int_mm(whole, self._weight)
            .float()
            .mul_(scale)
            .mul_(self._scale)
            .add_(self._bias)
        )


def _rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as whole numbers from -127 to 127, and the scale of each, [rows, 1]."""
    largest = torch.maximum(x.amax(1, keepdim=True), x.amin(1, keepdim=True).neg_())
    scale = largest.clamp_(min=_SMALLEST_SCALE).div_(_LARGEST)
    return (x * scale.reciprocal()).round_().to(torch.int8), scale


def int8_is_fast() -> bool:
    """Whether this processor multiplies int8 faster than float32."""
    return bool(torch.cpu._is_vnni_supported())


class PackedBert:
    """Reads with a `transformers.BertModel` in float32 on the CPU.

    Args:
        int8: whether linear maps are in int8; default: where that is fast.
    """

    def __init__(self, model: Any, *, int8: bool | None = None) -> None:
        int8 = int8_is_fast() if int8 is None else int8
        self._embeddings = model.embeddings
        self._layers = [_Layer(layer, int8=int8) for layer in model.encoder.layer]

    def hidden(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, torch.Tensor]]:
        """Return the place of each pair and its last hidden states, [tokens, units].

        Short ones come first.
        """
        for batch in _batches([len(first) + len(second) for first, second in pairs]):
            with torch.inference_mode():
                found = self._read([pairs[i] for i in batch])
            yield from zip(batch, found, strict=True)

    def _read(self, pairs: Sequence[Pair]) -> Sequence[torch.Tensor]:
        lengths = [len(first) + len(second) for first, second in pairs]
        ids = [token for pair in pairs for segment in pair for token in segment]
        segments = [
            number for pair in pairs for number, segment in enumerate(pair) for _ in segment
        ]
        places = [place for length in lengths for place in range(length)]
        x = self._embeddings(
            input_ids=torch.tensor([ids]),
            token_type_ids=torch.tensor([segments]),
            position_ids=torch.tensor([places]),
        )[0]
        for layer in self._layers:
            x = layer(x, lengths)
        return torch.split(x, lengths)


class _Layer:
    def __init__(self, layer: Any, *, int8: bool) -> None:
        own = layer.attention.self
        three = (own.query, own.key, own.value)
        joined = torch.nn.Linear(three[0].in_features, 3 * three[0].out_features)
        joined.weight = torch.nn.Parameter(
            torch.cat([one.weight for one in three]), requires_grad=False
        )
        joined.bias = torch.nn.Parameter(
            torch.cat([one.bias for one in three]), requires_grad=False
        )
        maps = (joined, layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
        made: list[Linear] = [Int8Linear(one.weight, one.bias) if int8 else one for one in maps]
        self._joined, self._attended, self._up, self._down = made
        self._norms = layer.attention.output.LayerNorm, layer.output.LayerNorm
        self._heads = own.num_attention_heads

    def __call__(self, x: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return the next hidden states of `x` [tokens, units].

        Of the sequences, those of one length stand side by side.
        """
        x = self._norms[0](self._attended(self._mixed(self._joined(x), lengths)).add_(x))
        found: torch.Tensor = self._norms[1](self._down(functional.gelu(self._up(x))).add_(x))
        return found

    def _mixed(self, joined: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Attention within each sequence.

        `joined` [tokens, 3 x units] holds queries, keys and values.
        """
        alike = [(length, sum(1 for _ in some)) for length, some in groupby(lengths)]
        mixed = []
        for (length, count), rows in zip(
            alike, torch.split(joined, [length * count for length, count in alike]), strict=True
        ):
            query, key, value = rows.view(count, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            one = functional.scaled_dot_product_attention(query, key, value)
            mixed.append(one.transpose(1, 2).reshape(count * length, -1))
        return torch.cat(mixed)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Return the places of the sequences, by length, in batches of `_TOKENS`."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and sum(lengths[j] for j in batch) + lengths[i] > _TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
