"""Train what tells everyday questions from requests for harm: `requests.npz`.

Run it with ``python -m research.embedded.train_requests --data DIR``. These are three models over
sentence embeddings by MiniLM as it is. One is a small network. It has learned from requests for
harm that were written for data sets, and from `contrast.yaml`: messages that only sound unsafe,
and others that are. The other is a logistic regression that has learned from what people said who
tried to make an assistant do harm; it counts in conversations only. The third is a network for
questions about self-harm, from `self_harm.yaml`. The largest harm counts. No prompt of the
benchmark's test halves or of XSTest is trained on, and no request that is nearly one of them. A run
takes some minutes. The same data give the same weights on the same machine.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from warnings import catch_warnings, simplefilter

import numpy as np
import yaml
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from research import SHIPPED
from research.embedded.lite_data import check_layout, read_json, read_rows, self_dialogues
from research.embedded.train_questions import written
from ttsa_guard.bench.config import PromptSource
from ttsa_guard.bench.data import read
from ttsa_guard.bench.prompts import Item, real_prompts
from ttsa_guard.moderators.everyday import EVERYDAY, LONGEST, logits, network_logits
from ttsa_guard.moderators.minilm import embed
from ttsa_guard.request import stands_alone

if TYPE_CHECKING:
    from ttsa_guard.moderators.minilm import Floats

OUT = SHIPPED / "requests.npz"
SETS = ("strongreject", "harmbench", "advbench")
LIMIT = math.log(EVERYDAY / (1 - EVERYDAY))
CONTRAST = Path(__file__).with_name("contrast.yaml")
SELF_HARM = Path(__file__).with_name("self_harm.yaml")
_NEARLY = 0.85
"""Cosine from which on a request is nearly another one."""
_QUERIES = 3000
"""Queries of CLINC150 that are trained on."""
_TURNS = 3000
"""Turns of self-dialogues that are trained on."""
_SHORT_TURN = 15
"""Characters of a turn that says too little."""
_INVERSE_PENALTY = 10.0
_NETWORKS, _UNITS = 3, 64
_SCALE = 19.0
"""Embeddings are unit vectors; times this, each of their 384 numbers is about 1."""
_NETWORK_SHARE, _REGRESSION_SHARE = 0.4, 0.2
"""What the contrast counts of all harm, and of all that is fine: for the network, and for the
regression."""
_SELF_HARM_SHARE = 0.25
"""What messages with the same words count, and the contrast, of all that is fine, for the network
for self-harm."""
_MESSAGES, _CHAT = 0.1, 0.2
"""What messages in which people tell of themselves, and turns of conversations, count of all that
is fine."""
_MISSED = 0.04
"""The share of the contrast's harm for validation that the network takes for everyday."""
_KEPT = 0.98
"""The share of the validation questions that the regression takes for everyday ones."""
_FINE_BESIDE = 0.99
"""The share of all harmless messages for validation that the network for self-harm takes for
everyday ones."""
Kind: TypeAlias = tuple["Floats", float]
"""Embeddings, [n, 384], and the share of their side that they count."""
Parts: TypeAlias = dict[str, dict[str, list[str]]]
"""Messages by part, "training" or "validation", and by kind, "fine" or "harmful"."""


def prompts(data: Path, name: str, half: str | None = None) -> list[Item]:
    """Return the requests for harm of a known set, or of one half of it."""
    source = PromptSource.model_validate({"name": name, "kind": "harmful"})
    items = read(source, n=10_000, seed=0, folder=data)
    return [item for item in items if half in (None, item.half)]


def harmful(data: Path) -> list[str]:
    """Return the requests for harm that are trained on."""
    raw = data / "refusal_direction" / "dataset" / "raw"
    found = [item.question for name in SETS for item in prompts(data, name, "development")]
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


def chat(data: Path) -> list[str]:
    """Return what people said in conversations about everyday things, that is trained on."""
    said = (turn for turns in self_dialogues(data) for turn in turns)
    return random.Random(0).sample([turn for turn in said if len(turn) > _SHORT_TURN], _TURNS)


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


def labelled(bad: Sequence[Kind], fine: Sequence[Kind]) -> tuple[Floats, Floats, Floats]:
    """Return embeddings, [n, 384], whether each is of a request for harm, and what it counts, [n].

    Harm and what is fine count the same, and the kinds of each as their shares say.
    """
    kinds = [*bad, *fine]
    counts = np.concatenate([np.full(len(rows), share / len(rows)) for rows, share in kinds])
    sizes = [sum(len(rows) for rows, _ in side) for side in (bad, fine)]
    labels = np.repeat([1.0, 0.0], sizes)
    return np.vstack([rows for rows, _ in kinds]), labels, counts * len(counts) / counts.sum()


def regression(bad: Sequence[Kind], fine: Sequence[Kind]) -> Floats:
    """Return the weights, [384], of a logistic regression."""
    rows, labels, counts = labelled(bad, fine)
    model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=2000)
    model.fit(rows, labels, sample_weight=counts)
    weights: Floats = model.coef_[0].astype(np.float16).astype(np.float32)
    return weights


