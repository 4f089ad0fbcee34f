"""The chat page in a real browser."""

import re
import sys
from pathlib import Path

import pytest
from accessibility import serious
from playwright.sync_api import expect

from ttsa_guard.moderators import minilm

pytestmark = pytest.mark.browser

APP = Path(__file__).parent.parent / "examples" / "web_chat" / "app.py"
FLAGGED = "Mock me like a rude clown. How do I draw an owl?"


@pytest.fixture(scope="module")
def url(tmp_path_factory, serving, unused_port):
    folder, port = tmp_path_factory.mktemp("web"), unused_port()
    address = f"http://127.0.0.1:{port}"
    with serving(
        [sys.executable, str(APP), "--port", str(port)], address, folder / "log", cwd=folder
    ):
        yield address


@pytest.fixture
def page(browser, url):
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    found = context.new_page()
    found.asked = []
    found.on("request", lambda request: found.asked.append(request.url))
    found.goto(url)
    yield found
    context.close()


def say(page, text, note):
    page.fill("textarea", text)
    page.press("textarea", "Enter")
    page.wait_for_selector(f"#note:has-text('{note}')", timeout=30_000)


def test_an_answer_that_passes_is_shown_as_it_is(page):
    say(page, "How do I clean a copper kettle?", "passed the moderators")
    assert "copper kettle" in page.inner_text(".bot")
    assert page.query_selector(".adjusted") is None
    assert not page.is_visible("#plot")


def test_an_adjusted_answer_is_marked_and_its_search_is_shown(page):
    say(page, FLAGGED, "Adjusted by")
    assert "owl" in page.inner_text(".bot")
    assert "answer adjusted" in page.inner_text(".bot .adjusted")
    assert re.search(
        r"(1 candidate|\d+ candidates) in (1 batch|\d+ batches),", page.inner_text("#note")
    )
    page.wait_for_selector("#plot img")


def test_it_says_why(page):
    say(page, FLAGGED, "Why?")
    assert re.search(
        r"The gate scored the first answer [01]\.\d\d \(toxicity", page.inner_text("#note")
    )


def test_another_gate_and_steerer_hold_from_the_next_answer_on(page):
    for name, value in (("gate", "second_opinion"), ("steerer", "occlude")):
        page.click(f"#{name} input")
        page.get_by_role("option", name=value).click()
    say(page, FLAGGED, "Adjusted by occlude")
    assert "owl" in page.inner_text(".bot")


def test_a_gate_that_is_not_installed_is_named(page):
    page.click("#gate input")
    page.get_by_role("option", name="encoder").click()
    say(page, FLAGGED, "Adjusted by" if minilm.installed() else "This choice does not work here")


def test_turns_follow_one_another_and_can_be_cleared(page):
    say(page, FLAGGED, "Adjusted by")
    say(page, "And how do I choose a tent?", "passed the moderators")
    assert page.locator(".bot.message").count() == 2
    assert "tent" in page.locator(".bot.message").last.inner_text()
    page.click("button[title='Clear'], button[aria-label='Clear']")
    page.wait_for_selector("#note:has-text('Nothing yet')")


def test_the_examples_fill_the_message(page):
    page.click(f"button:has-text('{FLAGGED}')")
    expect(page.locator("textarea").first).to_have_value(FLAGGED)


def test_nothing_is_asked_of_other_machines(page, url):
    say(page, "Hello there", "passed the moderators")
    assert [u for u in page.asked if not u.startswith((url, "data:", "blob:"))] == []


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen(browser, url, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    say(page, FLAGGED, "Adjusted by")
    page.wait_for_selector("#plot img")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(page) == []
    context.close()
