"""The contract of a backend, and the capabilities that it may have besides generating.

A steerer names the capabilities that it needs (`Steerer.needs`). They are checked when the guard is
built.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from ttsa_guard.hf.tokens import encodable
from ttsa_guard.images import Image
from ttsa_guard.messages import (
    Calibration,
    Generation,
    GenerationRequest,
    Message,
    Prompt,
    Scope,
)
from ttsa_guard.profile import ModelProfile

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Backend(Protocol):
    """A chat model."""

    name: str
    context_length: int
    """Longest prompt plus answer, in tokens; 0 if only the service behind the backend knows it."""

    async def render(self, messages: Sequence[Message], *, scope: Scope = "user") -> Prompt:
        """Write the conversation in the model's chat template.

        Args:
            scope: the part whose embeddings become soft: "user" is the content of the last user
                message, "all" is everything.

        Raises:
            PromptError: the conversation is empty or longer than the context, or the model has no
                chat template.
        """
        ...

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Generate answers as one batch, and return them in the order of the requests.

        Raises:
            ModelError: the model failed, or `soft_embeds` has a wrong shape or is not finite.
        """
        ...

    async def close(self) -> None:
        """Let go of what the backend holds, for example connections."""


@runtime_checkable
class Profiled(Protocol):
    """The backend knows how its model begins safe answers, and how likely its own answers are."""

    profile: ModelProfile


@runtime_checkable
class Described(Protocol):
    """The backend tells, in words, where it runs and in which precision."""

    @property
    def device(self) -> str:
        """The device, for example "cuda:0"."""

    @property
    def dtype(self) -> str:
        """The precision, for example "bfloat16"."""


@runtime_checkable
class DescribesDecoding(Protocol):
    """The backend tells how it decodes answers."""

    @property
    def decoding(self) -> str:
        """How answers are decoded, in words. It is known once something was generated."""


def device_of(backend: Backend) -> str:
    """Return the backend's device, in words; "unknown" if it does not tell."""
    return backend.device if isinstance(backend, Described) else "unknown"


@runtime_checkable
class SeesImages(Protocol):
    """The model reads the images of a conversation, which `render` puts into `Prompt.images`.

    With a backend that is none, no conversation with images is answered or steered: a text model
    would answer as if it had seen them.
    """

    @property
    def image_types(self) -> Collection[str]:
        """Media types of the images that the model can be given, for example {"image/png"}."""
        ...


def sees(backend: Backend, images: Sequence[Image]) -> bool:
    """Return whether the backend's model can be given all of these images."""
    types = backend.image_types if isinstance(backend, SeesImages) else ()
    return all(image.readable and image.media_type in types for image in images)


@runtime_checkable
class Streams(Protocol):
    """An answer can be read while it is generated."""

    async def stream(
        self, request: GenerationRequest, on_text: Callable[[str], None]
    ) -> Generation:
        """Generate the same answer as `generate` does, and give it to `on_text` piece by piece.

        Args:
            on_text: is called on the caller's event loop.

        Raises:
            ModelError: as `generate` does.
        """
        ...


@runtime_checkable
class TextOnly(Protocol):
    """The model is known by its texts alone, as behind an API.

    Prompts have no token ids. Candidates are generated as whole answers: to continue a draft costs
    as much as a new answer, and the model may not continue it as it is.
    """

    text_only: Literal[True]


@runtime_checkable
class Reasons(Protocol):
    """The model can write its reasoning before an answer.

    A prompt from `render` asks for an answer without reasoning: where the prompt ends decides.
    """

    async def render_reasoning(self, messages: Sequence[Message]) -> tuple[Prompt, str]:
        """Write the conversation for an answer with reasoning.

        Returns:
            The prompt, and the text that the answer has to be made to begin with.

        Raises:
            PromptError: as `render` does.
        """
        ...


