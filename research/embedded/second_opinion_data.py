"""Labelled answers for the second opinion, on which lite was neither trained nor calibrated.

These are lite's held-out prompts and unrelated sets, the rows that its recipe leaves out, two
sources that it never reads, and answers of the embedded world with made-up objects from another
random stream. Rows whose words are those of a training or validation row of lite are dropped, so
the two moderators share none. Prompts are split anew: 70 % for training, 10 % for validation, and
20 % for the test. Neither moderator was trained on the last.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from research.embedded import lite_data, lite_domain
from research.embedded.lite_data import (
    UNKNOWN,
    Example,
    Part,
    normal,
    read_json,
    read_rows,
    weak_refusal,
)
from ttsa_guard.embedded.world import World

SOURCES = {
    "sgd": (
        "sgd_dialogues.jsonl.gz",
        "google-research-datasets/dstc8-schema-guided-dialogue @ e852981ae3",
        "CC BY-SA 4.0",
    ),
    "goemotions-single-label": ("train.tsv", "amazon-science/Glean", "Apache-2.0"),
    "hh-rlhf": ("harmless-base-test.jsonl.gz", "anthropics/hh-rlhf @ 354e5c3cb8", "MIT"),
}
"""Folders beside those of `lite_data.SOURCES`. hh-rlhf gives words only, no labels."""
LITE_ANSWERS = 1000
"""Number of world answers of each kind that lite was trained on, from seed 0 (`train_lite`)."""
FRIENDLY = frozenset(
    "admiration approval gratitude amusement love curiosity optimism confusion joy surprise caring"
    " realization excitement".split()
)
"""Emotions of comments that are taken for harmless."""
_LITE_TURNS = 6
"""Lite never reads the turns of a self-dialogue from this index on."""


def check_layout(data: Path) -> None:
    """Check that the data sets are there.

    Raises:
        UsageError: a data set is not where it is expected.
    """
    lite_data.check_layout(data, lite_data.SOURCES | SOURCES)


def digest(text: str) -> bytes:
    """Return a digest that is the same for two texts with the same words."""
    return blake2b(normal(text).encode("utf-8", "surrogatepass"), digest_size=12).digest()


def lite_rows(data: Path) -> set[bytes]:
    """Return the digests of all rows on which lite was trained or calibrated."""
    used = (e for e in lite_data.examples(data) if e.part in {"train", "validation"})
    return {digest(e.text) for e in used} | lite_world_rows()


def lite_world_rows() -> set[bytes]:
    """Return the digests of the world's answers on which lite was trained."""
    return {
        digest(e.text)
        for e in lite_domain.examples(World.load(), LITE_ANSWERS, part="train", seed=0)
    }


def examples(data: Path, taken: set[bytes]) -> Iterator[Example]:
    """Yield all examples whose digest is not in `taken`, with their new parts.

    The order is the same in every run.
    """
    check_layout(data)
    mine = [*lite_data.examples(data, to_benchmarks=True), *_left_out(data), *_new(data)]
    seen = set(taken)
    for example in mine:
        if (key := digest(example.text)) not in seen:
            seen.add(key)
            yield replace(example, part=_part(example.prompt or example.text))


def world_examples(n: int, taken: set[bytes], *, seed: int) -> Iterator[Example]:
    """Yield world answers as `lite_domain.examples` does, but about made-up objects only.

    They are other draws, and none of them is in `taken`.
    """
    world = World.load(invented=1.0, sources="texts")
    seen = set(taken)
    for example in lite_domain.examples(world, n, part="train", seed=1_000_000 + seed):
        if (key := digest(example.text)) not in seen:
            seen.add(key)
            yield example


def chat(data: Path) -> Iterator[str]:
    """Yield unlabelled text to learn words from. Lite reads none of it."""
    for turns in _dialogues(data / "self-dialogue" / "self_dialogues.jsonl.gz"):
        yield " \n ".join(turns[_LITE_TURNS:])
    for turns in _dialogues(data / "sgd" / "sgd_dialogues.jsonl.gz"):
        yield " \n ".join(turns)
    with gzip.open(
        data / "hh-rlhf" / "harmless-base-test.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        yield from (json.loads(line)["chosen"] for line in file)
    yield from (row["text"] for row in _comments(data))
    for path in sorted((data / "just-eval" / "outputs").glob("*.json")):
        yield from (row["output"] for row in read_json(path) if not _lite_reads(path, row["id"]))


def _part(prompt: str) -> Part:
    share = zlib.crc32(f"second opinion {normal(prompt)}".encode("utf-8", "surrogatepass")) % 100
    return "train" if share < 70 else "validation" if share < 80 else "test"


def _dialogues(path: Path) -> Iterator[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            turns = json.loads(line)["turns"]
            yield [turn if isinstance(turn, str) else turn[1] for turn in turns]


def _comments(data: Path) -> list[dict[str, str]]:
    with (data / "goemotions-single-label" / "train.tsv").open(
        encoding="utf-8", newline=""
    ) as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _lite_reads(path: Path, row: object) -> bool:
    return zlib.crc32(f"{path.name}{row}".encode()) % 2 == 0


def _left_out(data: Path) -> Iterator[Example]:
    """Yield the rows of lite's sources that its recipe leaves out."""
    for row in read_rows(data / "davidson-hate" / "labeled_data.csv"):
        if row["class"] == "1" and zlib.crc32(row["tweet"].encode()) // 128 % 5 in {1, 2}:
            yield Example(lite_data.tweet(row), "davidson-hate", "train", UNKNOWN, 1, UNKNOWN, 0.3)
    for path in sorted((data / "just-eval" / "outputs").glob("*.json")):
        for row in read_json(path):
            wanted = row["dataset"] not in {
                "MaliciousInstruct",
                "hh-rlhf/red-team-attempts",
                "lima",
            }
            if wanted and not _lite_reads(path, row["id"]):
                yield lite_data.harmless(row["output"], "just-eval answers", row["instruction"])
    rng = random.Random(1)
    for turns in _dialogues(data / "self-dialogue" / "self_dialogues.jsonl.gz"):
        if rng.random() < 0.12 and turns[_LITE_TURNS:]:
            start = rng.randrange(_LITE_TURNS, len(turns))
            yield _ordinary(" ".join(turns[start : start + rng.randint(1, 5)]), "self-dialogue")


def _new(data: Path) -> Iterator[Example]:
    """Yield the examples of sources that lite does not read."""
    rng = random.Random(2)
    for turns in _dialogues(data / "sgd" / "sgd_dialogues.jsonl.gz"):
        if rng.random() < 0.12:
            yield _ordinary(turns[rng.randrange(1, len(turns), 2)], "sgd")
    yield from (
        Example(row["text"], "goemotions", "train", 0, 0, 0, 0.5)
        for row in _comments(data)
        if row["label"] in FRIENDLY and rng.random() < 0.3
    )


def _ordinary(text: str, source: str) -> Example:
    return Example(text, source, "train", 0, 0, UNKNOWN if weak_refusal(text) else 0)
