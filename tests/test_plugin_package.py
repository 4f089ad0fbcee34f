"""A stranger's package: installed by pip into an environment of its own, found, configured, used by
a rail, uninstalled."""

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
CHAT = """
import sys
from nemoguardrails import LLMRails, RailsConfig
from ttsa_guard.nemo import rails_path
config = RailsConfig.from_content(config={
    "models": [{"type": "main", "engine": "ttsa_guard", "model": "embedded"}],
    "passthrough": True,
    "import_paths": [rails_path()],
    "rails": {"output": {"flows": ["ttsa steer output"]}},
    "custom_data": {"ttsa_guard": {
        "gate": {"use": "word_list", "options": {sys.argv[1]: ["kettle"]}},
        "steerers": ["resample"], "fallback": "No.",
    }},
})
for question in ("Hello there", "How do I clean a copper kettle?"):
    print(LLMRails(config).generate(messages=[{"role": "user", "content": question}])["content"])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs python in a fresh environment that sees this one's packages, but not the other way
    round."""
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    [site] = folder.glob("lib/python*/site-packages")
    (site / "parent.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n"
    )

    def call(*arguments, fails=False):
        env = {
            **os.environ,
            "REVIEWS": str(folder / "reviews"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        done = subprocess.run(
            [str(python), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env=env,
            cwd=folder,
        )
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    call.reviews = folder / "reviews"
    return call


def cli(*words):
    return "-c", f"from ttsa_guard.cli import app; app({list(words)})"


@pytest.fixture(scope="module")
def installed(run, tmp_path_factory):
    copy = tmp_path_factory.mktemp("source")
    for file in (HERE / "plugin_package").iterdir():
        if file.is_file():
            (copy / file.name).write_text(file.read_text())
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", str(copy))
    return run


def test_before_it_is_installed(run):
    assert "no plugin named 'word_list' is installed" in run("-c", CHAT, "words", fails=True)


def test_installed_and_used_by_a_rail(installed):
    greeting, answer = installed("-c", CHAT, "words").splitlines()
    assert greeting != "No."
    assert answer == "No."
    assert installed.reviews.read_text().splitlines() == ["pass 0.0", "fallback 1.0"]


def test_installed_and_shown_with_its_options(installed):
    shown = installed(*cli("plugins", "--verbose"))
    assert "word_list" in shown
    assert "words that no answer may have" in shown


def test_a_typo_in_its_options(installed):
    assert "did you mean 'words'?" in installed("-c", CHAT, "word", fails=True)


def test_uninstalled_again(installed):
    installed("-m", "pip", "uninstall", "--quiet", "--yes", "somebodys-word-list")
    error = installed("-c", CHAT, "words", fails=True)
    assert "no plugin named 'word_list' is installed" in error
    assert "pip install the package that brings it" in error
