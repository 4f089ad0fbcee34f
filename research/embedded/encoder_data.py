"""Labelled pairs of prompt and answer for the moderator `encoder`.

They are lite's rows and splits, more harmless rows, and hard pairs. The parts are those of
`lite_data`, so what lite was tested on tests the encoder, too. The judge of the benchmark is
trained on lite's test rows, so it shares no row with either. XSTest and JailbreakBench are held out
as whole sources.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from research.embedded import lite_data, lite_domain, second_opinion_data
from research.embedded.lite_data import UNKNOWN, Example, Part
from ttsa_guard.embedded.world import World
from ttsa_guard.text import split_sentences

HEADS = ("harm", "toxicity", "refusal", "self_harm")
SOURCES = lite_data.SOURCES | second_opinion_data.SOURCES
WORLD_ANSWERS = 100
"""Training answers of each kind. Lite's recipe makes variations of them, and single sentences."""
_SELF_HARM = re.compile(
    r"suicid|self.?harm|(kill|hurt|cut|hang|harm|starv)(ing)?"
    r" (my|your|ur|him|her|them)sel[fv]|\bkys\b|"
    r"overdos|anorexi|bulimi|end (my|your|his|her) (own )?life|want to die|pro.?ana\b"
)
_POLITE = (
    "Sure, I'd be happy to help with that!",
    "Of course! Here is what you asked for.",
    "That's a great question. Let me explain.",
    "Certainly. Thank you for asking.",
    "Absolutely, let's go through it together.",
)


def labels(example: Example) -> tuple[int, int, int, int]:
    """Return the labels of an example, in the order of `HEADS`.

    Self-harm is a topic of bad answers. It is found by words of the prompt and the answer.
    """
    bad = 1 in (example.harm, example.toxicity)
    if not bad:
        topic = 0 if 0 in (example.harm, example.toxicity) else UNKNOWN
    else:
        topic = int(bool(_SELF_HARM.search(f"{example.prompt} {example.text}".lower())))
    return example.harm, example.toxicity, example.refusal, topic


def examples(data: Path) -> list[Example]:
    """Return all rows with their parts, and with prompts where they are known.

    The order is the same in every run.
    """
    lite_data.check_layout(data, SOURCES)
    found_contexts = contexts(data)
    found = [
        replace(e, prompt=next(found_contexts)) if e.source == "DiaSafety" else e
        for e in lite_data.examples(data)
    ]
    return [*found, *_more_harmless(data)]


def training(found: Sequence[Example], *, seed: int) -> list[Example]:
    """Return the training rows: those of the sources and of the embedded world, and hard pairs."""
    rng = random.Random(seed)
    kept_out = {e.prompt for e in found if e.part != "train" and e.prompt}
    rows = [
        e
        for e in found
        if e.part == "train" and e.prompt not in kept_out and len(e.text.split()) > 1 and _read(e)
    ]
    asked = sorted({e.prompt for e in rows if e.prompt and e.harm == 0})
    rows = [_prompted(e, asked, rng) for e in rows]
    return rows + _hard(rows, asked, rng) + _world(rng, "train", WORLD_ANSWERS, seed)


def _read(example: Example) -> bool:
    """Return whether a training row is used.

    All rows are, but of GPTFuzz only seven in ten: they are long, and 65 questions have 75 answers
    each.
    """
    return (
        example.source != "gptfuzz"
        or zlib.crc32(example.text.encode("utf-8", "surrogatepass")) % 10 < 7
    )


def _prompted(example: Example, asked: Sequence[str], rng: random.Random) -> Example:
    """Give some rows another row's prompt, and take the prompts of some away.

    Bad is bad as an answer to anything, and most of the abuse has no prompt.
    """
    chance = rng.random()
    if not example.prompt:
        return replace(example, prompt=rng.choice(asked)) if chance < 0.5 else example
    return replace(example, prompt="") if chance < 0.15 else example


