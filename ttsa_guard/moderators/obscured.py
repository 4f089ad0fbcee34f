"""What a text says in plain letters: homoglyphs, invisible characters, spaced letters, leetspeak,
encodings and ciphers undone.

A moderator that has learned from plain English scores a text as it is written and, where something
was undone, as it reads; the worse of the two counts. Where nothing but letters was joined, as those
of `k e t t l e` and `ke**tt**le`, the text as it reads is the text, and it alone counts: the look
of the text as it is written tells a moderator nothing. Whether a step has found something is
decided by words: what it makes of a text has to be English of the vocabulary of the second opinion.
So code, maths, addresses and other languages stay as they are, and a plain text has no second
reading.
"""

from __future__ import annotations

import base64
import binascii
import html
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import groupby, islice, product
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from ttsa_guard.errors import ModelError

Scores = NDArray[Any]
_ENGLISH = 0.6
"""Share of the letters that have to stand in known words for a text to be English."""
_STRANGE = 0.35
"""Share up to which a sentence is none."""
_LONGEST_WORD = 20
_FOREIGN_SHARE = 0.3
"""Share of letters that look like no Latin ones, from which on a text is in another script."""

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]*")
# Invisible: soft hyphen, joiners, directions, fillers, variation selectors, tags.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\U000e0000-\U000e01ef]"
)
_FOREIGN = re.compile(
    "[^\x00-\u00ac\u00ae-\u024f\u2010-\u2027\u2030-\u205e\u20a0-\u20bf\u2190-\u23ff\u2500-\u27bf]"
)
"""What no plain English or European text needs: other scripts, letters in disguise, invisible and
combining characters."""
_ODD = re.compile(r"[0-9@$|+€&%*~`<]|![A-Za-z]|[A-Za-z+/_-]{16}")
"""What a disguise of ASCII characters needs, except for spaced letters, lists and ciphers."""
_LETTER_NAME = re.compile(
    r"(?:NEGATIVE |REGIONAL |SQUARED |CIRCLED |MODIFIER )*(?:INDICATOR SYMBOL|LATIN)(?: SMALL|"
    r" CAPITAL)? LETTER "
    r"(?:SMALL CAPITAL |TURNED |REVERSED )*([A-Z])(?: WITH .*)?"
)
_DISGUISED_WORD = re.compile(r"[^\W_]*[^\W\d_\x00-\x7f][^\W_]*")
_AROUND_WORD = re.compile(r"[*`]{1,3}(?=\w)|(?<=\w)[*`]{1,3}|^[>#\s]+", re.MULTILINE)
_SPACED_TRIGGER = re.compile(
    r"\b[A-Za-z]\b[^\w\n]{1,7}\b[A-Za-z]\b[^\w\n]{1,7}\b[A-Za-z]\b|_[A-Za-z]_[A-Za-z]_"
)
_GAP = r"(?:[^\w\n]|_){1,7}"
_SPACED = re.compile(rf"(?<![^\W_])[^\W\d_](?:{_GAP}[^\W_](?![^\W_])){{3,}}")
_INSIDE_WORD = re.compile(
    r"(?<=[^\W\d_])(?:[*~`]|<!--[^<>]{0,80}-->|</?[a-z]{1,6}>){1,8}(?=[^\W\d_])", re.IGNORECASE
)
_LEET_TRIGGER = re.compile(
    r"[A-Za-z][0-9@$|+!€][A-Za-z]|\b[0-9@$|+!€][A-Za-z]{2}|[@$|+!€][A-Za-z]{2}|[A-Za-z]{2}[0-9@$€]"
)
_LEET_TOKEN = re.compile(r"(?<![\w@$|+!€./])(?=[A-Za-z']*[0-9@$|+!€])[\w@$|+!€']+")
_LEET = {"0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "6": "g", "7": "t", "8": "b", "9": "g"}
_LEET |= {"@": "a", "$": "s", "!": "il", "|": "li", "+": "t", "€": "e", "2": "z"}
_LEET_DEFAULT = str.maketrans({sign: letters[0] for sign, letters in _LEET.items()})
_COMMONEST = 150
"""Rank up to which a word of one or two signs is taken for one, in a text that is full of such
words."""
_FEWEST_LEET, _MOST_SPELLINGS = 3, 64
_BASE64 = re.compile(
    r"(?<![\w+/=%-])[A-Za-z0-9+/_-]{16,}(?:\r?\n[A-Za-z0-9+/_-]{4,}){0,200}={0,2}(?![\w+/=-])"
)
_HEX = re.compile(r"(?<![\w])(?:(?:0x|\\x)?[0-9a-fA-F]{2}[\s,:;-]?){8,}(?![\w])")
_ESCAPED = re.compile(r"&#x?[0-9a-fA-F]{2,6};|(?:%[2-7][0-9a-fA-F]){3}")
_ITEM = re.compile(r"[ \t]*(?:[-*+•>|#–]{1,6}|\(?\d{1,3}[.):]|\(?[a-zA-Z][.)])[ \t]+")
_FEWEST_ITEMS, _LONGEST_ITEM, _BROKEN = 3, 7, 0.2
_JOINING = frozenset(
    "a an the of to in on for with and or but is are was were be been that this these your you i my"
    " his her their our its it as at by from not do can will would should if when than so"
    " into".split()
)
"""Words that hardly any item ends with."""
_PUNCTUATION = {ord(sign): " " for sign in '\n.,;:?!"()[]{}*#`<>/\\-_=+0123456789'}
_PLAIN = 0.9
"""Share of known words from which on no sentence of a text is looked at."""
_FEWEST_STRANGE = 5
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Reading:
    """A text as it reads.

    Args:
        plain: the text with its disguises undone; the text itself if it has none.
        obscured: share of its letters and digits, 0 to 1, that no reader of English can make words
            of even so: other scripts and languages, ciphers, long codes.
        joined: whether `plain` has the letters of the text, and nothing else was undone than what
            stood between them.
    """

    plain: str
    obscured: float = 0.0
    joined: bool = False


def read(text: str) -> Reading:
    """Return `text` as it reads; any text, in a time that grows with its length."""
    plain = _letters(text) if _FOREIGN.search(text) else text
    if odd := _ODD.search(plain) is not None:
        plain = _marks_removed(_decoded(plain))
    plain = _items_joined(_spaced_joined(plain))
    if odd:
        plain = _leet_undone(plain)
    plain, strange = _deciphered(plain)
    obscured = _share(plain, strange) if strange or odd or not plain.isascii() else 0.0
    joined = plain != text and plain == _spaced_joined(_marks_removed(text))
    return Reading(plain, obscured, joined)


def worst_scores(
    texts: Sequence[str],
    score: Callable[[Sequence[str], Sequence[int]], Scores],
    *,
    literal: int | None = None,
) -> tuple[Scores, list[float]]:
    """Return the scores of the worst reading of each text, [texts, heads], and how obscured each
    is.

    Args:
        score: scores of some texts, [n, heads], and the places in `texts` that they belong to.
            Texts as they are written are scored alone, so that a second reading of one cannot
            change the others by a rounding.
        literal: a head for which only the text as it is written counts.
    """
    readings = [read(text) for text in texts]
    scores = np.array(score(texts, range(len(texts))))
    disguised = [i for i, text in enumerate(texts) if readings[i].plain != text]
    if disguised:
        written = scores.copy()
        scores[[i for i in disguised if readings[i].joined]] = 0.0
        plain = score([readings[i].plain for i in disguised], disguised)
        np.maximum.at(scores, disguised, plain)
        if literal is not None:
            scores[:, literal] = written[:, literal]
    return scores, [reading.obscured for reading in readings]


# ---------------------------------------------------------------------- words


@lru_cache(maxsize=1)
def _ranks() -> Mapping[str, int]:
    """Return English words with at least two letters, and "a" and "i", the commonest first."""
    path = resources.files("ttsa_guard.embedded") / "second_opinion.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            words = stored["words"].tobytes().decode().split(" ")
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(
            f"cannot read the vocabulary: {error}", hint="reinstall ttsa-guard"
        ) from error
    return {
        word: i
        for i, word in enumerate(words)
        if word in ("a", "i") or (len(word) > 1 and word[0].isalpha())
    }


def _known_share(text: str) -> float:
    """Return the share of the letters that stand in English words.

    Words of one or two letters do not count: any code has them.
    """
    ranks = _ranks()
    words = _WORD.findall(text.lower())
    total = sum(map(len, words))
    return (
        sum(len(word) for word in words if len(word) > 2 and word in ranks) / total
        if total
        else 0.0
    )


def _english(text: str) -> bool:
    return _known_share(text) >= _ENGLISH


def _segmented(letters: str) -> str:
    """Put blanks where the likeliest words of the vocabulary end, the n-th commonest being 1/n as
    likely as the first.
    """
    ranks = _ranks()
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(letters) + 1):
        options = []
        for start in range(max(0, end - _LONGEST_WORD), end):
            rank = ranks.get(letters[start:end])
            cost = math.log(20.0 + rank) if rank is not None else 9.0 + 4.0 * (end - start)
            options.append((best[start][0] + cost, start))
        best.append(min(options))
    cuts, end = [], len(letters)
    while end:
        cuts.append(letters[best[end][1] : end])
        end = best[end][1]
    return " ".join(reversed(cuts))


