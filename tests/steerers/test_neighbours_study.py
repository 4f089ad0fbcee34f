"""The study of neighbours: the moderator that misses some, and an adapter that is thrown away."""

import asyncio
import json
import random
from pathlib import Path

import pytest
import torch

from research import neighbours
from research.neighbours import Missing, trained
from ttsa_guard.backends.local.controlled import fingerprint
from ttsa_guard.testing import ScriptedModerator

BAD = ["a bad text"] * 200


def flagged(moderator):
    verdicts = asyncio.run(moderator.moderate(BAD, prompts=BAD))
    return sum(verdict.flagged for verdict in verdicts)


def test_a_moderator_misses_one_flagged_text_in_five_after_its_honest_calls():
    moderator = Missing(ScriptedModerator(), 0.2, random.Random(0), honest=1)
    assert flagged(moderator) == 200
    assert flagged(moderator) == pytest.approx(160, abs=15)
    [kind] = asyncio.run(moderator.moderate(["a kind text"], prompts=[""]))
    assert kind.decision == "pass"


def test_training_on_the_pairs_leaves_the_model_as_it_was(tiny):
    model, prompt, answer = tiny._engine.model, [40, 41, 42], [50, 51, 1]
    before = fingerprint(model)

    def likelihood():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return sum(float(logits[2 + i, token]) for i, token in enumerate(answer))

    with torch.no_grad():
        plain = likelihood()
        adapter = trained(model, [(prompt, answer)])
        with adapter.attached(model):
            assert likelihood() > plain + 0.1
        assert likelihood() == plain
    assert fingerprint(model) == before


def test_the_table_adds_up_what_each_arm_did():
    rows = [
        {"arm": "none", "case": "a", "good": True, "kept": 2.0},
        {"arm": "none", "case": "b", "good": False, "kept": 1.5},
    ]
    assert neighbours.table(rows) == "none: 2 answers, good 1, kept 3.5"


def test_the_page_tells_what_was_measured():
    root = Path(__file__).parents[2]
    lines = (root / "research/results/neighbours.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]

    def total(arm, key):
        return sum(row[key] for row in rows if row["arm"] == arm)

    text = " ".join((root / "docs/steerers.md").read_text(encoding="utf-8").split())
    shown, hidden, trained = (total(arm, "good") for arm in ("in context", "none", "trained"))
    assert f"{shown} of 33 are good with up to three pairs and {hidden} without them" in text
    assert f"{trained} of 33 good, as without any pairs" in text
    bad, kept = (
        [total(arm, key) for arm in ("missing", "poisoned, missing", "poisoned, missing all")]
        for key in ("bad", "kept")
    )
    assert f"{bad[0]} of {kept[0]} kept pairs are bad" in text
    assert f"{bad[1]} of {kept[1]} are" in text
    assert f"every poisoned pair was let in ({bad[2]} of {kept[2]})" in text
    assert not any(row["flagged"] for row in rows)
