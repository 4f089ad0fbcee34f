"""Find where words and sentences end, and where a text begins to repeat itself."""

from __future__ import annotations

import re

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese.

These scripts put no spaces between words, so each letter counts as a word.
"""
QUESTION_MARKS = "?？؟\u037e፧"
"""Question marks of Latin, Chinese, Arabic, Greek and Ethiopic script."""
_BEFORE_SPACE = ".!…۔।॥։።" + QUESTION_MARKS.replace("？", "")
"""Marks that end a sentence only if a space follows.

Numbers and abbreviations hold them, too.
"""
_ALONE = "。！？｡။។៕"
"""Marks that end a sentence whatever follows."""
_CLOSERS = "\"'”’»›」』)\\]*"
"""Characters that may stand between such a mark and the end of its sentence."""
_SPACE = r"\s"
_MARKED = f"[{_BEFORE_SPACE}][{_CLOSERS}]*(?={{behind}})|[{_ALONE}][{_CLOSERS}]*"
WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
SENTENCE = re.compile(rf".+?(?:{_MARKED.format(behind=_SPACE)}|(?=\n)|$)", re.DOTALL)
"""Matches a sentence or a line, without the space behind it."""
_END = re.compile(rf"(?<=[{_BEFORE_SPACE.replace('…', '')}])\s+|(?<=[{_ALONE}])\s*")
"""Matches between two sentences. Within a text, an ellipsis is a pause more often than an end."""
_LAST = re.compile(rf".*(?:{_MARKED.format(behind=_SPACE + '|$')}|(?=\n))", re.DOTALL)
_LAST_OF_GROWING = re.compile(rf".*(?:{_MARKED.format(behind=_SPACE)}|(?=\n))", re.DOTALL)
_AT_END = re.compile(rf"[{_BEFORE_SPACE}{_ALONE}][{_CLOSERS}]*\Z|[\"”」`)]\Z")
_UNENDED = re.compile(
    r"(?:(?:^|\n|(?<=[.!?]\s))[^\S\n]*(?:(?:[-*•][^\S\n]+)?\d+[.)]?[^\S\n]?|[-*•]|(?:(?![.!?]\s)[^\n])*:\W*))+\s*$"
)
"""Matches a number or mark without an item, and a sentence that announces more, at the end."""
LIST_ITEM = re.compile(
    r"^[ \t]*(?:[-*•+][ \t]+|•|\*(?=[^\s*])(?![^*\n]*\*)"
    r"|\(?(?:\*\*)?\d{1,2}(?:[.):][ \t]+|[.)](?=[^\W\d_])))(?=\S)",
    re.MULTILINE,
)
"""Matches the mark of an item of a list, at the beginning of a line."""
NEXT_ITEM = re.compile(r"(?<=[.:;!?])[ \t]+\d{1,2}[.)](?=[ \t]+[^\W\d_]|[ \t]*$)", re.MULTILINE)
"""Matches the number of a further item, on the line of the item before it."""
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_GRAM = 3
"""Length, in words, of the n-grams that tell whether a sentence is new."""
_SHORT = 6
"""A sentence with fewer words is new or not as a whole."""
_STALE, _VERBATIM = 0.5, 0.1
"""Below the first novelty a sentence says little that is new; up to the second, nearly nothing."""


def ended_sentences(text: str) -> str:
    """Return the beginning of `text` up to the end of its last whole sentence or line.

    The number of a list's next item is no sentence, and neither is a line that announces more.
    """
    found = _LAST.match(_UNENDED.sub("\n", text.rstrip()))
    return _UNENDED.sub("", found.group()).rstrip() if found else ""


def settled_sentences(growing: str) -> str:
    """Return the beginning of a growing text up to the end of its last whole sentence or line.

    A mark such as "." ends a sentence only if a space follows, and the text may not show that yet.
    So a sentence at the very end is left out.
    """
    settled = _LAST_OF_GROWING.match(growing)
    return settled.group().rstrip() if settled else ""


def is_ended(text: str) -> bool:
    """Return whether `text` ends as a sentence, a quotation, a bracket or a piece of code does."""
    return _AT_END.search(text.rstrip()) is not None


def through_sentence(text: str, length: int) -> str:
    """Return `text` through the end of the sentence in which its first `length` characters end.

    If that sentence has no end, return all of it.
    """
    ends = (found.end() for found in SENTENCE.finditer(text))
    return text[: next((end for end in ends if end >= length), len(text))].rstrip()


def split_sentences(text: str) -> list[str]:
    """Return the sentences of `text`, with their closing punctuation."""
    return [s for s in _END.split(text.strip()) if s]


def without_loop(text: str, start: int = 0) -> str:
    """Return `text` up to where it begins to repeat itself; all of it if it does not.

    The novelty of a sentence is the share of its word 3-grams that no sentence before it has. The
    text ends before a sentence of novelty at most 0.1, and before two consecutive sentences of
    novelty below 0.5. Numbers of lists do not count. Of 320 answers of GPT-3.5, GPT-4 and Vicuna in
    just-eval, this shortens 5 %: lists whose items are alike, sums, and code.

    Args:
        start: the first `start` characters are kept in any case.
    """
    said: set[tuple[str, ...]] = set()
    stale_from: int | None = None
    for found in SENTENCE.finditer(text):
        words = [word for word in WORD.findall(found.group().casefold()) if not word.isdigit()]
        if not words:
            continue
        grams = _grams(words)
        novelty = sum(gram not in said for gram in grams) / len(grams)
        said.update(grams)
        if novelty >= _STALE:
            stale_from = None
        elif found.start() >= start:
            if novelty <= _VERBATIM or stale_from is not None:
                return ended_sentences(text[: found.start() if stale_from is None else stale_from])
            stale_from = found.start()
    return text


def as_prose(text: str) -> str:
    """Return `text` with the items of its lists as sentences, without marks and on one line.

    What follows a line that ends with a colon follows on the same line, too. A text without a list
    is returned as it is.
    """
    if not (LIST_ITEM.search(text) or NEXT_ITEM.search(text)):
        return text
    paragraphs: list[str] = []
    joins = False
    for line in _BOLD.sub(r"\2", text).splitlines():
        listed = LIST_ITEM.match(line) is not None
        said = NEXT_ITEM.sub("", LIST_ITEM.sub("", line)).strip()
        if not said:
            continue
        if listed and not (is_ended(said) or said.endswith((":", ",", ";"))):
            said += "."
        if joins and (listed or paragraphs[-1].endswith(":")):
            paragraphs[-1] += f" {said}"
        else:
            paragraphs.append(said)
        joins = listed or said.endswith(":")
    return "\n\n".join(paragraphs)


def _grams(words: list[str]) -> list[tuple[str, ...]]:
    if len(words) < _SHORT:
        return [tuple(words)]
    return [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
