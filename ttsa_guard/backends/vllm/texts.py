"""What a client of a vLLM server needs to send texts: the tokenizer and the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ttsa_guard.hf.chat_template import answering, render, render_reasoning
from ttsa_guard.hf.tokens import encodable
from ttsa_guard.messages import Message, Prompt, Scope


@dataclass(frozen=True)
class ChatPrompt(Prompt):
    """A prompt that the server can make, too.

    Its soft embeddings are exactly the text of one message.

    Args:
        turns: (role, text) of all messages.
        soft: index of the message whose embeddings are soft.
    """

    turns: tuple[tuple[str, str], ...]
    soft: int


class TextHalf:
    """A model without its weights.

    Args:
        tokenizer: of transformers, or a `LightTokenizer`.
        ends: the ids that end an answer.
        context_length: in tokens.
        template_options: are passed to the chat template. If answers are to begin without
            reasoning, the switch for that is added.
    """

    embeds: ClassVar[bool] = False
    """Whether the model's input embeddings are known, too."""

    def __init__(
        self,
        tokenizer: Any,
        ends: Sequence[int],
        context_length: int,
        template_options: dict[str, Any],
    ) -> None:
        self.tokenizer, self.ends = tokenizer, list(ends)
        self.context_length = context_length
        self._options = template_options
        self.template_options = answering(tokenizer, template_options)

    def render(self, messages: Sequence[Message], *, scope: Scope) -> Prompt:
        """Write the conversation in the model's chat template; see `Backend.render`."""
        return render(self.tokenizer, messages, scope=scope, **self.template_options)

    def render_reasoning(self, messages: Sequence[Message]) -> tuple[Prompt, str]:
        """Write the conversation for an answer with reasoning; see `Reasons.render_reasoning`."""
        return render_reasoning(self.tokenizer, messages, **self._options)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without special tokens."""
        ids: list[int] = (
            self.tokenizer.encode(encodable(text), add_special_tokens=False) if text else []
        )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
