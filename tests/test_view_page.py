"""The page of reviews in a real browser."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accessibility import serious
from playwright.sync_api import expect

from ttsa_guard.pages.reviews import page as page_of
from ttsa_guard.pages.reviews import read
from ttsa_guard.record import AuditRecord, CandidateRecord

pytestmark = pytest.mark.browser

START = 1_790_000_000.0
MARKUP = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"


def record(i: int, draw: random.Random) -> AuditRecord:
    """A pass, or every seventh time a search, of which every third one finds nothing."""
    passed = AuditRecord(
        f"{i:08x}", START + 60 * i, "pass", "passed", 0.3 * draw.random(), None, seconds=0.02
    )
    if i % 7:
        return passed
    candidates = tuple(
        CandidateRecord(
            "resample",
            f"seed {n}",
            draw.random(),
            n == 2,
            n == 2,
            -draw.random(),
            () if n == 2 else ("repeats",) if i % 2 else ("short",),
            f"candidate {n} of review {i} {MARKUP}",
        )
        for n in range(8)
    )
    found = i % 3 > 0
    return replace(
        passed,
        action="swap" if found else "fallback",
        reason="steered" if found else "no good candidate",
        gate_score=0.9,
        final_score=0.1 if found else None,
        steerer="resample" if found else None,
        candidates=candidates,
        chosen=2 if found else None,
        seconds=2 + i / 100,
        seconds_gate=0.02,
        seconds_search=1.9,
        seconds_decoding=1.2,
        texts={"answer": f"the answer {MARKUP}", "final": "what the user reads"},
    )


def written(folder: Path, n: int) -> str:
    """The address of a page of `n` reviews."""
    draw = random.Random(0)
    lines = [json.dumps(record(i, draw).as_dict()) for i in range(n)]
    (folder / "audit.jsonl").write_text("\n".join(lines))
    (folder / "page.html").write_text(page_of(read(folder / "audit.jsonl", last=20_000)))
    return (folder / "page.html").as_uri()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("view"), 210)


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """The page; a script or a request that fails, or is not allowed, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found = context.new_page()
    problems: list[str] = []
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("console", lambda message: problems.append(message.text))
    found.on("request", lambda request: problems.append(request.url))
    found.goto(url)
    yield found
    assert problems == [url]
    context.close()


def rows(page: Any) -> int:
    found: int = page.locator("#reviews tbody tr").count()
    return found


def test_pages_of_the_table(page: Any) -> None:
    assert rows(page) == 50
    assert page.inner_text("#where") == "Page 1 of 5"
    for _ in range(4):
        page.click("text=Next page")
    assert (rows(page), page.inner_text("#where")) == (10, "Page 5 of 5")
    assert page.is_disabled("text=Next page")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("action", "=swap", 20),
        ("action", "=fallback", 10),
        ("reason", "=no good candidate", 10),
        ("steerer", "=resample", 20),
        ("flaw", "=short", 15),
        ("seconds", "3.0", 15),
        ("id", "000000a", 16),
    ],
)
def test_filters(page: Any, name: str, value: str, expected: int) -> None:
    field = page.locator(f"[name={name}]")
    field.select_option(value) if value.startswith("=") else field.fill(value)
    assert page.inner_text("#found") == f"{expected} of 210 reviews"
    assert rows(page) == expected
    page.click("text=Show all")
    expect(page.locator("#found")).to_contain_text("210 of")


def test_the_slowest_come_first(page: Any) -> None:
    page.select_option("[name=order]", "slowest")
    assert page.inner_text("#reviews tbody tr:first-child td:last-child") == "4.03"


def test_one_review(page: Any) -> None:
    page.select_option("[name=action]", "=swap")
    page.click("#reviews tbody a >> nth=0")
    shown = page.inner_text("#review")
    assert "decoding: 1.200 s" in shown
    assert "8 candidates" in shown
    assert page.locator("#review .curve title").count() == 9
    assert page.locator("#review tr.reference").inner_text().startswith("3 seed 2")
    page.click("summary:has-text('candidate 3')")
    assert MARKUP in page.inner_text("#review details[open] blockquote")
    assert page.evaluate("window.broken") is None
    assert page.locator("#review img").count() == 0


def test_an_answer_that_passed_has_no_search(page: Any) -> None:
    page.select_option("[name=action]", "=pass")
    page.click("#reviews tbody a >> nth=0")
    assert "No search took place." in page.inner_text("#review")


def test_the_keyboard_is_enough(page: Any) -> None:
    page.focus("[name=action]")
    page.keyboard.press("f")  # fallback
    assert page.inner_text("#found") == "10 of 210 reviews"
    page.focus("#reviews tbody a >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector("#review[open]")
    assert page.evaluate("document.activeElement.id") == "review-title"
    first = page.inner_text("#review-title")
    page.focus("text=Next review")
    page.keyboard.press("Enter")
    expect(page.locator("#review-title")).not_to_have_text(first)
    page.keyboard.press("Escape")
    page.wait_for_selector("#review", state="hidden")
    assert page.evaluate("document.activeElement.closest('#reviews') !== null")
    assert page.evaluate("location.hash") == ""


def test_a_link_to_one_review_opens_it(page: Any) -> None:
    page.evaluate("location.hash = '#line-8'")
    page.wait_for_selector("#review[open]")
    assert "00000007" in page.inner_text("#review")
    page.go_back()
    page.wait_for_selector("#review", state="hidden")


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_read_it(browser: Any, url: str, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    page.click("text=The same as numbers")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(page) == []
    page.select_option("[name=action]", "=swap")
    page.click("#reviews tbody a >> nth=0")
    dialog = page.locator("#review")
    assert dialog.evaluate("found => found.scrollWidth <= found.clientWidth")
    assert serious(page) == []
    context.close()


def test_twenty_thousand_reviews_do_not_freeze_it(browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(written(tmp_path, 20_000))
    assert "20,000 of 20,000" in page.inner_text("#found")
    started = time.monotonic()
    page.select_option("[name=action]", "=swap")
    assert page.inner_text("#found").startswith("1,905 of")
    assert time.monotonic() - started < 3
    page.close()
