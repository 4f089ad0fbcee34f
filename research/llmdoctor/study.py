"""Measure what *LLMdoctor* rests on, and what it adds.

Run it with ``python -m research.llmdoctor.study --json FILE [--data DIR]``. Its parts are

* ``world``: how often faces of the embedded model are right on held-out pairs of its world;
* ``public``: the same for a public model, on public pairs under ``--data``;
* ``arms``: doctors of the embedded model, and what needs no doctor.

Each part is written to the file when it is done, and a part that is in the file is not run again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from research.llmdoctor import accuracy
from research.llmdoctor.arms import Arms, Scope
from ttsa_guard.steerers.prosocial.harm_vector import HarmVector
from ttsa_guard.steerers.prosocial.steerer import ProSocial, ProSocialOptions
from ttsa_guard.steerers.prosocial.training import Plan

PARTS = ("world", "public", "arms")
PAIRS, PUBLIC = 150, (12, 100)
FEW = Scope(
    lessons=2,
    n=4,
    tuned=1,
    benign=1,
    spread=1,
    plan=Plan(steps=2, batch=2, peak=1e-3, warm_up=1),
    betas=((1.0,), (1.0,)),
)
"""A study that is over soon, to try whether it runs."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m research.llmdoctor.study", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="write the numbers to this file")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; several times")
    parser.add_argument("--data", type=Path, help="folder with the public data sets")
    parser.add_argument("--model", default="smollm2", help="the public model")
    parser.add_argument("--harm", type=Path, help="keep its harm vector in this file")
    parser.add_argument("--few", action="store_true", help="a few prompts, to try it out")
    args = parser.parse_args()
    parts = args.part or [p for p in PARTS if args.data or p != "public"]
    if "public" in parts and not args.data:
        parser.error("--part public needs --data")
    found = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    for part in parts:
        if part not in found:
            found[part] = {**_about(), **_RUN[part](args, _teller())}
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _world(args: argparse.Namespace, said: accuracy.Said) -> dict[str, Any]:
    return accuracy.in_the_world(_shipped(), 6 if args.few else PAIRS, said)


def _public(args: argparse.Namespace, said: accuracy.Said) -> dict[str, Any]:
    if args.harm and args.harm.exists():
        harm = HarmVector.load(args.harm)
    else:
        harm = accuracy.harm_vector(args.model, args.data, said)
        if args.harm:
            harm.save(args.harm)
    return accuracy.of(args.model, args.data, harm, (2, 2) if args.few else PUBLIC, said)


def _arms(args: argparse.Namespace, said: accuracy.Said) -> dict[str, Any]:
    arms = Arms(FEW if args.few else Scope(), said)
    return asyncio.run(arms.measure(arms.doctors()))


_RUN: dict[str, Callable[[argparse.Namespace, accuracy.Said], dict[str, Any]]] = {
    "world": _world,
    "public": _public,
    "arms": _arms,
}


def _shipped() -> HarmVector:
    harm = ProSocial(ProSocialOptions()).decoding.harm
    assert harm is not None
    return harm


def _teller() -> accuracy.Said:
    start = time.monotonic()
    return lambda what: print(f"{time.monotonic() - start:6.0f} s  {what}", flush=True)


def _about() -> dict[str, Any]:
    return {
        "about": {
            "machine": f"{platform.machine()} CPU",
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("ttsa-guard", "torch", "transformers")},
        }
    }


if __name__ == "__main__":
    main()
