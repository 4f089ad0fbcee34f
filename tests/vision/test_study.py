"""What the documentation says of masking and poisoning is what was measured, and can be again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from research.vision.masking import compared
from research.vision.poisoning import LEARNS, attacked
from research.vision.study import RESULTS, masking_table, poisoning_table
from tests.pages import DOCS

MEASURED: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
TDA = "both caches, as TDA"


def test_the_tables_of_the_page_are_those_that_were_measured() -> None:
    page = (DOCS / "moderators.md").read_text(encoding="utf-8")
    poisoned = poisoning_table(MEASURED["ordinary"], MEASURED["poisoning"])
    for table in (masking_table(MEASURED["masking"]), poisoned):
        assert "\n".join(table) in page


def test_no_attack_that_was_measured_went_beyond_its_bound() -> None:
    for found in MEASURED["poisoning"].values():
        for bound, after in found.items():
            assert after["fall"] <= float(bound)


def test_without_the_bound_an_attacker_moves_an_unsafe_image_and_with_it_not_further() -> None:
    free, bounded = (attacked(LEARNS[TDA], bound, targets=2, steps=4) for bound in (1.0, 0.1))
    assert free["before"] == bounded["before"] > 0.75
    assert free["fall"] > 0.3
    assert free["resets"] == 0
    assert bounded["fall"] <= 0.1
    assert bounded["passed"] == 0


@pytest.mark.slow
def test_the_ways_to_mask_differ_again_as_they_did() -> None:
    found = compared(16, images=12)
    for way, measured in MEASURED["masking"]["16"].items():
        assert abs(found[way]["lowest"] - measured["lowest"]) < 0.25, way
    assert found["paper, even weights"]["constant"] == 1.0
