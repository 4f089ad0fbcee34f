"""Ten thousand broken conversations, in a process of their own.

``python -m pytest -m soak -s`` runs them all and prints one JSON line; the variable
SOAK_CONVERSATIONS makes it fewer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from .faults import KINDS
from .finder import CANARY
from .run import CANCELLED, cases
from .ways import WAYS

ENOUGH = 10_000
SECONDS = 3600.0
FLAT = 1.05


def test_the_cases_are_all_kinds_of_conversations() -> None:
    drawn = cases(10**6, 1)
    assert len(drawn) >= ENOUGH
    assert min(map(len, KINDS.values())) >= 25
    assert {(c.version, c.way, c.part) for c in drawn} == set(product(("1.0", "2.x"), WAYS, KINDS))
    assert set(Counter((c.version, c.way, c.part, c.kind) for c in drawn).values()) == {3}
    assert len({c.canary for c in drawn}) == len(drawn)
    assert abs(sum(c.cancel is not None for c in drawn) / len(drawn) - CANCELLED) < 0.02


def test_the_cases_are_reproducible() -> None:
    assert [c.name for c in cases(100, 7)] == [c.name for c in cases(100, 7)]
    assert [c.name for c in cases(100, 7)] != [c.name for c in cases(100, 8)]


@pytest.mark.soak
def test_soak(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = min(int(os.environ.get("SOAK_CONVERSATIONS", 10**6)), len(cases(10**6, 1)))
    command = [sys.executable, "-m", "tests.soak.run", "--conversations", str(wanted)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, CANARY.sub("...", done.stderr)[-2000:]
    [line] = done.stdout.splitlines()
    with capsys.disabled():
        print(line)
    found = json.loads(line)
    assert not CANARY.findall(done.stderr)
    bad = {name: found[name] for name in ("leaks", "odd", "escaped", "hung", "tasks_left")}
    assert bad == dict.fromkeys(bad, 0), json.dumps(found["found"], indent=1)
    assert found["conversations"] == wanted
    assert found["ends"]["swap"] > wanted / 10
    assert found["memory"] <= FLAT
    assert found["threads"] <= FLAT
