"""What goes into a model and what comes out, as frozen values.

A prompt is a list of segments, not one tensor of embeddings: fixed token ids, and *soft* slots whose embeddings a steerer
may move. A request adds the embeddings for those slots. Backends keep the shared prefix of many requests cacheable that way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict, Unpack

from ttsa_guard.errors import PromptError

if TYPE_CHECKING:
    import torch

Role = Literal["system", "user", "assistant"]
Scope = Literal["user", "all"]
_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    @classmethod
    def conversation(cls, turns: Sequence[Message | Mapping[str, Any]] | str) -> tuple[Message, ...]:
        """Messages from chat-completion dictionaries, from messages, or from one user text.

        Raises:
            PromptError: there is no user text, or a role is unknown.
        """
        if isinstance(turns, str):
            turns = [cls("user", turns)]
        messages = tuple(turn if isinstance(turn, Message) else cls._from_mapping(turn) for turn in turns)
        if not any(m.role == "user" and m.content.strip() for m in messages):
            raise PromptError("the conversation has no user text", hint="give at least one non-empty user message")
        return messages

    @classmethod
    def _from_mapping(cls, turn: Mapping[str, Any]) -> Message:
        if not isinstance(turn, Mapping):
            raise PromptError(f"a turn is a mapping, not a {type(turn).__name__}", hint="{'role': 'user', 'content': '...'}")
        role, content = _ROLES.get(str(turn.get("role"))), turn.get("content")
        if role is None:
            raise PromptError(f"unknown role {turn.get('role')!r} in the conversation", hint=f"roles are {', '.join(_ROLES)}")
        if isinstance(content, list):
            content = " ".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping) and p.get("type") == "text")
        if not isinstance(content, str | None):
            raise PromptError(f"the content of a turn is a {type(content).__name__}", hint="give text, or a list of text parts")
        return cls(role, content or "")


def own_seed(seed: int, messages: Sequence[Message]) -> int:
    """A seed in [0, 2**31) for one conversation: with one for all of them, they would share the noise of their samples."""
    digest = hashlib.blake2b(repr((seed, [(m.role, m.content) for m in messages])).encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "big") >> 1


@dataclass(frozen=True)
class Tokens:
    """Fixed token ids."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Soft:
    """Embeddings that may move; `ids` are the tokens that they start from."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation, ready to be continued by the assistant."""

    segments: tuple[Tokens | Soft, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(i for segment in self.segments for i in segment.ids)

    @property
    def soft_ids(self) -> tuple[int, ...]:
        """Ids of the movable embeddings, in order."""
        return tuple(i for segment in self.segments if isinstance(segment, Soft) for i in segment.ids)

    @property
    def soft_positions(self) -> tuple[int, ...]:
        """Positions of the movable embeddings in the whole prompt."""
        found: list[int] = []
        start = 0
        for segment in self.segments:
            if isinstance(segment, Soft):
                found.extend(range(start, start + len(segment.ids)))
            start += len(segment.ids)
        return tuple(found)

    def __len__(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)


@dataclass(frozen=True)
class Baseline:
    """The unsteered prompt, after which the likelihood of a steered answer is measured.

    Args:
        prompt: the rendered conversation.
        floor: mean token log-likelihood, in nats, below which the answer is of no use.
    """

    prompt: Prompt
    floor: float = -math.inf


class RequestChanges(TypedDict, total=False):
    """The fields of a `GenerationRequest`, each of which may be left as it is."""

    prompt: Prompt
    soft_embeds: torch.Tensor | None
    opening: str
    max_new_tokens: int
    temperature: float
    seed: int
    baseline: Baseline | None


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One answer to produce.

    Args:
        prompt: the rendered conversation.
        soft_embeds: values of the movable embeddings, [k, hidden], k = number of soft ids; None leaves the prompt as it is.
        opening: text that the answer is made to start with; it is part of the answer.
        max_new_tokens: longest continuation, in tokens, after the opening.
        temperature: 0 is greedy.
        seed: of this request alone, so that results do not depend on the batch.
        baseline: asks for the answer's likelihood after another prompt. A backend that cannot measure while it generates
            ignores this; one that can may break off an answer that will be below the floor however it goes on.
    """

    prompt: Prompt
    soft_embeds: torch.Tensor | None = None
    opening: str = ""
    max_new_tokens: int = 96
    temperature: float = 0.1
    seed: int = 0
    baseline: Baseline | None = None

    def with_(self, **changes: Unpack[RequestChanges]) -> GenerationRequest:
        """The same request with other values."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Generation:
    """One answer: opening and continuation."""

    text: str
    tokens: int
    """New tokens, without the opening."""
    finished: bool
    """False if it was cut off, at `max_new_tokens` or before."""
    log_likelihood: float | None = None
    """Mean token log-likelihood, in nats: of all of it after the baseline, or of its new tokens in the distribution that a
    `ControlledDecoding` made them from; None: not known."""
