"""The page of an audit file's reviews, and the command that writes it."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
import time
import webbrowser
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ttsa_guard.audit import AuditSink
from ttsa_guard.cli import app
from ttsa_guard.record import AuditRecord, CandidateRecord

START = 1_790_000_000.0
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- \"'&{{7*7}}\u2028"
PASS = AuditRecord("p1", START, "pass", "passed", 0.1, 0.1, helpful=True, seconds=0.02)
SWAP = AuditRecord(
    "s1",
    START + 3600,
    "swap",
    "steered",
    0.9,
    0.0,
    helpful=True,
    steerer="resample",
    candidates=(
        CandidateRecord("resample", "opening 1", 0.0, True, True, 0.0),
        CandidateRecord("resample", "opening 2", 0.7, False, False, None, ("short", "echo")),
    ),
    chosen=0,
    generations=2,
    seconds=1.5,
    seconds_search=1.2,
)
FALLBACK = replace(PASS, id="f1", action="fallback", reason="no good candidate", helpful=False)


class Parsed(HTMLParser):
    """Tags with their attributes, and the contents of the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


def audited(folder: Path, *records: AuditRecord) -> Path:
    file = folder / "audit.jsonl"
    for record in records:
        AuditSink(file).write(record)
    return file


def view(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["view", *map(str, arguments)])


def page(folder: Path, *records: AuditRecord, arguments: tuple[Any, ...] = ()) -> Parsed:
    to = folder / "page.html"
    result = view(audited(folder, *records), "--html", to, *arguments)
    assert result.exit_code == 0, result.output
    return Parsed(to.read_text(encoding="utf-8"))


# ---------------------------------------------------------------------- the page


def test_nothing_in_an_audit_becomes_markup_or_a_script(tmp_path: Path) -> None:
    texts = {HOSTILE: HOSTILE, "answer": HOSTILE}
    candidate = CandidateRecord(HOSTILE, HOSTILE, 0.5, True, True, None, (HOSTILE,), HOSTILE)
    hostile = replace(
        SWAP,
        id=HOSTILE,
        reason=HOSTILE,
        steerer=HOSTILE,
        gate_categories={HOSTILE: 0.5},
        candidates=(candidate,),
        texts=texts,
    )
    found = page(tmp_path, PASS, hostile)
    assert [attributes.get("type") for tag, attributes in found.tags if tag == "script"] == [
        "application/json",
        None,
    ]
    assert "img" not in {tag for tag, _ in found.tags}
    assert not [n for _, attributes in found.tags for n in attributes if n.startswith("on")]
    review = found.data[1]
    assert (review["id"], review["reason"], review["texts"]) == (HOSTILE, HOSTILE, texts)
    assert review["candidates"][0]["text"] == HOSTILE
    values = [attributes["value"] for tag, attributes in found.tags if tag == "option"]
    assert values.count(f"={HOSTILE}") == 3  # reason, steerer, flaw


def test_a_hostile_name_of_the_file_is_text(tmp_path: Path) -> None:
    file = audited(tmp_path, PASS).rename(tmp_path / "<script>alert(1)<!-- &amp;.jsonl")
    view(file, "--html", tmp_path / "page.html")
    found = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(found.scripts) == 2
    assert "<script>alert(1)<!-- &amp;.jsonl" in found.text


