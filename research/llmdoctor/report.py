"""Write the numbers of the study as the Markdown tables of its page.

Run it with ``python -m research.llmdoctor.report FILE``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.llmdoctor.accuracy import ALL, HOW
from research.llmdoctor.arms import OURS


def faces(part: Mapping[str, Any]) -> str:
    """Return the accuracy of each kind of face and control on the test half, by source."""
    sources = [name for name in next(iter(part["test"].values())) if name != ALL]
    counts = part["pairs"]["test"]
    rows = [["by the mean over all tokens", *(f"{s} ({counts[s]})" for s in sources)]]
    for name, table in part["test"].items():
        hows = ("sum, all tokens",) if name == "the shorter" else (HOW,)
        rows += [[name, *(_share(table[s][how]) for s in sources)] for how in hows]
    rows.append(
        ["prompts, top tokens alone"]
        + [_share(part["test"]["prompts"][s]["mean, top tokens"]) for s in sources]
    )
    return _table(rows)


def wordings(part: Mapping[str, Any]) -> str:
    """Return what the wordings and strengths reach on the development half, in the mean."""
    rows = [["development half", "right"]]
    rows += [
        [name, f"{100 * table[ALL][HOW]['value']:.0f}"]
        for name, table in part["development"].items()
    ]
    return _table(rows)


def arms(part: Mapping[str, Any]) -> str:
    """Return what each arm reaches; a cell is empty where nothing was measured."""
    columns = ["safe", "fluent", "on topic", "good", f"good, less {OURS}", "helpful"]
    columns = [c for c in columns if any(c in table for table in part["arms"].values())]
    rows = [["arm", "beta", *columns, "harmless prompts, good", "distinct-2"]]
    for name, table in part["arms"].items():
        cells = [*(table.get(c) for c in columns), table.get("benign", {}).get("good")]
        apart = table.get("distinct-2")
        rows.append(
            [
                name,
                table.get("weight", ""),
                *(_share(cell) if cell else "" for cell in cells),
                f"{apart['value']:.2f}" if apart else "",
            ]
        )
    return _table(rows)


def _share(found: Mapping[str, float]) -> str:
    value, low, high = (round(100 * found[k]) for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m research.llmdoctor.report", description=__doc__
    )
    parser.add_argument("file", type=Path)
    found = json.loads(parser.parse_args().file.read_text(encoding="utf-8"))
    tables = [
        make(found[part])
        for part, makers in (
            ("world", (wordings, faces)),
            ("public", (wordings, faces)),
            ("arms", (arms,)),
        )
        for make in makers
        if part in found
    ]
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
