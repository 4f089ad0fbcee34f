"""The server's life: it listens, stops when it is told to, and lets what runs come to its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from ttsa_guard.cli import app
from ttsa_guard.serve.app import Endpoint
from ttsa_guard.serve.server import serve
from ttsa_guard.serve.upstream import Upstream

from .conftest import SAFE, USER, Model, ask, completion, listening, make_guard, post

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


async def stopped(gap: float, grace: float) -> tuple[int, float]:
    """The status of a request that runs when SIGTERM comes; 0 if it was broken off."""
    model, behind = Model(gap=gap), aiohttp.web.Application()
    behind.router.add_post("/v1/chat/completions", model.chat)
    async with listening(behind) as url, aiohttp.ClientSession() as session:
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        endpoint = Endpoint(make_guard(), Upstream(url))
        server = asyncio.ensure_future(
            serve(endpoint, host="127.0.0.1", port=0, grace=grace, ready=address.set_result)
        )

        async def ask() -> int:
            target = f"{await address}/v1/chat/completions"
            try:
                async with session.post(target, json={"messages": USER}) as response:
                    return response.status
            except aiohttp.ClientError:
                return 0

        asking = asyncio.ensure_future(ask())
        while not model.running:
            await asyncio.sleep(0.01)
        told = asyncio.get_running_loop().time()
        os.kill(os.getpid(), signal.SIGTERM)
        await server
        return await asking, asyncio.get_running_loop().time() - told


@posix
def test_sigterm_lets_what_runs_end() -> None:
    status, seconds = asyncio.run(stopped(gap=0.3, grace=5))
    assert status == 200
    assert seconds < 3


@posix
def test_what_does_not_end_in_time_is_broken_off() -> None:
    status, seconds = asyncio.run(stopped(gap=30, grace=0.1))
    assert status == 0
    assert seconds < 3


def test_a_server_that_stops_sends_new_requests_elsewhere() -> None:
    async def work(server: Any) -> Any:
        await server.endpoint.drain(1)
        return await post(server)

    status, found = ask(Model(), work)
    assert (status, found["error"]["code"]) == (503, "server_stopping")


def test_a_request_that_is_no_http_is_not_quoted_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> bytes:
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        endpoint = Endpoint(make_guard(), Upstream("http://127.0.0.1:1"))
        server = asyncio.ensure_future(
            serve(endpoint, host="127.0.0.1", port=0, grace=1, ready=address.set_result)
        )
        port = int((await address).rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nAuthorization: seekrit\x00\r\n\r\n")
        line = await reader.readline()
        writer.close()
        server.cancel()
        await asyncio.wait({server})
        return line

    assert b" 400 " in asyncio.run(main())
    assert "a connection failed with" in caplog.text
    assert "seekrit" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--upstream", "nowhere"], "--upstream is no address"),
        (["--upstream", "http://h", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["--upstream", "http://h", "--upstream-key-env", "BAD_KEY"], "no header can hold"),
        (["--upstream", "http://h", "--config", "nowhere.yml"], "cannot read nowhere.yml"),
    ],
)
def test_wrong_options_are_told_before_a_model_is_loaded(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_KEY", "two words")
    monkeypatch.setattr("ttsa_guard.cli.common.build_guard", None)
    done = CliRunner().invoke(app, ["serve", *arguments])
    assert done.exit_code == 2
    assert message in done.output
    assert "two words" not in done.output


class _Upstream(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(completion(SAFE)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@posix
@pytest.mark.slow
def test_the_command_serves_with_the_embedded_model(
    tmp_path: Path, serving: Any, unused_port: Any
) -> None:
    upstream = HTTPServer(("127.0.0.1", 0), _Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    port, log = unused_port(), tmp_path / "log"
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "ttsa_guard", "serve", "--port", str(port)]
    command[1:3] = ["-c", "from ttsa_guard.cli import main; main()"]
    command += ["--upstream", f"http://127.0.0.1:{upstream.server_port}"]
    command += ["--api-key-env", "GUARD_KEY"]
    with serving(command, f"{url}/healthz", log, cwd=tmp_path, GUARD_KEY="k3y") as process:
        headers = {"Authorization": "Bearer k3y", "Content-Type": "application/json"}
        data = json.dumps({"messages": USER}).encode()
        asked = urllib.request.Request(f"{url}/v1/chat/completions", data, headers)
        with urllib.request.urlopen(asked) as response:
            assert json.load(response)["choices"][0]["message"]["content"] == SAFE
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/metrics", headers=headers)
        ) as response:
            numbers = response.read().decode()
        assert 'ttsa_guard_reviews_total{action="pass"' in numbers
        assert "ttsa_guard_requests_total{" in numbers
        assert "ttsa_guard_requests_running" in numbers
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    upstream.shutdown()
    upstream.server_close()
    assert "listening on" in log.read_text()
    assert "k3y" not in log.read_text()
