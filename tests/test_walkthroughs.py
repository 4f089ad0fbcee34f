"""The walk-throughs in docs/, block by block as they are printed, in an empty folder and an
environment of its own."""

import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture
def stranger(tmp_path):
    """Runs shell lines in an empty folder, in an environment that sees this one's packages; nothing
    is downloaded."""
    home, folder = tmp_path / "environment", tmp_path / "folder"
    folder.mkdir()
    venv.create(home, with_pip=False)
    [site] = home.glob("lib/python*/site-packages")
    (site / "parent.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n"
    )
    command = home / "bin" / "ttsa-guard"
    command.write_text(f"#!{home}/bin/python\nfrom ttsa_guard.cli import main\nmain()\n")
    command.chmod(0o755)
    # The pages say `pip install FOLDER`, which would ask an index for setuptools and ttsa-guard.
    # With the value 0, pip builds without isolation.
    pip = {
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    environment = {
        **os.environ,
        **pip,
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }

    def run(lines):
        shell = ["bash", "-euo", "pipefail", "-c", lines]
        done = subprocess.run(
            shell, capture_output=True, text=True, timeout=300, env=environment, cwd=folder
        )
        assert done.returncode == 0, f"{lines}{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    run.folder = folder
    return run


@pytest.mark.parametrize("page", ["existing-app", "plugins"])
def test_a_walk_through(page, stranger):
    printed, seen = "", 0
    for language, title, code in BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8")):
        if title:
            path = stranger.folder / title
            path.parent.mkdir(exist_ok=True)
            path.write_text(code, encoding="utf-8")
        elif language == "bash":
            printed = stranger(code)
        else:
            assert language == "text", (
                f"a block of {language} has no title, so that nobody knows where it goes"
            )
            seen += 1
            assert matches(printed, code), f"{page}: it prints\n{printed}\nand not\n{code}"
    assert seen >= 3


def matches(printed, shown):
    """Whether a command prints what the page shows; three dots there stand for anything."""
    parts = (re.escape(part) for part in shown.strip().split("..."))
    return re.fullmatch(".*".join(parts), printed.strip(), re.DOTALL) is not None


def test_dots_stand_for_anything_and_nothing_else_does():
    assert matches("a 1 c\nd\n", "a ... c\n...")
    assert not matches("a 1 c\n", "a 1 d\n")
