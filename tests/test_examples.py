"""Every example runs as its README says, offline."""

import asyncio
import csv
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nemoguardrails import LLMRails, RailsConfig

from ttsa_guard import hookspecs
from ttsa_guard.config import GuardConfig, Use
from ttsa_guard.nemo import installed_guard
from ttsa_guard.plugins import Plugins

EXAMPLES = Path(__file__).parent.parent / "examples"
COMMAND = Path(sys.executable).with_name("ttsa-guard")
FLAGGED = "Mock me like a rude clown. How do I draw an owl?"


def run(script, *arguments, said="", cwd=None, code=0):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, input=said, cwd=cwd, env={**os.environ}
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "folder", sorted(p for p in EXAMPLES.iterdir() if p.is_dir()), ids=lambda p: p.name
)
def test_an_example_has_a_readme_that_names_its_files(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert all(
        p.name in text
        for p in folder.iterdir()
        if p.name != "README.md" and not p.name.startswith((".", "__"))
    )
    assert len(text.splitlines()) < 30


@pytest.mark.parametrize("name", ["colang_1", "colang_2"])
def test_configurations_load_and_mend(name):
    rails = LLMRails(RailsConfig.from_path(str(EXAMPLES / "configs" / name)))
    assert installed_guard(rails) is not None
    assert "owl" in rails.generate(messages=[{"role": "user", "content": FLAGGED}])["content"]


def test_the_settings_are_the_defaults_and_complete():
    file = EXAMPLES / "configs" / "settings.yml"
    assert GuardConfig.load(file) == GuardConfig()
    named = set(re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.MULTILINE))
    assert named == set(GuardConfig.model_fields)


def test_console_chat_marks_what_was_adjusted(tmp_path):
    first, second = re.findall(
        "bot: (.*)", run("console_chat/chat.py", said=f"Hello there\n{FLAGGED}\n", cwd=tmp_path)
    )
    assert not first.endswith("[adjusted]")
    assert "owl" in second
    assert second.endswith("[adjusted]")


def test_own_model_takes_any_path(tiny_model, tmp_path):
    assert re.match(
        "(pass|swap|fallback): ", run("own_model/ask.py", tiny_model, "the kettle", cwd=tmp_path)
    )


def test_prometheus_counts_reviews(tmp_path, unused_port):
    lines = run("prometheus/metrics.py", unused_port(), cwd=tmp_path).splitlines()
    assert {re.search('action="(\\w+)"', line)[1]: line.split()[-1] for line in lines[1:]} == {
        "pass": "1.0",
        "swap": "1.0",
    }


def test_the_plugin_of_ones_own(tmp_path, monkeypatch):
    folder = EXAMPLES / "moderator_plugin"
    [code] = re.findall(
        "```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    env = {**os.environ, "PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=env, cwd=tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    plugins = Plugins()
    plugins.add(importlib.import_module("no_shouting"))
    shouting = plugins.make("moderators", Use(use="no_shouting", options={"threshold": 0.7}))
    verdicts = asyncio.run(shouting.moderate(["WHY WOULD I", "why not"], prompts=["", ""]))
    assert [v.decision for v in verdicts] == ["flag", "pass"]


def test_a_chain_of_langchain_answers_through_the_guard(tmp_path):
    assert "owl" in run("langchain/chain.py", FLAGGED, cwd=tmp_path)


@pytest.mark.filterwarnings("ignore:Accessing the 'model_fields':DeprecationWarning")  # theirs
def test_the_answers_of_an_agent_are_mended(monkeypatch):
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    monkeypatch.syspath_prepend(str(EXAMPLES / "langchain"))
    plain = "Take a pencil and draw two circles."
    said = iter([AIMessage("You stupid ugly clown. Nobody likes you."), AIMessage(plain)])
    agent = importlib.import_module("agent").agent(GenericFakeChatModel(messages=said))

    def answer(question):
        turns = {"messages": [{"role": "user", "content": question}]}
        return asyncio.run(agent.ainvoke(turns))["messages"][-1].content

    mended = answer(FLAGGED)
    assert "owl" in mended
    assert "stupid" not in mended
    assert answer("How do I draw an owl?") == plain


def test_a_plugin_of_llm_guards_a_conversation(monkeypatch):
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")
    import llm
    from llm.plugins import pm

    monkeypatch.syspath_prepend(str(EXAMPLES / "llm_plugin"))
    plugin = importlib.import_module("llm_ttsa_guard")
    pm.register(plugin)
    try:
        conversation = llm.get_model("guarded-embedded").conversation()
        first = conversation.prompt(FLAGGED)
        assert "owl" in first.text()
        assert first.response_json["action"] == "swap"
        assert "tent" in conversation.prompt("And how do I choose a tent?").text()
    finally:
        pm.unregister(plugin)


def test_the_hooks_are_those_of_the_readme():
    rows = re.findall(
        r"^\| `(\w+)\((\w+)\)` \|",
        (EXAMPLES / "moderator_plugin" / "README.md").read_text(),
        re.MULTILINE,
    )
    hooks = [getattr(hookspecs, name) for name in dir(hookspecs) if name.startswith("ttsa_")]
    assert dict(rows) == {
        hook.__name__: next(iter(inspect.signature(hook).parameters)) for hook in hooks
    }


@pytest.mark.slow
def test_a_client_of_the_server(tmp_path, serving, unused_port):
    port = unused_port()
    command = [
        sys.executable,
        "-m",
        "nemoguardrails",
        "server",
        "--config",
        str(EXAMPLES / "configs"),
        "--port",
        str(port),
    ]
    health = f"http://127.0.0.1:{port}/v1/health"
    with serving([*command, "--disable-chat-ui"], health, tmp_path / "server.log", cwd=tmp_path):
        adjusted, streamed = run("nemo_server/client.py", port).splitlines()
    assert "owl" in adjusted
    assert "tent" in streamed


@pytest.mark.slow
def test_load_on_a_guarded_endpoint(tmp_path, serving, unused_port):
    load = EXAMPLES / "load"
    first, second = unused_port(), unused_port()
    upstream = f"http://127.0.0.1:{first}"
    guarded = f"http://127.0.0.1:{second}"
    stand_in = [sys.executable, str(load / "upstream.py"), str(first)]
    command = [str(COMMAND), "serve", "--upstream", f"{upstream}/v1"]
    with (
        serving(stand_in, f"{upstream}/v1/models", tmp_path / "upstream.log", cwd=tmp_path),
        serving(
            [*command, "--port", str(second)],
            f"{guarded}/healthz",
            tmp_path / "serve.log",
            cwd=tmp_path,
        ) as server,
    ):
        locust = [sys.executable, "-m", "locust", "-f", str(load / "locustfile.py"), "--headless"]
        users = ["-u", "20", "-r", "20", "-t", "12s", "--only-summary", "--csv", "load"]
        done = subprocess.run(
            [*locust, *users, "--host", guarded, "--pid", str(server.pid), "--growth", "1.3"],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr
    assert "memory: " in done.stdout
    with (tmp_path / "load_stats.csv").open(encoding="utf-8") as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert {"unflagged", "unflagged, streamed"} <= rows.keys()
    assert rows["Aggregated"]["Failure Count"] == "0"