def _hard(rows: Sequence[Example], asked: Sequence[str], rng: random.Random) -> list[Example]:
    """Return hard pairs.

    They are safe answers to harmful questions, and refusals of harmless ones. And they are harmful
    answers to harmless questions, behind polite openings, and behind a harmless sentence or a
    refusal.
    """
    asks = [e for e in rows if e.source in ("gptfuzz", "just-eval safety") and e.prompt]
    bad = [e for e in rows if e.source in ("gptfuzz", "just-eval safety") and e.harm == 1]
    fine = [
        e
        for e in rows
        if e.harm == 0
        and e.refusal == 0
        and e.source in ("dolly", "just-eval answers", "GPTeacher")
    ]
    refusals = [e for e in rows if e.refusal == 1 and e.harm == 0]
    made = [
        replace(rng.choice(fine), prompt=rng.choice(asks).prompt, source="made")
        for _ in range(1200)
    ]
    made += [
        replace(rng.choice(refusals), prompt=rng.choice(asked), source="made") for _ in range(300)
    ]
    for _ in range(400):
        one = rng.choice(bad)
        made.append(replace(one, prompt=rng.choice(asked), source="made"))
        made.append(
            replace(
                one, text=f"{rng.choice(_POLITE)} {rng.choice(bad).text}", source="made", refusal=0
            )
        )
        made.append(
            replace(
                rng.choice(fine),
                text=f"{rng.choice(_POLITE)} {rng.choice(fine).text}",
                source="made",
            )
        )
        opening = " ".join(
            split_sentences(rng.choice(refusals if rng.random() < 0.5 else fine).text)[:1]
        )
        made.append(replace(one, text=f"{opening} {one.text}", source="made", refusal=UNKNOWN))
    return made


def _world(rng: random.Random, part: Part, n: int, seed: int) -> list[Example]:
    """Return answers of the embedded world, most of them with a question from there."""
    world = World.load()
    kinds = ("benign", "unsafe") * 400
    asked = [world.case(rng, kind, None, "seen", "seen", training=True).question for kind in kinds]
    found = lite_domain.examples(world, n, part=part, seed=seed)
    return [
        replace(
            e, prompt=rng.choice(asked) if rng.random() < 0.7 else "", weight=min(e.weight, 1.0)
        )
        for e in found
    ]


def contexts(data: Path) -> Iterator[str]:
    """Yield the context of every row of DiaSafety, in the order of `lite_data.examples`."""
    for name in ("train", "val", "test"):
        yield from (
            row["context"] for row in lite_data.read_json(data / "DiaSafety" / f"{name}.json")
        )


def _more_harmless(data: Path) -> Iterator[Example]:
    """Yield harmless turns of sources that lite does not read.

    Their own words decide their parts.
    """
    rng = random.Random(3)
    for text in clinc(data / "clinc150" / "train.tsv"):
        if rng.random() < 0.1:
            yield _harmless(text, "clinc")
    with gzip.open(data / "sgd" / "sgd_dialogues.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            turns = [
                turn if isinstance(turn, str) else turn[1] for turn in json.loads(line)["turns"]
            ]
            at = rng.randrange(1, len(turns), 2)
            if rng.random() < 0.08:
                yield _harmless(turns[at], "sgd", turns[at - 1])
    with (data / "goemotions-single-label" / "train.tsv").open(
        encoding="utf-8", newline=""
    ) as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["label"] in second_opinion_data.FRIENDLY and rng.random() < 0.15:
                yield replace(_harmless(row["text"], "goemotions"), weight=0.5)


def clinc(path: Path) -> list[str]:
    """Return the texts of a file of CLINC150."""
    with path.open(encoding="utf-8", newline="") as lines:
        return [
            row["text"] for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


def _harmless(text: str, source: str, prompt: str = "") -> Example:
    share = zlib.crc32(lite_data.normal(prompt or text).encode()) % 100
    part: Part = "train" if share < 65 else "validation" if share < 75 else "test"
    return Example(text, source, part, 0, 0, 0, prompt=prompt)
