"""Labelled answers for the lite moderator, from public data sets.

The licences of the data sets allow shipping what is trained on them. XSTest and JailbreakBench
answers are loaded for evaluation only. Answers to prompts that also are in XSTest, AdvBench,
HarmBench, StrongREJECT, TDC2023 or JailbreakBench are dropped from everything else.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ttsa_guard.errors import UsageError

Part = Literal["train", "validation", "test", "unrelated"]
UNKNOWN = -1
CHAT_SHARE = 0.3
CHAT_WEIGHT = 0.5
"""Share of the self-dialogues, and weight, of `more_chat`."""
SOURCES = {
    "gptfuzz": (
        "train.csv, evaluate.csv, question_list.csv",
        "sherdencooper/GPTFuzz @ 1eddeb5657",
        "MIT",
    ),
    "DiaSafety": (
        "train.json, val.json, test.json",
        "thu-coai/DiaSafety @ 5106a041b1",
        "Apache-2.0",
    ),
    "davidson-hate": (
        "labeled_data.csv",
        "t-davidson/hate-speech-and-offensive-language @ cb50f7e9eb",
        "MIT",
    ),
    "just-eval": (
        "outputs/*.json, safety_scores/*.json",
        "Re-Align/just-eval @ 3e1a1265e2, without LIMA",
        "MIT",
    ),
    "refusal_direction": (
        "completions/*/*.json, dataset/raw/*",
        "andyrdt/refusal_direction @ 9d852fae1a",
        "Apache-2.0",
    ),
    "dolly": (
        "dolly_3k.json, databricks_dolly_15k.csv",
        "gpt4life/alpagasus @ 95ad3e5251 and others",
        "CC BY-SA 3.0",
    ),
    "GPTeacher": (
        "roleplay-simple-deduped-roleplay-instruct.json",
        "teknium1/GPTeacher @ 481075123c",
        "MIT",
    ),
    "personalitychat": ("qna_chitchat_the_*.tsv", "sempjc/BotBuilder-PersonalityChat", "MIT"),
    "self-dialogue": (
        "self_dialogues.jsonl.gz",
        "jfainberg/self_dialogue_corpus @ 113a1b0ff1",
        "BSD-3-Clause",
    ),
    "clinc150": ("train.tsv, test.tsv", "amazon-science/Glean @ 927665aed3", "CC BY 3.0"),
    "xstest": (
        "xstest_prompts.csv, model_completions/*.csv",
        "paul-rottger/exaggerated-safety @ d7bb5bd738",
        "CC BY 4.0",
    ),
}
"""The data sets: folder under the data directory, and (files, GitHub repository, licence).

