"""Every example runs as its README says, offline."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def folders():
    return sorted(p for p in EXAMPLES.iterdir() if p.is_dir())


@pytest.mark.parametrize("folder", folders(), ids=lambda p: p.name)
def test_an_example_has_a_readme_that_names_its_script(folder):
    scripts = [p.name for p in folder.glob("*.py") if p.name != "config.py"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert scripts
    assert all(name in text for name in scripts)


def test_nemo_config_swaps_an_abusive_answer(tmp_path):
    script = EXAMPLES / "nemo_config" / "chat.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("swap after ")
    assert "wobbly chair" in done.stdout
