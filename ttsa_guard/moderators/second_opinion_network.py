"""The scores of the second opinion, with NumPy alone: word vectors, a convolution, three heads."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ttsa_guard.errors import ModelError
from ttsa_guard.moderators.categories import HEADS
from ttsa_guard.moderators.lite_network import probabilities
from ttsa_guard.moderators.obscured import worst_scores

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
EDGE, UNKNOWN_WORD, FIRST_WORD = 0, 1, 2
"""Word ids.

They are the edge before and after a text, a word that is not in the vocabulary, and the first word
of the vocabulary.
"""
PASSAGE = 128
"""Words of a passage. A text is as bad as its worst passage, however long it is."""
SENTENCE = 48
"""Words after which a sentence without an end is cut."""
WIDTH = 3
"""Neighbouring words that the convolution sees at once."""
_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+|[.!?]+|[,;:\n]")
_STOPS = frozenset(".!?\n")
_BATCH_CHARACTERS = 50_000
"""Characters of the texts that are scored at once, which bounds the memory for long texts."""


@dataclass(frozen=True)
class Layout:
    """The words of a batch of texts, one after the other, and the windows in it.

    Sentences come first, then passages.

    Args:
        ids: ids of the words, [words].
        starts: the places where sentences (index 0) and passages (index 1) begin; each ends where
            the next one begins.
        owner: the index of each window's text, [windows].
        first: the window that is the first passage of each text, [texts].
    """

    ids: Ints
    starts: tuple[Ints, Ints]
    owner: Ints
    first: Ints


def words(text: str) -> list[str]:
    """Return the lower-case words, numbers (all as ``0``), punctuation and line ends of `text`."""
    plain = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    return [
        "0" if token[0].isdigit() else token if token[0].isalpha() else token[0]
        for token in _TOKEN.findall(plain)
    ]


def lay_out(texts: Sequence[str], index: Mapping[str, int]) -> Layout:
    """Return the words of a batch of texts, with an `EDGE` before and after each text.

    The batch must not be empty. The texts may be.

    Args:
        index: the id of each word.
    """
    ids: list[int] = []
    starts: tuple[list[int], list[int]] = ([], [])
    owners: tuple[list[int], list[int]] = ([], [])
    first = []
    for text, tokens in enumerate(map(words, texts)):
        begin, sentence = len(ids), len(ids)
        cuts = [begin]
        for place, (before, token) in enumerate(pairwise(tokens), begin + 2):
            if (before in _STOPS and token not in _STOPS) or place - sentence >= SENTENCE:
                cuts.append(sentence := place)
        ids += [EDGE, *(index.get(token, UNKNOWN_WORD) for token in tokens), EDGE]
        first.append(len(starts[1]))
        # The last passage includes a rest that is too short to be a passage of its own.
        passages = range(begin, max(begin + 1, len(ids) - PASSAGE // 2), PASSAGE)
        for kind, found in enumerate((cuts, passages)):
            starts[kind].extend(found)
            owners[kind].extend([text] * len(found))
    places = (np.array(starts[0], np.int64), np.array(starts[1], np.int64))
    owner = np.array(owners[0] + owners[1], np.int64)
    return Layout(
        np.array(ids, np.int64), places, owner, np.array(first, np.int64) + len(places[0])
    )


@dataclass(frozen=True)
class SecondOpinionNetwork:
    """The trained network.

    Args:
        index: the id of each word of the vocabulary.
        tables: `tables[j]`, [words, filters], is what a word adds to the filters as the j-th of
            `WIDTH` words.
        filter_bias: [filters].
        hidden: weights from pooled filters to the hidden layer, [2 * filters, units].
        hidden_bias: [units].
        heads: weights from the hidden layer to the heads, [units, 3].
        heads_bias: [3].
        temperature: of each head, [3].
    """

    index: Mapping[str, int]
    tables: tuple[Floats, ...]
    filter_bias: Floats
    hidden: Floats
    hidden_bias: Floats
    heads: Floats
    heads_bias: Floats
    temperature: Floats

    @classmethod
    def read(cls, path: Path) -> SecondOpinionNetwork:
        """Read weights that `train_second_opinion` wrote.

        Raises:
            ModelError: the file is missing or damaged.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            names = arrays.pop("words").tobytes().decode().split(" ")
            vectors = arrays.pop("vectors") * arrays.pop("scales").astype(np.float32)[:, None]
            if len(vectors) != FIRST_WORD + len(names):
                raise ValueError(f"{len(names)} words but {len(vectors)} vectors")
            tables = tuple(vectors @ kernel.astype(np.float32) for kernel in arrays.pop("kernels"))
            index = {word: i for i, word in enumerate(names, FIRST_WORD)}
            network = cls(
                index, tables, **{name: array.astype(np.float32) for name, array in arrays.items()}
            )
            network.scores(["."])
        except (
            OSError,
            EOFError,
            BadZipFile,
            KeyError,
            TypeError,
            ValueError,
            IndexError,
        ) as error:
            raise ModelError(
                f"cannot read the second opinion's weights: {error}", hint="reinstall ttsa-guard"
            ) from error
        return network

    def worst(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], list[float]]:
        """Return scores in [0, 1] of the worst reading, [texts, 3].

        With them comes how obscured each text is, 0 to 1.
        """
        return worst_scores(
            texts, lambda some, _: self.scores(some), literal=HEADS.index("refusal")
        )

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return scores in [0, 1] of the texts as they are written, [texts, 3]."""
        return probabilities(self.logits(texts), self.temperature)

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return logits before the temperature, [texts, 3].

        Harm and toxicity are those of the worst window, refusal is that of the first passage.
        """
        rows = [self._logits(batch) for batch in _batches(texts)]
        return np.concatenate(rows).astype(np.float64) if rows else np.zeros((0, len(HEADS)))

    def _logits(self, texts: Sequence[str]) -> Floats:
        """Return the logits of one batch that is not empty, [texts, 3]."""
        layout = lay_out(texts, self.index)
        filtered = self._filtered(layout.ids)
        windows = np.concatenate([_pooled(filtered, starts) for starts in layout.starts])
        logits = (
            np.maximum(windows @ self.hidden + self.hidden_bias, 0.0) @ self.heads + self.heads_bias
        )
        worst = np.full((len(texts), len(HEADS)), -np.inf, np.float32)
        np.maximum.at(worst, layout.owner, logits)
        refusal = HEADS.index("refusal")
        worst[:, refusal] = logits[layout.first, refusal]
        return worst

    def _filtered(self, ids: Ints) -> Floats:
        """Return the filter outputs at every word, [words, filters], of ids [words]."""
        padded = np.pad(ids, WIDTH // 2, constant_values=EDGE)
        total = sum(table[padded[j : j + ids.size]] for j, table in enumerate(self.tables))
        return np.maximum(total + self.filter_bias, 0.0)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield batches with at most `_BATCH_CHARACTERS` characters, or with one longer text."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _pooled(filtered: Floats, starts: Ints) -> Floats:
    """Return the maximum and the mean of the filters over each window, [windows, 2 * filters]."""
    sizes = np.diff(starts, append=len(filtered))[:, None].astype(np.float32)
    means = np.add.reduceat(filtered, starts) / sizes
    return np.concatenate([np.maximum.reduceat(filtered, starts), means], axis=1)


@lru_cache(maxsize=1)
def shipped() -> SecondOpinionNetwork:
    """Return the network in the package, which is read once in each process.

    Raises:
        ModelError: the weights are missing or damaged.
    """
    return SecondOpinionNetwork.read(Path(__file__).parents[1] / "embedded" / "second_opinion.npz")