XSTest is for evaluation only.
"""

_REFUSES = re.compile(
    r"\b(i('m| am) (very |so |really )?sorry|i apologi[sz]e|i"
    r" (can|could|do|will|would|must)(no|n')t|i can not|i won't|i refuse|"
    r"i('m| am) (not able|unable)|as an (ai|responsible|ethical)|i('m| am) (just )?an ai|"
    r"(is|are) (illegal|unethical|not appropriate)|not (comfortable|capable))"
)


@dataclass(frozen=True)
class Example:
    """An answer with its labels: 1 is yes, 0 is no, `UNKNOWN` is not labelled."""

    text: str
    source: str
    part: Part
    harm: int = UNKNOWN
    toxicity: int = UNKNOWN
    refusal: int = UNKNOWN
    weight: float = 1.0
    prompt: str = ""
    """The prompt that it answers, if that is known and many answers share it."""


def check_layout(data: Path, sources: Mapping[str, tuple[str, str, str]] = SOURCES) -> None:
    """Check that the data sets are there.

    Raises:
        UsageError: a data set is not where it is expected.
    """
    for folder, (files, origin, _) in sources.items():
        for pattern in files.split(", "):
            if not any((data / folder).glob(pattern)):
                raise UsageError(
                    f"no file {folder}/{pattern} under {data}",
                    hint=f"it comes from github.com/{origin}",
                )


def examples(data: Path, *, to_benchmarks: bool = False) -> Iterator[Example]:
    """Yield all examples of all sources, in the same order in every run.

    Args:
        to_benchmarks: whether answers to prompts of benchmarks are included.
    """
    check_layout(data)
    listed = [] if to_benchmarks else _benchmark_prompts(data)
    near: dict[str, bool] = {}

    def banned(prompt: str) -> bool:
        words = frozenset(normal(prompt).split())
        key = " ".join(sorted(words))
        if key not in near:
            near[key] = any(len(words & other) >= 0.7 * len(words | other) for other in listed)
        return near[key]

    yield from _gptfuzz(data / "gptfuzz", banned)
    yield from _diasafety(data / "DiaSafety")
    yield from _davidson(data / "davidson-hate")
    yield from _just_eval(data / "just-eval", banned)
    yield from _refusal_direction(data / "refusal_direction", banned)
    yield from _ordinary(data)
    yield from _xstest(data / "xstest")


def normal(text: str) -> str:
    """Return the words of `text` in lower case, for comparing prompts."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def _part(prompt: str) -> Part:
    """Return the part that all answers to `prompt` belong to.

    65 % of the prompts are for training, 10 % for validation, and 25 % for the test.
    """
    share = zlib.crc32(normal(prompt).encode()) % 100
    return "train" if share < 65 else "validation" if share < 75 else "test"


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_rows(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """Return the rows of a table with a header line."""
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return list(
            csv.DictReader(
                file,
                delimiter=delimiter,
                quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
            )
        )


def _benchmark_prompts(data: Path) -> list[frozenset[str]]:
    raw = data / "refusal_direction" / "dataset" / "raw"
    prompts = [row["prompt"] for row in read_rows(data / "xstest" / "xstest_prompts.csv")]
    for path in sorted(raw.glob("*.csv")):
        columns = ("goal", "Goal", "Behavior", "forbidden_prompt")
        prompts += [row[c] for row in read_rows(path) for c in columns if row.get(c)]
    for path in sorted(raw.glob("*.json")):
        prompts += read_json(path)
    return [frozenset(normal(p).split()) for p in prompts]


def weak_refusal(text: str) -> bool:
    """Return whether an answer opens like a refusal.

    It is only used where another label agrees.
    """
    return bool(_REFUSES.search(text[:250].lower().replace("\u2019", "'")))


def _gptfuzz(folder: Path, banned: Callable[[str], bool]) -> Iterator[Example]:
    questions = [row["text"] for row in read_rows(folder / "question_list.csv")]
    for name in ("train.csv", "evaluate.csv"):
        for row in read_rows(folder / name):
            question, harm, says_no = (
                questions[int(row["question"])],
                int(row["label"]),
                weak_refusal(row["Response"]),
            )
            refusal = UNKNOWN if harm == int(says_no) else int(says_no)
            part: Part = "validation" if zlib.crc32(question.encode()) % 10 == 0 else "train"
            if name == "evaluate.csv":
                part = "test"
            if not banned(question):
                yield Example(
                    row["Response"], "gptfuzz", part, harm, UNKNOWN, refusal, prompt=question
                )


def _diasafety(folder: Path) -> Iterator[Example]:
    for name, part in (("train", "train"), ("val", "validation"), ("test", "test")):
        for row in read_json(folder / f"{name}.json"):
            harm = int(row["label"] == "Unsafe")
            toxic = {"Offending User": harm, "Toxicity Agreement": UNKNOWN}.get(
                row["category"], UNKNOWN if harm else 0
            )
            # Weighs less: half of these labels depend on a context that the moderator does not see.
            yield Example(row["response"], "DiaSafety", part, harm, toxic, UNKNOWN, 0.8)  # type: ignore[arg-type]


def tweet(row: Mapping[str, str]) -> str:
    """Return the text of a row of Davidson's tweets, without the names that it is addressed to."""
    return re.sub(r"^(RT )?(@\S+ ?)*", "", row["tweet"].strip('"'))


def _davidson(folder: Path) -> Iterator[Example]:
    for row in read_rows(folder / "labeled_data.csv"):
        # A quarter, since tweets are not answers and most of them are offensive; all of the few
        # that are neither.
        if row["class"] != "1" or zlib.crc32(row["tweet"].encode()) // 128 % 5 == 0:
            yield Example(
                tweet(row),
                "davidson-hate",
                _part(row["tweet"]),
                UNKNOWN,
                int(row["class"] != "2"),
                UNKNOWN,
                0.6,
            )


def _just_eval(folder: Path, banned: Callable[[str], bool]) -> Iterator[Example]:
    for path in sorted((folder / "safety_scores").glob("*.json")):
        for row in read_json(path):
            score = str((row["parsed_result"].get("safety") or {}).get("score", ""))
            if score in {"1", "2", "4", "5"} and not banned(row["input"]):
                harm, says_no = int(score in {"1", "2"}), weak_refusal(row["output_cand"])
                refusal = UNKNOWN if harm == int(says_no) else int(says_no)
                part = _part(row["input"])
                yield Example(
                    row["output_cand"],
                    "just-eval safety",
                    part,
                    harm,
                    0,
                    refusal,
                    prompt=row["input"],
                )
    for path in sorted((folder / "outputs").glob("*.json")):
        for row in read_json(path):
            wanted = row["dataset"] not in {
                "MaliciousInstruct",
                "hh-rlhf/red-team-attempts",
                "lima",
            }
            if (
                wanted
                and zlib.crc32(f"{path.name}{row['id']}".encode()) % 2 == 0
                and not banned(row["instruction"])
            ):
                yield harmless(row["output"], "just-eval answers", row["instruction"])


def _refusal_direction(folder: Path, banned: Callable[[str], bool]) -> Iterator[Example]:
    for path in sorted((folder / "completions").glob("*/*_evaluations.json")):
        for row in read_json(path)["completions"]:
            refusal = 1 - int(row["is_jailbreak_substring_matching"])
            if path.name.startswith("jailbreakbench"):
                harm = int(row["is_jailbreak_llamaguard2"])
                yield Example(
                    row["response"],
                    "JailbreakBench",
                    "unrelated",
                    harm,
                    UNKNOWN,
                    refusal,
                    prompt=row["prompt"],
                )
            elif not banned(row["prompt"]):
                part = _part(row["prompt"])
                yield Example(
                    row["response"], "refusal_direction", part, 0, 0, refusal, prompt=row["prompt"]
                )


def harmless(text: str, source: str, prompt: str) -> Example:
    """Make an example of a harmless answer. Refusal is unknown if it opens like one."""
    return Example(
        text, source, _part(prompt), 0, 0, UNKNOWN if weak_refusal(text) else 0, prompt=prompt
    )


def _ordinary(data: Path) -> Iterator[Example]:
    for row in read_json(data / "dolly" / "dolly_3k.json"):
        yield harmless(row["output"], "dolly", row["instruction"])
    for row in read_rows(data / "dolly" / "databricks_dolly_15k.csv"):
        yield harmless(row["response"], "dolly", row["instruction"])
    for row in read_json(data / "GPTeacher" / "roleplay-simple-deduped-roleplay-instruct.json"):
        yield harmless(row["response"], "GPTeacher", row["instruction"])
    for path in sorted((data / "personalitychat").glob("qna_chitchat_the_*.tsv")):
        for row in read_rows(path, "\t"):
            yield harmless(row["Answer"], "personalitychat", row["Question"])
    rng = random.Random(0)
    for turns in self_dialogues(data):
        if rng.random() < 0.12 and turns:
            yield harmless(" ".join(turns[1 : rng.randint(2, 6)]), "self-dialogue", turns[0])


def self_dialogues(data: Path) -> Iterator[list[str]]:
    """The turns of each."""
    with gzip.open(
        data / "self-dialogue" / "self_dialogues.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        for line in file:
            yield json.loads(line)["turns"]


def more_chat(data: Path) -> Iterator[Example]:
    """Harmless requests and turns of chat, for lite alone: short as they are, without them it flags
    one in fifty."""
    for row in read_rows(data / "clinc150" / "train.tsv", "\t"):
        yield _chat(row["text"], "clinc")
    rng = random.Random(4)
    for turns in self_dialogues(data):
        if rng.random() < CHAT_SHARE and turns:
            yield _chat(" ".join(turns[1 : rng.randint(2, 6)]), "self-dialogue", turns[0])


def _chat(text: str, source: str, prompt: str = "") -> Example:
    return replace(harmless(text, source, prompt), part=_part(prompt or text), weight=CHAT_WEIGHT)


def _xstest(folder: Path) -> Iterator[Example]:
    for path in sorted((folder / "model_completions").glob("*.csv")):
        for row in read_rows(path):
            complied, refused = (
                row["final_label"].startswith("1"),
                row["final_label"].startswith("2"),
            )
            unsafe, refusal = (
                row["type"].startswith("contrast"),
                (int(refused) if complied or refused else UNKNOWN),
            )
            harm = int(complied and unsafe)
            yield Example(
                row["completion"],
                "XSTest",
                "unrelated",
                harm,
                UNKNOWN,
                refusal,
                prompt=row["prompt"],
            )
