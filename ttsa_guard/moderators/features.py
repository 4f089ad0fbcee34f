"""Hash word and character n-grams of texts and of their sentences, with NumPy alone.

A batch of texts becomes one byte buffer. All n-grams of the buffer are hashed at once with a
polynomial prefix hash. A window (a whole text, or one of its sentences) is a range of n-grams. So a
linear score of a window is a difference of two prefix sums, and scoring all sentences of a text
costs little more than scoring the text. The hash is exact integer arithmetic: buckets are the same
on every platform and Python version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
BITS = 18
BUCKETS = 1 << BITS
CHARS = (3, 4, 5)
"""Lengths of the character n-grams, in UTF-8 bytes."""
KIND_WEIGHTS = (1.0, 1.0, 1.0, 4.0, 4.0)
"""Feature values of character 3-, 4- and 5-grams, words, and pairs of words.

There are fewer words, so each weighs more.
"""
LONGEST = 400
"""Bytes after which a sentence without an end is cut.

So no window of a long text drowns its worst part.
"""
SMOOTHING = 60.0
"""Is added to a window's squared norm, so that a few n-grams cannot give an extreme score."""
LARGEST = 16_000.0
"""Squared norm from which on scores are means.

So no text is bad merely because it is long. A text of about 2,000 characters has this norm.
"""

_BASE = np.array([0x9E3779B97F4A7C15], np.uint64)
_INVERSE = np.array([pow(0x9E3779B97F4A7C15, -1, 1 << 64)], np.uint64)
_MIX = np.array([0xD6E8FEB86659FD93], np.uint64)
_PAIR = np.array([0xA0761D6478BD642F], np.uint64)
_SHIFT = np.uint64(32)
_WORD_BYTES = np.array([chr(b).isalnum() or b == 39 if b < 128 else True for b in range(256)])
_STOPS = np.isin(np.arange(256), list(b".!?"))
_NEWLINE, _SPACE = 10, 32


@dataclass(frozen=True)
class Features:
    """The n-grams of a batch of texts, by kind, and the windows in it.

    Kinds are in the order of `KIND_WEIGHTS`. Window w of kind k consists of the n-grams from
    `low[k, w]` up to, and without, `high[k, w]`.

    Args:
        buckets: for each kind, the bucket of every n-gram in reading order, [n-grams].
        low, high: bounds of the windows, [kinds, windows].
        owner: the index of each window's text, [windows].
        whole: the index of the window that is all of a text, [texts].
    """

    buckets: tuple[Ints, ...]
    low: Ints
    high: Ints
    owner: Ints
    whole: Ints

    @property
    def norms(self) -> NDArray[np.float64]:
        """Divisor of each window's feature values, [windows]."""
        squares = np.square(np.array(KIND_WEIGHTS)) @ (self.high - self.low) + SMOOTHING
        return np.asarray(np.sqrt(squares * np.maximum(squares / LARGEST, 1.0)))

    def project(self, weights: NDArray[Any]) -> NDArray[np.float64]:
        """Return linear scores of all windows, [windows, heads], for weights [BUCKETS, heads]."""
        total = np.zeros((self.owner.size, weights.shape[1]))
        for kind, value in enumerate(KIND_WEIGHTS):
            gathered = weights[self.buckets[kind]]
            sums = np.zeros((len(gathered) + 1, weights.shape[1]))
            np.cumsum(gathered, axis=0, out=sums[1:])
            total += value * (sums[self.high[kind]] - sums[self.low[kind]])
        return total / self.norms[:, None]

    def worst(self, window_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the highest of each text's scores, [texts, heads], of scores [windows, heads]."""
        return np.asarray(np.maximum.reduceat(window_scores, self.whole, axis=0))


def featurise(texts: Sequence[str]) -> Features:
    """Return the features of a batch of texts.

    The batch must not be empty. The texts may be: lone surrogates, empty texts and any length are
    fine.
    """
    parts = [_clean(text) for text in texts]
    data = np.frombuffer(b"".join(parts) + b" " * max(CHARS), np.uint8)
    ends = np.cumsum([len(part) for part in parts])
    starts, stops, owner, whole = _windows(data, ends)
    data = np.where(data == _NEWLINE, np.uint8(_SPACE), data)

    powers = np.multiply.accumulate(np.broadcast_to(_BASE, data.size))
    inverses = np.multiply.accumulate(np.broadcast_to(_INVERSE, data.size))
    prefix = np.zeros(data.size + 1, np.uint64)
    np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers, out=prefix[1:])

    buckets, low, high = [], [], []
    for n in CHARS:
        count = data.size - n + 1
        hashes = (prefix[n:] - prefix[:count]) * inverses[:count]
        buckets.append(_bucket(hashes, n))
        low.append(starts)
        high.append(np.maximum(starts, stops - n + 1))
    edges = np.diff(_WORD_BYTES[data].astype(np.int8), prepend=0, append=0)
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    words = _scramble((prefix[last] - prefix[first]) * inverses[first])
    buckets += [_bucket(words, 1), _bucket(words[:-1] * _PAIR + words[1:], 2)]
    from_word, to_word = np.searchsorted(first, starts), np.searchsorted(first, stops)
    low += [from_word, np.minimum(from_word, max(words.size - 1, 0))]
    high += [to_word, np.maximum(low[-1], to_word - 1)]
    return Features(tuple(buckets), np.stack(low), np.stack(high), owner, whole)


