"""How long it takes until a command does something."""

import asyncio
import os
import subprocess
import sys

import pytest

from ttsa_guard.testing import scripted_guard

pytestmark = [pytest.mark.slow, pytest.mark.timing]
MAIN = "import sys; from ttsa_guard.cli import main; sys.argv[1:] = {!r}; main()"


def seconds(program, cwd):
    """The least time of the processor for `program` in five runs: other work can only add to it."""
    taken = []
    for _ in range(5):
        before = os.times()
        subprocess.run(
            [sys.executable, "-c", program], check=True, cwd=cwd, capture_output=True, timeout=60
        )
        after = os.times()
        taken.append(sum(after[2:4]) - sum(before[2:4]))
    return min(taken)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "settings.yml").write_text("budget: {seconds: 20}\n")
    path = tmp_path / "audit.jsonl"
    guard = scripted_guard([], audit={"path": path})
    asyncio.run(guard.review("hello", "A decent answer to your question."))
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="times of child processes are not known there")
@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "plugins",
        "config show settings.yml",
        "config check settings.yml",
        "config schema",
        "audit summary audit.jsonl",
        "view audit.jsonl --html page.html",
    ],
)
def test_a_command_without_a_model_starts_in_half_a_second(command, folder):
    assert seconds(MAIN.format(command.split()), folder) < 0.5


@pytest.mark.skipif(sys.platform == "win32", reason="times of child processes are not known there")
def test_the_import_takes_less_than_50_ms(tmp_path):
    assert seconds("import ttsa_guard", tmp_path) - seconds("pass", tmp_path) < 0.05
