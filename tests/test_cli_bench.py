"""``ttsa-guard bench`` from end to end, on the embedded model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ttsa_guard.cli import app


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick benchmark, which is stopped after two arms and goes on."""
    out = tmp_path_factory.mktemp("bench") / "results"
    for arms in (["--arm", "base", "--arm", "refuse"], []):
        done = run("run", "quick", "--n", 2, "--out", out, *arms)
        assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    done = run("report", folder, "--json")
    assert done.exit_code == 0
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_folder(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"meta.json", "cases.jsonl", "rows.jsonl"}
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["command"] == "ttsa-guard bench run quick --n 2 --out DIR"
    assert (meta["config"]["n"], meta["seed"]) == (2, 1)
    assert {"ttsa-guard", "python", "torch", "transformers", "nemoguardrails"} <= meta[
        "versions"
    ].keys()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for another process")
def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(tmp_path: Path) -> None:
    # A shell may start its background jobs, and so this suite, deaf to Ctrl-C.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from ttsa_guard.cli import main; main()"
    )
    rows = tmp_path / "rows.jsonl"
    words = ["bench", "run", "quick", "--n", "1", "--out", str(tmp_path)]
    stopped = subprocess.Popen(
        [sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not (rows.exists() and rows.read_bytes()) and time.monotonic() < until:
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _, told = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert told == ("stopped: the results so far are kept; the same command goes on from there\n")
    before = rows.read_text(encoding="utf-8")
    assert run("report", tmp_path, "--json").exit_code == 0
    done = run(*words[1:])
    assert done.exit_code == 0, done.output
    after = rows.read_text(encoding="utf-8")
    assert after.startswith(before)
    assert len(after) > len(before)
    keys = [(row["arm"], row["case"]) for row in map(json.loads, after.splitlines())]
    assert len(keys) == len(set(keys))
    assert json.loads(run("report", tmp_path, "--json").stdout)["missing"] == {}


def test_the_report_needs_no_model(folder: Path) -> None:
    program = f"""
import sys
from ttsa_guard.cli import main
sys.argv[1:] = ["bench", "report", {str(folder)!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "transformers", "nemoguardrails", "matplotlib", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_what_it_finds(summary: dict[str, Any]) -> None:
    arms = summary["groups"]["all"]["arms"]
    assert list(arms) == ["base", "refuse", "resample 1.0", "default"]
    assert arms["base"]["unsafe"]["value"] == 1
    assert arms["refuse"]["good"]["value"] == arms["refuse"]["swapped"]["value"] == 0
    assert arms["default"]["good"]["value"] >= 0.5
    assert arms["resample 1.0"]["generations"]["value"] == 16
    assert arms["default"]["tokens"]["value"] > 20
    assert arms["default"]["times a plain generation"]["value"] > 1
    assert all(
        0 <= arms[arm]["flagged by the gate after"]["value"] <= 0 for arm in arms if arm != "base"
    )
    assert summary["missing"] == {}


def test_tables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = run("report", folder)
    assert done.exit_code == 0
    for heading in ("all (", "content (", "benign prompts ("):
        assert f"\n{heading}" in f"\n{done.stdout}"


class Page(HTMLParser):
    """Checks that elements are closed in order, and that nothing is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    path = folder.parent / "report.html"
    assert run("report", folder, "--html", path).exit_code == 0
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing(html: str) -> None:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert page.seen.count("svg") == 6
    assert not {"script", "link", "img"} & set(page.seen)
    assert len(set(page.ids)) == len(page.ids)
    assert page.addresses
    assert {address.removeprefix("#") for address in page.addresses} <= set(page.ids)
    assert "@import" not in html


def test_the_page_says_what_was_run(html: str) -> None:
    assert "ttsa-guard bench run quick --n 2 --out DIR" in html
    assert "helpful against default" in html
    assert "$" not in html


def test_no_texts_are_in_reports(folder: Path, html: str, summary: dict[str, Any]) -> None:
    cases = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    for case in cases:
        assert case["answer"] not in html + json.dumps(summary)
        assert case["item"]["question"] not in html + json.dumps(summary)


def test_another_benchmark_is_not_mixed_in(folder: Path) -> None:
    done = run("run", "quick", "--n", 3, "--out", folder)
    assert done.exit_code == 2
    assert "another n" in done.stderr
    assert "--out" in done.stderr


def test_a_folder_without_results(tmp_path: Path) -> None:
    done = run("report", tmp_path)
    assert done.exit_code == 2
    assert "has no benchmark" in done.stderr


def test_a_page_in_no_folder(folder: Path) -> None:
    done = run("report", folder, "--html", folder / "none" / "page.html")
    assert done.exit_code == 2
    assert "there is no folder" in done.stderr


def test_an_arm_that_fails_is_told(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(
        "data: embedded\nn: 1\nreference: base\narms: {base: null, broken: {steerers:"
        " [no_such_plugin]}}\n"
    )
    done = run("run", config, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "arm broken failed: no plugin named 'no_such_plugin'" in done.stderr
    shown = run("report", tmp_path / "out")
    assert shown.exit_code == 0
    assert "not finished, start the run again: broken" in shown.stderr
