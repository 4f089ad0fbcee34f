"""The Dockerfile and its documentation name what there is: files, extras, commands, options."""

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer

from ttsa_guard.cli import app

ROOT = Path(__file__).parents[1]
FILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
STEPS = [line.split(maxsplit=1) for line in FILE.splitlines() if re.match("[A-Z]+ ", line)]
ARGUMENTS = dict(what.partition("=")[::2] for step, what in STEPS if step == "ARG")
EXTRAS = set(re.findall(r"^(\w+) = \[", PROJECT.split("[project.optional-dependencies]")[1], re.M))
COMMANDS = re.findall(r"^docker (build|run) (.*?)(?: +#.*)?$", PAGE, re.MULTILINE)


def step(name):
    return [what for found, what in STEPS if found == name]


def options_of(command):
    found = typer.main.get_command(app).commands[command]
    return {name for parameter in found.params for name in parameter.opts}


def test_what_is_copied_is_there_and_gets_into_the_build():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    copied = [w for what in step("COPY") if "--from" not in what for w in what.split()[:-1]]
    assert {"pyproject.toml", "ttsa_guard"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert any(fnmatch(name, pattern) for pattern in kept)
    # what the project file names has to be in the stage that builds the wheel
    for name in re.findall(r'"?(README\.md|LICENSE|NOTICE)"?', PROJECT):
        assert name in copied


def test_the_arguments_are_used_and_the_extras_exist():
    assert {"PYTHON", "TORCH", "EXTRAS"} == set(ARGUMENTS)
    assert all(f"${{{name}}}" in FILE for name in ARGUMENTS)
    assert set(ARGUMENTS["EXTRAS"].split(",")) <= EXTRAS
    assert re.search("'(torch.*?)'", FILE)[1] in PROJECT
    for values in re.findall(r"--build-arg EXTRAS=([\w,]+)", PAGE):
        assert set(values.split(",")) <= EXTRAS


def test_it_starts_a_command_that_there_is():
    [[entry]], [command] = (map(json.loads, step(name)) for name in ("ENTRYPOINT", "CMD"))
    assert f"{entry} = " in PROJECT.split("[project.scripts]")[1].split("[")[0]
    assert command[0] in typer.main.get_command(app).commands
    assert step("USER") == ["guard"]
    [port] = step("EXPOSE")
    served = typer.main.get_command(app).commands["serve"]
    assert int(port) == next(p.default for p in served.params if p.name == "port")
    assert f"127.0.0.1:{port}/healthz" in step("HEALTHCHECK")[0]


@pytest.mark.parametrize("command", [words for kind, words in COMMANDS if kind == "run"])
def test_a_documented_run_has_options_that_there_are(command):
    name, *words = shlex.split(command.split(" ttsa-guard ")[1])
    assert {word for word in words if word.startswith("--")} <= options_of(name)


def test_a_documented_build_has_arguments_that_there_are():
    named = {name for _, words in COMMANDS for name in re.findall(r"--build-arg (\w+)=", words)}
    assert named
    assert named <= set(ARGUMENTS)
