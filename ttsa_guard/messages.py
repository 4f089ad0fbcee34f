"""What goes into a model and what comes out of it, as frozen values.

A prompt is a list of segments and not one tensor of embeddings. A segment holds fixed token ids, or
*soft* slots: a request gives the embeddings of those slots, and a steerer may move them. This way a
backend can keep the prefix that many requests share in its cache.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict, Unpack

from ttsa_guard.errors import PromptError
from ttsa_guard.images import DEFAULT_LIMITS, Image, ImageLimits, images_in

if TYPE_CHECKING:
    import torch

Role = Literal["system", "user", "assistant"]
Scope = Literal["user", "all"]
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    images: tuple[Image, ...] = ()
    """Whatever stands beside the text; what is no image counts as one that cannot be read."""

    @classmethod
    def conversation(
        cls,
        turns: Sequence[Message | Mapping[str, Any]] | str,
        *,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> tuple[Message, ...]:
        """Make messages from chat-completion dictionaries, from messages, or from one user text.

        Args:
            limits: of the images in content parts.

        Raises:
            PromptError: there is no user text and no image, or a role is unknown.
            ImageError: an image exceeds the limits, is broken, or is of no known kind.
        """
        if isinstance(turns, str):
            turns = [cls("user", turns)]
        messages: list[Message] = []
        for turn in turns:
            if not isinstance(turn, Message):
                turn = cls._from_mapping(turn, limits, len(images_of(messages)))
            messages.append(turn)
        if not any(m.role == "user" and (m.content.strip() or m.images) for m in messages):
            raise PromptError(
                "the conversation has no user text", hint="give at least one non-empty user message"
            )
        return tuple(messages)

    @classmethod
    def _from_mapping(cls, turn: Mapping[str, Any], limits: ImageLimits, found: int) -> Message:
        if not isinstance(turn, Mapping):
            raise PromptError(
                f"a turn is a mapping, not a {type(turn).__name__}",
                hint="{'role': 'user', 'content': '...'}",
            )
        role, content = _ROLES.get(str(turn.get("role"))), turn.get("content")
        if role is None:
            raise PromptError(
                f"unknown role {turn.get('role')!r} in the conversation",
                hint=f"roles are {', '.join(_ROLES)}",
            )
        images: tuple[Image, ...] = ()
        if isinstance(content, list):
            images = images_in(content, limits, found=found)
            content = " ".join(
                str(p.get("text", ""))
                for p in content
                if isinstance(p, Mapping) and p.get("type") == "text"
            )
        if not isinstance(content, str | None):
            raise PromptError(
                f"the content of a turn is a {type(content).__name__}",
                hint="give text, or a list of text parts",
            )
        return cls(role, content or "", images)


def images_of(messages: Sequence[Message]) -> tuple[Image, ...]:
    """Return all images of a conversation, in order."""
    return tuple(image for message in messages for image in message.images)


def own_seed(seed: int, messages: Sequence[Message]) -> int:
    """Return a seed in [0, 2**31) that belongs to one conversation.

    With the same seed, all conversations would share the noise of their samples.
    """
    said = [(m.role, m.content, *(image.sha256 for image in m.images)) for m in messages]
    digest = hashlib.blake2b(repr((seed, said)).encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "big") >> 1


@dataclass(frozen=True)
class Tokens:
    """Fixed token ids."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Soft:
    """Slots for soft embeddings. `ids` are the tokens that the embeddings start from."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation, ready to be continued by the assistant."""

    segments: tuple[Tokens | Soft, ...]
    images: tuple[Image, ...] = field(default=(), kw_only=True)
    """The images of the conversation, in order, for a backend that sees them."""

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids, in order; for soft slots, those of the tokens that they start from."""
        return tuple(i for segment in self.segments for i in segment.ids)

    @property
    def soft_ids(self) -> tuple[int, ...]:
        """The token ids that the soft embeddings start from, in order."""
        return tuple(
            i for segment in self.segments if isinstance(segment, Soft) for i in segment.ids
        )

    @property
    def soft_positions(self) -> tuple[int, ...]:
        """The positions of the soft embeddings in the whole prompt."""
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
    """The unsteered prompt. The likelihood of a steered answer is measured after it.

    Args:
        prompt: the rendered conversation.
        floor: the mean token log-likelihood, in nats, below which an answer is of no use.
    """

    prompt: Prompt
    floor: float = -math.inf


@dataclass(frozen=True)
class Calibration:
    """Attention to some tokens of a prompt, which is raised while the prompt is answered.

    Of a query and a key with the score ``Z = q . k / sqrt(head size)``, the score becomes ``Z +
    gamma * max(0, q . k) * Z``, before the softmax. This is the calibration of *GuardAlign*
    (arXiv 2602.24027, equations 12 to 14). All other scores stay as they are.

    Args:
        keys: positions in the prompt of the tokens that are attended to; one or more.
        queries: positions in the prompt of the tokens that attend to them; one or more. A query
            sees no key that comes after it.
        layers: indices of the layers.
        gamma: 0 or higher. With 0 the request is answered as one without a calibration.
        constant: adds one constant to all scores of a query with the keys instead, such that in
            sum they get just as much of the query's attention. It is a control.
        generated: the tokens after the last of the queries are queries, too, up to the end of the
            answer.
    """

    keys: tuple[int, ...]
    queries: tuple[int, ...]
    layers: tuple[int, ...]
    gamma: float
    constant: bool = False
    generated: bool = False


class RequestChanges(TypedDict, total=False):
    """The fields of a `GenerationRequest`, all of them optional."""

    prompt: Prompt
    soft_embeds: torch.Tensor | None
    opening: str
    max_new_tokens: int
    temperature: float
    seed: int
    baseline: Baseline | None
    calibration: Calibration | None


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """A request for one answer.

    Args:
        prompt: the rendered conversation.
        soft_embeds: the soft embeddings, [k, hidden], where k is the number of soft ids. None
            leaves the prompt as it is.
        opening: the text that the answer is made to begin with. It is part of the answer.
        max_new_tokens: the longest continuation after the opening, in tokens.
        temperature: the sampling temperature; 0 is greedy.
        seed: the seed of this request alone, so that results do not depend on the batch.
        baseline: asks for the answer's likelihood after another prompt. A backend that cannot
            measure it while it generates ignores this. One that can may break off an answer that
            will be below the floor whatever follows.
        calibration: raises the attention to some tokens of the prompt. Only a backend that
            `CalibratesAttention` may be given one.
    """

    prompt: Prompt
    soft_embeds: torch.Tensor | None = None
    opening: str = ""
    max_new_tokens: int = 96
    temperature: float = 0.1
    seed: int = 0
    baseline: Baseline | None = None
    calibration: Calibration | None = None

    def with_(self, **changes: Unpack[RequestChanges]) -> GenerationRequest:
        """Return a copy of the request with other values for some fields."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Generation:
    """One answer: the opening and its continuation."""

    text: str
    tokens: int
    """Number of new tokens, without the opening."""
    finished: bool
    """False if the answer was cut off, at `max_new_tokens` or before."""
    log_likelihood: float | None = None
    """Mean token log-likelihood, in nats; None if it is not known.

    With a baseline it is that of the whole answer after the baseline. Under a `ControlledDecoding`
    it is that of the new tokens in the distribution that they were drawn from.
    """


def last_user(messages: Sequence[Message]) -> str:
    """Return the text of the last user message; "" if there is none."""
    return next((m.content for m in reversed(messages) if m.role == "user"), "")
