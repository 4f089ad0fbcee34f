"""Hide spans of the user's message from the model.

The whole message is rarely what makes a model go wrong. This turns occlusion sensitivity (arXiv
1311.2901, section 4.2) into a search. Each answer of a batch is to the message without another span
of its tokens, and the moderator says which of the answers are safe.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import cast

import torch
from pydantic import Field

from ttsa_guard.backends.base import Backend, TakesEmbeddings, TextOnly
from ttsa_guard.errors import ConfigError
from ttsa_guard.messages import GenerationRequest, Prompt, Soft
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.prefill import beginnings, propose_variants

_PLACES = (0.0, 1.0, 0.5)
"""A span lies at the start of the message, at its end or in its middle."""


class OccludeOptions(Settings):
    """Configure the steerer `occlude`."""

    candidates: int = Field(8, ge=1, description="most answers")
    shortest: float = Field(
        0.3, gt=0, lt=1, description="share of the message's tokens in the shortest span"
    )
    longest: float = Field(
        0.85, gt=0, lt=1, description="share of the message's tokens in the longest span"
    )
    blank: bool = Field(
        False,
        description="set the embeddings of the span to zero instead of leaving its tokens out",
    )


class Occlude:
    """Propose answers to the message without spans of its tokens.

    Unlike `erase`, it needs no sentences, punctuation or words of any language.
    """

    name = "occlude"

    def __init__(self, options: OccludeOptions) -> None:
        self.options = options
        self.needs: tuple[type, ...] = (TakesEmbeddings,) if options.blank else ()

    def fit(self, backend: Backend) -> None:
        """Check that prompts have tokens that can be left out; see `Fits`.

        Raises:
            ConfigError: they have none.
        """
        if isinstance(backend, TextOnly):
            raise ConfigError(
                f"steerer 'occlude' leaves out tokens, and {backend.name!r} shows none",
                hint="use 'erase', which leaves out sentences",
            )

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        """Yield one batch, with one answer for each span and opening."""
        prompt = await task.backend.render(task.messages, scope="user")
        size = len(prompt.soft_ids)
        openings = await beginnings(task)
        hidden = spans(
            size,
            max(1, self.options.candidates // len(openings)),
            self.options.shortest,
            self.options.longest,
        )
        names = [f"without tokens {span.start + 1} to {span.stop} of {size}" for span in hidden]
        if self.options.blank:
            requests = await self._blanked(task, prompt, hidden)
        else:
            requests = [task.base.with_(prompt=left_out(prompt, span)) for span in hidden]
        yield await propose_variants(task, list(zip(names, requests, strict=True)), openings)

    async def _blanked(
        self, task: Task, prompt: Prompt, hidden: Sequence[range]
    ) -> list[GenerationRequest]:
        origin = await cast(TakesEmbeddings, task.backend).embed(prompt.soft_ids)  # [T, d]
        masks = torch.ones(len(hidden), len(origin), 1)
        for mask, span in zip(masks, hidden, strict=True):
            mask[span.start : span.stop] = 0
        return [task.base.with_(prompt=prompt, soft_embeds=origin * mask) for mask in masks]


def spans(size: int, n: int, shortest: float, longest: float) -> list[range]:
    """Choose at most `n` spans of a message of `size` tokens.

    They lie in turn at its start, at its end and in its middle. Their lengths are spread evenly
    from `shortest` to `longest`, which are shares of the message. No span is the whole message,
    and none comes twice.
    """
    distinct: dict[range, None] = {}
    for i in range(n):
        kind, number = i % len(_PLACES), i // len(_PLACES)
        of_this_kind = len(range(kind, n, len(_PLACES)))
        share = shortest + (longest - shortest) * (number + 0.5) / of_this_kind
        length = min(max(1, round(size * share)), size - 1)
        start = round((size - length) * _PLACES[kind])
        if length > 0:
            distinct[range(start, start + length)] = None
    return list(distinct)


def left_out(prompt: Prompt, span: range) -> Prompt:
    """Return the prompt without the soft tokens in `span`, which counts soft tokens only."""
    segments, start = [], 0
    for segment in prompt.segments:
        if isinstance(segment, Soft):
            ids = tuple(token for i, token in enumerate(segment.ids, start) if i not in span)
            start += len(segment.ids)
            segment = Soft(ids)
        segments.append(segment)
    return replace(prompt, segments=tuple(segments))


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    """Register the steerer."""
    register("occlude", Occlude, options=OccludeOptions)