def test_the_page_loads_nothing_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    found = page(tmp_path, SWAP)
    assert not [n for _, attributes in found.tags for n in attributes if n in ("src", "href")]
    assert {"link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in found.tags)
    [policy] = [a["content"] for _, a in found.tags if "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(found.scripts[1].encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_every_review_is_in_it_with_its_line(tmp_path: Path) -> None:
    found = page(tmp_path, PASS, SWAP).data
    assert [(r["line"], r["action"]) for r in found] == [(1, "pass"), (2, "swap")]
    assert found[1]["candidates"][1]["flaws"] == ["short", "echo"]


def test_zeros_that_mean_something_are_kept(tmp_path: Path) -> None:
    [review] = page(tmp_path, SWAP).data
    assert (review["chosen"], review["final_score"]) == (0, 0.0)
    assert review["candidates"][0]["log_likelihood"] == 0.0
    assert review["candidates"][1]["log_likelihood"] is None


def test_texts_are_in_it_only_if_the_audit_has_them(tmp_path: Path) -> None:
    assert "protect" not in page(tmp_path, SWAP).text
    found = page(tmp_path, replace(SWAP, texts={"answer": "a plain text"}))
    assert "protect this page" in found.text
    assert "texts" not in found.data[0]
    assert found.data[1]["texts"] == {"answer": "a plain text"}


def test_a_lone_surrogate_does_not_stop_it(tmp_path: Path) -> None:
    assert page(tmp_path, replace(SWAP, texts={"answer": "a\ud800b"})).data[0]["texts"] == {
        "answer": "a?b"
    }


def test_only_the_last_reviews_are_kept_but_all_are_counted(tmp_path: Path) -> None:
    found = page(tmp_path, PASS, PASS, PASS, SWAP, arguments=("--last", 2))
    assert [r["line"] for r in found.data] == [3, 4]
    assert "4 reviews" in found.text
    assert "Here are the last 2 of 4 reviews" in found.text


def test_lines_of_another_format_are_counted_and_told(tmp_path: Path) -> None:
    file = audited(tmp_path, PASS)
    others = ["plain", "[1]", json.dumps({**SWAP.as_dict(), "candidates": "none"})]
    file.write_text("\n".join([*others, file.read_text(encoding="utf-8")]), encoding="utf-8")
    result = view(file, "--html", tmp_path / "page.html")
    assert "3 lines of" in result.stderr
    text = Parsed((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "Left out, no audit records: 3 lines (1, 2, 3)." in text


def test_a_time_that_no_calendar_has_is_no_record(tmp_path: Path) -> None:
    file = audited(tmp_path, PASS, replace(PASS, created=1e300), replace(PASS, created=-1.0))
    assert json.loads(view(file, "--json").stdout)["skipped"] == 2


def test_many_reviews_are_written_in_a_moment(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    line = json.dumps(PASS.as_dict()) + "\n"
    file.write_text(line * 20_000, encoding="utf-8")
    started = time.process_time()
    assert view(file, "--html", tmp_path / "page.html").exit_code == 0
    assert time.process_time() - started < 20
    assert (tmp_path / "page.html").stat().st_size < 6_000_000


# ---------------------------------------------------------------------- trends


def bars(found: Parsed) -> list[tuple[str, str]]:
    return [(a["x"] or "", a["height"] or "") for tag, a in found.tags if tag == "rect"]


def test_trends_by_hour(tmp_path: Path) -> None:
    found = page(tmp_path, PASS, PASS, SWAP, FALLBACK)
    assert "By hour" in found.text
    # reviews: three in the first hour, one in the second; flagged, swapped, fallback: one bar each
    assert bars(found) == [
        ("0", "40.0"),
        ("1", "13.33"),
        ("0", "40.0"),
        ("1", "40.0"),
        ("1", "40.0"),
        ("0", "40.0"),
    ]
    assert "swapped: 1 at most 1 in one hour" in " ".join(found.text.split())


def test_trends_of_long_times_are_by_day(tmp_path: Path) -> None:
    late = replace(PASS, created=START + 400 * 86400)
    found = page(tmp_path, PASS, late, replace(late, created=late.created - 86400))
    assert "By day" in found.text
    assert "earlier reviews are not charted" in found.text
    assert [x for x, _ in bars(found)] == ["364", "365"]


# ---------------------------------------------------------------------- the command


def test_counts_as_json(tmp_path: Path) -> None:
    result = view(audited(tmp_path, PASS, PASS, SWAP, FALLBACK), "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert {action: counts["count"] for action, counts in found["actions"].items()} == {
        "pass": 2,
        "swap": 1,
        "fallback": 1,
    }
    assert found["hours"] == [
        {"hour": "2026-09-21 14:00 UTC", "reviews": 3, "flagged": 1, "swapped": 0, "fallback": 1},
        {"hour": "2026-09-21 15:00 UTC", "reviews": 1, "flagged": 1, "swapped": 1, "fallback": 0},
    ]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The addresses that the browser is asked to open; pages go to a folder of the test."""
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(asked.append(url)) or len(asked) < 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return asked


def test_it_opens_the_page_in_the_browser(tmp_path: Path, opened: list[str]) -> None:
    first, second = (view(audited(tmp_path, PASS)) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    [file, _] = [Path(url.removeprefix("file://")) for url in opened]
    assert "reviews" in file.read_text(encoding="utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"opened {file}" in first.stderr
    assert "no browser was found; open /" in second.stderr


@pytest.mark.parametrize("arguments", [("--no-open",), ("--html", "page.html")])
def test_it_opens_nothing(
    arguments: tuple[str, ...],
    tmp_path: Path,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = view(audited(tmp_path, PASS), *arguments)
    written = Path(result.stderr.split("written: ")[1].strip())
    assert "<h1>Reviews</h1>" in written.read_text(encoding="utf-8")
    assert opened == []


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (None, "cannot read", "audit.path"),
        ("", "has no audit records; it is empty", "audit: {path: FILE}"),
        ("a,b\n1,2\n", "none of its 2 lines is one", "audit: {path: FILE}"),
        ('{"schema": 999}', "line 1: written by a newer version", "pip install -U"),
    ],
)
def test_files_of_no_use(content: str | None, message: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    if content is not None:
        file.write_text(content)
    result = view(file, "--html", tmp_path / "page.html")
    told = " ".join(result.stderr.split())
    assert result.exit_code == 2
    assert message in told
    assert hint in told
    assert "audit.jsonl" in told
    assert not (tmp_path / "page.html").exists()


def test_the_audit_is_not_overwritten(tmp_path: Path) -> None:
    file = audited(tmp_path, PASS)
    before = file.read_bytes()
    result = view(file, "--html", file)
    assert (result.exit_code, file.read_bytes()) == (2, before)
    assert "would overwrite" in result.stderr


def test_a_page_in_no_folder(tmp_path: Path) -> None:
    result = view(audited(tmp_path, PASS), "--html", tmp_path / "none" / "page.html")
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr
    assert "hint: make it first, or change --html" in result.stderr
