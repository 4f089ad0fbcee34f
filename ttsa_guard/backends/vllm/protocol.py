"""Write requests to a vLLM server, and read its answers.

All that can be checked in an answer is checked.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttsa_guard.backends.vllm.texts import ChatPrompt
from ttsa_guard.errors import ModeratorError
from ttsa_guard.messages import Generation, Prompt

if TYPE_CHECKING:
    import torch

M = TypeVar("M", bound=BaseModel)
Token = Annotated[int, Field(ge=0, lt=2**31)]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_UNKNOWN = None
"""Stands for a token that the server does not know, because it was sent as an embedding."""


class OtherPromptError(ModeratorError):
    """The server made another prompt of the messages than we did."""


@dataclass(frozen=True, eq=False)
class Call:
    """A request for one answer.

    Args:
        path: the path that it is sent to.
        prompt: the part of the body that holds the prompt.
        expected: the token ids that the server should say that it has read; None for those that it
            cannot know.
    """

    path: str
    prompt: dict[str, Any]
    expected: tuple[int | None, ...]

    @classmethod
    def of_ids(cls, prompt: Prompt, tail: Sequence[int]) -> Call:
        """Make a request with the prompt as token ids, followed by the ids `tail`."""
        ids = (*prompt.ids, *tail)
        return cls(COMPLETIONS, {"prompt": list(ids)}, ids)

    @classmethod
    def of_embeds(cls, soft_embeds: torch.Tensor) -> Call:
        """Make a request with the whole prompt as embeddings, [length, hidden]."""
        return cls(
            COMPLETIONS, {"prompt_embeds": packed(soft_embeds)}, (_UNKNOWN,) * len(soft_embeds)
        )

    @classmethod
    def of_parts(
        cls,
        prompt: ChatPrompt,
        soft_embeds: torch.Tensor,
        tail: Sequence[int],
        begun: str,
        options: dict[str, Any],
    ) -> Call:
        """Make a request with the conversation as messages, one of which is the soft embeddings.

        It takes some kilobytes, however long the prompt is.

        Args:
            soft_embeds: [k, hidden].
            tail, begun: what the assistant has said already, as ids and as text.
            options: options of the chat template.
        """
        part = {"type": "prompt_embeds", "data": packed(soft_embeds)}
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [part] if i == prompt.soft else text}
            for i, (role, text) in enumerate(prompt.turns)
        ]
        body: dict[str, Any] = {"messages": messages}
        if tail:
            messages.append({"role": "assistant", "content": begun})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        if options:
            body["chat_template_kwargs"] = options
        moved = set(prompt.soft_positions)
        return cls(
            CHAT,
            body,
            (*(_UNKNOWN if i in moved else token for i, token in enumerate(prompt.ids)), *tail),
        )

    def scoring(self, token: int) -> dict[str, Any]:
        """Return the part of a body that makes the server generate `token`.

        The server also tells how likely the token was.
        """
        asked: dict[str, Any] = (
            {"logprobs": True, "top_logprobs": 0} if self.path == CHAT else {"logprobs": 0}
        )
        return {"allowed_token_ids": [token], "max_tokens": 1, **asked}


def packed(soft_embeds: torch.Tensor) -> str:
    """Encode a tensor [n, hidden] as the protocol has it.

    Equal embeddings give equal bytes. The server uses them to find a prefix in its cache.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(soft_embeds.clone(), buffer)  # a view would be saved with its whole storage
    return base64.b64encode(buffer.getvalue()).decode("ascii")


# ---------------------------------------------------------------------- answers


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Usage(_Strict):
    completion_tokens: int


class _LogProbability(_Strict):
    logprob: float


class _LogProbabilities(_Strict):
    token_logprobs: list[float] = []
    top_logprobs: list[dict[str, float]] = []
    content: list[_LogProbability] = []


class Choice(_Strict):
    """One answer of a server."""

    token_ids: list[Token]
    finish_reason: Literal["stop", "length"]
    prompt_token_ids: list[int] | None = None
    logprobs: _LogProbabilities | None = None
    prompt_logprobs: list[dict[str, _LogProbability] | None] | None = None

    @property
    def finished(self) -> bool:
        """Whether the model has ended the answer."""
        return self.finish_reason == "stop"


class _Answer(_Strict):
    choices: list[Choice] = Field(min_length=1, max_length=1)
    usage: _Usage
    prompt_token_ids: list[int] | None = None


class _Delta(_Strict):
    token_ids: list[Token]
    finish_reason: Literal["stop", "length"] | None
    prompt_token_ids: list[int] | None = None


