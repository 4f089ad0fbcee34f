"""A chat model behind a local server that speaks OpenAI's protocol, and the command `init`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from ttsa_guard.cli import app

RUDE = "Listen, you lazy fool, even a child can draw the owl."
GOOD = "Begin with two circles for the head and the body, and add the beak and the wings."
QUESTION = "How do I draw an owl?"
KEY = "sk-very-secret"


def rude(conversation: str, last: str) -> str:
    """Say something rude; mend it when asked to; and judge as a judge is asked to."""
    if "Should the" in conversation:  # the host's self checks
        return "Yes" if "lazy fool" in conversation else "No"
    if last.rstrip().endswith("user intent:"):  # Colang 2.x, and what the bot does then
        return " user asked how to draw an owl\n"
    if last.rstrip().endswith("bot intent:"):
        return f' bot answer the question\nbot action: bot say "{RUDE}"'
    return GOOD if "last answer was not acceptable" in last else RUDE


class Remote:
    """The server. It keeps what it is asked, and the keys that come with it."""

    def __init__(self, answer: Callable[[str, str], str]) -> None:
        self.url, self._answer = "", answer
        self.asked: list[list[dict[str, str]]] = []
        self.keys: set[str | None] = set()

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.keys.add(request.headers.get("Authorization"))
        self.asked.append(body["messages"])
        texts = [message["content"] for message in body["messages"]]
        said = {"role": "assistant", "content": self._answer("\n".join(texts), texts[-1])}
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12},
            }
        )


@contextmanager
def remote(answer: Callable[[str, str], str] = rude) -> Iterator[Remote]:
    """Run the server in a thread, because apps of the host have event loops of their own."""
    server, loop = Remote(answer), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", server.chat)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, without keys and profiles."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "COLANGPATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def init(*arguments: Any, said: str | None = None) -> Result:
    """Run the command; without `said` nothing is asked."""
    silent = ["--yes"] if said is None else []
    return CliRunner().invoke(app, ["init", *map(str, arguments), *silent], input=said)
