"""Learn word vectors from plain text.

They are the positive pointwise mutual information of near words, compressed by a truncated SVD.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.sparse import coo_matrix, csr_matrix
from sklearn.utils.extmath import randomized_svd

from ttsa_guard.moderators.second_opinion_network import FIRST_WORD, words

REACH = 4
"""Words on either side that count as near."""
_SMOOTHING = 0.75
"""Exponent of the context counts, so that rare words do not look informative.

Source: Levy, Goldberg and Dagan (2015).
"""


def vocabulary(counted: Iterable[tuple[Sequence[str], float]], size: int) -> list[str]:
    """Return the `size` words with the highest weighted count, ties in alphabetical order.

    Args:
        counted: (words, weight) of each text.
    """
    total: Counter[str] = Counter()
    for tokens, weight in counted:
        for word in tokens:
            total[word] += weight  # type: ignore[assignment]
    return sorted(total, key=lambda word: (-total[word], word))[:size]


def learn(
    texts: Sequence[str], names: Sequence[str], *, dimensions: int, seed: int, console: Console
) -> NDArray[np.float32]:
    """Return vectors of the words `names`, [FIRST_WORD + words, dimensions], with unit variance.

    The first `FIRST_WORD` rows are zero.
    """
    counts = _near(texts, {word: i for i, word in enumerate(names)}, console)
    information = _positive_information(counts)
    left, scale, _ = randomized_svd(information, dimensions, n_iter=3, random_state=seed)
    vectors = left * np.sqrt(scale)
    return np.concatenate([np.zeros((FIRST_WORD, dimensions)), vectors / vectors.std()]).astype(
        np.float32
    )


def _near(texts: Sequence[str], index: dict[str, int], console: Console) -> csr_matrix:
    """Return how often two words are at most `REACH` apart, [words, words]."""
    gap, ids = [-1] * REACH, []
    for text in track(texts, "words of unlabelled text", console=console):
        ids += [*(index.get(word, -1) for word in words(text)), *gap]
    row = np.array(ids, np.int32)
    total = csr_matrix((len(index), len(index)), dtype=np.float32)
    for apart in track(range(1, REACH + 1), "near words", console=console):
        known = (row[:-apart] >= 0) & (row[apart:] >= 0)
        pairs = (row[:-apart][known], row[apart:][known])
        total += coo_matrix((np.ones(pairs[0].size, np.float32), pairs), shape=total.shape).tocsr()
    return (total + total.T).tocsr()


def _positive_information(counts: csr_matrix) -> csr_matrix:
    found = counts.tocoo()
    words_ = np.asarray(counts.sum(axis=1)).ravel()
    contexts = words_**_SMOOTHING / (words_**_SMOOTHING).sum()
    values = np.log(found.data / (words_[found.row] * contexts[found.col]))
    kept = values > 0
    return csr_matrix(
        (values[kept].astype(np.float32), (found.row[kept], found.col[kept])), shape=counts.shape
    )
