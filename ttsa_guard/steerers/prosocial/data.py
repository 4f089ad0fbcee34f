"""Read training data from JSON lines and turn it into tokens."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ttsa_guard.errors import ConfigError, UsageError, nearest
from ttsa_guard.files import reason
from ttsa_guard.hf.chat_template import render
from ttsa_guard.messages import Message
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True)
class AnswerExample:
    """Hold a conversation and an answer to it."""

    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class Pair:
    """Hold two answers to a conversation, of which one is better in one attribute."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    attribute: str


@dataclass(frozen=True)
class Encoded:
    """Hold the token ids of a prompt and of an answer to it, which has the end token."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class ExampleEncoder:
    """Turn examples into tokens, in the model's chat template.

    Args:
        tokenizer: the tokenizer of the model.
        longest: the most tokens that a prompt and its answer may have together; longer examples
            are left out.
    """

    tokenizer: PreTrainedTokenizerBase
    longest: int = 1024

    def answers(self, examples: Sequence[AnswerExample]) -> list[Encoded]:
        """Encode the examples that are short enough.

        Raises:
            ConfigError: none is.
        """
        encoded = [
            e
            for example in examples
            if self._fits(e := self._encoded(example.messages, example.answer))
        ]
        if not encoded:
            raise ConfigError(
                "there is no example to train on",
                hint=f"give some of at most {self.longest} tokens",
            )
        return encoded

    def pairs(self, pairs: Sequence[Pair]) -> dict[str, list[tuple[Encoded, Encoded]]]:
        """Encode the pairs that are short enough, as (chosen, rejected), by attribute."""
        by_attribute: dict[str, list[tuple[Encoded, Encoded]]] = {}
        for pair in pairs:
            chosen, rejected = (
                self._encoded(pair.messages, text) for text in (pair.chosen, pair.rejected)
            )
            if self._fits(chosen) and self._fits(rejected):
                by_attribute.setdefault(pair.attribute, []).append((chosen, rejected))
        return by_attribute

    def _encoded(self, messages: Sequence[Message], answer: str) -> Encoded:
        end = self.tokenizer.eos_token_id
        assert isinstance(end, int)
        prompt = render(self.tokenizer, messages, scope="all").ids
        return Encoded(prompt, (*self.tokenizer.encode(answer, add_special_tokens=False), end))

    def _fits(self, example: Encoded) -> bool:
        return len(example.prompt) + len(example.answer) <= self.longest


def read_answers(path: Path) -> list[AnswerExample]:
    """Read lines such as ``{"prompt": "...", "answer": "..."}``.

    A prompt is a text, or a list of turns with role and content.

    Raises:
        ConfigError: a line is something else. The message gives its number and quotes nothing of
            it.
    """
    return [
        AnswerExample(_messages(path, n, line), _text(path, n, line, "answer"))
        for n, line in _lines(path)
    ]


def read_pairs(path: Path, attribute: str | None = None) -> list[Pair]:
    """Read preference pairs, one a line, in the formats in which they are published.

    * A line is ``{"prompt": "...", "chosen": "...", "rejected": "..."}``, where each value is a
      text or a list of turns with role and content (TRL's formats).
    * The values of chosen and rejected are lists that hold the whole conversation (UltraFeedback).
    * The values of chosen and rejected are transcripts of ``Human:`` and ``Assistant:`` (HH-RLHF).

    Two answers to different prompts are no pair and are left out.

    Args:
        path: the file.
        attribute: the attribute of lines that have no field of that name.

    Raises:
        ConfigError: as `read_answers` does, or an attribute is unknown.
    """
    pairs = []
    for n, line in _lines(path):
        named = line.get("attribute", attribute)
        if named not in ATTRIBUTES:
            hint = (
                "give the file as ATTRIBUTE=FILE"
                if named is None
                else nearest(str(named), ATTRIBUTES)
            )
            raise ConfigError(f"{path}, line {n}: unknown attribute", hint=hint)
        (prompt, chosen), (other, rejected) = (
            _answered(path, n, line, field) for field in ("chosen", "rejected")
        )
        if prompt == other:
            pairs.append(Pair(prompt, chosen, rejected, named))
    return pairs


def _answered(
    path: Path, n: int, line: Mapping[str, Any], field: str
) -> tuple[tuple[Message, ...], str]:
    """Return the conversation of line `n`, and the answer that `field` holds."""
    value = line.get(field)
    if isinstance(value, str) and "prompt" not in line and value.startswith(_HUMAN):
        value = _transcript(value)
    if not isinstance(value, list):
        return _messages(path, n, line), _text(path, n, line, field)
    whole = any(isinstance(turn, Mapping) and turn.get("role") == "user" for turn in value)
    turns = _conversation(path, n, value if whole else [*_messages(path, n, line), *value], field)
    if turns[-1].role != "assistant":
        raise ConfigError(
            f"{path}, line {n}: no answer at the end of the field {field!r}",
            hint="end it with the assistant",
        )
    return turns[:-1], turns[-1].content


def _transcript(text: str) -> list[dict[str, str]]:
    """Split a transcript of HH-RLHF into turns."""
    parts = re.split(f"({_HUMAN}|{_ASSISTANT})", text)[1:]
    roles = {_HUMAN: "user", _ASSISTANT: "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _lines(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Read a file of JSON lines, which may be gzipped, as line numbers and objects."""
    try:
        packed = path.read_bytes()
        texts = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode().splitlines()
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise ConfigError(
            f"cannot read {path}: {reason(error)}", hint="give a UTF-8 file of JSON lines"
        ) from None
    return [(n, _object(path, n, text)) for n, text in enumerate(texts, 1) if text.strip()]


def _object(path: Path, n: int, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}, line {n}: no JSON object", hint="give one object a line")
    return found


def _text(path: Path, n: int, line: Mapping[str, Any], field: str) -> str:
    text = line.get(field)
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(
            f"{path}, line {n}: no text in the field {field!r}",
            hint="see ttsa-guard prosocial --help",
        )
    return text


def _messages(path: Path, n: int, line: Mapping[str, Any]) -> tuple[Message, ...]:
    return _conversation(path, n, line.get("prompt") or (), "prompt")


def _conversation(path: Path, n: int, turns: Any, field: str) -> tuple[Message, ...]:
    try:
        return Message.conversation(turns)
    except (UsageError, TypeError):
        raise ConfigError(
            f"{path}, line {n}: no conversation in the field {field!r}",
            hint="a text, or a list of turns",
        ) from None
