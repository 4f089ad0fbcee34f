"""What is trained on, read from JSON lines and turned into tokens."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ttsa_guard.errors import ConfigError, UsageError, nearest
from ttsa_guard.hf.chat_template import render
from ttsa_guard.messages import Message
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True)
class Answered:
    """A conversation and an answer to it."""

    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class Pair:
    """Two answers to a conversation, of which one is better in one attribute."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    attribute: str


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and of an answer to it, the end token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Encoder:
    """Turns texts into tokens as the model's chat template has them.

    Args:
        longest: most tokens of a prompt and its answer; what is longer is left out.
    """

    tokenizer: PreTrainedTokenizerBase
    longest: int = 1024

    def answers(self, examples: Sequence[Answered]) -> list[Encoded]:
        """
        Raises:
            ConfigError: nothing is left.
        """
        found = [e for example in examples if self._fits(e := self._encoded(example.messages, example.answer))]
        if not found:
            raise ConfigError("there is no example to train on", hint=f"give some of at most {self.longest} tokens")
        return found

    def pairs(self, pairs: Sequence[Pair]) -> dict[str, list[tuple[Encoded, Encoded]]]:
        """(chosen, rejected), by attribute."""
        found: dict[str, list[tuple[Encoded, Encoded]]] = {}
        for pair in pairs:
            chosen, rejected = (self._encoded(pair.messages, text) for text in (pair.chosen, pair.rejected))
            if self._fits(chosen) and self._fits(rejected):
                found.setdefault(pair.attribute, []).append((chosen, rejected))
        return found

    def _encoded(self, messages: Sequence[Message], answer: str) -> Encoded:
        end = self.tokenizer.eos_token_id
        assert isinstance(end, int)
        prompt = render(self.tokenizer, messages, scope="all").ids
        return Encoded(prompt, (*self.tokenizer.encode(answer, add_special_tokens=False), end))

    def _fits(self, example: Encoded) -> bool:
        return len(example.prompt) + len(example.answer) <= self.longest


def read_answers(path: Path) -> list[Answered]:
    """Lines such as ``{"prompt": "...", "answer": "..."}``; a prompt is a text, or a list of role and content.

    Raises:
        ConfigError: a line is something else; its number is named and nothing of it quoted.
    """
    return [Answered(_messages(path, n, row), _text(path, n, row, "answer")) for n, row in _rows(path)]


def read_pairs(path: Path, attribute: str | None = None) -> list[Pair]:
    """Preference pairs, one a line, in the ways that they are published:

    * ``{"prompt": "...", "chosen": "...", "rejected": "..."}``, each a text or a list of role and content (TRL's formats);
    * chosen and rejected as lists that hold the whole conversation (UltraFeedback);
    * chosen and rejected as transcripts of ``Human:`` and ``Assistant:`` (HH-RLHF). Where they answer different prompts they
      are no pair, and left out.

    Args:
        attribute: of lines that have no field of that name.

    Raises:
        ConfigError: as `read_answers`, or an attribute is unknown.
    """
    found = []
    for n, row in _rows(path):
        named = row.get("attribute", attribute)
        if named not in ATTRIBUTES:
            hint = "give the file as ATTRIBUTE=FILE" if named is None else nearest(str(named), ATTRIBUTES)
            raise ConfigError(f"{path}, line {n}: unknown attribute", hint=hint)
        (prompt, chosen), (other, rejected) = (_answered(path, n, row, field) for field in ("chosen", "rejected"))
        if prompt == other:
            found.append(Pair(prompt, chosen, rejected, named))
    return found


def _answered(path: Path, n: int, row: Mapping[str, Any], field: str) -> tuple[tuple[Message, ...], str]:
    """A conversation and the answer that `field` holds."""
    value = row.get(field)
    if isinstance(value, str) and "prompt" not in row and value.startswith(_HUMAN):
        value = _transcript(value)
    if not isinstance(value, list):
        return _messages(path, n, row), _text(path, n, row, field)
    whole = any(isinstance(turn, Mapping) and turn.get("role") == "user" for turn in value)
    turns = _conversation(path, n, value if whole else [*_messages(path, n, row), *value], field)
    if turns[-1].role != "assistant":
        raise ConfigError(f"{path}, line {n}: no answer at the end of the field {field!r}", hint="end it with the assistant")
    return turns[:-1], turns[-1].content


def _transcript(text: str) -> list[dict[str, str]]:
    """Turns of a transcript of HH-RLHF."""
    parts = re.split(f"({_HUMAN}|{_ASSISTANT})", text)[1:]
    roles = {_HUMAN: "user", _ASSISTANT: "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _rows(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    try:
        packed = path.read_bytes()
        lines = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode().splitlines()
        rows = [(n, json.loads(line)) for n, line in enumerate(lines, 1) if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {type(error).__name__}", hint="give a UTF-8 file of JSON lines") from None
    for n, row in rows:
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {n}: no JSON object", hint="give one object a line")
    return rows


def _text(path: Path, n: int, row: Mapping[str, Any], field: str) -> str:
    text = row.get(field)
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{path}, line {n}: no text in the field {field!r}", hint="see ttsa-guard prosocial --help")
    return text


def _messages(path: Path, n: int, row: Mapping[str, Any]) -> tuple[Message, ...]:
    return _conversation(path, n, row.get("prompt") or (), "prompt")


def _conversation(path: Path, n: int, turns: Any, field: str) -> tuple[Message, ...]:
    try:
        return Message.conversation(turns)
    except (UsageError, TypeError):
        raise ConfigError(
            f"{path}, line {n}: no conversation in the field {field!r}", hint="a text, or a list of turns"
        ) from None
