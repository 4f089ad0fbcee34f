"""The study of the steerer prosocial, on a handful of prompts."""

import json
import subprocess
import sys

import pytest

from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES


@pytest.mark.slow
def test_the_study_measures_what_its_card_says(tmp_path):
    command = [
        sys.executable,
        "-m",
        "ttsa_guard.bench.prosocial",
        "--n",
        "8",
        "--benign",
        "8",
        "--json",
        str(tmp_path / "s.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "s.json").read_text())
    arms = found["arms"]
    assert arms["both"]["unsafe"]["value"] <= arms["regulation"]["unsafe"]["value"] < arms["base"]["unsafe"]["value"]
    for name in ATTRIBUTES:
        assert found["preferences"][name]["said"][name] > arms["both"]["said"][name]