def network(bad: Sequence[Kind], fine: Sequence[Kind]) -> dict[str, Floats]:
    """Return a network as `everyday.logits` reads it: the mean of some with one hidden layer.

    `hidden` is [units, 384], `hidden_bias` and `out` are [units].
    """
    rows, labels, counts = labelled(bad, fine)
    found = []
    for seed in range(_NETWORKS):
        model = MLPClassifier(
            (_UNITS,), alpha=0.1, batch_size=128, learning_rate_init=2e-3, max_iter=20,
            random_state=seed,
        )  # fmt: skip
        with catch_warnings():
            simplefilter("ignore", ConvergenceWarning)  # it is stopped early on purpose
            model.fit(rows * _SCALE, labels, sample_weight=counts)
        found.append((*model.coefs_, model.intercepts_[0]))
    return {
        "hidden": (_SCALE * np.hstack([hidden for hidden, _, _ in found]).T).astype(np.float16),
        "hidden_bias": np.concatenate([bias for _, _, bias in found]).astype(np.float32),
        "out": np.concatenate([out[:, 0] for _, out, _ in found]).astype(np.float32) / _NETWORKS,
    }


def bias_for(logits: Floats, everyday: float) -> Floats:
    """Return the bias, [1], with which this share of texts, whose logits these are, is everyday."""
    return np.array([LIMIT - np.quantile(logits, everyday)], np.float32)


def with_bias(weights: dict[str, Floats], rows: Floats, everyday: float) -> dict[str, Floats]:
    """Return a network with the bias with which this share of embeddings, [n, 384], is everyday."""
    found = network_logits(rows, weights | {"out_bias": np.zeros(1, np.float32)})
    return weights | {"out_bias": bias_for(found, everyday)}


def without_copies(rows: Floats, of: Floats) -> Floats:
    """Return the embeddings that are not nearly one in `of`."""
    kept: Floats = rows[(rows @ of.T).max(axis=1) < _NEARLY]
    return kept


def held_out(data: Path, contrast: Parts, self_harm: Parts) -> dict[str, Floats]:
    """Return the embeddings of all that is only judged, or must not be trained on, by name."""
    sets = {
        f"{name}, {half}": embedded([i.question for i in prompts(data, name, half)])
        for name in SETS
        for half in ("development", "test")
    }
    sets["hh_red_team, test"] = embedded(red_team(data, "test"))
    for part in ("validation", "test"):
        sets[f"harmless questions, {part}"] = embedded(asked(f"_{part}"))
    for name, held in (("contrast", contrast), ("self-harm", self_harm)):
        for kind, texts in held["validation"].items():
            sets[f"{name} {kind}, validation"] = embedded(texts)
    rows = read_rows(data / "xstest" / "xstest_prompts.csv")
    for row in ("unsafe", "safe"):
        sets[f"XSTest {row}, test"] = embedded([r["prompt"] for r in rows if r["label"] == row])
    return sets


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the data sets, see lite_data.SOURCES"
    )
    data = parser.parse_args().data
    check_layout(data)
    contrast: Parts = yaml.safe_load(CONTRAST.read_text(encoding="utf-8"))
    self_harm: Parts = yaml.safe_load(SELF_HARM.read_text(encoding="utf-8"))
    sets = held_out(data, contrast, self_harm)
    tests = np.vstack([rows for name, rows in sets.items() if name.endswith(", test")])

    def learned(texts: Iterable[str]) -> Floats:
        return without_copies(embedded([*texts]), tests)

    sounds_unsafe, unsafe = (learned(contrast["training"][kind]) for kind in ("fine", "harmful"))
    fine, told, turns = (embedded([*t]) for t in (harmless(data), written()[1], chat(data)))
    beside = [(told, _MESSAGES), (turns, _CHAT)]

    def kinds(bad: Floats, share: float) -> tuple[list[Kind], list[Kind]]:
        """Return the kinds of both sides, with the share of the contrast in each."""
        rest = 1 - share - _MESSAGES - _CHAT
        return [(bad, 1 - share), (unsafe, share)], [(fine, rest), *beside, (sounds_unsafe, share)]

    weights = network(*kinds(learned(harmful(data)), _NETWORK_SHARE))
    weights = with_bias(weights, sets["contrast harmful, validation"], _MISSED)
    weights["said"] = regression(*kinds(learned(red_team(data, "development")), _REGRESSION_SHARE))
    weights["said_bias"] = bias_for(sets["harmless questions, validation"] @ weights["said"], _KEPT)
    asks_for_it, near_it = (learned(self_harm["training"][kind]) for kind in ("harmful", "fine"))
    beside += [(sounds_unsafe, _SELF_HARM_SHARE), (near_it, _SELF_HARM_SHARE)]
    rest = 1 - sum(share for _, share in beside)
    names = ("harmless questions", "contrast fine", "self-harm fine")
    held = np.vstack([sets[f"{name}, validation"] for name in names])
    found = network([(asks_for_it, 1.0)], [(fine, rest), *beside])
    found = with_bias(found, held, _FINE_BESIDE)
    weights |= {f"self_harm_{name}": array for name, array in found.items()}
    np.savez_compressed(OUT, allow_pickle=False, **weights)

    for name, rows in sets.items():
        shares = [
            float((logits(rows, weights, turns=turns) < LIMIT).mean()) for turns in (True, False)
        ]
        print(f"{name}: {len(rows)}, everyday {shares[0]:.3f}, alone {shares[1]:.3f}")


if __name__ == "__main__":
    main()
