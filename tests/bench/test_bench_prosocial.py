"""The study of the steerer prosocial, on a handful of prompts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES

pytest.importorskip("moocore")
ROOT = Path(__file__).parents[2]


def run(module, *words):
    command = [sys.executable, "-m", f"research.{module}", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_study_measures_what_its_card_says(tmp_path):
    for name in ATTRIBUTES:
        run("embedded.train_prosocial", "--only", name, "--scale", "0.02", "--out", tmp_path)
    file, picture = tmp_path / "s.json", tmp_path / "p.png"
    few = ["--n", 8, "--benign", 8, "--grid", 4]
    run("prosocial.study", *few, "--separate", tmp_path, "--plot", picture, "--json", file)
    found = json.loads(file.read_text())
    arms, wins, trade = found["arms"], found["win rates"]["meters"], found["trade-offs"]
    assert (
        arms["both"]["unsafe"]["value"]
        <= arms["regulation"]["unsafe"]["value"]
        < arms["base"]["unsafe"]["value"]
    )
    assert arms["refusal"]["unsafe"]["value"] == arms["refusal"]["helpful"]["value"] == 0
    assert wins["both"]["against base"]["value"] > 0.5
    assert (
        wins["both"]["against refusal"]["value"]
        >= wins["both"]["against refusal, taken as good"]["value"]
    )
    assert trade["hypervolume"]["trained"]["value"] > trade["hypervolume"]["untrained"]["value"]
    assert set(trade["points"]) == {"trained", "untrained", "separate"}
    assert picture.exists()
    for name in ATTRIBUTES:
        assert found["preferences"][name]["said"][name] > arms["both"]["said"][name]
        assert trade["direction"][name]["rise"]["value"] > 0
    cost = found["cost"]
    assert (
        cost["regulation"]["times base, guided loop"]["a token"]["value"]
        < cost["both"]["times base, guided loop"]["a token"]["value"]
    )
    assert (
        cost["bytes"]["reward model"]["in the file"]
        < cost["bytes"]["reward model"]["in use, float32"]
    )
