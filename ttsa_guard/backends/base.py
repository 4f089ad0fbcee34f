"""The backend contract and the capabilities that a backend may have besides generating.

A steerer names the capabilities that it needs (`Steerer.needs`); they are checked when the guard is built.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ttsa_guard.hf.tokens import encodable
from ttsa_guard.messages import Generation, GenerationRequest, Message, Prompt, Scope
from ttsa_guard.profile import ModelProfile

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Backend(Protocol):
    """A chat model."""

    name: str
    context_length: int
    """Longest prompt plus answer, in tokens."""

    async def render(self, messages: Sequence[Message], *, scope: Scope = "user") -> Prompt:
        """The conversation in the model's chat template; the embeddings of `scope` become soft.

        "user" is the content of the last user message, "all" is everything.

        Raises:
            PromptError: empty, longer than the context, or the model has no chat template.
        """
        ...

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Answers in the order of the requests, decoded as one batch.

        Raises:
            ModelError: the model failed, or `soft_embeds` has a wrong shape or is not finite.
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Profiled(Protocol):
    """It is known how this model begins safe answers, and how likely its own answers are."""

    profile: ModelProfile


@runtime_checkable
class Described(Protocol):
    """Tells where it runs, and in which precision, in words."""

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str: ...


@runtime_checkable
class DescribesDecoding(Protocol):
    """Tells how answers are decoded, in words; known, and to be asked, once something was generated."""

    @property
    def decoding(self) -> str: ...


def device_of(backend: Backend) -> str:
    return backend.device if isinstance(backend, Described) else "unknown"


@runtime_checkable
class Streams(Protocol):
    """An answer can be read while it grows."""

    async def stream(self, request: GenerationRequest, on_text: Callable[[str], None]) -> Generation:
        """The same answer as from `generate`; `on_text` gets it piece by piece, on the caller's event loop.

        Raises:
            ModelError: as `generate` does.
        """
        ...


@runtime_checkable
class Reasons(Protocol):
    """The model can write its reasoning before an answer. `render` leaves no room for it: where an answer begins decides."""

    async def render_reasoning(self, messages: Sequence[Message]) -> tuple[Prompt, str]:
        """The conversation for an answer with reasoning, and what that answer has to be made to begin with.

        Raises:
            PromptError: as `render` does.
        """
        ...


@runtime_checkable
class TakesEmbeddings(Protocol):
    """Input embeddings can be read, and answers generated from moved ones."""

    token_norm: float
    """Mean Euclidean norm of a token embedding: the unit of step and probe sizes."""

    async def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Embeddings of token ids, [len(ids), hidden], float32 on the CPU."""
        ...


@dataclass(frozen=True)
class Continuation:
    """A text after a prompt, as a sequence of spans with the weight that each has in an objective.

    Args:
        spans: (text, weight) pairs; the texts together are the continuation. The objective adds, over the tokens of a
            span, ``weight * log p(token)`` if the weight is positive, and ``|weight| * log(1 - p(token))``, the
            unlikelihood, if it is negative; a zero-weight span is context.
    """

    spans: tuple[tuple[str, float], ...]

    def tokens(self, tokenizer: Any) -> tuple[list[int], list[float]]:
        """Token ids, and the weight of the span in which each token ends."""
        bounds = list(accumulate(len(text) for text, _ in self.spans))
        encoded = tokenizer(encodable("".join(t for t, _ in self.spans)), add_special_tokens=False, return_offsets_mapping=True)
        spans = [min(bisect_left(bounds, last), len(bounds) - 1) for _, last in encoded["offset_mapping"]]
        return list(encoded["input_ids"]), [self.spans[i][1] for i in spans]


@runtime_checkable
class ScoresText(Protocol):
    """Texts can be scored without generating."""

    async def log_likelihoods(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        """Mean token log-likelihood, in nats, of each text after the unmoved prompt."""
        ...


@runtime_checkable
class ScoresSoftEmbeds(Protocol):
    """Objectives can be evaluated at moved embeddings."""

    async def objective(self, prompt: Prompt, soft_embeds: Sequence[torch.Tensor], goals: Sequence[Continuation]) -> torch.Tensor:
        """The objective of goal i at embeddings i, divided by the sum of its absolute token weights: [len(goals)], float32."""
        ...


@runtime_checkable
class ExposesLogProbs(Protocol):
    """Words inside a prompt can be found among its tokens, and scored where they stand."""

    async def locate(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The last user text as the model reads it, and the characters [start, end) of it that each token of
        ``render(messages)`` covers; other tokens have empty spans.

        Raises:
            PromptError: as `Backend.render` does.
        """
        ...

    async def token_log_probs(
        self, prompt: Prompt, soft_embeds: Sequence[torch.Tensor], positions: Sequence[int]
    ) -> torch.Tensor:
        """Log-probability of the prompt's own token at each position, 1 or later, given what stands before it.

        Returns:
            For each value of the movable embeddings, in nats: [len(soft_embeds), len(positions)], float32 on the CPU;
            NaN where the model overflows.
        """
        ...


@runtime_checkable
class Differentiable(Protocol):
    """The objective has exact gradients."""

    async def gradient(
        self, prompt: Prompt, soft_embeds: Sequence[torch.Tensor], goals: Sequence[Continuation]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [n] and gradients [n, k, hidden] of `ScoresSoftEmbeds.objective` with respect to the embeddings."""
        ...


class DecodingStep(Protocol):
    """One step of a guided generation."""

    def __call__(self, embeds: torch.Tensor, valid: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """What the next token is drawn from, as logits [batch, vocabulary].

        Args:
            embeds: input embeddings of the tokens that are new since the last step, [batch, n, hidden].
            valid: which of all tokens so far are no padding, [batch, length].
            at: positions of the new tokens, [batch, n].
        """
        ...


class ControlledDecoding(Protocol):
    """Decides what a model's next tokens are drawn from."""

    def over(self, model: Any) -> AbstractContextManager[DecodingStep]:
        """The steps of one batch. On the model's worker thread, where nothing else uses it: within, its weights may be
        others; afterwards they are bit for bit what they were."""
        ...


@runtime_checkable
class ExposesLogits(Protocol):
    """The distribution of every next token can be seen and replaced."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model's weights, as `ttsa_guard.backends.local.controlled.fingerprint` has it."""
        ...

    async def generate_controlled(self, requests: Sequence[GenerationRequest], guide: ControlledDecoding) -> list[Generation]:
        """As `Backend.generate`, each step drawn from the guide's logits.

        Raises:
            ModelError: as `generate` does.
        """
        ...
