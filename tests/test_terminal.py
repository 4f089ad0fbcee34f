"""What the commands print fits where it goes: colours, narrow terminals, pipes, and the shell."""

import asyncio
import os
import re
import subprocess
import sys

import pytest
from rich.table import Table
from typer.testing import CliRunner

from ttsa_guard.cli import app, common
from ttsa_guard.testing import scripted_guard

MAIN = "import sys; from ttsa_guard.cli import main; sys.argv[1:] = {!r}; main()"
COLOUR = "\x1b[31m"


@pytest.fixture
def audit(tmp_path):
    path = tmp_path / "audit.jsonl"
    guard = scripted_guard([], audit={"path": path})
    asyncio.run(guard.review("hello", "A decent answer to your question."))
    return path


def in_terminal(*words, **environment):
    """What a command writes to a terminal of 60 columns."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 60, 0, 0))
    left_out = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    command = [sys.executable, "-c", MAIN.format(words)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=kept | environment
    ):
        os.close(theirs)
        said = b""
        while part := _read(ours):
            said += part
    os.close(ours)
    return said.decode()


def _read(terminal):
    try:
        return os.read(terminal, 2**16)
    except OSError:  # as Linux says that the other end is closed
        return b""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize(
    ("environment", "coloured", "styled"),
    [
        pytest.param({"TERM": "xterm"}, True, True, id="colours"),
        pytest.param({"TERM": "xterm", "NO_COLOR": "1"}, False, True, id="no-colours"),
        pytest.param({"TERM": "dumb"}, False, False, id="dumb"),
    ],
)
def test_colours_are_where_they_are_wanted(environment, coloured, styled):
    said = in_terminal("check", "", **environment)
    assert "there is no text to judge" in said
    assert (COLOUR in said) == coloured
    assert ("\x1b[" in said) == styled


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_table_that_is_too_wide_for_the_terminal_becomes_blocks(audit):
    styled = in_terminal("audit", "summary", str(audit), TERM="xterm", NO_COLOR="1")
    said = re.sub(r"\x1b\[\d*m", "", styled)
    assert "share: 100.0%" in said
    assert "moderation calls: 1" in said
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= 60


@pytest.mark.parametrize("columns", ["30", "60", "200", None])
def test_no_number_is_cut(audit, columns, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    said = CliRunner().invoke(app, ["audit", "summary", str(audit)]).stdout
    assert "…" not in said
    assert "100.0%" in said
    if not columns:  # a pipe: one line for each row
        assert "moderation calls" in said.splitlines()[1]
        assert said.splitlines()[2].startswith("pass")


def test_a_cell_that_may_not_fold_is_whole(monkeypatch, capsys):
    table = Table("load", box=None)
    table.add_column("seconds of", no_wrap=True)
    for _ in range(5):
        table.add_column("a heading of five words")
    table.add_row("50%", "flagged, whole answer", *map(str, range(10_000, 10_005)))
    monkeypatch.setenv("COLUMNS", "70")
    common.show_numbers(table)
    assert "flagged, whole answer" in capsys.readouterr().out


def test_a_pipe_that_is_closed_early_is_no_traceback():
    program = MAIN.format(["plugins", "--verbose"])
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)
    assert said == ""


def completed(words):
    environment = {
        "_TTSA_GUARD_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    program = "import sys; sys.argv[0] = 'ttsa-guard'; from ttsa_guard.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("ttsa-guard moderators compare texts.jsonl --moderator lit", ["lite"]),
        ("ttsa-guard steer hello --steerer pr", ["prefill", "prosocial"]),
        ("ttsa-guard demo --model smo", ["smollm2"]),
        ("ttsa-guard bench run qu", ["quick"]),
    ],
)
def test_the_shell_completes_names(words, names):
    assert completed(words) == names


def test_the_shell_completes_models_that_are_downloaded(tmp_path, monkeypatch):
    (tmp_path / "models--some--model" / "snapshots").mkdir(parents=True)
    (tmp_path / "datasets--some--set").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert common.model_names("") == ["embedded", "smollm2", "some/model"]
    assert common.model_names("some/") == ["some/model"]


@pytest.mark.parametrize(
    ("apart", "lines"), [(0.0, ["cases: 1 of 2", "cases: 2 of 2"]), (30.0, [])]
)
def test_progress_is_told_in_lines_where_nobody_watches(monkeypatch, capsys, apart, lines):
    monkeypatch.setattr(common.ProgressLines, "apart", apart)
    with common.progress(common.out) as progress:
        bar = progress.add_task("cases", total=2)
        progress.advance(bar)
        progress.update(bar, completed=2)
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in lines))
