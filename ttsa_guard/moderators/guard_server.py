"""A guard model on a server that speaks OpenAI's completions protocol: vLLM, SGLang, llama.cpp and others.

https://platform.openai.com/docs/api-reference/completions. The prompt is sent as token ids, so that the server reads exactly what
the local model would; one token is asked for, with the log-probabilities of the likeliest ones, among which the verdicts are.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from ttsa_guard.errors import ModeratorError
from ttsa_guard.service import Http
from ttsa_guard.settings import Settings

_NO_PROBABILITIES = "the server's answer has no log-probabilities"
_HINT = "it has to serve /v1/completions with logprobs"


class ServerOptions(Settings):
    """How the server is asked."""

    model: str | None = Field(None, description="what the server calls the model; default: as the moderator does")
    key: str = Field("GUARD_API_KEY", description="environment variable that holds the server's key, if it wants one")
    top: int = Field(20, ge=2, description="log-probabilities that it gives at most")
    timeout: float = Field(5.0, gt=0, description="seconds for one try")
    tries: int = Field(3, ge=1, description="at most, for faults that may pass")
    connections: int = Field(16, ge=1, description="at most, at a time")


class GuardServer:
    """Log-probabilities of verdicts, one request for each prompt."""

    def __init__(self, base_url: str, model: str, options: ServerOptions, *, http: Http | None = None) -> None:
        self._url = f"{base_url}/completions"
        self._model = options.model or model
        self._top = options.top
        key = os.environ.get(options.key, "").strip()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = http or Http(timeout=options.timeout, tries=options.tries, connections=options.connections)

    async def log_probabilities(self, asked: Sequence[tuple[Sequence[int], Sequence[int]]], tokenizer: Any) -> list[list[float]]:
        """Return how likely each verdict's first token is to come next, in nats.

        It is asked for pairs of a prompt, as token ids, and the first tokens of its verdicts.

        Raises:
            ModeratorError: the server cannot be asked, or its answer is not what the protocol says; none of the verdicts is
                among the likeliest tokens.
        """
        return list(await asyncio.gather(*(self._one(ids, tokens, tokenizer) for ids, tokens in asked)))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def _one(self, ids: Sequence[int], tokens: Sequence[int], tokenizer: Any) -> list[float]:
        body = {"model": self._model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "logprobs": self._top}
        # Not of OpenAI: vLLM and SGLang name tokens by their numbers, and are sure to say a verdict. Others ignore them.
        body |= {"return_tokens_as_token_ids": True, "allowed_token_ids": list(tokens)}
        found = dict(_likeliest(await self._http.post(self._url, body, headers=self._headers)))
        values = [_value(found, token, tokenizer) for token in tokens]
        if all(value is None for value in values):
            raise ModeratorError(
                f"no verdict is among the {len(found)} likeliest tokens", hint="is it that guard model, and its recipe?"
            )
        # What is not listed is at most as likely as the last one that is.
        last = min(found.values())
        return [last if value is None else value for value in values]


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
    """Yield tokens, as text or as "token_id:N", and their log-probabilities, from either form in which servers list them."""
    try:
        given = answer["choices"][0]["logprobs"]
        if "content" in given:  # as in chat completions
            first = given["content"][0]
            listed = [*first["top_logprobs"], first]
            pairs = [(f"token_id:{e['id']}" if "id" in e else e["token"], e["logprob"]) for e in listed]
        else:
            pairs = [*given["top_logprobs"][0].items()]
            if given.get("tokens"):
                pairs.append((given["tokens"][0], given["token_logprobs"][0]))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ModeratorError(_NO_PROBABILITIES, hint=_HINT) from None
    for token, value in pairs:
        if not isinstance(token, str) or isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ModeratorError(_NO_PROBABILITIES, hint=_HINT)
        yield token, float(value)


def _value(found: Mapping[str, float], token: int, tokenizer: Any) -> float | None:
    """Return the value of a token by its number, or else by its text.

    The text is the one with its blank, as most servers give it, or the one that it decodes to alone.
    """
    spelt = str(tokenizer.convert_ids_to_tokens(token)).replace("\u2581", " ").replace("\u0120", " ").replace("\u010a", "\n")
    return next((found[name] for name in (f"token_id:{token}", spelt, tokenizer.decode([token])) if name in found), None)
