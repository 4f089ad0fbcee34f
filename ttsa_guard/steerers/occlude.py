"""Hide spans of the user's message from the model: what makes it go wrong is rarely all of the message.

Occlusion sensitivity (arXiv 1311.2901, section 4.2) as a search: a batch of answers, each to the message without another span
of its tokens, and the moderator says which of them are safe.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import torch
from pydantic import Field

from ttsa_guard.backends.base import TakesEmbeddings
from ttsa_guard.messages import GenerationRequest, Prompt, Soft
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.steerers.base import Candidate, Task
from ttsa_guard.steerers.prefill import beginnings, propose_begun

_PLACES = (0.0, 1.0, 0.5)
"""Where a span lies: at the start of the message, at its end, in its middle."""


class OccludeOptions(Settings):
    candidates: int = Field(8, ge=1, description="most answers")
    shortest: float = Field(0.3, gt=0, lt=1, description="share of the message's tokens in the shortest span")
    longest: float = Field(0.85, gt=0, lt=1, description="and in the longest")
    blank: bool = Field(False, description="set the embeddings of the span to zero instead of leaving its tokens out")


class Occlude:
    """One batch of answers to the message without spans of its tokens.

    Unlike `erase` it needs no sentences, punctuation or words of any language.
    """

    name = "occlude"

    def __init__(self, options: OccludeOptions) -> None:
        self.options = options
        self.needs: tuple[type, ...] = (TakesEmbeddings,) if options.blank else ()

    async def steer(self, task: Task) -> AsyncGenerator[list[Candidate], None]:
        prompt = await task.backend.render(task.messages, scope="user")
        size = len(prompt.soft_ids)
        openings = await beginnings(task)
        hidden = spans(size, max(1, self.options.candidates // len(openings)), self.options.shortest, self.options.longest)
        names = [f"without tokens {span.start + 1} to {span.stop} of {size}" for span in hidden]
        if self.options.blank:
            requests = await self._blanked(task, prompt, hidden)
        else:
            requests = [task.base.with_(prompt=left_out(prompt, span)) for span in hidden]
        yield await propose_begun(task, list(zip(names, requests, strict=True)), openings)

    async def _blanked(self, task: Task, prompt: Prompt, hidden: Sequence[range]) -> list[GenerationRequest]:
        assert isinstance(task.backend, TakesEmbeddings)
        origin = await task.backend.embed(prompt.soft_ids)
        shown = torch.ones(len(hidden), len(origin), 1)
        for i, span in enumerate(hidden):
            shown[i, span.start : span.stop] = 0
        return [task.base.with_(prompt=prompt, soft_embeds=origin * mask) for mask in shown]


def spans(size: int, n: int, shortest: float, longest: float) -> list[range]:
    """At most `n` spans of a message of `size` tokens, in turn at its start, at its end and in its middle, of lengths spread
    over `shortest` to `longest` (shares of the message). None of them is all of it, and none comes twice."""
    found: dict[range, None] = {}
    for i in range(n):
        kind, number = i % len(_PLACES), i // len(_PLACES)
        of_this_kind = len(range(kind, n, len(_PLACES)))
        share = shortest + (longest - shortest) * (number + 0.5) / of_this_kind
        length = min(max(1, round(size * share)), size - 1)
        start = round((size - length) * _PLACES[kind])
        if length > 0:
            found[range(start, start + length)] = None
    return list(found)


def left_out(prompt: Prompt, span: range) -> Prompt:
    """The prompt without those of its soft tokens; `span` counts soft tokens only."""
    segments, start = [], 0
    for segment in prompt.segments:
        if isinstance(segment, Soft):
            ids = tuple(token for i, token in enumerate(segment.ids, start) if i not in span)
            start += len(segment.ids)
            segment = Soft(ids)
        segments.append(segment)
    return Prompt(tuple(segments))


@hookimpl
def ttsa_register_steerers(register: Register) -> None:
    register("occlude", Occlude, options=OccludeOptions)
