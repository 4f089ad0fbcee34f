"""A guard model on a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp and others.

At ``/completions`` (https://platform.openai.com/docs/api-reference/completions) the prompt is sent
as token ids, so that the server reads exactly what the local model would. One token is asked for,
with the log-probabilities of the likeliest ones, among which the verdicts are. At
``/chat/completions`` (https://platform.openai.com/docs/api-reference/chat) the conversation is
sent, and the server puts it into its own chat template. The model then writes what stands before
the verdict itself, and the verdict's probabilities are read at the place where that ends.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from ttsa_guard.errors import ModeratorError
from ttsa_guard.service import Http
from ttsa_guard.settings import Settings

_NO_PROBABILITIES = "the server's answer has no log-probabilities"
_HINT = "it has to give logprobs; is server: {endpoint: ...} right?"
_SPARE = 3
"""Tokens that are asked for besides those of the prefill: the verdict, and two in case the model
spells the prefill otherwise."""


class ServerOptions(Settings):
    """How the server is asked."""

    endpoint: Literal["completions", "chat"] = Field(
        "completions",
        description="chat: /v1/chat/completions, where the server applies the chat template",
    )
    model: str | None = Field(
        None, description="what the server calls the model; default: as the moderator does"
    )
    key: str = Field(
        "GUARD_API_KEY",
        description="environment variable that holds the server's key, if it wants one",
    )
    top: int = Field(20, ge=2, description="log-probabilities that it gives at most")
    timeout: float = Field(5.0, gt=0, description="seconds for one try")
    tries: int = Field(3, ge=1, description="at most, for faults that may pass")
    connections: int = Field(16, ge=1, description="at most, at a time")


@dataclass(frozen=True)
class Question:
    """What a guard model is to read before one of its choices.

    Args:
        ids: the tokens before the choice.
        tokens: the first token of each choice.
        prefill: the part of its own reply that the model has written by then; `ids` end with it.
        messages: the conversation, for the server's chat template.
        template: what the chat template takes besides.
    """

    ids: Sequence[int]
    tokens: Sequence[int]
    prefill: str
    messages: Sequence[Mapping[str, Any]]
    template: Mapping[str, Any]


class GuardServer:
    """Log-probabilities of verdicts, one request for each prompt."""

    def __init__(
        self, base_url: str, model: str, options: ServerOptions, *, http: Http | None = None
    ) -> None:
        self._chat = options.endpoint == "chat"
        self._url = f"{base_url}/chat/completions" if self._chat else f"{base_url}/completions"
        self._model = options.model or model
        self._top = options.top
        key = os.environ.get(options.key, "").strip()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = http or Http(
            timeout=options.timeout, tries=options.tries, connections=options.connections
        )

    async def log_probabilities(
        self, asked: Sequence[Question], tokenizer: Any
    ) -> list[list[float]]:
        """Return, for each question, how likely each of its choices is to come next, in nats.

        Raises:
            ModeratorError: the server cannot be asked, or its answer is not what the protocol says;
                none of the choices is among the likeliest tokens; in a chat, the reply does not
                begin with the prefill.
        """
        return list(await asyncio.gather(*(self._one(question, tokenizer) for question in asked)))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def _one(self, question: Question, tokenizer: Any) -> list[float]:
        body = (
            self._chat_body(question, tokenizer) if self._chat else self._completion_body(question)
        )
        answer = await self._http.post(self._url, body, headers=self._headers)
        found = dict(
            _at_prefill(answer, question.prefill, tokenizer) if self._chat else _likeliest(answer)
        )
        values = [_value(found, token, tokenizer) for token in question.tokens]
        if all(value is None for value in values):
            raise ModeratorError(
                f"no verdict is among the {len(found)} likeliest tokens",
                hint="is it that guard model, and its recipe?",
            )
        # What is not listed is at most as likely as the last one that is.
        last = min(found.values())
        return [last if value is None else value for value in values]

    def _completion_body(self, question: Question) -> dict[str, Any]:
        body = {
            "model": self._model,
            "prompt": list(question.ids),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": self._top,
        }
        # Not of OpenAI: vLLM and SGLang name tokens by their numbers, and are sure to say a
        # verdict. Others ignore them.
        return body | {
            "return_tokens_as_token_ids": True,
            "allowed_token_ids": list(question.tokens),
        }

    def _chat_body(self, question: Question, tokenizer: Any) -> dict[str, Any]:
        before = (
            len(tokenizer(question.prefill, add_special_tokens=False)["input_ids"])
            if question.prefill
            else 0
        )
        body = {
            "model": self._model,
            "messages": list(question.messages),
            "max_tokens": before + _SPARE,
            "temperature": 0,
        }
        body |= {"logprobs": True, "top_logprobs": self._top, "return_tokens_as_token_ids": True}
        # Not of OpenAI either, but of the servers that have guard models.
        return body | (
            {"chat_template_kwargs": dict(question.template)} if question.template else {}
        )


def address(url: str) -> str:
    """Return the base address without a slash at its end.

    Raises:
        ValueError: it is none, or has credentials in it.
    """
    if "@" in url:
        raise ValueError("no credentials in addresses: the key comes from the environment")
    if not url.startswith(("http://", "https://")):
        raise ValueError("an address begins with http:// or https://")
    return url.rstrip("/")


def _likeliest(answer: Any) -> Iterator[tuple[str, float]]:
    """Yield tokens, as text or as "token_id:N", and their log-probabilities, from either form in
    which servers list them.
    """
    try:
        given = answer["choices"][0]["logprobs"]
        if "content" in given:  # as in chat completions
            pairs = _listed(given["content"][0])
        else:
            pairs = [*given["top_logprobs"][0].items()]
            if given.get("tokens"):
                pairs.append((given["tokens"][0], given["token_logprobs"][0]))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ModeratorError(_NO_PROBABILITIES, hint=_HINT) from None
    yield from _checked(pairs)


def _at_prefill(answer: Any, prefill: str, tokenizer: Any) -> Iterator[tuple[str, float]]:
    """Return the same of the token that follows `prefill` in a chat's reply."""
    try:
        said = ""
        for place in answer["choices"][0]["logprobs"]["content"]:
            if said == prefill:
                yield from _checked(_listed(place))
                return
            number = str(place["token"]).removeprefix("token_id:")
            said += place["token"] if number == place["token"] else tokenizer.decode([int(number)])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise ModeratorError(_NO_PROBABILITIES, hint=_HINT) from None
    raise ModeratorError(
        "the reply does not begin as the recipe says",
        hint="is it that guard model, and its recipe?",
    )


def _listed(place: Any) -> list[tuple[Any, Any]]:
    """Tokens and log-probabilities at a place of a chat's reply."""
    listed = [*place["top_logprobs"], place]
    return [(f"token_id:{e['id']}" if "id" in e else e["token"], e["logprob"]) for e in listed]


def _checked(pairs: Sequence[tuple[Any, Any]]) -> Iterator[tuple[str, float]]:
    for token, value in pairs:
        if (
            not isinstance(token, str)
            or isinstance(value, bool)
            or not isinstance(value, int | float)
            or math.isnan(value)
        ):
            raise ModeratorError(_NO_PROBABILITIES, hint=_HINT)
        yield token, float(value)


def _value(found: Mapping[str, float], token: int, tokenizer: Any) -> float | None:
    """Return the value of a token by its number, or else by its text.

    The text is the one with its blank, as most servers give it, or the one that it decodes to
    alone.
    """
    spelt = (
        str(tokenizer.convert_ids_to_tokens(token))
        .replace("\u2581", " ")
        .replace("\u0120", " ")
        .replace("\u010a", "\n")
    )
    return next(
        (
            found[name]
            for name in (f"token_id:{token}", spelt, tokenizer.decode([token]))
            if name in found
        ),
        None,
    )
