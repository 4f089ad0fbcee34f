"""How long it takes until a command does something."""

import asyncio
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ttsa_guard.testing import scripted_guard

pytestmark = [pytest.mark.slow, pytest.mark.timing]
EXAMPLES = Path(__file__).parent.parent / "examples"
LIBRARIES = "import pydantic, yaml, rich.console, typer"
"""What every command needs."""
MAIN = "import sys; from ttsa_guard.cli import main; sys.argv[1:] = {!r}; main()"


def seconds(*programs, cwd, enough=0.0):
    """The least time of the processor for each of `programs` in five runs by turns.

    Other work can only add to it. The first run may have to compile modules, as after an
    installation. With `enough`, there are no more runs after the first program took less.
    """
    kept = {key: os.environ[key] for key in os.environ.keys() - {"PYTHONDONTWRITEBYTECODE"}}
    least = [math.inf] * len(programs)
    for _ in range(5):
        for i, program in enumerate(programs):
            before = os.times()
            subprocess.run(
                [sys.executable, "-c", program],
                check=True,
                cwd=cwd,
                env=kept,
                capture_output=True,
                timeout=60,
            )
            after = os.times()
            least[i] = min(least[i], sum(after[2:4]) - sum(before[2:4]))
        if least[0] < enough:
            break
    return least


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
        "init --help",
        "doctor --help",
        "config check EXAMPLES/configs/settings.yml",
        "config check EXAMPLES/configs/colang_1",
        "config check EXAMPLES/configs/colang_2",
        "config check EXAMPLES/cluster/config",
    ],
)
def test_a_command_without_a_model_starts_in_half_a_second(command, folder):
    words = [word.replace("EXAMPLES", str(EXAMPLES)) for word in command.split()]
    # On a slower processor, what the libraries take tells how much slower it is.
    taken, libraries = seconds(MAIN.format(words), LIBRARIES, cwd=folder, enough=0.5)
    assert taken < max(0.5, 6 * libraries)


@pytest.mark.skipif(sys.platform == "win32", reason="times of child processes are not known there")
def test_the_import_takes_less_than_50_ms(tmp_path):
    taken, nothing = seconds("import ttsa_guard", "pass", cwd=tmp_path)
    assert taken - nothing < 0.05
