"""Measure masking and poisoning on made features, and keep the numbers as JSON.

    python -m research.vision.study masking ordinary poisoning

takes some minutes. The suite compares the tables in the documentation with the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.vision.masking import compared
from research.vision.poisoning import BOUNDS, CONTENTS, LEARNS, attacked, unattacked

RESULTS = Path(__file__).parent.parent / "results" / "vision.json"
PATCHES = (16, 196)


def masking() -> dict[str, Any]:
    """Return what each way of masking finds, by the number of patches."""
    return {str(m): compared(m) for m in PATCHES}


def _by_bound(measure: Callable[[Mapping[str, Any], float], Any]) -> dict[str, Any]:
    return {
        name: {str(bound): measure(learns, bound) for bound in BOUNDS}
        for name, learns in LEARNS.items()
    }


def ordinary() -> dict[str, Any]:
    """Return what adaptation is worth without an attack, by what is learned and by the bound."""
    return _by_bound(
        lambda learns, bound: {kind: unattacked(learns, bound, kind) for kind in CONTENTS}
    )


def poisoning() -> dict[str, Any]:
    """Return what an attack does, by what is learned and by the bound."""
    return _by_bound(attacked)


PARTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "masking": masking,
    "ordinary": ordinary,
    "poisoning": poisoning,
}


def masking_table(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of ways to mask."""
    columns = ["lowest", "masked", "spread", "constant"]
    sizes = [found[str(m)] for m in PATCHES]
    rows = [
        [way, *(" / ".join(_percent(size[way][name]) for size in sizes) for name in columns)]
        for way in sizes[0]
    ]
    return _lines(["score", *columns], rows)


def poisoning_table(ordinary: Mapping[str, Any], poisoned: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of what is learned, by bounds."""
    head = ["what learns", "`max_drift`", *(f"right, {kind}" for kind in CONTENTS)]
    head += ["score before", "after", "largest fall", "passes", "resets"]
    rows = []
    for name, measured in poisoned.items():
        for bound, after in measured.items():
            right = [
                " → ".join(map(_percent, ordinary[name][bound][kind].values())) for kind in CONTENTS
            ]
            numbers = [f"{after[key]:.2f}" for key in ("before", "after", "fall")]
            rows.append(
                [name, bound, *right, *numbers, _percent(after["passed"]), f"{after['resets']:.1f}"]
            )
    return _lines(head, rows)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _lines(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def main() -> None:
    """Measure the parts that are named, and print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: only print")
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for part in parser.parse_args().parts:
        kept[part] = PARTS[part]()
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    poisoned = poisoning_table(kept["ordinary"], kept["poisoning"])
    print("\n".join([*masking_table(kept["masking"]), "", *poisoned]))


if __name__ == "__main__":
    main()
