"""The Dockerfile and its documentation name what there is: files, extras, commands, options."""

import json
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

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
    [port] = step("EXPOSE")
    served = typer.main.get_command(app).commands["serve"]
    assert int(port) == next(p.default for p in served.params if p.name == "port")


def test_nothing_runs_as_root():
    # as numbers, which Kubernetes needs for runAsNonRoot
    [user] = step("USER")
    assert all(int(number) > 0 for number in user.split(":"))
    assert f"--uid {user.split(':')[0]} " in FILE


def test_a_volume_covers_a_folder_of_the_user():
    # otherwise Docker makes the volume for root, and no weights can be written
    folders = re.findall(r"-v [\w-]+:(/\S+)", PAGE)
    assert folders
    assert all(f"install -d -o guard -g guard {folder}" in FILE for folder in folders)


def test_it_is_stopped_by_a_signal_that_the_first_process_does_not_ignore():
    # SIGTERM is ignored while a model is loaded; Python has a handler for SIGINT from its start
    assert step("STOPSIGNAL") == ["SIGINT"]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_reads_the_status_and_asks_no_proxy(status, healthy):
    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, format, *args):
            pass

    [python, *words] = json.loads(step("HEALTHCHECK")[0].split("CMD ")[1])
    assert python == "python"
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        Thread(target=server.handle_request, daemon=True).start()
        server.timeout = 10
        words = [word.replace("8080", str(server.server_port)) for word in words]
        done = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""},
            capture_output=True,
            timeout=30,
        )
    assert (done.returncode == 0) is healthy, done.stderr
    assert not done.stderr


def test_the_health_check_fails_where_nothing_listens():
    words = json.loads(step("HEALTHCHECK")[0].split("CMD ")[1])[1:]
    words = [word.replace("8080", "9") for word in words]
    assert subprocess.run([sys.executable, *words], capture_output=True, timeout=30).returncode


def test_the_documented_run_waits_for_as_long_as_the_server_may():
    [limit] = re.findall(r"--stop-timeout (\d+)", PAGE)
    served = typer.main.get_command(app).commands["serve"]
    assert int(limit) > next(p.default for p in served.params if p.name == "grace")


@pytest.mark.parametrize("command", [words for kind, words in COMMANDS if kind == "run"])
def test_a_documented_run_has_options_that_there_are(command):
    name, *words = shlex.split(command.split(" ttsa-guard ")[1])
    assert {word for word in words if word.startswith("--")} <= options_of(name)


def test_a_documented_build_has_arguments_that_there_are():
    named = {name for _, words in COMMANDS for name in re.findall(r"--build-arg (\w+)=", words)}
    assert named
    assert named <= set(ARGUMENTS)
