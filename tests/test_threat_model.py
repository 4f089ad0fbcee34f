"""The threat model names tests: all of them are there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "threat-model.md"
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))))
WHO = [
    "The user",
    "The client application",
    "The operator",
    "The plugin author",
    "The moderation service",
    "The model file",
]


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_it_names_is_a_test(file, name):
    assert name.startswith("test_")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_line_names_a_test():
    lines = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    rows = [line for line in lines if not line.endswith("| test |")]
    assert len(rows) >= 25
    assert [row for row in rows if "::test_" not in row] == []


def test_it_is_about_everybody():
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE)[: len(WHO)] == WHO
    assert "docs/threat-model.md" in (TESTS.parent / "SECURITY.md").read_text(encoding="utf-8")
