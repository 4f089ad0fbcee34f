"""What a conversation asks for, without what stands around it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ttsa_guard.messages import Message
from ttsa_guard.text import QUESTION_MARKS, WORD, split_sentences

_CLAUSES = re.compile(r"(?<=[,;:])\s+|(?<=[，；：、])|\s+(?=(?:and|but|then|so)\b)")
_ASKED = re.compile(rf"[{QUESTION_MARKS}]\W*$")
_FEWEST_WORDS = 3
_ASIDE = re.compile(r"\s*(?:\([^()]*\)|\[[^\[\]]*\]|（[^（）]*）|【[^【】]*】)")


def split_parts(text: str) -> list[str]:
    """The sentences of `text`, or the clauses of its only one."""
    sentences = split_sentences(text)
    return sentences if len(sentences) > 1 else [part for part in _CLAUSES.split(text.strip()) if part]


def asking(parts: Sequence[str]) -> list[int]:
    """Which of the parts ask: those that end with a question mark, and what stands before a question that says too little alone
    ("Any tips?")."""
    marked = [i for i, part in enumerate(parts) if _ASKED.search(part)]
    if all(len(WORD.findall(parts[i])) < _FEWEST_WORDS for i in marked):
        marked = sorted({*marked, *(i - 1 for i in marked if i)})
    return marked


def without_asides(text: str) -> str:
    """`text` without what stands in brackets; as it is if nothing else is there."""
    return _ASIDE.sub("", text).strip() or text.strip()


def question(text: str) -> str:
    """The parts that ask, without asides; all of it where none is known to ask."""
    plain = without_asides(text)
    parts = split_parts(plain)
    return " ".join(parts[i] for i in asking(parts)) or plain


def questions(messages: Sequence[Message]) -> list[list[Message]]:
    """The conversation with only the question in its last user message, and that question alone if more surrounds it."""
    last = max(i for i, m in enumerate(messages) if m.role == "user")
    asked = replace(messages[last], content=question(messages[last].content))
    return [[*messages[:last], asked], *([[asked]] if last else [])]
