"""What tests of README and documentation share: code blocks, tables, commands, settings."""

import importlib.util
import json
import os
import re
import shlex
import warnings
from pathlib import Path

import typer
import yaml

from ttsa_guard.bench.config import BenchConfig
from ttsa_guard.cli import app
from ttsa_guard.config import GuardConfig, Use, validated
from ttsa_guard.plan.config import PlanConfig
from ttsa_guard.plugins import Plugins

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
RESULTS = ROOT / "research" / "results"
"""The measured tables as JSON, and the readers' labels."""
FENCED = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """The code in the blocks of a page that are in `language`."""
    return [
        code
        for found, code in FENCED.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


def run(code, folder):
    """Run a block of Python as a program of its own would run, in this process: it has our
    libraries loaded."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(code, "page", "exec"), {"__name__": "__main__"})
    finally:
        os.chdir(before)


def command_lines(page):
    """The commands in the bash blocks of a page, without their comments, one a line."""
    lines = [
        line.split(" #")[0].strip() for code in blocks(page, "bash") for line in code.splitlines()
    ]
    return [part.strip() for line in lines if line and line[0] != "#" for part in line.split("&&")]


def table(page, title):
    """The first table of a section, without its head: rows of cells."""
    section = page.read_text(encoding="utf-8").split(f"# {title}\n")[1].split("\n##")[0]
    rows = [
        [cell.strip(" *") for cell in line.split("|")[1:-1]]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return rows[2:]


def measured(file):
    """The groups of a benchmark's report, by the arms' names of today."""
    groups = json.loads((RESULTS / file).read_text(encoding="utf-8"))["groups"]
    return {
        group: {renamed(name): arm for name, arm in found["arms"].items()}
        for group, found in groups.items()
    }


def renamed(arm):
    """An arm's name as pages have it: files that were written before a name changed hold the old
    one."""
    return re.sub("^paper", "tsa", re.sub("^kick", "random perturbation", arm))


def percent(share):
    return f"{share:.0%}".replace("%", " %")


def checked_settings(code):
    """The settings in a YAML block: of the guard, alone or in a configuration of the host, of a
    benchmark or of a plan.

    Plugins that they name are loaded, and take the options.
    """
    settings = yaml.safe_load(code)
    if "arms" in settings:
        return validated(BenchConfig, settings, where="page")
    if "rate" in settings:
        return validated(PlanConfig, settings, where="page")
    guard = GuardConfig.parse(
        settings["custom_data"]["ttsa_guard"] if "custom_data" in settings else settings
    )
    plugins = Plugins()
    for kind, uses in _uses(guard):
        for use in uses:
            if use.use != "auto":
                validated(plugins.load(kind, use.use).options, use.options, where=use.use)
    return guard


def _uses(guard: GuardConfig) -> list[tuple[str, tuple[Use, ...]]]:
    steerers = (*guard.steerers, *(guard.steerers_for_harm or ()))
    return [
        ("backends", (guard.backend,)),
        ("moderators", (*guard.gate, *guard.guide)),
        ("steerers", steerers),
    ]


def problem_of(line):
    """What is wrong with a command line, as far as that shows without a run; empty: nothing."""
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    if not words or words[0] in (
        "export",
        "cd",
        "git",
        "docker",
        "kubectl",
        "nemoguardrails",
        "vllm",
        "pre-commit",
    ):
        return ""
    if words[0] == "ttsa-guard":
        return _misuse(typer.main.get_command(app), words[1:])
    if words[0] == "pip" or words[:3] == ["python", "-m", "pip"]:
        return _unknown_extra(words)
    if words[:2] == ["python", "-m"]:
        return _unknown_module(words[2])
    if words[0] == "python" or words[0].startswith("."):
        file = words[1] if words[0] == "python" else words[0]
        return "" if (ROOT / file).exists() else f"there is no file {file}"
    return f"{words[0]} is no command that pages use"


def _misuse(command, words):
    """Why the command's own parser does not take the words; no value is looked at, and no file."""
    parser = command.make_parser(type(command).context_class(command))
    try:
        options, rest, _ = parser.parse_args(list(words))
    except Exception as error:
        return str(error)
    missing = [
        param.name for param in command.params if param.required and options.get(param.name) is None
    ]
    if missing:
        return f"{command.name} needs {', '.join(missing)}"
    if rest and rest[0] in getattr(command, "commands", ()):
        return _misuse(command.commands[rest[0]], rest[1:])
    return f"{command.name} does not take {rest[0]}" if rest else ""


def _unknown_extra(words):
    [listed] = re.findall(
        r"optional-dependencies\]\n(.*?)\n\n",
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    known = re.findall(r"^(\w+) = ", listed, re.MULTILINE)
    asked = [
        extra
        for word in words
        for names in re.findall(r"^(?:ttsa-guard|\.)\[(.*?)\]", word)
        for extra in names.split(",")
    ]
    unknown = sorted(set(asked) - set(known))
    return f"there is no extra {unknown[0]}" if unknown else ""


def _unknown_module(name):
    return "" if importlib.util.find_spec(name) else f"there is no module {name}"
