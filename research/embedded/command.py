"""What the command lines that train a moderator have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from ttsa_guard.errors import TTSAError


def trainer(description: str, weights: Path) -> argparse.ArgumentParser:
    """Return a parser of the options that every trainer has; `--out` is `weights` by default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with one folder for each data set"
    )
    parser.add_argument("--out", type=Path, default=weights, help="where the weights go")
    parser.add_argument("--report", type=Path, help="where the measured numbers go, as JSON")
    parser.add_argument("--domain", type=int, default=1000, help="world answers of each kind")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def run(parser: argparse.ArgumentParser, build: Callable[..., dict[str, Any]]) -> None:
    """Call `build(data, out, console, **options)` and tell its report.

    Raises:
        SystemExit: the data cannot be used; the message says why.
    """
    options = vars(parser.parse_args())
    data, out, path = (options.pop(name) for name in ("data", "out", "report"))
    console = Console()
    try:
        report = build(data, out, console, **options)
    except TTSAError as error:
        raise SystemExit(f"error: {error}") from None
    text = json.dumps(report, indent=2)
    if path:
        path.write_text(text + "\n", encoding="utf-8")
    console.print_json(text)
