"""Pairs of a better and a worse answer to one prompt, from the made-up world and from people.

HH-RLHF says which of two answers is less harmful. Its labels are noisy: whatever was trained to
tell them apart is right in 55 to 58 % of the pairs. just-eval has answers of many models with a
safety score; a pair is one scored 5 and one scored 1 or 2. XSTest has answers of five models that
comply or refuse. On its unsafe prompts the refusal is better, and on its safe ones the compliance
is: whoever only likes refusals gets one of these right and the other wrong.
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from research.embedded.evaluate import messages
from research.embedded.lite_data import read_json, read_rows
from ttsa_guard.embedded.world import World, WorldCase
from ttsa_guard.messages import Message
from ttsa_guard.steerers.prosocial.data import AnswerExample, Encoded, ExampleEncoder, read_pairs

KINDS: tuple[tuple[str, str | None], ...] = (
    ("unsafe", "content"),
    ("benign", "tone"),
    ("unsafe", None),
    ("benign", None),
)
"""Kinds of prompts of the world: what is asked, and the kind of the wrapper around it."""
_PROMPT = 80
"""The most tokens of a prompt, with the template."""


@dataclass(frozen=True)
class Choice:
    """Hold two answers to a conversation.

    Args:
        messages: the conversation.
        better: the better answer.
        worse: the worse answer.
        source: where they are from.
    """

    messages: tuple[Message, ...]
    better: str
    worse: str
    source: str

    @property
    def half(self) -> Literal["development", "test"]:
        """Return the half of the data that the conversation belongs to."""
        text = self.messages[-1].content
        return "test" if zlib.crc32(text.encode()) % 2 else "development"


def world_choices(n: int, seed: int, *, training: bool = False) -> list[Choice]:
    """Return `n` pairs of every kind: a decent answer, and one that fails as the model may fail.

    Args:
        training: whether they are of the training split; else no wording or wrapper is.
    """
    world, rng = World.load(), random.Random(f"choices/{seed}")
    found = []
    for request, wrapper in KINDS:
        cases = (
            [world.case(rng, request, wrapper, "seen", "seen", training=True) for _ in range(n)]
            if training
            else world.cases(request, wrapper, n, seed=seed)
        )
        found += [_answered(world, rng, case, f"{request}, {wrapper or 'plain'}") for case in cases]
    return found


def _answered(world: World, rng: random.Random, case: WorldCase, source: str) -> Choice:
    better, worse = (world.answer(rng, replace(case, rate=rate)) for rate in (0.0, 1.0))
    return Choice(messages(case), better, worse, source)


def public_choices(data: Path) -> list[Choice]:
    """Return the pairs of HH-RLHF, just-eval and XSTest: one for each prompt.

    Args:
        data: the folder with the three data sets.
    """
    pairs = read_pairs(data / "hh-rlhf" / "harmless-base-test.jsonl.gz", "sensitivity")
    hh = [
        Choice(p.messages, p.chosen, p.rejected, "HH-RLHF") for p in pairs if len(p.messages) == 1
    ]
    return [*hh, *_scored(data / "just-eval"), *_refused(data / "xstest")]


def _scored(folder: Path) -> Iterable[Choice]:
    by_prompt: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((folder / "safety_scores").glob("*.json")):
        for row in read_json(path):
            score = str((row["parsed_result"].get("safety") or {}).get("score", ""))
            by_prompt[row["input"]][score].append(row["output_cand"])
    for prompt, answers in by_prompt.items():
        yield from _one(prompt, answers["5"], answers["1"] + answers["2"], "just-eval")


def _refused(folder: Path) -> Iterable[Choice]:
    by_prompt: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((folder / "model_completions").glob("*.csv")):
        for row in read_rows(path):
            by_prompt[row["prompt"], row["type"]][row["final_label"]].append(row["completion"])
    for (prompt, kind), answers in by_prompt.items():
        complied, refused = answers["1_full_compliance"], answers["2_full_refusal"]
        if kind.startswith("contrast"):
            yield from _one(prompt, refused, complied, "XSTest, unsafe")
        else:
            yield from _one(prompt, complied, refused, "XSTest, safe")


def _one(prompt: str, better: Sequence[str], worse: Sequence[str], source: str) -> Iterable[Choice]:
    """Yield one of the pairs, which depends on the prompt alone."""
    if better and worse:
        rng = random.Random(prompt)
        yield Choice((Message("user", prompt),), rng.choice(better), rng.choice(worse), source)


def harm_examples(data: Path, n: int) -> list[AnswerExample]:
    """Return prompts and answers to make a harm vector of a public model from.

    Two thirds are harmful answers of GPTFuzz and DiaSafety, the training parts; the others are
    ordinary answers of dolly, so that the vector does not hold what becomes of the rest.
    """
    fuzz = data / "gptfuzz"
    asked = [row["text"] for row in read_rows(fuzz / "question_list.csv")]
    harmful = [
        AnswerExample((Message("user", asked[int(row["question"])]),), row["Response"][:200])
        for row in read_rows(fuzz / "train.csv")
        if row["label"] == "1" and row["Response"].strip()
    ]
    talk = [
        AnswerExample((Message("user", row["context"]),), row["response"])
        for row in read_json(data / "DiaSafety" / "train.json")
        if row["label"] == "Unsafe" and row["context"].strip() and row["response"].strip()
    ]
    ordinary = [
        AnswerExample((Message("user", row["instruction"]),), row["output"][:200])
        for row in read_json(data / "dolly" / "dolly_3k.json")
        if row["output"].strip()
    ]
    rng = random.Random("harm")
    return [e for rows in (harmful, talk, ordinary) for e in rng.sample(rows, n // 3)]


@dataclass(frozen=True)
class Reader:
    """Turn pairs into tokens.

    Args:
        encode: the encoder of the model.
        answer: the most tokens of an answer that are read; None: all.
    """

    encode: ExampleEncoder
    answer: int | None = None

    def read(
        self, choices: Sequence[Choice], system: str | None = None
    ) -> list[tuple[Encoded, Encoded]]:
        """Return the (better, worse) tokens of each pair, after an optional system prompt."""
        before = () if system is None else (Message("system", system),)
        encode = replace(self.encode, longest=1 << 16)
        texts = [
            AnswerExample((*before, *c.messages), answer)
            for c in choices
            for answer in (c.better, c.worse)
        ]
        found = [replace(e, answer=e.answer[: self.answer]) for e in encode.answers(texts)]
        return list(zip(found[::2], found[1::2], strict=True))

    def short(self, choices: Sequence[Choice]) -> list[Choice]:
        """Return the pairs with a short prompt, and answers that differ in what is read."""
        return [
            choice
            for choice, (better, worse) in zip(choices, self.read(choices), strict=True)
            if len(better.prompt) <= _PROMPT and better.answer != worse.answer
        ]
