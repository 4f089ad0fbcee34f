"""Measure the operating points of the shipped moderators.

Run it with ``python -m research.embedded.operating_points --data DIR``, where DIR is that of
`train_lite`, with the folder clinc150 (amazon-science/Glean @ 927665aed3, CC BY 3.0). Three kinds
of harmless chat count the same: answers of dolly, turns of self-dialogues, and the short requests
of CLINC150. The moderator that is measured was trained on none of them. It writes
``operating_points.yaml``. Run it again whenever the weights of a moderator change.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from research import SHIPPED
from research.embedded import lite_data
from research.embedded.lite_data import Example
from research.embedded.shipped import shipped
from ttsa_guard.errors import TTSAError
from ttsa_guard.moderators.operating_points import FILE, RATES
from ttsa_guard.moderators.tuning import operating_point

SIZE = 4000
"""Number of texts of each kind, if there are so many."""
Pairs = list[tuple[str, str]]
"""Pairs of (prompt, text)."""


def digest(moderator: str) -> str:
    """Return a digest of the weights that ship for a moderator."""
    return hashlib.blake2b((SHIPPED / f"{moderator}.npz").read_bytes(), digest_size=8).hexdigest()


def measure(data: Path) -> dict[str, Any]:
    """Return the content of the file.

    For each moderator it has a digest of the weights, the number of texts, and the score at each
    rate.
    """
    examples = list(lite_data.examples(data))
    queries, turns = (
        _queries(data / "clinc150"),
        _turns(data, [*examples, *lite_data.more_chat(data)]),
    )
    found: dict[str, Any] = {}
    for name, moderator in shipped().items():
        answers = [
            (e.prompt, e.text)
            for e in examples
            if e.source == "dolly" and e.part == moderator.unread
        ]
        groups = [answers[:SIZE], turns, queries]
        values = np.concatenate(
            [
                moderator.scores([t for _, t in g], [p for p, _ in g])[:, :2].max(axis=1)
                for g in groups
            ]
        )
        weights = np.concatenate([np.full(len(g), 1 / len(g)) for g in groups])
        scores = {rate: round(operating_point(values, rate, weights.tolist()), 4) for rate in RATES}
        found[name] = {"weights": digest(name), "texts": len(values), "scores": scores}
    return found


def _queries(folder: Path) -> Pairs:
    return [("", row["text"]) for row in lite_data.read_rows(folder / "test.tsv", "\t")][:SIZE]


def _turns(data: Path, examples: Sequence[Example]) -> Pairs:
    """Return the second to fourth turns of dialogues as an answer to the first one.

    Lite has read none of these dialogues.
    """
    read = {e.prompt for e in examples if e.source == "self-dialogue"}
    dialogues = lite_data.self_dialogues(data)
    return list(
        islice(
            ((t[0], " ".join(t[1:4])) for t in dialogues if len(t) > 3 and t[0] not in read), SIZE
        )
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Measure the operating points of the shipped moderators."
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with one folder for each data set"
    )
    parser.add_argument("--out", type=Path, default=SHIPPED / FILE, help="where they go")
    args = parser.parse_args()
    try:
        found = measure(args.data)
    except TTSAError as error:
        raise SystemExit(f"error: {error}") from None
    said = (
        "# Made by python -m research.embedded.operating_points: the score at each false-alarm"
        " rate.\n"
    )
    args.out.write_text(said + yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
    print(yaml.safe_dump(found, sort_keys=False))


if __name__ == "__main__":
    main()
