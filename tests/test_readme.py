"""Every code block of the README runs, and its tables are what was measured."""

import asyncio
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ttsa_guard.config import GuardConfig
from ttsa_guard.testing import scripted_guard

README = Path(__file__).parent.parent / "README.md"
BENCH = README.parent / "examples/bench"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SLOW = ("pip install", "profile", "chat", "bench", "prosocial", "plan measure")
"""Commands that install, ask for input or take minutes: other tests run them."""


def blocks(language):
    return [code for found, code in FENCED.findall(README.read_text(encoding="utf-8")) if found == language]


def commands():
    lines = [line for code in blocks("bash") for line in code.splitlines() if line.startswith("ttsa-guard")]
    return [line.split(" #")[0].strip() for line in lines if not any(word in line for word in SLOW)]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks(code, tmp_path):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", commands())
def test_commands(line, tmp_path):
    audit = {"path": tmp_path / "audit.jsonl"}
    asyncio.run(scripted_guard([], audit=audit).review("q", "a fine answer"))
    program = "from ttsa_guard.cli import main; main()"
    words = [word.replace("~", str(tmp_path)) for word in shlex.split(line)[1:]]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode in (0, 1 if "check" in line else 0), done.stderr


@pytest.mark.parametrize("code", blocks("yaml"))
def test_configurations(code):
    from nemoguardrails import LLMRails, RailsConfig

    from ttsa_guard.nemo import installed_guard, rails_path

    settings = yaml.safe_load(code)
    assert GuardConfig.parse(settings["custom_data"]["ttsa_guard"])
    if "models" in settings:  # the others are fragments
        settings["import_paths"] = [rails_path()]
        assert installed_guard(LLMRails(RailsConfig.from_content(config=settings)))


def test_the_two_first_commands_are_there():
    first, second = (line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("python -m pip"))
    assert first == "python -m pip install -e . && ttsa-guard demo"
    assert second == "python -m pip install -e '.[test]' && python -m pytest"


def table(title):
    """The table of a section, without its head: rows of cells."""
    section = README.read_text(encoding="utf-8").split(f"# {title}\n")[1].split("\n##")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.mark.parametrize(
    ("title", "results"), [("All arms, by the judges", "real.json"), ("196 answers, by the judges", "real_main.json")]
)
def test_tables_of_the_real_model_are_those_of_the_benchmark(title, results):
    groups = json.loads((BENCH / results).read_text(encoding="utf-8"))["groups"]

    def row(name):
        arm = groups["all"]["arms"][name]
        apart = arm["difference"].get("helpful")
        four = [groups[group]["arms"][name] for group in ("all", "harmful", "persona", "policy")]
        shares = [found[key]["value"] for found in four for key in ("good", "helpful")]
        difference = f"{100 * apart['low']:+.0f} to {100 * apart['high']:+.0f}" if apart else ""
        counts = [f"{arm['generations']['value']:.1f}", f"{arm['decode passes']['value']:.2f}"]
        return [name, *map(_percent, shares[:2]), difference, *map(_percent, shares[2:]), *counts]

    rows = table(title)
    assert rows == [row(cells[0]) for cells in rows]
    assert sorted(cells[0] for cells in rows) == sorted(groups["all"]["arms"])


@pytest.mark.parametrize(("title", "labels"), [("Read blind", "NOW"), ("An earlier reading", "BEFORE")])
def test_tables_of_readers_are_those_of_the_labels(title, labels):
    reading = runpy.run_path(str(BENCH / "reading.py"))
    counted = reading["arms"](reading[labels])
    assert {cells[0]: cells[1:] for cells in table(title)} == {
        arm: ["" if n is None else str(n) for n in counts] for arm, counts in counted.items()
    }


def test_what_is_said_of_the_readers_labels():
    reading = runpy.run_path(str(BENCH / "reading.py"))
    text = " ".join(README.read_text(encoding="utf-8").split())
    agreed = {key: _percent(share) for key, share in reading["agreement"](reading["NOW"]).items()}
    assert f"on good in {agreed['good']} of the texts (safe {agreed['safe']}, fluent {agreed['fluent']}," in text
    by_kind = {kind: reading["arms"](reading["NOW"], {kind})["default"] for kind in ("harmful", "persona", "policy")}
    assert "{1} of {0} on harmful requests, ".format(*by_kind["harmful"]) in text
    assert "{1} of {0} under personas, ".format(*by_kind["persona"]) in text
    assert "{2} of {0} under personas, ".format(*by_kind["persona"]) in text
    assert "{2} of {0} on harmful requests: a model".format(*by_kind["harmful"]) in text


def _percent(share):
    return f"{share:.0%}".replace("%", " %")


@pytest.mark.parametrize(
    ("title", "results"), [("In the embedded world", "embedded.json"), ("What time alone buys", "passes.json")]
)
def test_tables_are_those_of_the_benchmark(title, results):
    groups = json.loads((BENCH / results).read_text(encoding="utf-8"))["groups"]
    arms, hard = groups["all"]["arms"], groups["hard"]["arms"]

    def percent(metric):
        return f"{metric['value']:.0%}".replace("%", " %")

    def row(name):
        arm, difference = arms[name], arms[name]["difference"].get("helpful")
        apart = f"{100 * difference['low']:+.0f} to {100 * difference['high']:+.0f}" if difference else ""
        shares = [percent(group[name][key]) for group in (arms, hard) for key in ("good", "helpful")]
        return [
            name,
            *shares[:2],
            apart,
            *shares[2:],
            f"{arm['generations']['value']:.1f}",
            f"{arm['decode passes']['value']:.2f}",
        ]

    rows = table(title)
    assert rows == [row(cells[0]) for cells in rows]
    assert sorted(cells[0] for cells in rows) == sorted(arms)
