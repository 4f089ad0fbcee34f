"""The documentation: every code block runs or is looked up, tables are what was measured, and links
lead somewhere."""

import asyncio
import re
import shlex

import pytest
from pages import (
    DOCS,
    FENCED,
    README,
    ROOT,
    blocks,
    checked_settings,
    command_lines,
    measured,
    percent,
    problem_of,
    renamed,
    run,
    table,
)
from typer.testing import CliRunner

from research import reading
from ttsa_guard.cli import app
from ttsa_guard.config import GuardConfig
from ttsa_guard.moderators.measured import MEASURED
from ttsa_guard.steerers.concise import ConciseOptions
from ttsa_guard.testing import scripted_guard

WRITTEN = """
    index quickstart nemo moderators steerers decoding deployment security threat-model
    troubleshooting results prosocial architecture
""".split()
"""Pages that are neither generated nor walk-throughs: those have tests of their own."""
ELSEWHERE = {"api.md", "cli.md", "configuration.md", "existing-app.md", "plugins.md"}
PAGES = [DOCS / f"{name}.md" for name in WRITTEN]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "research" / "README.md"]
ALL = [README, ROOT / "SECURITY.md", *OTHERS, *PAGES]
RESULTS_PAGE = DOCS / "results.md"
QUICKSTART = DOCS / "quickstart.md"
SLOW = ("pip install", "pytest", "demo", "profile", "chat", "bench", "plan")
"""Commands of the quickstart that install, ask for input or take minutes: other tests run them."""


def of(pages, what, language=None):
    """The blocks or command lines of pages as parameters, by the page's name."""
    found = [
        (page.stem, item)
        for page in pages
        for item in (what(page, language) if language else what(page))
    ]
    return [pytest.param(item, id=f"{name}-{i}") for i, (name, item) in enumerate(found)]


@pytest.mark.parametrize("code", of(PAGES, blocks, "python"))
def test_python_blocks(code, tmp_path):
    run(code, tmp_path)


@pytest.mark.parametrize("code", of(PAGES, blocks, "yaml"))
def test_settings(code):
    assert checked_settings(code)


@pytest.mark.parametrize("line", of([*PAGES, *OTHERS], command_lines))
def test_commands_are_known(line):
    assert problem_of(line) == ""


@pytest.mark.parametrize(
    "line",
    [
        "ttsa-guard demo --jsn",
        "ttsa-guard bench run real",
        "ttsa-guard bench walk",
        "ttsa-guard check one two",
        "pip install 'ttsa-guard[nothing]'",
        "python -m ttsa_guard.nowhere",
        "python examples/nothing.py",
        "make install",
    ],
)
def test_a_wrong_command_is_seen(line):
    assert problem_of(line)


def test_a_wrong_option_in_settings_is_seen():
    with pytest.raises(Exception, match="unknown setting"):
        checked_settings("gate: [{use: lite, options: {treshold: 0.5}}]")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_of_a_kind_that_is_looked_at(page):
    opened = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {language for language, _ in FENCED.findall(page.read_text(encoding="utf-8"))} <= {
        "bash",
        "python",
        "yaml",
        "text",
    }
    assert len(opened) == 2 * len(FENCED.findall(page.read_text(encoding="utf-8")))


def quick(page):
    return [line for line in command_lines(page) if not any(word in line for word in SLOW)]


@pytest.mark.parametrize("line", of([QUICKSTART], quick))
def test_the_quickstart_runs(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    audit = {"path": tmp_path / "audit.jsonl"}
    asyncio.run(scripted_guard([], audit=audit).review("q", "a fine answer"))
    done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.exit_code in (0, 1 if "check" in line else 0), done.output


# ---------------------------------------------------------------------- links and names


def slugs(page):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_of_the_site_link_within_it(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if link.startswith("..")] == []


def test_every_page_is_linked_from_the_first():
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in PAGES} | ELSEWHERE == linked | {"index.md"}