# ---------------------------------------------------------------------- letters


def _letters(text: str) -> str:
    """Undo compatibility forms, invisible characters and stray marks.

    Write words of look-alikes in Latin letters.
    """
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    text = _FOREIGN.sub(lambda found: _named_letter(found.group()), text)
    shown = {word: "".join(map(_lookalike, word)) for word in set(_DISGUISED_WORD.findall(text))}
    others = sum(len(word) for word in _DISGUISED_WORD.findall(text) if not shown[word].isascii())
    latin = others < _FOREIGN_SHARE * sum(map(str.isalpha, text))
    return _DISGUISED_WORD.sub(
        lambda found: _latin(found.group(), shown[found.group()], latin), text
    )


def _latin(word: str, shown: str, latin: bool) -> str:
    """Return `shown`, the word in the Latin letters that it looks like, if it mixes scripts or is
    English in a Latin text.
    """
    if not shown.isascii():
        return word
    return shown if any(map(str.isascii, word)) or (latin and shown.lower() in _ranks()) else word


@lru_cache(maxsize=4096)
def _named_letter(char: str) -> str:
    """Return the Latin letter that a character is by its Unicode name, as small capitals and
    letters in squares are.

    There is none for a mark over or under another letter, which could not be composed with it.
    """
    if "\u0300" <= char <= "\u036f":
        return ""
    found = _LETTER_NAME.fullmatch(unicodedata.name(char, ""))
    return found[1].lower() if found else char


