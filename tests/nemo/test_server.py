"""The host's own server, a process of its own, asked with the OpenAI client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import COLANG
from .matrix import ENDS, PROGRESSIVE, STEERED

openai = pytest.importorskip("openai", reason="pip install 'ttsa-guard[server]'")
pytestmark = pytest.mark.slow


@dataclass
class Server:
    url: str
    log: Path

    def ask(
        self, config: str, text: Any, *, stream: bool = False, model: str = "any", **guardrails: Any
    ) -> Any:
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        with openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=20
        ) as client:
            body = {"guardrails": {"config_id": config, **guardrails}}
            reply = client.chat.completions.create(
                model=model, messages=messages, stream=stream, extra_body=body
            )
            return "".join(c.choices[0].delta.content or "" for c in reply) if stream else reply


def write(folder: Path, version: str, settings: dict[str, Any], code: str, **output: Any) -> None:
    folder.mkdir()
    model = {"type": "main", "engine": "ttsa_guard", "model": "embedded"}
    config = {
        "models": [model],
        "colang_version": version,
        "custom_data": {"ttsa_guard": settings},
        "passthrough": True,
    }
    if version == "1.0":
        config["rails"] = {"output": {"flows": [], **output}}
    else:
        (folder / "main.co").write_text(COLANG[version])
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    (folder / "config.py").write_text(code)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, serving: Any, unused_port: Any
) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("server")
    for version in ("1.0", "2.x"):
        for mode in ("buffered", "progressive"):
            write(
                root / f"{version}-{mode}",
                version,
                {"streaming": mode},
                "from tests.nemo.matrix import init\n",
            )
    write(root / "refused", "1.0", {}, "from tests.nemo.matrix import init\n", parallel=True)
    log, port = root.parent / "server.log", unused_port()
    command = [
        sys.executable,
        "-m",
        "nemoguardrails",
        "server",
        "--config",
        str(root),
        "--port",
        str(port),
        "--disable-chat-ui",
    ]
    found = Server(f"http://127.0.0.1:{port}", log)
    with serving(
        command, f"{found.url}/v1/health", log, cwd=root, PYTHONPATH=str(Path(__file__).parents[2])
    ):
        yield found


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streaming"])
@pytest.mark.parametrize("mode", ["buffered", "progressive"])
@pytest.mark.parametrize("version", ["1.0", "2.x"])
def test_the_user_reads_the_right_text(
    server: Server, version: str, mode: str, stream: bool
) -> None:
    ends = PROGRESSIVE if mode == "progressive" and stream else ENDS
    for case, end in ends.items():
        reply = server.ask(f"{version}-{mode}", case, stream=stream)
        assert (reply if stream else reply.choices[0].message.content) == end, case
    assert "seekrit" not in server.log.read_text()


def test_a_client_that_asks_for_everything(server: Server) -> None:
    log = {
        "activated_rails": True,
        "llm_calls": True,
        "internal_events": True,
        "colang_history": True,
    }
    options = {"log": log, "output_vars": True, "llm_output": True}
    for case in ENDS:
        reply = server.ask("1.0-buffered", case, options=options)
        assert reply.guardrails["log"]["activated_rails"]
        assert "seekrit" not in reply.model_dump_json(), case


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streaming"])
@pytest.mark.parametrize("version", ["1.0", "2.x"])
def test_a_client_that_switches_the_rails_off(server: Server, version: str, stream: bool) -> None:
    context = {
        "skip_output_rails": True,
        "output_rails_in_progress": True,
        "generation_options": {"rails": {"output": False}},
    }
    ways: list[dict[str, Any]] = [{"context": context}]
    if version == "1.0":
        ways += [
            {"options": {"rails": {"output": False}}},
            {"options": {"rails": ["input", "dialog"]}},
        ]
    for way in ways:
        reply = server.ask(f"{version}-buffered", "swap", stream=stream, **way)
        assert (reply if stream else reply.choices[0].message.content) == STEERED, way


def test_several_turns(server: Server) -> None:
    turns: list[Any] = []
    for case in ("swap", "pass", "swap"):
        turns.append({"role": "user", "content": case})
        turns.append(
            {
                "role": "assistant",
                "content": server.ask("1.0-buffered", turns).choices[0].message.content,
            }
        )
    assert [t["content"] for t in turns[1::2]] == [ENDS["swap"], ENDS["pass"], ENDS["swap"]]


@pytest.mark.parametrize("stream", [False, True])
def test_turns_in_colang_2_are_beyond_the_host(server: Server, stream: bool) -> None:
    turns = [
        {"role": "user", "content": "pass"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "swap"},
    ]
    try:
        reply = server.ask("2.x-buffered", turns, stream=stream)
    except openai.APIError as error:
        reply = str(error)
    assert "seekrit" not in str(reply)
    assert STEERED not in str(reply)


@pytest.mark.parametrize("name", ["embedded", "gpt-5", "some/other-model"])
def test_any_model_name_is_answered(server: Server, name: str) -> None:
    assert server.ask("1.0-buffered", "pass", model=name).choices[0].message.content == ENDS["pass"]


def test_a_refused_set_up_answers_nothing_and_says_why_in_the_log(server: Server) -> None:
    with pytest.raises(openai.InternalServerError):
        server.ask("refused", "pass")
    assert "hint: remove parallel: true" in server.log.read_text()
