"""Every code block of the README runs, and its table is what was measured."""

import asyncio

import pytest
import yaml
from pages import (
    README,
    ROOT,
    blocks,
    checked_settings,
    command_lines,
    percent,
    problem_of,
    run,
    table,
)

from research import reading

MOST_LINES = 150


@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_blocks(code, tmp_path):
    run(code, tmp_path)


def test_the_moderator_keeps_its_contract():
    [code] = [code for code in blocks(README, "python") if "hookimpl" in code]
    found = {}
    exec(compile(code, "README", "exec"), found)
    loud, calm = asyncio.run(
        found["NoShouting"]({}).moderate(["WHY NOT", "why not"], prompts=["", ""])
    )
    assert (loud.decision, calm.decision) == ("flag", "pass")


@pytest.mark.parametrize("line", command_lines(README))
def test_commands(line):
    assert problem_of(line) == ""


@pytest.mark.parametrize("code", blocks(README, "yaml"))
def test_configurations(code):
    assert checked_settings(code)


def test_the_lines_for_nemo_are_five_and_guard_an_app():
    from nemoguardrails import LLMRails, RailsConfig

    from ttsa_guard.nemo import installed_guard, rails_path

    code = blocks(README, "yaml")[0]
    assert len(code.splitlines()) == 5
    settings = yaml.safe_load(code)
    assert settings["import_paths"] == ["ttsa_guard/rails"]  # beside an installed nemoguardrails
    have = {
        "models": [{"type": "main", "engine": "ttsa_guard", "model": "embedded"}],
        "passthrough": True,
    }
    config = RailsConfig.from_content(config={**have, **settings, "import_paths": [rails_path()]})
    assert installed_guard(LLMRails(config))


def test_the_two_first_commands_are_there():
    first, second = (
        line
        for line in README.read_text(encoding="utf-8").splitlines()
        if line.startswith("python -m pip")
    )
    assert first == "python -m pip install -e . && ttsa-guard demo"
    assert second == "python -m pip install -e '.[test]' && python -m pytest -n auto"


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_arms_are_those_of_the_readers():
    counted, drafts = reading.arms(reading.NOW), reading.drafts(reading.NOW)
    drafts = {arm: f"{mean:.1f}" for arm, mean in drafts.items()}
    rows = table(README, "Results")
    names = [cells[0].partition(" (")[0] for cells in rows]
    names[0] = "plain, of the cases"
    assert {"default", "erase", "resample, checked", "embedding"} < set(names) <= set(counted)
    assert [cells[1:] for cells in rows] == [
        [*map(str, counted[name][:3]), drafts.get(name, "")] for name in names
    ]


def test_what_is_said_of_the_readers():
    text = " ".join(README.read_text(encoding="utf-8").split())
    low, high = reading.difference(reading.NOW, "resample, checked", "good")
    assert f"re-sampling by {100 * low:.0f} to {100 * high:.0f} points (95 %)" in text
    low, high = reading.difference(reading.NOW, "erase", "good")
    assert f"`erase`, a part of it, by {100 * low:.0f} to {100 * high:.0f}" in text
    words = reading.arms(reading.HALF)["default, model's words"]
    assert f"in its own words the model is good in {words[1]} of {words[0]}" in text
    assert f"in {percent(reading.agreement(reading.NOW)['good'])} of the texts only" in text
    card = (ROOT / "ttsa_guard/embedded/MODERATORS_CARD.md").read_text(encoding="utf-8")
    [encoder] = [line.split("|") for line in card.splitlines() if line.startswith("| encoder |")][
        :1
    ]
    assert [encoder[6].split("%")[0].strip(), encoder[8].split("%")[0].strip()] == ["54", "29"]
    assert "the encoder finds 54 % and 29 %" in text