@lru_cache(maxsize=4096)
def _lookalike(char: str) -> str:
    """Return the ASCII letter that `char`, or its capital, looks like by Unicode TR39.

    `char` itself if there is none.
    """
    if char.isascii():
        return char
    from confusable_homoglyphs.confusables import confusables_data

    for form in (char, char.upper()):
        for other in confusables_data.get(form, ()):
            if len(other["c"]) == 1 and other["c"].isascii() and other["c"].isalpha():
                return str(other["c"]) if char.isupper() else str(other["c"]).lower()
    return char


# ---------------------------------------------------------------------- steps


def _decoded(text: str) -> str:
    """Decode Base64, hexadecimal, HTML and URL escapes that hold English, in their places.

    Twice, for one may hold another.
    """
    for _ in range(2):
        if _ESCAPED.search(text):
            text = html.unescape(unquote(text))
        text = _HEX.sub(_from_hex, _BASE64.sub(_from_base64, text))
    return text


def _from_base64(found: re.Match[str]) -> str:
    code = re.sub(r"[\s=]", "", found.group()).replace("-", "+").replace("_", "/")
    return _as_text(
        lambda: base64.b64decode(code[: len(code) - (len(code) % 4 == 1)] + "=" * (-len(code) % 4)),
        found.group(),
    )


def _from_hex(found: re.Match[str]) -> str:
    return _as_text(
        lambda: bytes.fromhex(re.sub(r"0x|\\x|[\s,:;-]", "", found.group())), found.group()
    )


def _as_text(decode: Callable[[], bytes], otherwise: str) -> str:
    """Return what `decode` gives, if that is a text with words, or another code."""
    try:
        text = decode().decode("utf-8")
    except (binascii.Error, ValueError):
        return otherwise
    return f" {text} " if text.isprintable() or _english(text) else otherwise


def _spaced_joined(text: str) -> str:
    return _SPACED.sub(_joined, text) if _SPACED_TRIGGER.search(text) else text


def _joined(found: re.Match[str]) -> str:
    """Join letters that stand apart as words.

    What stands between letters of a word is what stands there most often.
    """
    run = found.group()
    gaps = re.findall(r"(?<=[^\W_])(?:\W|_)+(?=[^\W_])", run)
    usual = Counter(gaps).most_common(1)[0][0]
    if usual.strip() and usual.endswith(" "):  # as in "a, b, c"
        return run
    parts = re.split(r"((?:\W|_)+)", run)
    words = "".join(part if i % 2 == 0 else _gap(part, usual) for i, part in enumerate(parts))
    plain = " ".join(
        _segmented(w.lower()) if len(w) > 3 and w.lower() not in _ranks() else w
        for w in words.split(" ")
    )
    return plain if _english(plain) else run


def _gap(gap: str, usual: str) -> str:
    if gap == usual:
        return ""
    sign = gap.strip(usual + " ")
    return sign if sign == "'" else f"{sign} "


