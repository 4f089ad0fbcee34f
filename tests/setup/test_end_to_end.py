"""From an empty folder, or an app that exists, to a guarded remote model: `init`, one command.

The model is behind a local server that speaks OpenAI's protocol. It says something rude, and
something good when it is asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.embeddings.providers import register_embedding_provider
from nemoguardrails.utils import get_examples_data_path

from tests.nemo.test_documented import Letters
from ttsa_guard import Guard, GuardConfig
from ttsa_guard.nemo import installed_guard

from .conftest import GOOD, KEY, QUESTION, RUDE, Remote, init, remote

USER = [{"role": "user", "content": QUESTION}]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def behind(server: Remote) -> list[str]:
    """Options that name the server's model."""
    named = ["--chat", "api", "--model", "remote", "--url", server.url, "--key-env", "MY_KEY"]
    return [*named, "--gate", "lite"]


def answer_of(folder: str, messages: Any = USER) -> str:
    """What an app of the host answers."""

    async def ask() -> str:
        rails = LLMRails(RailsConfig.from_path(folder))
        try:
            answer = await rails.generate_async(messages=messages)
            return str(answer["content"])
        finally:
            guard = installed_guard(rails)
            assert guard is not None
            await guard.close()

    return asyncio.run(ask())


@pytest.mark.parametrize("host", ["colang-1", "colang-2"])
def test_from_an_empty_folder_to_a_remote_model_that_is_asked_again(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    with remote() as server, caplog.at_level(logging.DEBUG, "ttsa_guard"):
        assert init("app", "--host", host, *behind(server)).exit_code == 0
        assert answer_of("app") == GOOD
    assert server.keys == {f"Bearer {KEY}"}
    assert server.asked[0][-1]["content"] == QUESTION
    assert not any(word in caplog.text for word in (KEY, "lazy fool"))


@pytest.mark.parametrize("host", ["colang-1", pytest.param("colang-2", marks=pytest.mark.slow)])
def test_the_commonest_case_a_remote_model_whose_answers_a_local_one_mends(host: str) -> None:
    with remote() as server:
        assert init("app", "--host", host, *behind(server), "--steering", "embedded").exit_code == 0
        answer = answer_of("app")
    assert "owl" in answer
    assert answer not in (RUDE, GOOD)
    assert len(server.asked) == 1  # the remote model gives its answer, and nothing more


def test_what_mends_reads_the_conversation_as_the_user_saw_it() -> None:
    """Earlier answers show what style to keep; so does the system message."""
    turns = [
        {"role": "system", "content": "You are a patient teacher."},
        {"role": "user", "content": "How do I hold a pencil?"},
        {"role": "assistant", "content": "Hold it loosely, dear."},
    ]
    with remote() as server:
        init("app", "--host", "colang-1", *behind(server))
        assert answer_of("app", [*turns, *USER]) == GOOD
    [_, again, *_] = server.asked
    assert again[:5] == [*turns, *USER, {"role": "assistant", "content": RUDE}]


def test_a_remote_model_that_fails_when_it_is_asked_again_leaves_the_fallback() -> None:
    def answer(conversation: str, last: str) -> str:
        if last == QUESTION and "Remember" not in conversation:
            return RUDE
        raise RuntimeError

    with remote(answer) as server:
        init("app", "--host", "colang-1", *behind(server))
        assert answer_of("app") == GuardConfig().fallback


def example(bot: str, server: Remote) -> str:
    """One of the host's own example bots, whose model is at `server`, and with our embeddings,
    because its own would have to be downloaded. Nothing of the guard is in it."""
    shutil.copytree(Path(get_examples_data_path("bots")) / bot, bot)
    config = Path(bot) / "config.yml"
    lines = config.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if "model: gpt-" in line)
    lines.insert(at + 1, f"    parameters: {{base_url: {server.url}}}\n")
    lines.insert(at + 2, "  - {type: embeddings, engine: letters, model: letters}\n")
    config.write_text("".join(lines))
    with contextlib.suppress(ValueError):  # the host's registry is one for the whole process
        register_embedding_provider(Letters, "letters")
    return bot


@pytest.mark.slow
@pytest.mark.parametrize("bot", ["abc", "abc_v2", "hello_world"])
def test_the_hosts_own_examples_amended_and_running(bot: str) -> None:
    with remote() as server:
        assert init(example(bot, server)).exit_code == 0
        assert answer_of(bot) == GOOD
    again = [m for m in server.asked if "last answer was not acceptable" in m[-1]["content"]]
    assert again
    told = [m["content"] for m in again[0] if m["role"] == "system"]
    assert ["ABC Bot" in text for text in told] == ([] if bot == "hello_world" else [True])


def command(output: str) -> list[str]:
    """The command that `init` ends with, run by this Python."""
    words = shlex.split(output.splitlines()[-1])
    program = {
        "nemoguardrails": ["-m", "nemoguardrails"],
        "ttsa-guard": ["-c", "from ttsa_guard.cli import main; main()"],
    }
    return [sys.executable, *program[words[0]], *words[1:]]


@pytest.mark.slow
def test_the_command_that_init_ends_with_chats() -> None:
    with remote() as server:
        result = init("app", "--host", "colang-1", *behind(server))
        done = subprocess.run(
            command(result.stdout),
            input=f"{QUESTION}\n",
            capture_output=True,
            text=True,
            timeout=60,
        )
    said = " ".join(done.stdout.split())  # the host breaks lines
    assert GOOD.split(",")[0] in said, done.stderr[-2000:]
    assert "fool" not in said


@pytest.mark.slow
@pytest.mark.parametrize("steering", ["none", "embedded"])
def test_the_command_that_init_ends_with_serves(
    steering: str, serving: Any, unused_port: Any, tmp_path: Path
) -> None:
    port = unused_port()
    with remote() as server:
        result = init("--host", "none", *behind(server), "--steering", steering)
        line = [*command(result.stdout), "--port", str(port)]
        url = f"http://127.0.0.1:{port}"
        with serving(line, f"{url}/healthz", tmp_path / "log", cwd=tmp_path):
            request = urllib.request.Request(
                f"{url}/v1/chat/completions",
                json.dumps({"model": "remote", "messages": USER}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                found = json.load(response)
    answer = found["choices"][0]["message"]["content"]
    assert found["ttsa_guard"]["action"] == "swap"
    assert (answer == GOOD) == (steering == "none")
    assert "owl" in answer or answer == GOOD


def test_the_settings_without_a_host_guard_the_model_in_the_library() -> None:
    async def ask() -> Any:
        guard = Guard.from_config(GuardConfig.load(Path("settings.yml")))
        try:
            return await guard.respond(QUESTION)
        finally:
            await guard.close()

    with remote() as server:
        assert init("--host", "none", *behind(server)).exit_code == 0
        outcome = asyncio.run(ask())
    assert (outcome.action, outcome.text) == ("swap", GOOD)
    assert outcome.record.tokens == 9 * outcome.record.generations
