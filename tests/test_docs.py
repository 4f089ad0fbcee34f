"""The reference pages are what the code says, and everything in them works."""

import ast
import inspect
import re
import runpy
import shlex
from pathlib import Path
from typing import get_args

import pytest
import yaml

import ttsa_guard
from ttsa_guard import hookspecs, nemo, testing
from ttsa_guard.config import GuardConfig
from ttsa_guard.quality import Flaw
from ttsa_guard.steerers.base import Task

DOCS = Path(__file__).parent.parent / "docs"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def maker(name):
    return runpy.run_path(str(DOCS / f"make_{name}.py"))


def text(page):
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["configuration", "cli"])
def test_a_generated_page_is_what_the_code_says(name):
    assert text(name) == maker(name)["page"](), f"stale; run: python docs/make_{name}.py"


def test_every_setting_says_what_it_means():
    rows = [line for line in text("configuration").splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row for row in rows if row.endswith("|  |")] == []
    sections = re.findall(
        r"^### (\w+)\n\n(.*)$", text("configuration").split("\n## ")[1], re.MULTILINE
    )
    assert [key for key, _ in sections] == list(GuardConfig.model_fields)
    assert all(meaning.endswith(".") for _, meaning in sections)


@pytest.mark.parametrize(("language", "code"), FENCED.findall(text("configuration")))
def test_examples_of_settings(language, code):
    assert language == "yaml"
    settings = yaml.safe_load(code)
    parsed = GuardConfig.parse(settings)
    assert any(getattr(parsed, key) != getattr(GuardConfig(), key) for key in settings)


def test_every_command_has_an_example_that_it_takes():
    made = maker("cli")
    for words, context in made["commands"]():
        line = shlex.split(made["example"](context))
        assert line[: len(words)] == words
        context.command.make_context(words[-1], line[len(words) :], parent=context.parent).close()


@pytest.mark.parametrize("module", [ttsa_guard, nemo, testing], ids=lambda m: m.__name__)
def test_the_reference_has_every_public_name(module):
    own = [
        name
        for name, found in vars(module).items()
        if inspect.getmodule(found) is module and name[0] != "_"
    ]
    names = getattr(module, "__all__", own)
    listed = re.findall(rf"^::: {re.escape(module.__name__)}\.(\w+)$", text("api"), re.MULTILINE)
    assert sorted(listed) == sorted(names)


def test_pictures_are_there_small_and_complete():
    named = {
        name
        for page in DOCS.glob("*.md")
        for name in re.findall(r"\(images/([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    assert "benchmark.png" in named
    for picture in {DOCS / "images" / name for name in named} | set((DOCS / "images").iterdir()):
        assert picture.stat().st_size < 300_000
        assert picture.suffix != ".svg" or not re.search(
            r"url\([\"']?http", picture.read_text(encoding="utf-8")
        )


def test_the_plugin_guide_names_what_there_is():
    page = text("plugins")
    hooks = {name for name in vars(hookspecs) if name.startswith("ttsa_")}
    assert set(re.findall(r"^\| `(\w+)\(\w+\)` \|", page, re.MULTILINE)) == hooks
    named = set(re.findall(r"\btask\.(\w+)", page))
    assert {"base", "propose", "seed"} < named
    assert named <= {*dir(Task), *Task.__annotations__}


def glossary_names():
    glossary = text("architecture").split("\n## Glossary\n")[1]
    return set(re.findall(r"`([^`]+)`", glossary))


def code_names():
    """Modules, classes, functions, parameters and fields of the package."""
    package = Path(ttsa_guard.__file__).parent
    defined = set()
    for path in package.rglob("*.py"):
        defined.add(str(path.relative_to(package).with_suffix("")).removesuffix("/__init__"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.arg(arg=name):
                    defined.add(name)
                case ast.AnnAssign(target=ast.Name(id=name)):
                    defined.add(name)
    return defined


def test_the_glossary_names_what_the_code_has():
    assert len(glossary_names()) > 10
    assert glossary_names() - code_names() == set()


def test_the_glossary_names_the_flaws_of_the_code():
    row = re.search(r"^\| flaw \|[^:]*: (.*) \|$", text("architecture"), re.MULTILINE)
    assert set(row[1].split(", ")) == set(get_args(Flaw))
