"""Check whether a server can be used, before the first request to it.

A wrong set-up is reported together with the way to correct it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from ttsa_guard.backends.vllm.protocol import COMPLETIONS, Call, answered, top_log_probabilities
from ttsa_guard.backends.vllm.replicas import Replica
from ttsa_guard.backends.vllm.texts import TextHalf
from ttsa_guard.errors import AccessError, InputError, ModelError
from ttsa_guard.messages import Prompt, Tokens

if TYPE_CHECKING:
    from ttsa_guard.backends.vllm.local import LocalHalf

OLDEST = (0, 31)
_PROBE = "How are you?"
_TOP = 5
_TOLERANCE = 0.25
"""Largest difference, in nats, between the same prompt as ids and as embeddings.

With the embeddings of another model the difference is larger.
"""


async def examine(replica: Replica, local: TextHalf, name: str) -> int:
    """Check a server, and return its context length in tokens.

    Raises:
        ModelError: the server is too old, has another model, or takes no embeddings.
        ModeratorError: the server does not answer, or not as it should.
    """
    await _version(replica)
    context = await _context(replica, local, name)
    ids = tuple(local.encode(_PROBE))
    call = Call.of_ids(Prompt((Tokens(ids),)), ())
    try:
        by_ids = await _likeliest(replica, name, call, _TOP)
    except InputError:
        raise ModelError(
            "the server does not know the tokens of the configured model", hint=_other(name)
        ) from None
    if _embeds(local):
        await _embeddings(replica, local, name, ids, by_ids)
    return context


def _embeds(local: TextHalf) -> TypeGuard[LocalHalf]:
    return local.embeds


async def _embeddings(
    replica: Replica, local: LocalHalf, name: str, ids: Sequence[int], by_ids: Mapping[str, float]
) -> None:
    """Check that the server takes embeddings, and that its model has those of `local`."""
    embeds = Call.of_embeds(local.embed(ids))
    try:
        by_embeds = await _likeliest(replica, name, embeds, 4 * _TOP)
    except InputError as error:
        raise _refused(error, local, name) from None
    if not all(
        abs(value - by_embeds.get(token, -math.inf)) <= _TOLERANCE
        for token, value in by_ids.items()
    ):
        raise ModelError(
            "the server's model has other input embeddings than the configured one",
            hint=_other(name),
        )


async def _version(replica: Replica) -> None:
    try:
        said = await replica.get("/version")
    except AccessError:
        return  # Ray Serve LLM does not tell its version; the later checks try what matters
    found = re.match(r"(\d+)\.(\d+)", str(said.get("version"))) if isinstance(said, dict) else None
    if found and (int(found[1]), int(found[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ModelError(
            f"the server is vLLM {found[0]}, too old to be given embeddings",
            hint=f"update it to vLLM {oldest} or newer",
        )


async def _context(replica: Replica, local: TextHalf, name: str) -> int:
    said = await replica.get("/v1/models")
    listed = said.get("data") if isinstance(said, dict) else None
    models: dict[Any, Any] = (
        {m.get("id"): m for m in listed if isinstance(m, dict)} if isinstance(listed, list) else {}
    )
    if name not in models:
        names = ", ".join(sorted(map(repr, models))) or "none"
        raise ModelError(
            f"the server has no model {name!r}",
            hint=f"set backend.options.served_name to one of: {names}",
        )
    ray = models[name].get("metadata")
    limit = models[name].get("max_model_len") or (
        ray.get("max_request_context_length") if isinstance(ray, dict) else None
    )
    return limit if isinstance(limit, int) and limit > 0 else local.context_length


async def _likeliest(replica: Replica, name: str, call: Call, n: int) -> dict[str, float]:
    body = {
        "model": name,
        "max_tokens": 1,
        "temperature": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    answer = await replica.post(COMPLETIONS, {**body, **call.prompt, "logprobs": n})
    return top_log_probabilities(answered(answer, call))


def _refused(error: InputError, local: LocalHalf, name: str) -> ModelError:
    if b"enable-prompt-embeds" in error.said:
        return ModelError(
            "the server takes no input embeddings", hint="start vLLM with --enable-prompt-embeds"
        )
    if b"hidden_size" in error.said:
        hidden = local.table.shape[1]
        return ModelError(
            f"the server's model has another hidden size than {hidden}", hint=_other(name)
        )
    return ModelError("the server refuses input embeddings", hint="see its log")


def _other(name: str) -> str:
    return f"backend.options.model has to name the weights that the server runs as {name!r}"
