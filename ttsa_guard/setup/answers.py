"""What somebody wants, and the guard's settings that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from ttsa_guard.config import EMBEDDED, ENCODER_MODULE

Host = Literal["colang-1", "colang-2", "none"]
"""An app of NeMo Guardrails in Colang 1.0 or 2.x; or none, as with ``ttsa-guard serve``."""
Kind = Literal["api", "vllm", "local"]
"""Where a chat model runs: behind an OpenAI-compatible API, on a vLLM server, or in the process."""
HOST_RAILS = "host"
"""As a gate: the checks among the app's own output rails."""
NO_MODEL = "none"
"""As a steering model: there is none, and the chat model is asked again."""
ASK_AGAIN = ["trim", "ask_again"]
"""The cascade of a guard without a model of its own."""
OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Chat:
    """The chat model.

    Args:
        model: its name; empty where it need not be known.
        url: the base address, of `api` and `vllm`.
        key: the environment variable that holds the key; None: no key is sent.
    """

    kind: Kind
    model: str
    url: str = ""
    key: str | None = None


@dataclass(frozen=True)
class Answers:
    """What the guard is to be like.

    Args:
        chat: the chat model. In an app that exists, the one that it has.
        steering: the model that mends what the model of an API says, or `NO_MODEL`;
            None is the same.
        gate: names of moderators, or `HOST_RAILS`; None: what is set already, or what is usual.
        keep: whether the backend that is set already stays.
    """

    host: Host
    chat: Chat
    steering: str | None = None
    gate: tuple[str, ...] | None = None
    keep: bool = False


def settings_of(
    answers: Answers, there: Mapping[str, Any], checks: Sequence[str]
) -> dict[str, Any]:
    """Return the guard's settings that are to be set; None for one that is to go.

    Args:
        there: the settings that are set already.
        checks: the app's own output rails that can be a gate.
    """
    found: dict[str, Any] = {}
    gate = answers.gate if answers.gate or "gate" in there else ("auto",)
    if gate == (HOST_RAILS,):
        found["gate"] = [{"use": "nemo_rail", "options": {"flow": flow}} for flow in checks]
    elif gate == ("auto",) and _is_of_another_model(answers):
        found["gate"] = "encoder"
    elif gate:
        found["gate"] = gate[0] if len(gate) == 1 else list(gate)
    old = there.get("backend")
    old = {"use": old} if isinstance(old, str) else old or {}
    if old and answers.keep:
        return found
    backend = backend_of(answers)
    if backend["use"] == "chat_completions" != old.get("use"):
        found["steerers"] = list(ASK_AGAIN)
    elif backend["use"] != "chat_completions" and there.get("steerers") == ASK_AGAIN:
        found["steerers"] = None  # the cascade of a model that is steered is another one
    return {"backend": backend, **found}


def _is_of_another_model(answers: Answers) -> bool:
    """Return whether `auto` would take the gate that was trained for the model that mends, and the
    better one, for all models, is installed.
    """
    mends = answers.steering == EMBEDDED and answers.chat.kind == "api"
    return mends and find_spec(ENCODER_MODULE) is not None


def backend_of(answers: Answers) -> dict[str, Any]:
    """Return the setting `backend`: what mends flagged answers."""
    chat = answers.chat
    if chat.kind == "vllm":
        options: dict[str, Any] = {"model": chat.model, "urls": [chat.url.removesuffix("/v1")]}
        return {"use": "vllm", "options": options | ({"key": chat.key} if chat.key else {})}
    if chat.kind == "local" or answers.steering not in (None, NO_MODEL):
        model = chat.model if chat.kind == "local" else answers.steering
        return {"use": "transformers", "options": {"model": model or EMBEDDED}}
    options = {"model": chat.model, "url": chat.url}
    return {"use": "chat_completions", "options": options | ({"key": chat.key} if chat.key else {})}
