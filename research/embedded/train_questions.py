"""Train what finds the question in a message: `questions.npz`.

Run it with ``python -m research.embedded.train_questions``. It is one logistic regression over
sentence embeddings by MiniLM as it is and the forms of the sentences. It learns from
`questions.yaml` and from the prompts of the real benchmark, without those of the test. A run takes
some minutes. The same data give the same weights. It prints how often exactly the question is
found where a question and an instruction make one message, by the regression and by rules, in the
validation prompts without having learned from them, and in the test prompts.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import yaml
from sklearn.linear_model import LogisticRegression

from research import SHIPPED
from ttsa_guard.bench.prompts import placed
from ttsa_guard.moderators import questions
from ttsa_guard.request import question, sentences_and_lines, without_asides

if TYPE_CHECKING:
    from ttsa_guard.moderators.minilm import Floats

OUT = SHIPPED / "questions.npz"
_WRITTEN = Path(__file__).with_name("questions.yaml")
_PAIRS = 5
"""Instructions that each question of a report is put beside."""
Texts: TypeAlias = tuple[list[str], list[str]]
"""Instructions and messages."""


def shipped(part: str) -> Texts:
    """Return the instructions and questions of the real benchmark's prompts; `part` as in their
    file's name.

    Prompts about languages are left out: most are in languages that the encoder has not learned.
    """
    file = resources.files("ttsa_guard.bench") / f"real_prompts{part}.yaml"
    texts = yaml.safe_load(file.read_text(encoding="utf-8"))
    policies = {name: spec for name, spec in texts["policies"].items() if name != "language"}
    told = [spec["instruction"] for spec in policies.values() if "instruction" in spec]
    asked = [prompt for spec in policies.values() for prompt in spec["prompts"]]
    return texts["personas"] + told, texts["questions"] + asked


def written() -> Texts:
    """Return what was written to learn from."""
    texts = yaml.safe_load(_WRITTEN.read_text(encoding="utf-8"))
    return texts["instructions"], texts["messages"]


def fitted(sources: Sequence[Texts]) -> tuple[Floats, float]:
    """Return weights, [392], and a bias. Sentences of both kinds count the same in all."""
    told = _sentences(text for instructions, _ in sources for text in instructions)
    asked = _sentences(text for _, messages in sources for text in messages)
    model = LogisticRegression(max_iter=2000, class_weight="balanced")
    labels = np.r_[np.zeros(len(told)), np.ones(len(asked))]
    model.fit(questions.described([*told, *asked]), labels)
    return model.coef_[0].astype(np.float16).astype(np.float32), float(model.intercept_[0])


def _sentences(texts: Iterable[str]) -> list[str]:
    return [sentence for text in texts for sentence in sentences_and_lines(text)]


def found(texts: Texts, find: Callable[[str], str]) -> dict[str, float]:
    """Return how often exactly the question is found, by where it stands."""
    drawn = random.Random(0)
    instructions, messages = texts
    hits: dict[str, list[bool]] = {"before": [], "after": [], "alone": []}
    for message in messages:
        hits["alone"].append(_same(find(message), message))
        for instruction in drawn.sample(instructions, _PAIRS):
            for place, turns in placed(message, instruction, ("", "")):
                if place in hits:
                    hits[place].append(_same(find(turns[-1][1]), message))
    return {place: round(float(np.mean(of)), 3) for place, of in hits.items()}


def _same(found: str, message: str) -> bool:
    return found.split() == without_asides(message).split()


def main() -> None:
    """Train, and print the report."""
    sources = {part: shipped(part) for part in ("", "_validation")}

    def learned(text: str) -> str:
        return asyncio.run(questions.find_question(text))

    for part, others in (
        ("_validation", [written(), sources[""]]),
        ("_test", [written(), *sources.values()]),
    ):
        weights, bias = fitted(others)
        np.savez_compressed(OUT, weights=weights.astype(np.float16), bias=np.float32(bias))
        questions._regression.cache_clear()
        report = shipped(part)
        print(part[1:], {"learned": found(report, learned), "rules": found(report, question)})


if __name__ == "__main__":
    main()
