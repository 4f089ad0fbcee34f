"""Train what tells everyday questions from requests for harm: `requests.npz`.

Run it with ``python -m research.embedded.train_requests --data DIR``. These are two logistic
regressions over sentence embeddings by MiniLM as it is. One has learned from requests for harm that
were written for data sets, the other from what people said who tried to make an assistant do harm.
In conversations the larger harm counts, and for lone messages that of the first. No prompt of the
benchmark's test halves is trained on, and no request that is nearly one of them. Nothing of
StrongREJECT and XSTest is. A run takes some minutes. The same data give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from research import SHIPPED
from research.embedded.lite_data import check_layout, read_json, read_rows
from ttsa_guard.bench.config import PromptSource
from ttsa_guard.bench.data import read
from ttsa_guard.bench.prompts import Item, real_prompts
from ttsa_guard.moderators.everyday import EVERYDAY, LONGEST
from ttsa_guard.moderators.minilm import embed
from ttsa_guard.request import stands_alone

if TYPE_CHECKING:
    from ttsa_guard.moderators.minilm import Floats

OUT = SHIPPED / "requests.npz"
_NEARLY = 0.85
"""Cosine from which on a request is nearly another one."""
_QUERIES = 3000
"""Queries of CLINC150 that are trained on."""
_INVERSE_PENALTY = 10.0
_KEPT = 0.98
"""The share of the validation questions that the second regression takes for everyday ones."""


def prompts(data: Path, name: str, half: str | None = None) -> list[Item]:
    """Return the requests for harm of a known set, or of one half of it."""
    source = PromptSource.model_validate({"name": name, "kind": "harmful"})
    items = read(source, n=10_000, seed=0, folder=data)
    return [item for item in items if half in (None, item.half)]


def harmful(data: Path) -> list[str]:
    """Return the requests for harm that are trained on."""
    raw = data / "refusal_direction" / "dataset" / "raw"
    found = [item.question for item in prompts(data, "advbench", "development")]
    for name in ("malicious_instruct", "harmbench_val"):
        found += [item.question for item in prompts(data, name)]
    found += [row["Goal"] for row in read_rows(raw / "jailbreakbench.csv")]
    for part in ("dev", "test"):
        found += read_json(raw / f"tdc2023_{part}_behaviors.json")
    return found


def red_team(data: Path, half: str) -> list[str]:
    """Return what users said who tried to make an assistant do harm, in one half of hh-rlhf.

    It is the first message of each conversation, and those of the others that stand alone.
    """
    said = (
        [text for role, text in item.messages if role == "user"]
        for item in prompts(data, "hh_red_team", half)
    )
    return [text for first, *others in said for text in (first, *filter(stands_alone, others))]


def harmless(data: Path) -> Iterator[str]:
    """Yield the harmless requests that are trained on."""
    for row in read_json(data / "dolly" / "dolly_3k.json"):
        yield row["instruction"]
    for row in read_rows(data / "dolly" / "databricks_dolly_15k.csv"):
        yield row["instruction"]
    queries = [row["text"] for row in read_rows(data / "clinc150" / "train.tsv", "\t")]
    yield from random.Random(0).sample(queries, _QUERIES)
    for row in read_json(data / "GPTeacher" / "roleplay-simple-deduped-roleplay-instruct.json"):
        yield row["instruction"]
    chitchat = read_rows(data / "personalitychat" / "qna_chitchat_the_friend.tsv", "\t")
    yield from sorted({row["Question"] for row in chitchat})
    answers = min((data / "just-eval" / "outputs").glob("*.json"))
    for row in read_json(answers):
        if row["source_id"].startswith(("alpaca", "mt-")):
            yield row["instruction"]
    yield from asked("")


def asked(part: str) -> list[str]:
    """Return the questions and policy prompts of the benchmark's own prompts, without repetitions.

    Args:
        part: of them: "", "_validation" or "_test".
    """
    items = [*real_prompts(f"persona{part}"), *real_prompts(f"policy{part}")]
    return sorted({item.question for item in items})


def embedded(texts: Sequence[str]) -> Floats:
    """Return the embeddings of the beginnings of texts, [n, 384]."""
    return embed([text[:LONGEST] for text in texts])


def fitted(bad: Floats, fine: Floats) -> tuple[Floats, float]:
    """Return weights, [384], and a bias. Both kinds count the same in all."""
    labels = np.r_[np.ones(len(bad)), np.zeros(len(fine))]
    model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=2000, class_weight="balanced")
    model.fit(np.vstack([bad, fine]), labels)
    return model.coef_[0].astype(np.float32), float(model.intercept_[0])


def bias_for(weights: Floats, fine: Floats) -> float:
    """Return the bias with which `_KEPT` of `fine` are everyday questions."""
    limit = np.quantile(fine @ weights, _KEPT)
    return float(math.log(EVERYDAY / (1 - EVERYDAY)) - limit)


def without_copies(rows: Floats, of: Floats) -> Floats:
    """Return the embeddings that are not nearly one in `of`."""
    kept: Floats = rows[(rows @ of.T).max(axis=1) < _NEARLY]
    return kept


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the data sets, see lite_data.SOURCES"
    )
    data = parser.parse_args().data
    check_layout(data)
    sets = {
        f"{name}, {half}": embedded([i.question for i in prompts(data, name, half)])
        for name in ("strongreject", "harmbench", "advbench")
        for half in ("development", "test")
    }
    sets["hh_red_team, test"] = embedded(red_team(data, "test"))
    for part in ("_validation", "_test"):
        sets[f"harmless questions{part}"] = embedded(asked(part))
    tests = np.vstack([rows for name, rows in sets.items() if name.endswith(", test")])
    fine = embedded([*harmless(data)])
    written = fitted(without_copies(embedded(harmful(data)), tests), fine)
    said, _ = fitted(without_copies(embedded(red_team(data, "development")), tests), fine)
    weights = np.stack([written[0], said]).astype(np.float16)
    bias = bias_for(said, sets["harmless questions_validation"])
    biases = np.array([written[1], bias], np.float32)
    np.savez_compressed(OUT, weights=weights, biases=biases)

    for row in ("unsafe", "safe"):
        rows = read_rows(data / "xstest" / "xstest_prompts.csv")
        sets[f"XSTest, {row}"] = embedded([r["prompt"] for r in rows if r["label"] == row])
    scores = {
        name: 1 / (1 + np.exp(-(rows @ weights.T.astype(np.float32) + biases).max(axis=1)))
        for name, rows in sets.items()
    }
    report = {
        name: {"n": len(of), "everyday": round(float((of < EVERYDAY).mean()), 3)}
        for name, of in scores.items()
    }
    bad = np.r_[scores["strongreject, development"], scores["harmbench, development"]]
    fine = scores["harmless questions_validation"]
    area = roc_auc_score(np.r_[np.ones(len(bad)), np.zeros(len(fine))], np.r_[bad, fine])
    quantiles = {share: float(np.quantile(bad, share)) for share in (0.01, 0.03, 0.05, 0.1)}
    print(json.dumps({"sets": report, "roc_auc": float(area), "quantiles": quantiles}, indent=1))


if __name__ == "__main__":
    main()
