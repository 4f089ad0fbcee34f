"""A model's tokenizer and chat template without transformers, for models that run elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

from ttsa_guard.errors import ModelError

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_ENDLESS = 10**30
"""What tokenizers say whose longest text is not known."""


class LightTokenizer:
    """The tokenizer in ``tokenizer.json`` with the part of transformers' interface that we use.

    Args:
        path: a folder, or a name on the Hugging Face hub.

    Raises:
        ModelError: the files cannot be had, or there is no ``tokenizer.json`` among them.
    """

    def __init__(self, path: str) -> None:
        file = model_file(path, "tokenizer.json")
        if file is None:
            raise ModelError(
                f"{path!r} has no tokenizer.json",
                hint="pip install transformers torch, which read the other formats",
            )
        self._tokenizer = Tokenizer.from_file(str(file))
        about = model_json(path, "tokenizer_config.json")
        named = {key: _content(about[key]) for key in _NAMED if about.get(key)}
        others = about.get("extra_special_tokens") or about.get("additional_special_tokens") or []
        if isinstance(others, Mapping):
            named |= {key: _content(value) for key, value in others.items()}
            others = []
        self._names = named
        self.all_special_tokens = [*named.values(), *map(_content, others)]
        self.chat_template = _template(path, about)
        self.model_max_length = int(min(about.get("model_max_length") or _ENDLESS, _ENDLESS))

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The added tokens by id."""
        found: dict[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        return found

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text."""
        return self.convert_tokens_to_ids(self._names.get("eos_token", ""))

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a token; None if there is no such token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def __call__(
        self, text: str, *, add_special_tokens: bool = False, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        """Return the token ids of a text and, if asked, their spans in it."""
        found = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        offsets = {"offset_mapping": found.offsets} if return_offsets_mapping else {}
        return {"input_ids": found.ids, **offsets}

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the token ids of a text."""
        ids: list[int] = self(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        **options: Any,
    ) -> str:
        """Write a conversation in the model's template, as transformers does.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        assert not tokenize, "the ids are made of the text"
        template = _environment().from_string(self.chat_template or "")
        return template.render(
            messages=conversation,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **self._names,
            **options,
        )


def ends_of(path: str, tokenizer: LightTokenizer) -> list[int]:
    """Return the ids that end an answer of a model.

    Raises:
        ModelError: there are none.
    """
    told = (model_json(path, "generation_config.json"), _text_config(path))
    said = next((found["eos_token_id"] for found in told if "eos_token_id" in found), None)
    return all_ends(said, tokenizer.eos_token_id)


def all_ends(said: list[int] | int | None, own: int | None) -> list[int]:
    """Return the ids that end an answer: those that the model says, and the tokenizer's own.

    Raises:
        ModelError: there are none.
    """
    ends = {*(said if isinstance(said, list) else [said]), own} - {None}
    if not ends:
        raise ModelError(
            "the model has no end-of-text token",
            hint="set eos_token in its tokenizer configuration",
        )
    return sorted(end for end in ends if end is not None)


def context_of(path: str, tokenizer: LightTokenizer) -> int:
    """Return the context length of a model, in tokens."""
    return int(_text_config(path).get("max_position_embeddings") or tokenizer.model_max_length)


def model_json(path: str, name: str) -> dict[str, Any]:
    """Return what a JSON file of a model holds; nothing if there is no such file.

    Raises:
        ModelError: the model cannot be had, or the file is no JSON object.
    """
    file = model_file(path, name)
    if file is None:
        return {}
    try:
        found: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ModelError(f"{name} of {path!r} is broken", hint="get the model anew") from None
    return found


def model_file(path: str, name: str) -> Path | None:
    """Return a file of a model, which is in a folder or on the Hugging Face hub.

    Raises:
        ModelError: there is neither such a folder nor such a model, or the hub cannot be reached.
    """
    if Path(path).is_dir():
        return Path(path, name) if Path(path, name).is_file() else None
    try:
        return Path(hf_hub_download(path, name))
    except EntryNotFoundError:
        return None
    except Exception as error:
        raise ModelError(
            f"model {path!r} cannot be loaded: {type(error).__name__}",
            hint="give a local folder, or a name on the Hugging Face hub (offline: only its cache)",
        ) from error


def _text_config(path: str) -> dict[str, Any]:
    config = model_json(path, "config.json")
    inner: dict[str, Any] = config.get("text_config") or {}
    return {**config, **inner}


def _template(path: str, about: Mapping[str, Any]) -> str | None:
    file = model_file(path, "chat_template.jinja")
    if file:
        return file.read_text(encoding="utf-8")
    found = about.get("chat_template")
    if isinstance(found, list):  # several, of which one is the default
        found = dict(_named_templates(found)).get("default")
    return found


def _named_templates(found: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    return ((one["name"], one["template"]) for one in found)


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return the environment in which transformers renders templates."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
