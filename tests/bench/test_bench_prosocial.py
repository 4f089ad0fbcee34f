"""The study of the steerer prosocial, on a handful of prompts."""

import json
import sys

import pytest

from ttsa_guard.steerers.prosocial.preferences import ATTRIBUTES

pytest.importorskip("moocore")


@pytest.mark.slow
def test_the_study_measures_what_its_card_says(tmp_path, monkeypatch):
    from research.embedded import train_prosocial
    from research.prosocial import study

    def run(main, *words):
        """In this process: another one would spend most of its time on imports."""
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, words)])
        main()

    for name in ATTRIBUTES:
        run(train_prosocial.main, "--only", name, "--scale", "0.02", "--out", tmp_path)
    file, picture = tmp_path / "s.json", tmp_path / "p.png"
    few = ["--n", 8, "--benign", 8, "--grid", 3, "--timed", 2]
    run(study.main, *few, "--separate", tmp_path, "--plot", picture, "--json", file)
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