def _marks_removed(text: str) -> str:
    """Remove emphasis and tags, where some stand within words."""
    return _AROUND_WORD.sub("", _INSIDE_WORD.sub("", text)) if _INSIDE_WORD.search(text) else text


def _items_joined(text: str) -> str:
    """Join short items of a list, or lines of a few words, as the sentence that they are if they
    break off as no item does.
    """
    if text.count("\n") < _FEWEST_ITEMS - 1:
        return text
    found: list[str] = []
    lines = ((line, _ITEM.sub("", line, count=1).strip()) for line in text.split("\n"))
    for short, run in groupby(lines, key=lambda pair: 0 < len(pair[1].split()) <= _LONGEST_ITEM):
        written, bare = zip(*run, strict=True)
        broken = sum(item.rpartition(" ")[2].lower() in _JOINING for item in bare)
        joined = short and len(bare) >= _FEWEST_ITEMS and broken >= _BROKEN * len(bare)
        found += [" ".join(bare)] if joined else written
    return "\n".join(found)


def _leet_undone(text: str) -> str:
    """Undo digits and signs for letters, where that makes English words of them."""
    if not _LEET_TRIGGER.search(text):
        return text
    tokens = set(_LEET_TOKEN.findall(text))
    spelt = {token: _spelt(token) for token in tokens}
    sure = sum(word is not None for word in spelt.values())
    if not sure:
        return text
    if sure >= _FEWEST_LEET and sure > sum(len(token) > 2 for token in tokens) / 2:
        # Where most of them are words, the others are names, rare and short words in the same
        # disguise.
        spelt = {
            token: word or _spelt(token, shortest=1, rank=_COMMONEST) or _by_default(token)
            for token, word in spelt.items()
        }
    return _LEET_TOKEN.sub(lambda found: spelt[found.group()] or found.group(), text)


def _spelt(token: str, *, shortest: int = 3, rank: int | None = None) -> str | None:
    """Return the English word, up to a rank, that a token of letters and signs may be."""
    body = token.rstrip("!|+'")
    ranks = _ranks()
    choices = product(*(_LEET.get(char, char.lower()) for char in body))
    for spelling in islice(choices, _MOST_SPELLINGS):
        word = "".join(spelling)
        if len(word) >= shortest and ranks.get(word, len(ranks)) < (rank or len(ranks)):
            return word + token[len(body) :]
    return None


def _by_default(token: str) -> str:
    return token.translate(_LEET_DEFAULT) if any(map(str.isalpha, token)) else token


# ---------------------------------------------------------------------- ciphers


def _deciphered(text: str) -> tuple[str, int]:
    """Undo shifted alphabets and reversed sentences, and return the letters of sentences that are
    no English even so.
    """
    ranks = _ranks()
    words = text.lower().translate(_PUNCTUATION).split()
    if sum(map(ranks.__contains__, words)) >= _PLAIN * len(words):
        return text, 0
    found, strange = [], 0
    for sentence in _SENTENCE.findall(text):
        plain = sentence
        if len(sentence.split()) > 2 and _known_share(sentence) <= _STRANGE:
            plain = next(filter(_english, _decipherments(sentence)), sentence)
            strange += _strange(sentence) if plain is sentence else 0
        found.append(plain)
    return "".join(found), strange


def _strange(sentence: str) -> int:
    """Count the letters of a sentence, if it is no English without its names either."""
    words = [word.lower() for word in _WORD.findall(sentence) if not word.istitle()]
    letters = sum(map(len, words))
    known = sum(len(word) for word in words if word in _ranks())
    return letters if len(words) >= _FEWEST_STRANGE and known <= _STRANGE * letters else 0


def _decipherments(sentence: str) -> Iterator[str]:
    yield sentence[::-1]
    for shift in (13, *range(1, 13), *range(14, 26)):
        yield sentence.translate(_shifted(_ALPHABET[shift:] + _ALPHABET[:shift]))
    yield sentence.translate(_shifted(_ALPHABET[::-1]))


@lru_cache(maxsize=32)
def _shifted(letters: str) -> dict[int, int]:
    return str.maketrans(_ALPHABET + _ALPHABET.upper(), letters + letters.upper())


def _share(text: str, strange: int) -> float:
    """Return the share of the letters and digits in strange sentences, in words of other scripts
    and in long codes.
    """
    total = sum(map(str.isalnum, text))
    foreign = sum(char.isalpha() and ord(char) > 0x24F for char in text)
    codes = sum(
        len(code)
        for code in _BASE64.findall(text)
        if any(map(str.isdigit, code)) and not code.isdigit()
    )
    return min(1.0, max(strange, foreign, codes) / total) if total else 0.0