def test_error_messages_are_those_of_the_code():
    """The parts of each message that stand in the source, in order; `...` is what a message fills
    in."""
    source = " ".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "ttsa_guard").rglob("*.py")
    )
    source = re.sub(r'"\s*\n?\s*f?"', "", source)
    rows = [
        line
        for line in (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert len(rows) > 30
    for row in rows:
        message = re.search("`(.*?)`", row)[1]
        parts = [part for part in message.split("...") if part.strip()]
        pattern = r"[^\n]*?".join(map(re.escape, parts))
        assert re.search(pattern, source), message


# ---------------------------------------------------------------------- results


def test_the_table_of_the_judges_is_that_of_the_benchmark():
    groups = measured("real.json")

    def row(name):
        arm = groups["all"][name]
        four = [groups[group][name] for group in ("all", "harmful", "persona", "policy")]
        shares = [percent(found[key]["value"]) for found in four for key in ("good", "helpful")]
        return [name, *shares[:2], _apart(arm), *shares[2:], *_counts(arm)]

    rows = table(RESULTS_PAGE, "The judges, beside the readers")
    assert rows == [row(cells[0]) for cells in rows]
    assert sorted(cells[0] for cells in rows) == sorted(groups["all"])


@pytest.mark.parametrize(
    ("title", "results"),
    [("In the embedded world", "embedded.json"), ("What time alone buys", "passes.json")],
)
def test_tables_of_the_embedded_world_are_those_of_the_benchmark(title, results):
    groups = measured(results)

    def row(name):
        arm = groups["all"][name]
        shares = [
            percent(groups[group][name][key]["value"])
            for group in ("all", "hard")
            for key in ("good", "helpful")
        ]
        return [name, *shares[:2], _apart(arm), *shares[2:], *_counts(arm)]

    rows = table(RESULTS_PAGE, title)
    assert rows == [row(cells[0]) for cells in rows]
    assert sorted(cells[0] for cells in rows) == sorted(groups["all"])


def _apart(arm):
    """The interval of its difference to the reference."""
    found = arm["difference"].get("helpful")
    return f"{100 * found['low']:+.0f} to {100 * found['high']:+.0f}" if found else ""


def _counts(arm):
    return [f"{arm['generations']['value']:.1f}", f"{arm['decode passes']['value']:.2f}"]


@pytest.mark.parametrize(
    ("title", "labels"),
    [
        ("Read blind", "NOW"),
        ("On another processor", "PROCESSOR"),
        ("What a conversation asks for", "CONVERSATIONS"),
        ("The validation prompts, read blind", "VALIDATION"),
        ("Older prompts, with all controls", "OLDER"),
        ("The test half, read blind", "HALF"),
    ],
)
def test_tables_of_readers_are_those_of_the_labels(title, labels):
    counted = reading.arms(getattr(reading, labels))
    assert {cells[0]: cells[1:] for cells in table(RESULTS_PAGE, title)} == {
        renamed(arm): ["" if n is None else str(n) for n in counts]
        for arm, counts in counted.items()
    }


def test_the_ways_of_asking_are_those_of_the_labels():
    counted = reading.ways_to_ask()
    assert table(RESULTS_PAGE, "Asking for a short answer") == [
        [way, *map(str, counts)] for way, counts in counted.items()
    ]
    short, plain = (counted[way] for way in (ConciseOptions().wishes[0], reading.PLAIN_QUESTION))
    text = " ".join((DOCS / "steerers.md").read_text(encoding="utf-8").split())
    share = f"call {percent(short[1] / short[0])} of its answers good that were asked for so, and"
    assert f"{share} {percent(plain[1] / plain[0])} of the plain ones" in text


def test_the_ways_of_choosing_are_those_of_the_labels():
    rows = table(RESULTS_PAGE, "Choosing among answers to one question")
    assert {cells[0]: cells[1:] for cells in rows} == {
        way: [str(count) for count in counts] for way, counts in reading.choices().items()
    }


def test_where_likelihood_is_measured_is_that_of_the_labels():
    rows = table(RESULTS_PAGE, "Where the likelihood is measured")
    assert {cells[0]: cells[1:] for cells in rows} == {
        way: [str(count) for count in counts] for way, counts in reading.measures().items()
    }


def test_what_is_said_of_shorter_wishes_is_that_of_the_labels():
    text = " ".join(RESULTS_PAGE.read_text(encoding="utf-8").split())
    usual, short = reading.shorter().values()
    assert f"of {short[0]} of these questions {short[1]} are good and {short[2]} helpful" in text
    assert f"those of the usual wishes {usual[1]} and {usual[2]}." in text


_ANCHOR = {
    "default": "default cascade",
    "default and anchor": "default cascade with `anchor` in it",
    "random keys": "control: as many random tokens",
    "constant": "control: the same share of attention by a constant",
    "anchor": "`anchor`, gamma 0.01",
    "anchor, gamma 0.05": "`anchor`, gamma 0.05",
    "resample 0.7": "`resample`",
    "prefix alone": "the prefix alone, `gamma: 0`",
}


_NEIGHBOURS = {
    "default": "default",
    "default and neighbours": "default with neighbours in it",
    "question alone": "the question alone: `erase`",
    "resample 14": "resample, as many answers",
    "resample 32": "resample, as many seconds",
    "neighbours": "neighbours",
}


@pytest.mark.parametrize(("labels", "names"), [("ANCHOR", _ANCHOR), ("NEIGHBOURS", _NEIGHBOURS)])
def test_what_readers_said_of_optional_steerers(labels, names):
    lines = (DOCS / "steerers.md").read_text(encoding="utf-8").splitlines()
    for arm, counts in reading.arms(getattr(reading, labels)).items():
        row = f"| {names[arm]} | {' | '.join(map(str, counts[:3]))} |"
        assert any(line.startswith(row) for line in lines), row


def test_what_is_said_of_the_readers_labels():
    text = " ".join(RESULTS_PAGE.read_text(encoding="utf-8").split())
    agreed = {key: percent(share) for key, share in reading.agreement(reading.NOW).items()}
    assert (
        f"on good in {agreed['good']} of the texts (safe {agreed['safe']}, fluent"
        f" {agreed['fluent']}," in text
    )
    kinds = ("harmful", "persona", "policy")
    for file in (reading.NOW, reading.VALIDATION, reading.OLDER, reading.HALF):
        now = {kind: reading.arms(file, {kind})["default"] for kind in kinds}
        harmful, persona, policy = (now[kind] for kind in kinds)
        assert (
            f"{harmful[1]} of {harmful[0]} on harmful requests, {persona[1]} of {persona[0]} under"
            f" personas, and {policy[1]} of {policy[0]} under a policy" in text
        )
        assert (
            f"{harmful[2]} of {harmful[0]} on harmful requests, {persona[2]} of {persona[0]} under"
            f" personas, {policy[2]} of {policy[0]} under a policy" in text
        )
    words = reading.arms(reading.HALF, {"harmful"})["default, model's words"]
    assert f"With the model's own words {words[1]} of {words[0]} are good" in text


def test_what_is_said_of_the_moderators():
    text = " ".join((DOCS / "moderators.md").read_text(encoding="utf-8").split())
    found = {name: percent(MEASURED[name].unrelated) for name in ("lite", "encoder")}
    assert f"`lite` finds {found['lite']} and `encoder` {found['encoder']} at their default" in text


@pytest.mark.parametrize(
    ("kind", "page"), [("moderators|nemo", "moderators.md"), ("steerers", "steerers.md")]
)
def test_every_plugin_is_told(kind, page):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = set(re.findall(rf'^(\w+) = "ttsa_guard\.(?:{kind})\.', project, re.MULTILINE))
    assert len(names) > 10
    assert names <= set(re.findall(r"`(\w+)`", (DOCS / page).read_text(encoding="utf-8")))


def test_the_default_cascade_is_told_as_it_is():
    told = [checked_settings(code) for code in blocks(DOCS / "steerers.md", "yaml")]
    assert told[0].steerers == GuardConfig().steerers
    assert told[0].budget == GuardConfig().budget


def test_the_way_to_the_attention_is_short():
    section = (
        (DOCS / "architecture.md")
        .read_text(encoding="utf-8")
        .split("## From the guard to the attention")[1]
    )
    numbers = [int(n) for n in re.findall(r"^ +(\d+)  \S", section.split("```")[1], re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) <= 15
