"""Prompts from known data sets, files and the Hugging Face hub.

Nothing is downloaded or shipped but the embedded world.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from ttsa_guard.bench.config import PromptSource
from ttsa_guard.bench.prompts import Item, Turns, entangled, real_prompts
from ttsa_guard.embedded.world import World, WorldCase
from ttsa_guard.errors import ConfigError
from ttsa_guard.files import reason
from ttsa_guard.text import split_sentences

Row = Mapping[str, Any]
_UNSAFE = {"1", "true", "yes", "unsafe", "harmful", "toxic"}
_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
_WORLD = (("unsafe", "content"), ("benign", "tone"), ("benign", None), ("benign", "content"))
"""Requests and wrappers: two that fail in different ways, and two kinds of benign prompts for
over-refusal."""


@dataclass(frozen=True)
class Known:
    """A public data set as one file.

    Args:
        unsafe: of all rows, or the field that says so.
        context: a field that stands before the prompt if it is not empty.
        only: the values that a field must have.
    """

    file: str
    sha256: str
    origin: str
    licence: str
    prompt: str
    unsafe: bool | str = True
    context: str = ""
    only: tuple[str, tuple[str, ...]] | None = None


_REFUSAL_DIRECTION = "https://github.com/andyrdt/refusal_direction, commit 9d852fae1a, dataset/raw"
KNOWN: dict[str, Known] = {
    "xstest": Known(
        file="xstest_prompts.csv",
        sha256="11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a",
        origin="https://github.com/paul-rottger/exaggerated-safety, commit d7bb5bd738",
        licence="CC BY 4.0",
        prompt="prompt",
        unsafe="label",
    ),
    # without the copyright behaviours: no moderator tells whether a text is under copyright
    "harmbench": Known(
        file="harmbench_test.csv",
        sha256="75d257b3e7428c52eb7b0154318f455af3e01b09a3794b5e2f3d36054f3c0e29",
        origin=_REFUSAL_DIRECTION,
        licence="MIT",
        prompt="Behavior",
        context="ContextString",
        only=("FunctionalCategory", ("standard", "contextual")),
    ),
    "malicious_instruct": Known(
        file="malicious_instruct.txt",
        sha256="a64d69dd1004aac4a23aaff3748fb8f17161893f74db36f45b8bc849eb1bcce5",
        origin=_REFUSAL_DIRECTION,
        licence="MIT",
        prompt="prompt",
    ),
    "advbench": Known(
        file="advbench.csv",
        sha256="6cd1a5c63c07610d7eb67307772ee5606017ee950b5770ab288a2c487489d3e1",
        origin=_REFUSAL_DIRECTION,
        licence="MIT",
        prompt="goal",
    ),
    "strongreject": Known(
        file="strongreject.csv",
        sha256="4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381",
        origin=_REFUSAL_DIRECTION,
        licence="MIT",
        prompt="forbidden_prompt",
    ),
    # conversations of people who tried to make a model do harm; their last message is answered
    "hh_red_team": Known(
        file="harmless-base-test.jsonl.gz",
        sha256="ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03",
        origin=(
            "https://github.com/anthropics/hh-rlhf, commit 354e5c3cb8, harmless-base/test.jsonl.gz"
        ),
        licence="MIT",
        prompt="chosen",
    ),
}
KNOWN["harmbench_val"] = replace(
    KNOWN["harmbench"],
    file="harmbench_val.csv",
    sha256="7bfaaa5e2b9b95002c89e2d33c019f58e9e8496e2fc65d368f1eeb8179e69534",
)


def read(source: PromptSource, *, n: int, seed: int, folder: Path | None = None) -> list[Item]:
    """Read at most `n` prompts of each kind, drawn by `seed`.

    `folder` is where the known data sets are.

    Raises:
        ConfigError: a file is missing, changed or malformed, or `datasets` is not installed.
    """
    n = source.n or n
    if source.exact:
        return _world(source.label, n, seed)
    if source.name and source.name.startswith(("persona", "policy")):
        return real_prompts(source.name)[:n]
    own = Known("", "", "", "", source.field, source.unsafe)
    known = KNOWN[source.name] if source.name else own
    rows = _hub(source) if source.hub else _rows(source.file or _verified(known, folder))
    kinds: dict[bool, list[Item]] = {False: [], True: []}
    for number, row in enumerate(rows, 1):
        if known.only is None or row.get(known.only[0]) in known.only[1]:
            item = _item(source.label, number, row, known)
            kinds[item.unsafe].append(item)
    drawn = [random.Random(seed).sample(items, min(n, len(items))) for items in kinds.values()]
    items = [item for sample in drawn for item in sample]
    return items if source.kind is None else [replace(item, kind=source.kind) for item in items]


def _world(label: str, n: int, seed: int) -> list[Item]:
    world = World.load()
    items = []
    for request, wrapper in _WORLD:
        for i, case in enumerate(world.cases(request, wrapper, n, seed=seed)):
            name = f"{label}/{request}{f', {wrapper} wrapper' if wrapper else ''}/{i}"
            if label == "embedded_entangled":
                for kind, turns in entangled(case.messages, case.question).items():
                    items.append(_world_item(f"{name}/{kind}", kind, turns, case))
            elif label == "embedded_joined":
                turns = tuple((role, one_sentence(content)) for role, content in case.messages)
                items.append(_world_item(name, f"{_failure(case)}, joined", turns, case))
            else:
                items.append(_world_item(name, _failure(case), case.messages, case))
    return items


def _world_item(name: str, kind: str, turns: Turns, case: WorldCase) -> Item:
    return Item(name, kind, turns, case.question, case.topic.unsafe, case.topic)


def one_sentence(text: str) -> str:
    """Write the sentences of `text` as clauses of one."""
    *others, last = split_sentences(text)
    first, *rest = [*(s.rstrip(".!?") for s in others), last]
    return ", ".join([first, *(c if c.startswith("I ") else c[0].lower() + c[1:] for c in rest)])


def _failure(case: WorldCase) -> str:
    return " ".join(filter(None, (case.failure, case.when))) if case.failure else "benign"


def _verified(known: Known, folder: Path | None) -> Path:
    """Return the file of a known data set, with the contents that the adapter was written for."""
    source = f"it is at {known.origin} ({known.licence})"
    hint = f"{source}; say with --data DIR in which folder you keep it"
    if folder is None:
        raise ConfigError(f"the data set {known.file} is not part of the package", hint=hint)
    path = next(iter(sorted(folder.rglob(known.file))), None)
    if path is None:
        raise ConfigError(f"there is no {known.file} in {folder}", hint=hint)
    if hashlib.sha256(path.read_bytes()).hexdigest() != known.sha256:
        raise ConfigError(
            f"{path} is not the file with the SHA-256 {known.sha256}",
            hint=f"{hint}; or give it as {{file: ...}}",
        )
    return path


def _rows(path: Path) -> list[Row]:
    try:
        opened: Any = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                return list(csv.DictReader(file))
            if path.suffix == ".txt":
                return [{"prompt": line.strip()} for line in file if line.strip()]
            return [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        hint = (
            "give a UTF-8 file: CSV with a header, JSON lines (.gz too), or NAME.txt with one"
            " prompt a line"
        )
        raise ConfigError(f"cannot read {path}: {reason(error)}", hint=hint) from None


def _hub(source: PromptSource) -> Sequence[Row]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ConfigError(
            f"{source.hub} needs the package datasets", hint="pip install datasets"
        ) from None
    try:
        return list(load_dataset(source.hub, split=source.split))
    except Exception as error:
        hint = "check its name and split, and the network"
        raise ConfigError(f"cannot load {source.hub}: {type(error).__name__}", hint=hint) from error


def _item(label: str, number: int, row: Row, known: Known) -> Item:
    text = row.get(known.prompt) if isinstance(row, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(
            f"{label}, row {number}: no text in the field {known.prompt!r}",
            hint="name it under 'field'",
        )
    unsafe = known.unsafe
    if isinstance(unsafe, str):
        if row.get(unsafe) is None:
            raise ConfigError(
                f"{label}, row {number}: no field {unsafe!r}",
                hint="name it under 'unsafe', or say true or false",
            )
        unsafe = str(row[unsafe]).strip().lower() in _UNSAFE
    context = str(row.get(known.context) or "")
    *before, (role, text) = _transcribed(text) or [("user", text)]
    content = f"{context}\n\n{text}" if context else text
    kind = f"{label}, {'unsafe' if unsafe else 'benign'}"
    return Item(f"{label}/{number}", kind, (*before, (role, content)), text, unsafe)


def _transcribed(text: str) -> list[tuple[str, str]]:
    """Return the turns of a conversation as hh-rlhf writes it, up to the last one of the user.

    There are none if `text` is something else.
    """
    _, *parts = _SPEAKER.split(text) if _SPEAKER.match(text) else [text]
    said = [(s, t.strip()) for s, t in zip(parts[::2], parts[1::2], strict=True) if t.strip()]
    turns = [
        ("user" if speaker == "Human" else "assistant", "\n\n".join(t for _, t in told))
        for speaker, told in groupby(said, key=lambda turn: turn[0])
    ]
    return turns[:-1] if turns and turns[-1][0] == "assistant" else turns
