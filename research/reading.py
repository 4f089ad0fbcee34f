"""Count what readers said of answers, and how far the benchmark's judges agree with them.

The readers did not know the arm of an answer. ``python -m research.reading`` counts the labels of
all readings in ``results``.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ttsa_guard.quality import Quality
from ttsa_guard.selection import REPEATED
from ttsa_guard.steerers.concise import ConciseOptions

HERE = Path(__file__).parent / "results"
NOW = HERE / "reading.jsonl"
"""Test prompts. But for 20, nothing was chosen by answers to them. A label is what two of three
readers say."""
PROCESSOR = HERE / "reading_processor.jsonl"
"""The same prompts on another processor, with the default and with one reason for all offers. Three
readers."""
VALIDATION = HERE / "reading_validation.jsonl"
"""The test prompts before, and an earlier default. Three readers."""
CONVERSATIONS = HERE / "reading_conversations.jsonl"
"""Harmful conversations with the default, and before what they ask for was read. Three readers."""
MORE = HERE / "reading_more.jsonl"
"""Harmful conversations before and after earlier turns were read; XSTest's harmless prompts before
and after what is asked for was, now, and with the model's hidden states; and its unsafe ones before
and after self-harm was learned. Three readers."""
SEEDS = HERE / "reading_seeds.jsonl"
"""That default with two other seeds, on 60 of the same answers. Three readers."""
OLDER = HERE / "reading_older.jsonl"
"""Still older prompts and defaults, with all controls. Three readers.

The arm "default, later" has what was changed after its other texts had been read.
"""
HALF = HERE / "reading_half.jsonl"
"""The test half of the first prompts, of which 41 of 60 had been read before. Three readers."""
CHOICE = HERE / "choice.jsonl"
"""Answers to 98 harmless questions that were asked for in several ways. A label is what both of two
readers say."""
MEASURED = HERE / "choice_measured.jsonl"
"""What `concise` asked for on the validation prompts, with likelihoods after three prompts: the
question in its conversation or alone, whichever gives more; the question alone; and that with the
first wish. A label is what both of two readers say."""
SHORTER = HERE / "choice_shorter.jsonl"
"""Answers to most of these prompts by shorter wishes, with likelihoods after the question and the
first of those. A label is what both of two readers say."""
ANCHOR = HERE / "anchor" / "reading.jsonl"
"""The steerer `anchor`, its controls and the default of that time. Three readers."""
NEIGHBOURS = HERE / "neighbours_reading.jsonl"
"""The steerer `neighbours`, re-sampling and the default, on the same answers. Three readers."""
PARTS = ("safe", "fluent", "on_topic")
FEW = frozenset({"erase", "random perturbation", "tsa"})
"""The arms of `OLDER` that had the first 10 prompts of each kind only."""
PLAIN_QUESTION = "the question"
"""How the plain answer of `CHOICE` was asked for."""
_DRAWS = 4000
_NEAR = 0.5
"""Nats a token below the likeliest, within which others are likely, too."""


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the labels, with `good` and `helpful` added.

    They are added for the reader and, of swaps, for the judges. `good` means all of `PARTS`;
    `helpful` implies `good`.
    """
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for said in filter(None, (row["reader"], row["judges"])):
            said["good"] = all(said[part] for part in PARTS)
            said["helpful"] = said["good"] and said["helpful"]
        yield row


def arms(file: Path, kinds: Collection[str] | None = None) -> dict[str, list[int | None]]:
    """Count answers by arm.

    Returns:
        For each arm, the best first: the number of texts, how many are good and how many are
        helpful to the reader, and how many are good to the judges (None if they were not asked).
    """
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows(file):
        if kinds is None or row["kind"] in kinds:
            found[row["arm"]].append(row)
    counted: dict[str, list[int | None]] = {}
    for arm, read in found.items():
        counts = [sum(row["reader"][key] for row in read) for key in ("good", "helpful")]
        judged = [row["judges"]["good"] for row in read if row["judges"]]
        counted[arm] = [len(read), *counts, sum(judged) if judged else None]
    return dict(sorted(counted.items(), key=lambda item: -(item[1][1] or 0) / (item[1][0] or 1)))


def agreement(file: Path) -> dict[str, float]:
    """Return, for each label, the share of swaps on which the reader and the judges agree."""
    read = [row for row in rows(file) if row["judges"]]
    keys = (*PARTS, "good", "helpful")
    return {
        key: sum(row["reader"][key] == row["judges"][key] for row in read) / len(read)
        for key in keys
    }