def _clean(text: str) -> bytes:
    """Return a text as lower-case (ASCII) UTF-8 with single blanks.

    Lines stay apart, and a blank stands at both ends.
    """
    data = text.replace("\u2019", "'").encode("utf-8", "surrogatepass").lower()
    lines = (b" ".join(line.split()) for line in data.splitlines())
    return b" " + b"\n".join(line for line in lines if line) + b" "


def _windows(data: NDArray[np.uint8], ends: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Find the windows of the texts.

    Args:
        data: the buffer, [bytes].
        ends: the end of each text in it, [texts].

    Returns:
        The start, the stop and the owner of each window, [windows] each, and the first window of
        each text, [texts], which is the whole text. Starts and stops are indices of bytes.
    """
    blank = (data == _SPACE) | (data == _NEWLINE)
    after_stop = np.concatenate([[False], _STOPS[data[:-1]]])
    cuts = np.flatnonzero((blank & after_stop) | (data == _NEWLINE))
    starts: list[int] = []
    stops: list[int] = []
    owner: list[int] = []
    whole: list[int] = []
    begin = 0
    for text, end in enumerate(ends.tolist()):
        inner = cuts[np.searchsorted(cuts, begin + 1) : np.searchsorted(cuts, end - 1)].tolist()
        points = _cut_long([begin, *inner, end - 1], blank)
        whole.append(len(starts))
        spans = [(begin, end), *((a, b + 1) for a, b in pairwise(points) if len(points) > 2)]
        starts += [a for a, _ in spans]
        stops += [b for _, b in spans]
        owner += [text] * len(spans)
        begin = end
    return tuple(np.array(x, np.int64) for x in (starts, stops, owner, whole))  # type: ignore[return-value]


def _cut_long(points: list[int], blank: NDArray[np.bool_]) -> list[int]:
    """Return `points` with more cut points, so that no two are further apart than about `LONGEST`.

    The new ones are at blanks where there are any.
    """
    result = points[:1]
    for point in points[1:]:
        while point - result[-1] > LONGEST:
            target = result[-1] + LONGEST
            near = np.flatnonzero(blank[target - LONGEST // 2 : target])
            result.append(target - LONGEST // 2 + int(near[-1]) if near.size else target)
        result.append(point)
    return result


def _scramble(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (hashes ^ (hashes >> _SHIFT)) * _MIX
    return np.asarray(mixed ^ (mixed >> _SHIFT))


def _bucket(hashes: NDArray[np.uint64], kind: int) -> Ints:
    salted = _scramble(hashes + np.uint64(kind) * _BASE)
    return np.asarray(salted >> np.uint64(64 - BITS), np.int64)