@runtime_checkable
class TakesEmbeddings(Protocol):
    """Input embeddings can be read, and answers can be generated from soft embeddings."""

    token_norm: float
    """Mean Euclidean norm of a token embedding. It is the unit of step sizes and probe sizes."""

    async def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the embeddings of token ids, [len(ids), hidden], float32 on the CPU."""
        ...


@dataclass(frozen=True)
class Continuation:
    """A text after a prompt, as spans that have weights in an objective.

    Args:
        spans: (text, weight) pairs; the texts together are the continuation. The objective adds,
            over the tokens of a span, ``weight * log p(token)`` if the weight is positive. If it is
            negative, it adds the unlikelihood ``|weight| * log(1 - p(token))``. A span of weight
            zero is context.
    """

    spans: tuple[tuple[str, float], ...]

    def tokens(self, tokenizer: Any) -> tuple[list[int], list[float]]:
        """Return the token ids, and for each token the weight of the span in which it ends."""
        bounds = list(accumulate(len(text) for text, _ in self.spans))
        encoded = tokenizer(
            encodable("".join(t for t, _ in self.spans)),
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        spans = [
            min(bisect_left(bounds, last), len(bounds) - 1) for _, last in encoded["offset_mapping"]
        ]
        return list(encoded["input_ids"]), [self.spans[i][1] for i in spans]


@runtime_checkable
class ScoresText(Protocol):
    """Texts can be scored without generating."""

    async def log_likelihoods(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        """Return the mean token log-likelihood, in nats, of each text after the prompt.

        The prompt is taken as it is, without soft embeddings.
        """
        ...


@runtime_checkable
class ScoresSoftEmbeds(Protocol):
    """Objectives can be evaluated at soft embeddings."""

    async def objective(
        self,
        prompt: Prompt,
        soft_embeds: Sequence[torch.Tensor],
        continuations: Sequence[Continuation],
    ) -> torch.Tensor:
        """Evaluate objective i at soft embeddings i.

        Args:
            soft_embeds: n tensors of soft embeddings, [k, hidden] each.
            continuations: n of them.

        Returns:
            The objectives, each divided by the sum of its absolute token weights, [n], float32.
        """
        ...


@runtime_checkable
class ExposesLogProbs(Protocol):
    """Words of a prompt can be found among its tokens, and the tokens can be scored there."""

    async def locate(
        self, messages: Sequence[Message], *, turn: int | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """Find the characters of one message that each token covers.

        Args:
            turn: the index of that message; None means the last user message.

        Returns:
            The message's text as the model reads it, and for each token of ``render(messages)`` its
            span [start, end) of characters in that text. Tokens outside of the text have empty
            spans.

        Raises:
            PromptError: as `Backend.render` does.
        """
        ...

    async def token_log_probs(
        self, prompt: Prompt, soft_embeds: Sequence[torch.Tensor], positions: Sequence[int]
    ) -> torch.Tensor:
        """Return the log-probability of the prompt's own token at each position.

        Each is conditional on the tokens before it.

        Args:
            soft_embeds: n tensors of soft embeddings, [k, hidden] each.
            positions: indices of tokens in the prompt, 1 or higher.

        Returns:
            Log-probabilities in nats, [n, len(positions)], float32 on the CPU. They are NaN where
            the model overflows.
        """
        ...


@runtime_checkable
class Differentiable(Protocol):
    """The objective has exact gradients."""

    async def gradient(
        self,
        prompt: Prompt,
        soft_embeds: Sequence[torch.Tensor],
        continuations: Sequence[Continuation],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and gradients of `ScoresSoftEmbeds.objective`.

        Args:
            soft_embeds: n tensors of soft embeddings, [k, hidden] each.
            continuations: n of them.

        Returns:
            The values, [n], and the gradients with respect to the soft embeddings, [n, k, hidden].
        """
        ...


@runtime_checkable
class CalibratesAttention(Protocol):
    """Attention to some tokens of a prompt can be raised; `generate` heeds a `Calibration`.

    Nothing but the answer to that one request is computed with it. Likelihoods, objectives and
    other requests, also those of a moderator that uses the same model, are as without.
    """

    @property
    def attention_layers(self) -> int:
        """Number of layers whose attention can be calibrated; 0 if this model's cannot be."""
        ...

    async def attention_shares(self, prompt: Prompt, calibration: Calibration) -> list[float]:
        """Return, for each layer, what share of their attention the queries give to the keys.

        A share is in [0, 1], the mean over heads and queries.

        Raises:
            ModelError: the attention of this model cannot be calibrated.
        """
        ...


class DecodingStep(Protocol):
    """One step of a controlled generation."""

    def __call__(self, embeds: torch.Tensor, valid: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Return the logits from which the next tokens are drawn, [batch, vocabulary].

        Args:
            embeds: input embeddings of the tokens that are new since the last step, [batch, n,
                hidden].
            valid: which of all tokens so far are not padding, [batch, length].
            at: positions of the new tokens, [batch, n].
        """
        ...


class ControlledDecoding(Protocol):
    """Decides from which distribution the next tokens are drawn."""

    def over(self, model: Any) -> AbstractContextManager[DecodingStep]:
        """Return a context manager that gives the steps of one batch.

        It is used on the model's worker thread, where nothing else uses the model. Inside, the
        model's weights may differ. Afterwards they are bit for bit what they were.
        """
        ...


@runtime_checkable
class ExposesLogits(Protocol):
    """The distribution of every next token can be seen and replaced."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model's weights; see `backends.local.controlled.fingerprint`."""
        ...

    async def generate_controlled(
        self, requests: Sequence[GenerationRequest], decoding: ControlledDecoding
    ) -> list[Generation]:
        """Generate answers, with each token drawn from the logits of `decoding`.

        Raises:
            ModelError: as `Backend.generate` does.
        """
        ...
