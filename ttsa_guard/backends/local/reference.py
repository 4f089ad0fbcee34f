"""What a sequence begins with, and the decoder that every model has: its own `generate`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn.functional import pad
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ttsa_guard.backends.local.sampling import SequenceSampler
from ttsa_guard.messages import Calibration


@dataclass(frozen=True, eq=False)
class Start:
    """What one sequence begins with, and how it is continued.

    Args:
        prefix_ids: token ids at the beginning, whose embeddings are not soft.
        suffix_embeds: input embeddings after those, [m, hidden], m >= 1.
        max_new_tokens: the largest number of new tokens.
        temperature: the sampling temperature; 0 is greedy.
        seed: the seed of this sequence alone.
        stop: ends the sequence at the next token when it is set.
        calibration: raises attention to some tokens; none of its queries are in the prefix.
    """

    prefix_ids: tuple[int, ...]
    suffix_embeds: torch.Tensor
    max_new_tokens: int = 1
    temperature: float = 0.0
    seed: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    calibration: Calibration | None = None

    def __len__(self) -> int:
        return len(self.prefix_ids) + len(self.suffix_embeds)


OnStep = Callable[[Sequence[list[int]]], Collection[int]]
"""Gets the new tokens of all sequences after each step.

It returns the indices of the sequences that shall end.
"""


class Decoder(Protocol):
    """Runs a model on batches of sequences."""

    def decode(self, starts: Sequence[Start], on_step: OnStep | None = None) -> list[list[int]]:
        """Return the new token ids of every sequence.

        The last one is an end token, unless the sequence was cut off.
        """
        ...

    def logits(self, starts: Sequence[Start], keep: int) -> torch.Tensor:
        """Return the logits at the last `keep` positions, [batch, keep, vocabulary].

        They are differentiable with respect to `suffix_embeds`.
        """
        ...


class ReferenceDecoder:
    """Decodes with the model's own `generate`, from the input embeddings of whole sequences."""

    def __init__(self, model: Any, ends: Sequence[int]) -> None:
        self._model, self._ends = model, list(ends)
        self._embedding = model.get_input_embeddings()

    @torch.no_grad()
    def decode(self, starts: Sequence[Start], on_step: OnStep | None = None) -> list[list[int]]:
        """Return the new token ids of every sequence; see `Decoder.decode`."""
        embeds, valid = left_padded([self._whole(s) for s in starts])
        stop = _Stop(starts, self._ends, on_step)
        found = self._model.generate(
            inputs_embeds=embeds,
            attention_mask=valid.long(),
            max_new_tokens=max(s.max_new_tokens for s in starts),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self._ends[0],
            eos_token_id=self._ends,
            logits_processor=LogitsProcessorList([_Noise(starts, embeds.device)]),
            stopping_criteria=StoppingCriteriaList([stop]),
        )
        return [
            _until(new, self._ends)[:most]
            for new, most in zip(found.tolist(), stop.most, strict=True)
        ]

    def logits(self, starts: Sequence[Start], keep: int) -> torch.Tensor:
        """Return the logits at the last `keep` positions; see `Decoder.logits`."""
        embeds, valid = left_padded([self._whole(s) for s in starts])
        found: torch.Tensor = self._model(
            inputs_embeds=embeds,
            attention_mask=valid.long(),
            position_ids=positions(valid),
            logits_to_keep=keep,
            use_cache=False,
        ).logits
        return found

    def _whole(self, start: Start) -> torch.Tensor:
        """Return the input embeddings of prefix and suffix, [length, hidden]."""
        ids = torch.tensor(start.prefix_ids, dtype=torch.long, device=start.suffix_embeds.device)
        return torch.cat([self._embedding(ids).to(start.suffix_embeds.dtype), start.suffix_embeds])


class _Noise(LogitsProcessor):
    def __init__(self, starts: Sequence[Start], device: torch.device) -> None:
        self._sampler = SequenceSampler(
            [s.temperature for s in starts], [s.seed for s in starts], device
        )

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return self._sampler.noisy(scores)  # type: ignore[return-value]


class _Stop(StoppingCriteria):
    """Ends sequences, and keeps in `most` after how many tokens each has ended.

    `generate` fills ended sequences up with end tokens, which look like their own.
    """

    def __init__(
        self, starts: Sequence[Start], ends: Sequence[int], on_step: OnStep | None
    ) -> None:
        self._starts, self._ends, self._on_step = starts, ends, on_step
        self.most = [start.max_new_tokens for start in starts]

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any
    ) -> torch.BoolTensor:
        asked = (
            self._on_step([_until(new, self._ends) for new in input_ids.tolist()])
            if self._on_step
            else ()
        )
        done = input_ids.shape[1]
        for i, start in enumerate(self._starts):
            if start.stop.is_set() or i in asked:
                self.most[i] = min(self.most[i], done)
        return torch.tensor([done >= most for most in self.most], device=input_ids.device)  # type: ignore[return-value]


def left_padded(sequences: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad sequences in front with zeros.

    Zeros and not NaN, because an attention of zero times NaN is NaN.

    Args:
        sequences: tensors [length of the sequence, size].

    Returns:
        The padded sequences, [batch, length, size], and which entries are not padding, [batch,
        length].
    """
    longest = max(map(len, sequences))
    padded = torch.stack([pad(s, (0, 0, longest - len(s), 0)) for s in sequences])
    lengths = torch.tensor([len(s) for s in sequences], device=padded.device)
    return padded, torch.arange(longest, device=padded.device) >= longest - lengths[:, None]


def positions(valid: torch.Tensor) -> torch.Tensor:
    """Return the position of each token, [batch, length]; `valid` says which are not padding."""
    return (valid.long().cumsum(-1) - 1).clamp(min=0)


def _until(new: list[int], ends: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(new) if token in ends), len(new))
    return new[: end + 1]