class _Event(_Strict):
    choices: list[_Delta] = Field(max_length=1)


def answered(answer: Any, call: Call) -> Choice:
    """Read the server's answer to `call`.

    Raises:
        OtherPromptError: the server has read another prompt.
        ModeratorError: the server answered something else.
    """
    found = _read(_Answer, answer)
    [choice] = found.choices
    _check_prompt(choice.prompt_token_ids or found.prompt_token_ids, call)
    if not choice.token_ids or len(choice.token_ids) != found.usage.completion_tokens:
        raise _garbage("its tokens are not as many as it says")
    return choice


def prompt_log_likelihood(choice: Choice, call: Call, *, last: int) -> float:
    """Return the mean log-likelihood of the `last` tokens of the prompt, in nats.

    Raises:
        ModeratorError: the server does not give it.
    """
    known = choice.prompt_logprobs or []
    pairs = zip(known[-last:], call.expected[-last:], strict=False)
    found = [at[str(token)].logprob for at, token in pairs if at and str(token) in at]
    if len(known) != len(call.expected) or len(found) != last or not all(map(math.isfinite, found)):
        raise _garbage("it gives no log-likelihoods of the prompt")
    return sum(found) / last


def top_log_probabilities(choice: Choice) -> dict[str, float]:
    """Return the log-probabilities of the likeliest first tokens, in nats.

    Raises:
        ModeratorError: the server does not give them.
    """
    if choice.logprobs is None or not choice.logprobs.top_logprobs:
        raise _garbage("it gives no log-probabilities")
    return choice.logprobs.top_logprobs[0]


def log_probability(choice: Choice, token: int) -> float:
    """Return the log-probability, in nats, of `token`, which the server was made to generate.

    Raises:
        ModeratorError: the server does not give it.
    """
    found = choice.logprobs and [
        *choice.logprobs.token_logprobs,
        *(one.logprob for one in choice.logprobs.content),
    ]
    if not found or choice.token_ids != [token] or not math.isfinite(found[0]):
        raise _garbage("it gives no log-probability of a token")
    return found[0]


class Growth:
    """A streamed answer.

    A piece of it is passed on as soon as it cannot change any more: spaces at the end are stripped,
    and a character may take several tokens.

    Args:
        answer: makes an answer of the token ids so far, and of whether the model has ended.
        on_text: gets the pieces.
    """

    def __init__(
        self, answer: Callable[[Sequence[int], bool], Generation], on_text: Callable[[str], None]
    ) -> None:
        self._answer, self._on_text = answer, on_text
        self.ids: list[int] = []
        self._sent = ""
        self.ended: str | None = None
        self._call: Call | None = None

    def begin(self, call: Call) -> None:
        """Note that the next events answer `call`."""
        self._call = call

    def add(self, event: Any) -> None:
        """Add one event of the server. Raises as `answered` does."""
        for delta in _read(_Event, event).choices:
            self._add(delta)

    def _add(self, delta: _Delta) -> None:
        if self._call:
            _check_prompt(delta.prompt_token_ids, self._call)
            self._call = None
        self.ids += delta.token_ids
        self.ended = delta.finish_reason
        text = self._answer(self.ids, False).text
        if not text.endswith("\ufffd"):
            self._send(text)

    def end(self) -> Generation:
        """Return the whole answer.

        Raises:
            ModeratorError: the stream ended before the answer did.
        """
        if self.ended is None:
            raise _garbage("its stream ends before the answer")
        answer = self._answer(self.ids, self.ended == "stop")
        self._send(answer.text)
        return answer

    def _send(self, text: str) -> None:
        if len(text) > len(self._sent):
            self._on_text(text[len(self._sent) :])
            self._sent = text


def _check_prompt(said: Sequence[int] | None, call: Call) -> None:
    wanted = call.expected
    same = said is not None and len(said) == len(wanted)
    if not same or any(
        token not in (_UNKNOWN, other) for token, other in zip(wanted, said or (), strict=True)
    ):
        raise OtherPromptError(
            "the server has read another prompt",
            hint="give it the same model, with the same chat template",
        )


def _read(model: type[M], answer: Any) -> M:
    try:
        return model.model_validate(answer)
    except ValidationError:  # not chained, because it quotes the answer
        raise _garbage("it answers in another way than vLLM does") from None


def _garbage(what: str) -> ModeratorError:
    return ModeratorError(
        f"the server cannot be understood: {what}",
        hint="is it vLLM 0.31 or newer, or something in between?",
    )
