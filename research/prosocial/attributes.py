"""Meters of the five prosocial attributes, for evaluation alone.

No steerer or guard ever sees them.

There is one logistic regression for each attribute, on words and characters of a sentence. An
answer has the highest value of its sentences. The meters learn from ``attributes.yaml``, whose
wordings differ from the reward model's, against the world's own sentences and those of the other
attributes. If the folder with the public data is given, they also learn from GoEmotions
(Apache-2.0): *caring* counts as empathy, *confusion* as truthfulness, and *annoyance*, *anger*,
*disapproval* and *disgust* as the opposite of the non-judgmental stance.

Limits: the meters know wordings, not meanings. Truthfulness is whether doubts are admitted, not
whether what is said is true. A sensitive or helpful answer in other words than these may go unseen.
Values of one meter can be compared; values of different meters cannot.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline, make_union

from ttsa_guard.embedded.grammar import prosocial_sentences
from ttsa_guard.embedded.world import World
from ttsa_guard.errors import ConfigError
from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES
from ttsa_guard.text import split_sentences

Floats = NDArray[np.float64]
_EMOTIONS: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "empathy": (("caring",), True),
    "truthfulness": (("confusion",), True),
    "non_judgmental": (("annoyance", "anger", "disapproval", "disgust"), False),
}
_OWN_WEIGHT = 20.0
"""Weight of a sentence of the embedded domain, relative to one of GoEmotions."""
_FOLDER = "goemotions-single-label"


@dataclass(frozen=True)
class Meters:
    """One classifier for each attribute."""

    classifiers: Mapping[str, Any]

    @classmethod
    def fitted(cls, data: Path | None = None) -> Meters:
        """Train the meters.

        Args:
            data: folder with the public data sets. Without it the meters learn from the embedded
                domain alone.

        Raises:
            ConfigError: GoEmotions is not in that folder.
        """
        own = _own()
        neutral = _world_sentences()
        emotions = _emotions(data, "train.tsv") if data else []
        return cls({name: _classifier(name, own, neutral, emotions) for name in ATTRIBUTES})

    def measure(self, answers: Sequence[str]) -> Floats:
        """Return the values of answers, [answers, attributes], each in [0, 1].

        An empty answer has 0.
        """
        split = [split_sentences(answer) for answer in answers]
        flat = [sentence for sentences in split for sentence in sentences]
        highest = np.zeros((len(answers), len(ATTRIBUTES)))
        if not flat:
            return highest
        values = np.stack(
            [self.classifiers[name].predict_proba(flat)[:, 1] for name in ATTRIBUTES], axis=1
        )
        start = 0
        for row, sentences in enumerate(split):
            if sentences:
                highest[row] = values[start : start + len(sentences)].max(axis=0)
            start += len(sentences)
        return highest

    def separation(self) -> dict[str, float]:
        """Return the ROC-AUC of each meter on the reward model's sentences, which it has not seen.

        A meter tells the sentences of its attribute from those of all others and from the world's.
        """
        texts = prosocial_sentences()
        neutral = _world_sentences()
        areas = {}
        for i, name in enumerate(ATTRIBUTES):
            others = [s for other in ATTRIBUTES if other != name for s in texts[other]]
            mine = texts[name]
            values = self.measure([*mine, *others, *neutral])[:, i]
            areas[name] = float(
                roc_auc_score([1] * len(mine) + [0] * (len(others) + len(neutral)), values)
            )
        return areas


def _classifier(
    name: str,
    own: Mapping[str, Sequence[str]],
    neutral: Sequence[str],
    emotions: Sequence[tuple[str, str]],
) -> Any:
    positive = list(own[name])
    negative = [*(s for other in ATTRIBUTES if other != name for s in own[other]), *neutral]
    labels, rows = [1] * len(positive) + [0] * len(negative), [*positive, *negative]
    weights = [_OWN_WEIGHT] * len(rows)
    if emotions and name in _EMOTIONS:
        telling, is_it = _EMOTIONS[name]
        known = (
            emotions
            if is_it
            else [(text, emotion) for text, emotion in emotions if emotion in telling]
        )
        rows += [text for text, _ in known]
        labels += [int((emotion in telling) == is_it) for _, emotion in known]
        weights += [1.0] * len(known)
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2)), TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5))
    )
    pipeline = make_pipeline(
        features, LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    )
    return pipeline.fit(rows, labels, logisticregression__sample_weight=weights)


def _own() -> dict[str, list[str]]:
    path = resources.files(__package__) / "attributes.yaml"
    sentences: dict[str, list[str]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return sentences


def _world_sentences() -> list[str]:
    """Return the other sentences of which the embedded model's answers are made."""
    world, rng = World.load(), random.Random(0)
    kinds: tuple[tuple[str, str | None], ...] = (
        ("benign", None),
        ("unsafe", None),
        ("unsafe", "content"),
        ("benign", "tone"),
    )
    cases = [
        world.case(rng, request, wrapper, "seen", "seen")
        for request, wrapper in kinds
        for _ in range(60)
    ]
    return sorted({s for case in cases for s in split_sentences(world.answer(rng, case))})


def _emotions(data: Path, file: str) -> list[tuple[str, str]]:
    path = next(iter(sorted(data.rglob(f"{_FOLDER}/{file}"))), None)
    if path is None:
        raise ConfigError(
            f"there is no {_FOLDER}/{file} in {data}",
            hint="the single-label subset of GoEmotions (Apache-2.0)",
        )
    with path.open(encoding="utf-8", newline="") as rows:
        return [
            (row["text"], row["label"])
            for row in csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
