"""Train the lite moderator.

Run it with ``python -m research.embedded.train_lite --data DIR [--out FILE] [--report FILE]``. DIR
holds one folder for each of `lite_data.SOURCES`. The embedded world adds its own answers. It needs
the extra ``train``. A run takes a few minutes on one core and prints the numbers of LITE_CARD.md.
The same seed gives the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression

from research import SHIPPED
from research.embedded import encoder_data, lite_data, lite_domain, lite_prompts
from research.embedded.command import run, trainer
from research.embedded.lite_data import Example
from research.embedded.lite_report import measure
from ttsa_guard.embedded.world import World
from ttsa_guard.moderators.categories import HEADS
from ttsa_guard.moderators.features import BUCKETS, KIND_WEIGHTS, Features, featurise
from ttsa_guard.moderators.lite_network import LONGEST_PROMPT, pooled_logits, probabilities

Floats = NDArray[np.float64]
CHUNK = 256
LONGEST_TEXT = 2000
"""Characters of a training text that count. What comes later in longer texts is more of the same.
"""
INVERSE_REGULARISATION = 10.0
MINED_WEIGHT = 0.3


class Heads:
    """The three logistic heads while they are trained: weights [BUCKETS, 3] and bias [3]."""

    def __init__(self) -> None:
        self.weights = np.zeros((BUCKETS, len(HEADS)))
        self.bias = np.zeros(len(HEADS))

    def fit(
        self, head: int, rows: csr_matrix, labels: NDArray[Any], importance: Floats, *, seed: int
    ) -> None:
        """Fit one head, starting from what it has learned already.

        Args:
            head: the index of the head.
            rows: feature vectors, [n, BUCKETS].
            labels: 1 or 0, [n].
            importance: the weight of each row, [n].
        """
        model = LogisticRegression(
            C=INVERSE_REGULARISATION, max_iter=200, tol=1e-4, random_state=seed, warm_start=True
        )
        model.coef_, model.intercept_ = self.weights[:, head][None], self.bias[head : head + 1]
        model.fit(rows, labels, importance)
        self.weights[:, head], self.bias[head] = model.coef_[0], model.intercept_[0]

    def stored(self) -> tuple[NDArray[np.float16], Floats]:
        """Return the stored form: weights [BUCKETS, 3] in half precision, and the bias [3]."""
        return self.weights.astype(np.float16), self.bias

    def logits(self, texts: Sequence[str]) -> Floats:
        """Return pooled logits, [texts, 3], with the weights as they are stored."""
        weights = self.stored()[0].astype(np.float32)
        return np.concatenate(
            [
                pooled_logits(texts[i : i + CHUNK], weights, self.bias)
                for i in range(0, len(texts), CHUNK)
            ]
        )


def matrix(features: Features, windows: Sequence[int]) -> csr_matrix:
    """Return the feature vectors of some windows, [windows, BUCKETS]."""
    pieces, values, ends = [], [], [0]
    norms = features.norms
    for window in windows:
        size = ends[-1]
        for kind, value in enumerate(KIND_WEIGHTS):
            piece = features.buckets[kind][features.low[kind, window] : features.high[kind, window]]
            pieces.append(piece)
            values.append(np.full(piece.size, value / norms[window]))
            size += piece.size
        ends.append(size)
    indices = np.concatenate(pieces).astype(np.int32)
    result = csr_matrix(
        (np.concatenate(values), indices, np.array(ends)), shape=(len(windows), BUCKETS)
    )
    result.sum_duplicates()
    return result


def whole_rows(texts: Sequence[str], console: Console) -> csr_matrix:
    """Return the feature vectors of whole texts, [texts, BUCKETS]."""
    parts = []
    for i in track(range(0, len(texts), CHUNK), "features", console=console):
        features = featurise(texts[i : i + CHUNK])
        parts.append(matrix(features, features.whole.tolist()))
    return vstack(parts, format="csr")


def mined_rows(texts: Sequence[str], heads: Heads, head: int, console: Console) -> csr_matrix:
    """Return the feature vector of the worst sentence of each harmless text, [n, BUCKETS].

    Sentences of which `head` is already sure are left out. The others are what pooling would flag.
    """
    parts = []
    for i in track(range(0, len(texts), CHUNK), f"worst sentences, {HEADS[head]}", console=console):
        features = featurise(texts[i : i + CHUNK])
        logits = features.project(heads.weights)[:, head] + heads.bias[head]
        order = np.lexsort((logits, features.owner))
        last = np.flatnonzero(np.diff(features.owner[order], append=-1))
        worst = np.setdiff1d(order[last], features.whole)
        parts.append(
            matrix(features, worst[logits[worst] > -2.0].tolist() or features.whole[:1].tolist())
        )
    return vstack(parts, format="csr")


def train(examples: Sequence[Example], console: Console, *, rounds: int, seed: int) -> Heads:
    """Fit all heads.

    Every round after the first adds the sentences of harmless texts that would be flagged.
    """
    texts = [e.text[:LONGEST_TEXT] for e in examples]
    rows, heads = whole_rows(texts, console), Heads()
    for head, name in enumerate(HEADS):
        labels = np.array([getattr(e, name) for e in examples])
        known = np.flatnonzero(labels != lite_data.UNKNOWN)
        importance = np.array([examples[i].weight for i in known.tolist()])
        x, y = rows[known], labels[known]
        negatives = [texts[i] for i in known.tolist() if labels[i] == 0]
        for turn in range(rounds if name != "refusal" else 1):
            if turn:
                extra = mined_rows(negatives, heads, head, console)
                x, y = vstack([x, extra], format="csr"), np.append(y, np.zeros(extra.shape[0], int))
                importance = np.append(importance, np.full(extra.shape[0], MINED_WEIGHT))
            heads.fit(head, x, y, importance, seed=seed)
            console.print(
                f"{name}: round {turn + 1} fitted on {x.shape[0]} rows, {y.mean():.0%} positive"
            )
    return heads


def temperatures(examples: Sequence[Example], logits: Floats) -> Floats:
    """Return the temperature of each head, [3], that fits the validation labels best."""
    found = np.ones(len(HEADS))
    for head, name in enumerate(HEADS):
        labels = np.array([getattr(e, name) for e in examples])
        known = labels != lite_data.UNKNOWN
        signs, values = np.where(labels[known] == 1, 1.0, -1.0), logits[known, head]

        def loss(log_temperature: float, margin: Floats = signs * values) -> float:
            return float(np.logaddexp(0.0, -margin / np.exp(log_temperature)).mean())

        found[head] = np.exp(minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded").x)
    return found


def prompt_head(
    examples: Sequence[Example],
    validation: Sequence[Example],
    scores: Floats,
    console: Console,
    *,
    seed: int,
) -> tuple[NDArray[np.float16], Floats]:
    """Train the prompt head.

    Args:
        examples: all of them, with prompts; the training rows are fitted.
        validation: the validation rows, which say how much a prompt counts.
        scores: of their answers alone, [validation, 3].

    Returns:
        The weights in half precision, [PROMPT_BUCKETS], and the bias and the strength, [2].
    """
    prompts = lite_prompts.labelled(examples)
    rows = whole_rows([prompt[:LONGEST_PROMPT] for prompt in prompts], console)
    labels = np.array(list(prompts.values()))
    weights, bias = lite_prompts.train(rows, labels, seed=seed)
    strength, alone, together = lite_prompts.strongest(validation, scores, weights, bias)
    console.print(
        f"prompts: fitted on {labels.size}, {labels.sum()} of which ask for harm; strength"
        f" {strength}; ROC-AUC of harm in validation {alone:.4f} alone, {together:.4f} with them"
    )
    return weights, np.array([bias, strength])


def build(
    data: Path, out: Path, console: Console, *, domain: int, rounds: int, seed: int
) -> dict[str, Any]:
    """Train, calibrate, write `out` and measure.

    Returns:
        The report.
    """
    table = Table("data", "from", "licence", title="labelled answers")
    for folder, (_, origin, licence) in lite_data.SOURCES.items():
        table.add_row(folder, origin, licence)
    console.print(table)
    world = World.load()
    examples = lite_prompts.with_prompts(lite_data.examples(data), encoder_data.contexts(data))
    chat = list(lite_data.more_chat(data))
    training = [e for e in [*examples, *chat] if e.part == "train"]
    training += lite_domain.examples(world, domain, part="train", seed=seed)
    heads = train(training, console, rounds=rounds, seed=seed)
    validation = [e for e in examples if e.part == "validation"]
    logits = heads.logits([e.text for e in validation])
    temperature = temperatures(validation, logits)
    weights, bias = heads.stored()
    prompt_weights, prompt = prompt_head(
        [*examples, *chat], validation, probabilities(logits, temperature), console, seed=seed
    )
    with out.open("wb") as file:
        np.savez_compressed(
            file,
            weights=weights,
            bias=bias,
            temperature=temperature,
            prompt_weights=prompt_weights,
            prompt=prompt,
        )
    held_out = [e for e in examples if e.part in {"test", "unrelated"}]
    probes = list(lite_domain.examples(world, 500, part="test", seed=seed + 1, topics="unseen"))
    return measure([*held_out, *probes], world, heads.logits, temperature)


def main() -> None:
    """Run the command line."""
    parser = trainer("Train the lite moderator.", SHIPPED / "lite.npz")
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="fits of harm and toxicity, with more hard sentences each time",
    )
    run(parser, build)


if __name__ == "__main__":
    main()
