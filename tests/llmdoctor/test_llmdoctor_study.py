"""The study of LLMdoctor on a handful of prompts of the embedded model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_study_measures_faces_and_arms(tmp_path):
    file = tmp_path / "study.json"
    command = [sys.executable, "-m", "research.llmdoctor.study", "--few", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert set(found) == {"world", "arms"}
    faces = found["world"]["test"]
    weights = faces["weights"]["mean of sources"]["mean, all tokens"]["value"]
    assert weights > faces["the shorter"]["mean of sources"]["mean, all tokens"]["value"] == 0.5
    arms = found["arms"]["arms"]
    assert arms["the model"]["good"]["value"] < arms["prosocial"]["good"]["value"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stdout) == (0, "")  # what is measured is not measured again
