"""Train the heads of the moderator `encoder_judge`.

Run it with ``python -m research.embedded.train_encoder_judge --data DIR``. The rows are those that
lite's recipe keeps for its own test, so lite never saw them. They are split anew by prompt: 70 %
for training, 10 % for validation, and 20 % for the test. XSTest stays held out. A run takes
minutes. The same data give the same heads.
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from research import SHIPPED
from research.embedded import lite_data
from research.embedded.lite_data import UNKNOWN, Example
from ttsa_guard.moderators.categories import HEADS
from ttsa_guard.moderators.encoder_judge_network import features
from ttsa_guard.moderators.lite import Lite
from ttsa_guard.moderators.minilm import embed
from ttsa_guard.moderators.second_opinion import SecondOpinion

OUT = SHIPPED / "encoder_judge.npz"
_FALSE_ALARMS = 0.02
_PER_SOURCE = 1500


def rows(data: Path) -> list[Example]:
    """Return some rows of each source on which lite was neither trained nor calibrated."""
    found: dict[str, list[Example]] = {}
    for example in lite_data.examples(data):
        if example.part in ("test", "unrelated") and len(example.text.split()) > 2:
            found.setdefault(example.source, []).append(example)
    ranked = (
        sorted(some, key=lambda e: zlib.crc32(e.text.encode("utf-8", "surrogatepass")))
        for some in found.values()
    )
    return [example for some in ranked for example in some[:_PER_SOURCE]]


def part(example: Example) -> str:
    """Return the part of an example: "train", "validation", "test" or "xstest"."""
    if example.source == "XSTest":
        return "xstest"
    share = (
        zlib.crc32(
            f"encoder {lite_data.normal(example.prompt or example.text)}".encode(
                "utf-8", "surrogatepass"
            )
        )
        % 100
    )
    return "train" if share < 70 else "validation" if share < 80 else "test"


def asked(examples: Sequence[Example]) -> list[str]:
    """Return the prompts; a row without a prompt gets another row's.

    Abuse is abuse as an answer to anything, and most of the abuse has no prompt. Heads that see
    that learn that a row with a prompt is harmless.
    """
    rng = random.Random(0)
    known = sorted({e.prompt for e in examples if e.prompt and e.harm == 0})
    return [e.prompt or rng.choice(known) for e in examples]


def embedded_once(texts: Sequence[str]) -> NDArray[Any]:
    """Return embeddings of texts, [n, 384]. Equal texts are embedded once."""
    distinct = sorted(set(texts))
    at = {text: i for i, text in enumerate(distinct)}
    found: NDArray[Any] = embed(distinct)[[at[text] for text in texts]]
    return found


def fitted(x: NDArray[Any], examples: Sequence[Example]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return weights [features, heads] and biases [heads].

    They are one logistic regression per head, over the rows that have a label for it.
    """
    weights, bias = [], []
    for head in HEADS:
        labels = np.array([getattr(e, head) for e in examples])
        known = labels != UNKNOWN
        own = np.array([e.weight for e in examples])[known]
        model = LogisticRegression(C=3.0, max_iter=2000, class_weight="balanced").fit(
            x[known], labels[known], sample_weight=own
        )
        weights.append(model.coef_[0])
        bias.append(model.intercept_[0])
    return np.stack(weights, 1), np.array(bias)


def shifted(bias: NDArray[Any], logits: NDArray[Any], examples: Iterable[Example]) -> NDArray[Any]:
    """Return biases [heads] with which harm and toxicity raise few false alarms.

    Each of the two flags half of `_FALSE_ALARMS` of the harmless rows at 0.5.
    """
    fine = np.array([e.harm == 0 and e.toxicity in (0, UNKNOWN) for e in examples])
    found = bias.copy()
    for k in (HEADS.index("harm"), HEADS.index("toxicity")):
        found[k] -= np.quantile(logits[fine, k], 1 - _FALSE_ALARMS / 2)
    return np.asarray(found)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the data sets, see lite_data.SOURCES"
    )
    data = parser.parse_args().data
    examples = rows(data)
    x = features(
        embed([" ".join(e.text.split()[:96]) for e in examples]), embedded_once(asked(examples))
    )
    parts = np.array([part(e) for e in examples])

    def of(name: str) -> tuple[NDArray[Any], list[Example]]:
        return x[parts == name], [e for e, p in zip(examples, parts, strict=True) if p == name]

    weights, bias = fitted(*of("train"))
    held, those = of("validation")
    bias = shifted(bias, held @ weights + bias, those)
    np.savez_compressed(OUT, weights=weights.astype(np.float16), bias=bias.astype(np.float32))
    for name in ("test", "xstest"):
        print(json.dumps({name: report(*of(name), weights, bias)}, indent=1))


def report(
    x: NDArray[Any], examples: Sequence[Example], weights: NDArray[Any], bias: NDArray[Any]
) -> dict[str, Any]:
    """Return ROC-AUC, recall and false alarms over harmful and harmless answers, and refusals.

    The moderators in the package are measured beside the judge.
    """
    texts = [e.text for e in examples]
    chances = 1 / (1 + np.exp(-(x @ weights + bias)))
    scored = {
        "encoder_judge": chances,
        "lite": Lite().scores(texts),
        "second_opinion": SecondOpinion().scores(texts),
    }
    bad = np.array([1 in (e.harm, e.toxicity) for e in examples])
    fine = np.array([e.harm == 0 and e.toxicity in (0, UNKNOWN) for e in examples])
    refusal = np.array([e.refusal for e in examples])
    found: dict[str, Any] = {"rows": len(examples), "harmful": int(bad.sum())}
    for name, values in scored.items():
        worst = values[:, :2].max(1)
        both = bad | fine
        found[name] = {
            "roc_auc": round(float(roc_auc_score(bad[both], worst[both])), 3),
            "recall": round(float((worst[bad] >= 0.5).mean()), 3),
            "false_alarms": round(float((worst[fine] >= 0.5).mean()), 3),
            "refusal_roc_auc": round(
                float(roc_auc_score(refusal[refusal >= 0], values[refusal >= 0, 2])), 3
            ),
        }
    return found


if __name__ == "__main__":
    main()