def drafts(file: Path) -> dict[str, float]:
    """Return the mean number of generations for each answer that was read, by arm."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in rows(file):
        if row.get("generations") is not None:
            found[row["arm"]].append(row["generations"])
    return {arm: mean(counts) for arm, counts in found.items()}


def difference(file: Path, arm: str, key: str) -> tuple[float, float]:
    """Return the 95 % bootstrap interval over prompts of the default's share less that of `arm`.

    The prompts are those of the kinds that the arm was run on, and of those the ones that have an
    answer of any control with as many prompts. What was not swapped was not read, and counts as
    bad.
    """
    read = list(rows(file))
    few = FEW if file == OLDER else frozenset()
    kinds = {row["kind"] for row in read if row["arm"] == arm}
    common = {
        row["case"]
        for row in read
        if row["kind"] in kinds
        and (
            row["arm"] == arm
            or (
                not row["arm"].startswith(("default", "plain"))
                and (row["arm"] in few) == (arm in few)
            )
        )
    }
    said: dict[str, dict[str, bool]] = defaultdict(dict)
    for row in read:
        if row["case"] in common and row["arm"] in ("default", arm):
            said[row["case"]][row["arm"]] = row["reader"][key]
    apart = [one.get("default", False) - one.get(arm, False) for one in said.values()]
    draw = random.Random(0)
    means = sorted(mean(draw.choices(apart, k=len(apart))) for _ in range(_DRAWS))
    return means[_DRAWS // 40], means[-_DRAWS // 40]


def ways_to_ask() -> dict[str, tuple[int, int, int]]:
    """Count the answers of `CHOICE` by how they were asked for.

    Returns:
        For each way, the best first: the number of answers, and how many are good and are helpful.
    """
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _choice_rows():
        found[row["asked"]].append(row)
    counted = {way: _counted(some) for way, some in found.items()}
    return dict(sorted(counted.items(), key=lambda item: -item[1][1] / item[1][0]))


def choices() -> dict[str, tuple[int, int, int]]:
    """Count what ways of choosing among the answers of `CHOICE` give.

    The answers to each question are those that `concise` asks for: the plain one, and one or four
    short ones. An answer that breaks its policy is not among them.

    Returns:
        For each way, the number of questions, and for how many of them the chosen answer is good
        and is helpful.
    """
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    most = Quality().repeats
    asked = {PLAIN_QUESTION, *ConciseOptions().wishes}
    for row in _choice_rows():
        if row["asked"] in asked and row["reader"]["safe"] and row["repeats"]["4"] <= most:
            answers[row["case"]].append(row)

    def likely(row: dict[str, Any], n: str) -> float:
        return float(row["likelihood"] - REPEATED * row["repeats"][n])

    def covering(rows: list[dict[str, Any]]) -> dict[str, Any]:
        least = max(likely(row, "4") for row in rows) - _NEAR
        near = [row for row in rows if likely(row, "4") >= least]
        return max(near, key=lambda row: (row["covers"], likely(row, "4")))

    ways: dict[str, Callable[[list[dict[str, Any]]], dict[str, Any]]] = {
        "the likeliest": lambda rows: max(rows, key=lambda row: row["likelihood"]),
        "less its repeated 4-grams": lambda rows: max(rows, key=lambda row: likely(row, "4")),
        "less its repeated 2-grams": lambda rows: max(rows, key=lambda row: likely(row, "2")),
        "most of the question's words, among the likely": covering,
        "the best": lambda rows: max(rows, key=lambda row: sum(row["reader"].values())),
    }
    return {name: _counted([way(some) for some in answers.values()]) for name, way in ways.items()}


def measures() -> dict[str, tuple[int, int, int]]:
    """Count what choosing among the answers of `MEASURED` gives, by where likelihood is measured.

    Returns:
        For each way, the number of questions, and for how many of them the chosen answer is good
        and is helpful.
    """
    answers = _by_case(MEASURED)

    def likely(row: dict[str, Any], after: str) -> float:
        return float(row["likelihood"][after] - REPEATED * row["repeats"]["2"])

    ways: dict[str, Callable[[dict[str, Any]], Any]] = {
        "the conversation or the question": lambda row: likely(row, "conversation"),
        "the question": lambda row: likely(row, "question"),
        "the question and a wish": lambda row: likely(row, "wish"),
        "that, and the plain answer last": lambda row: (
            row["asked"] != PLAIN_QUESTION,
            likely(row, "wish"),
        ),
        "the best": lambda row: sum(row["reader"].values()),
    }
    return {
        name: _counted([max(some, key=way) for some in answers.values()])
        for name, way in ways.items()
    }


def shorter() -> dict[str, tuple[int, int, int]]:
    """Count what choosing among answers by the wishes of `concise` gives, and by shorter ones.

    Returns:
        The same as `measures`, for questions that were answered in both ways.
    """
    usual, short = _by_case(MEASURED), _by_case(SHORTER)

    def chosen(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return max(
            rows,
            key=lambda row: (
                row["asked"] != PLAIN_QUESTION,
                row["likelihood"]["wish"] - REPEATED * row["repeats"]["2"],
            ),
        )

    both = sorted(usual.keys() & short.keys())
    return {
        name: _counted([chosen(of[case]) for case in both])
        for name, of in (("usual wishes", usual), ("shorter wishes", short))
    }


def _by_case(file: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _choice_rows(file):
        found[row["case"]].append(row)
    return found


def _choice_rows(file: Path = CHOICE) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _counted(chosen: Sequence[dict[str, Any]]) -> tuple[int, int, int]:
    good = [row for row in chosen if all(row["reader"][part] for part in PARTS)]
    return len(chosen), len(good), sum(row["reader"]["helpful"] for row in good)


if __name__ == "__main__":
    for file in (
        NOW,
        PROCESSOR,
        CONVERSATIONS,
        MORE,
        VALIDATION,
        SEEDS,
        OLDER,
        HALF,
        ANCHOR,
        NEIGHBOURS,
    ):
        print(file.relative_to(HERE))
        for arm, counts in arms(file).items():
            print(arm, *("-" if count is None else count for count in counts), sep=" | ")
        for arm in arms(file) if "default" in arms(file) else ():
            if arm != "default" and not arm.startswith("plain") and "older" not in arm:
                low, high = difference(file, arm, "good")
                print(f"good, default less {arm}: {low:+.0%} to {high:+.0%}")
        shares = ", ".join(f"{key} {share:.0%}" for key, share in agreement(file).items())
        print("agreement:", shares)
    print(CHOICE.relative_to(HERE))
    for name, found in {**ways_to_ask(), **choices()}.items():
        print(name, *found, sep=" | ")
    print(MEASURED.relative_to(HERE))
    for name, found in measures().items():
        print(name, *found, sep=" | ")
