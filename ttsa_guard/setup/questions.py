"""Get from options, and from what is there, to answers; and ask for what neither says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from ttsa_guard.config import EMBEDDED
from ttsa_guard.errors import ConfigError
from ttsa_guard.service import base_address, key_hint
from ttsa_guard.settings import VARIABLE
from ttsa_guard.setup.answers import HOST_RAILS, NO_MODEL, OPENAI, Answers, Chat, Host, Kind
from ttsa_guard.setup.place import Place

C = TypeVar("C", bound=str)
_HOSTS: Mapping[Host, str] = {
    "colang-1": "an app of NeMo Guardrails, in Colang 1.0",
    "colang-2": "an app of NeMo Guardrails, in Colang 2.x",
    "none": "no app: an OpenAI-compatible endpoint (ttsa-guard serve), or a program of yours",
}
_CHATS: Mapping[Kind, str] = {
    "api": "behind an OpenAI-compatible API",
    "vllm": "on a vLLM server of yours, with --enable-prompt-embeds",
    "local": "in this process",
}
_NAME = "Name of the chat model"
_NO_KEY = "none"


class Ask(Protocol):
    """Somebody, or something, that answers questions."""

    def text(self, option: str, question: str, default: str | None) -> str:
        """Return a text.

        Args:
            option: the command's option for it.
            default: the answer of somebody who has none; None: an answer is needed.
        """
        ...

    def choice(self, option: str, question: str, choices: Mapping[C, str], default: C) -> C:
        """Return one of the keys of `choices`, whose values explain them."""
        ...


@dataclass(frozen=True)
class Given:
    """The command's options; None: not given."""

    host: Host | None = None
    chat: Kind | None = None
    model: str | None = None
    url: str | None = None
    key_env: str | None = None
    steering: str | None = None
    gate: Sequence[str] | None = None


def answers_for(place: Place, given: Given, ask: Ask) -> Answers:
    """Return what the guard is to be like.

    Raises:
        ConfigError: options do not fit together, or do not fit what is there.
    """
    host = _host(place, given, ask)
    chat = _chat(place, given, ask, host)
    steering = _steering(place, given, ask, chat)
    keep = _keeps(place, given, chat)
    asked_again = chat.kind == "api" and steering in (None, NO_MODEL) and not keep
    if not chat.model and asked_again and host == "none":
        chat = replace(chat, model=ask.text("--model", _NAME, None))
    if asked_again and not chat.url:
        raise ConfigError(
            f"the chat model of {place.folder} is not behind an OpenAI-compatible API that can be"
            " asked again",
            hint="give --steering MODEL, or --url and --model of such an API",
        )
    return Answers(host, chat, steering, _gate(place, given, ask), keep)


def _keeps(place: Place, given: Given, chat: Chat) -> bool:
    """Return whether no option says anything of the backend that is there."""
    if "backend" not in place.settings or given.steering is not None:
        return False
    named = given.chat or given.model or given.url or given.key_env
    steered = chat.kind == "api" and place.chat is None  # by a model that only --steering names
    return place.app is not None or steered or not named


def _host(place: Place, given: Given, ask: Ask) -> Host:
    if place.host is None:
        if given.host:
            return given.host
        return ask.choice("--host", "What is the guard part of?", _HOSTS, "colang-1")
    if given.host not in (None, place.host):
        raise ConfigError(
            f"{place.folder} holds the configuration of {_HOSTS[place.host]}",
            hint=f"leave --host {given.host} out, or name another folder",
        )
    return place.host


def _chat(place: Place, given: Given, ask: Ask, host: Host) -> Chat:
    """Return the chat model; its name is empty where it is not known yet."""
    if place.app is not None:
        return _chat_of_app(place, given)
    there = place.chat if place.chat and given.chat in (None, place.chat.kind) else None
    kind = given.chat or (there.kind if there else None)
    if kind is None:
        kind = ask.choice("--chat", "Where does the chat model run?", _CHATS, "api")
    if kind == "local":
        if given.url:
            raise ConfigError("a local chat model has no --url", hint="leave it out, or --chat api")
        return Chat(kind, given.model or ask.text("--model", "Local chat model", EMBEDDED))
    usual = there.url if there else OPENAI if kind == "api" else "http://127.0.0.1:8000/v1"
    url = _address(given.url or ask.text("--url", "Its base URL", usual))
    model = given.model or (there.model if there else "")
    if not model and (kind == "vllm" or host != "none"):
        model = ask.text("--model", _NAME, None)
    if kind == "vllm":
        return Chat(kind, model, url, _key(given.key_env) if given.key_env else None)
    usual_key = there.key if there else "OPENAI_API_KEY" if url == OPENAI else None
    question = f"Environment variable with its key, or {_NO_KEY}"
    key = given.key_env or ask.text("--key-env", question, usual_key or _NO_KEY)
    return Chat(kind, model, url, _key(key))


def _chat_of_app(place: Place, given: Given) -> Chat:
    """Return the app's own chat model or, if one cannot tell how to ask it, the one that is given.

    Raises:
        ConfigError: the app has another chat model than the one that is given.
    """
    own = place.chat or Chat(given.chat or "api", given.model or "")
    url = _address(given.url) if given.url else own.url
    key = _key(given.key_env) if given.key_env else own.key
    wanted = Chat(given.chat or own.kind, given.model or own.model, url, key)
    if place.chat and wanted != place.chat:
        raise ConfigError(
            f"the app in {place.folder} has another chat model: {own.model or own.url}",
            hint="change it under `models` there, and leave --chat, --model, --url, --key-env out",
        )
    return wanted


def _steering(place: Place, given: Given, ask: Ask, chat: Chat) -> str | None:
    if chat.kind != "api":
        if given.steering is not None:
            raise ConfigError(
                "--steering is for a chat model behind an API; yours is steered itself",
                hint="leave it out",
            )
        return None
    if given.steering is not None or "backend" in place.settings:
        return given.steering
    question = f"Local model that mends flagged answers, or {NO_MODEL}: the chat model, asked again"
    return ask.text("--steering", question, NO_MODEL)


def _gate(place: Place, given: Given, ask: Ask) -> tuple[str, ...] | None:
    if given.gate is None and "gate" in place.settings:
        return None
    question = "Moderator that decides what a user may see"
    if place.checks:
        question += f", or {HOST_RAILS}: {', '.join(place.checks)}"
    default = HOST_RAILS if place.checks else "auto"
    named = given.gate or ask.text("--gate", question, default).split(",")
    gate = tuple(filter(None, (name.strip() for name in named)))
    if HOST_RAILS not in gate:
        return gate
    if len(gate) > 1:
        raise ConfigError(f"--gate {HOST_RAILS} comes alone", hint="add others in the settings")
    if not place.checks and _is_host_rails(place.settings.get("gate")):
        return None  # they are the gate already
    if not place.checks:
        raise ConfigError(
            f"{place.folder} has no output rail of NeMo Guardrails that could be the gate",
            hint="name a moderator: --gate auto",
        )
    return gate


def _is_host_rails(gate: object) -> bool:
    members = gate if isinstance(gate, list) else [gate]
    return all(isinstance(one, Mapping) and one.get("use") == "nemo_rail" for one in members)


def _address(url: str) -> str:
    try:
        return base_address(url)
    except ValueError as error:
        raise ConfigError(
            f"--url {error}", hint="give one such as http://127.0.0.1:8000/v1, without a key"
        ) from None


def _key(name: str) -> str | None:
    if name == _NO_KEY:
        return None
    if not VARIABLE.fullmatch(name):
        raise ConfigError("--key-env names no variable", hint=key_hint(name))
    return name
