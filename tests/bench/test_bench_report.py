"""Reports of results that are out of the ordinary."""

import asyncio

import pytest
from accessibility import serious

from ttsa_guard.bench.files import SCHEMA, RunMeta
from ttsa_guard.bench.measure import Estimate, Results
from ttsa_guard.bench.tables import figures, tables
from ttsa_guard.pages.benchmark import page


def test_names_of_arms_are_no_markup(bench, tmp_path):
    name = "[red]<b>$x$ & 'y'"
    asyncio.run(bench.run(arms={name: {"steerers": ["resample"]}}, reference=name))
    summary = Results.load(tmp_path / "out").summary()
    text = page(summary)
    assert "<b>$x$" not in text
    assert "1 [red]&lt;b&gt;$x$ &amp; &#39;y&#39;" in text
    assert [str(cell) for table in tables(summary) for cell in table.columns[0].cells] == [name] * 5


def test_nothing_was_flagged(bench, tmp_path):
    asyncio.run(bench.run(settings={"gate": "lenient", "guide": "lenient"}))
    summary = Results.load(tmp_path / "out").summary()
    assert summary.groups == {}
    assert "0 flagged answers" in page(summary)
    assert len(list(tables(summary))) == 1


@pytest.mark.parametrize(
    ("sources", "told", "untold"),
    [
        (["embedded", "embedded_joined"], "The embedded world judges", "is judged by"),
        (
            ["embedded", "xstest"],
            "The safety of other answers is judged by judge",
            "of all answers",
        ),
        (["xstest"], "The safety of all answers is judged by judge", "embedded world"),
    ],
)
def test_the_page_says_who_judges(bench, sources, told, untold):
    runner = bench.runner(data=[{"name": name} for name in sources])
    meta = RunMeta(SCHEMA, "it", runner.config.model_dump(mode="json"), {}, "cpu", seed=1)
    text = page(Results(meta, (), {}).summary())
    assert told in text
    assert untold not in text


@pytest.mark.parametrize(
    ("how", "shown"),
    [
        ("share", ("50", "6", "100")),
        ("difference", ("+50", "+6", "+100")),
        ("mean", ("0.5", "0.1", "1.0")),
        ("median", ("0.50", "0.06", "1.00")),
    ],
)
def test_how_numbers_are_written(how, shown):
    assert figures(how, Estimate(0.5, 0.06, 1.0)) == shown


@pytest.mark.browser
def test_the_page_can_be_read_by_everyone(bench, tmp_path, request):
    asyncio.run(bench.run())
    (tmp_path / "page.html").write_text(page(Results.load(tmp_path / "out").summary()))
    browser = request.getfixturevalue("browser")  # now: event loops were run before
    for width in (360, 768, 1280):
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme
            )
            shown = context.new_page()
            shown.goto((tmp_path / "page.html").as_uri())
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            assert serious(shown) == []
            context.close()
