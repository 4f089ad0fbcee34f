"""Use a sequence classifier of the Hugging Face hub as a moderator, e.g. a toxicity model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from transformers import AutoModelForSequenceClassification

from ttsa_guard.errors import ConfigError
from ttsa_guard.hf.devices import Device, Dtype, resolve_device, resolve_dtype
from ttsa_guard.hf.loading import load
from ttsa_guard.hf.source import Source
from ttsa_guard.hf.tokens import encodable
from ttsa_guard.moderators.categories import CategoryOptions
from ttsa_guard.moderators.obscured import Scores, worst_scores
from ttsa_guard.plugins import Register, hookimpl
from ttsa_guard.verdict import Verdict

HARMLESS = {
    "safe",
    "neutral",
    "normal",
    "benign",
    "clean",
    "ok",
    "non-toxic",
    "nontoxic",
    "not-toxic",
    "unharmful",
    "non-hate",
}
"""Labels that mean no harm, in lower case with dashes."""


class ClassifierOptions(CategoryOptions):
    """Options of the moderator ``classifier``."""

    model: str = Field(min_length=1, description="a Hugging Face name, or a path")
    function: Literal["auto", "softmax", "sigmoid"] = Field(
        "auto", description="auto: as the model's problem_type says"
    )
    window: int | None = Field(
        None, ge=8, description="tokens judged at a time; default: as many as the model takes"
    )
    overlap: int = Field(32, ge=0, description="tokens that windows of a long text share")
    batch_size: int = Field(32, ge=1, description="windows judged together")
    device: Device = "auto"
    dtype: Dtype = "auto"


class Classifier:
    """Scores texts with the harmful labels of a classifier.

    A long text counts as its worst window. A text in disguise is also judged as it reads
    (`moderators.obscured`).

    Raises:
        ModelError: the model cannot be loaded.
        ConfigError: the labels do not say which of them are harms, and none are selected; or a
            selected one is unknown.
    """

    name = "classifier"

    def __init__(self, options: ClassifierOptions) -> None:
        device = resolve_device(options.device)
        self._tokenizer, self._model = _load(
            options.model, device, resolve_dtype(options.dtype, device)
        )
        config = self._model.config
        self._labels = [str(config.id2label[i]) for i in range(config.num_labels)]
        self._sigmoid = _is_sigmoid(options.function, config)
        self.options = options.model_copy(
            update={"categories": _harms(options, self._labels, self._sigmoid)}
        )
        longest = min(
            self._tokenizer.model_max_length,
            getattr(config, "max_position_embeddings", None) or 10**6,
        )
        self._window = min(options.window or longest, longest, 8192)
        self._lock = threading.Lock()

    async def moderate(self, texts: Sequence[str], *, prompts: Sequence[str]) -> list[Verdict]:
        """Judge `texts`; `prompts` are not used."""
        found = await asyncio.to_thread(self.scores, texts)
        return [self.options.judge(self.name, scores) for scores in found]

    def scores(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """Return the probabilities of all labels for each text.

        A probability is the largest of the text's windows and readings.
        """
        worst, _ = worst_scores(texts, lambda some, _: self._written(some))
        return [dict(zip(self._labels, row, strict=True)) for row in worst.tolist()]

    def _written(self, texts: Sequence[str]) -> Scores:
        """Return the largest probabilities of the windows of each text, [texts, labels]."""
        with self._lock, torch.no_grad():
            windows = [(i, ids) for i, text in enumerate(texts) for ids in self._windows(text)]
            worst = torch.zeros(len(texts), len(self._labels))
            for batch in self._batches(windows):
                logits = self._logits([ids for _, ids in batch])
                values = logits.sigmoid() if self._sigmoid else logits.softmax(-1)
                for (i, _), row in zip(batch, values, strict=True):
                    # `maximum` keeps NaN, which must not look like a low score.
                    worst[i] = torch.maximum(worst[i], row)
        return np.asarray(worst.double())

    def _windows(self, text: str) -> list[list[int]]:
        encoded = self._tokenizer(
            encodable(text),
            truncation=True,
            max_length=self._window,
            stride=min(self.options.overlap, self._window // 4),
            return_overflowing_tokens=True,
            verbose=False,
        )
        return [list(ids) for ids in encoded["input_ids"] if ids]

    def _batches(
        self, windows: list[tuple[int, list[int]]]
    ) -> Iterator[list[tuple[int, list[int]]]]:
        """Yield batches of windows of similar length, so that little is spent on padding."""
        ordered = sorted(windows, key=lambda window: len(window[1]))
        for start in range(0, len(ordered), self.options.batch_size):
            yield ordered[start : start + self.options.batch_size]

    def _logits(self, batch: list[list[int]]) -> torch.Tensor:
        padded = self._tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(
            self._model.device
        )
        logits: torch.Tensor = self._model(**padded).logits.float().cpu()
        return logits


def _load(name: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    wanted = "a local folder, or the name of a sequence classifier on the Hugging Face hub"
    model, tokenizer = load(
        Source(name),
        device=device,
        dtype=dtype,
        kind=AutoModelForSequenceClassification,
        wanted=wanted,
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model.eval().requires_grad_(False)


def _is_sigmoid(function: str, config: Any) -> bool:
    """Return whether labels are independent, decided as the pipelines of transformers do."""
    if function != "auto":
        return function == "sigmoid"
    return bool(config.problem_type == "multi_label_classification" or config.num_labels == 1)


def _harms(options: ClassifierOptions, labels: Sequence[str], sigmoid: bool) -> tuple[str, ...]:
    listed = f"its labels are {', '.join(labels)}; select the harms with categories: [...]"
    if options.categories:
        if unknown := sorted({*options.categories, *options.thresholds} - set(labels)):
            raise ConfigError(
                f"classifier {options.model!r} has no label {unknown[0]!r}", hint=listed
            )
        return options.categories
    harmless = {
        label for label in labels if label.lower().replace("_", "-").replace(" ", "-") in HARMLESS
    }
    # Of exclusive labels, exactly one must be harmless. Independent labels may all be harms.
    if (not sigmoid and len(harmless) != 1) or any(label.startswith("LABEL_") for label in labels):
        raise ConfigError(
            f"the labels of classifier {options.model!r} do not say which are harms", hint=listed
        )
    return tuple(label for label in labels if label not in harmless)


@hookimpl
def ttsa_register_moderators(register: Register) -> None:
    """Offer the moderator as ``use: classifier``."""
    register("classifier", Classifier, options=ClassifierOptions)
