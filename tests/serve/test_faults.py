"""Keys, limits, and everything that fails: OpenAI's error format, and no text that was flagged."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from ttsa_guard.errors import ConfigError
from ttsa_guard.serve.app import Limits
from ttsa_guard.serve.upstream import base_url
from ttsa_guard.testing import ScriptedBackend, ScriptedModerator

from .conftest import (
    FALLBACK,
    FLAGGED,
    KEY,
    SAFE,
    USER,
    Model,
    ask,
    call,
    completion,
    deltas,
    events,
    make_guard,
    post,
    text_of,
)

CANARY = RuntimeError(FLAGGED)


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"n": 2}, "n", 400),
        ({"logprobs": True}, "logprobs", 400),
        ({"functions": [{}]}, "functions", 400),
        ({"modalities": ["text", "audio"]}, "modalities", 400),
        ({"tools": [{"type": "custom"}]}, "tools", 400),
        ({"stream": "yes"}, "stream", 400),
        ({"stream_options": 1}, "stream_options", 400),
        ({"messages": []}, "messages", 400),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", 400),
        ({"messages": [{"role": "user", "content": 1}]}, "messages", 400),
        ({"messages": [*USER, {"role": "context", "content": "x"}]}, "messages[1].role", 400),
        (b"{", None, 400),
        (b"\xff", None, 400),
        (b"[]", None, 400),
        (b'{"temperature": NaN}', None, 400),
        (b"[" * 99_999, None, 400),
        (b" " * 200_001, None, 413),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(body: Any, param: str, status: int) -> None:
    model = Model()
    found = ask(model, lambda server: post(server, body), limits=Limits(body=200_000))
    assert found[0] == status
    error = found[1]["error"]
    assert (error["type"], error["param"], "; " in error["message"]) == (
        "invalid_request_error",
        param,
        True,
    )
    assert model.asked == []


def test_other_addresses_methods_and_kinds_of_bodies() -> None:
    async def work(server: Any) -> list[Any]:
        found = []
        for method, path in (("GET", "/v1/chat/completions"), ("POST", "/v1/embeddings")):
            async with server.session.request(method, server.url + path) as response:
                found.append((response.status, (await response.json())["error"]["message"][:5]))
        status, _ = await post(server, b"{}", **{"Content-Type": "text/plain"})
        return [*found, status]

    assert ask(Model(), work) == [(405, "this "), (404, "there"), 415]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Basic right", 401),
        ("Bearer r\u00efght", 401),
        ("Bearer right", 200),
        ("bearer right", 200),
    ],
)
def test_clients_need_the_key(header: str | None, status: int) -> None:
    sent = {} if header is None else {"Authorization": header}
    model = Model()
    found, body = ask(model, lambda server: post(server, **sent), key="right")
    assert found == status
    if status == 401:
        assert body["error"]["type"] == "authentication_error"
        assert model.asked == []
    else:
        assert model.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_health_needs_no_key_and_the_rest_does() -> None:
    async def work(server: Any) -> list[int]:
        paths = ("/healthz", "/v1/models", "/metrics")
        return [(await server.session.get(server.url + path)).status for path in paths]

    assert ask(Model(), work, key="right") == [200, 401, 401]
    assert ask(Model(), work) == [200, 200, 501]


def test_models_are_those_of_the_upstream() -> None:
    async def work(server: Any) -> Any:
        async with server.session.get(f"{server.url}/v1/models") as response:
            return await response.json()

    assert ask(Model(), work)["data"][0]["id"] == "remote"
    assert ask(Model(status=500), work)["error"]["code"] == "upstream_failed"


def test_more_than_the_limit_at_the_same_time_come_back_later() -> None:
    async def work(server: Any) -> tuple[list[int], str | None]:
        url, body = f"{server.url}/v1/chat/completions", {"messages": USER}
        found = await asyncio.gather(*(server.session.post(url, json=body) for _ in range(5)))
        [wait] = {r.headers.get("Retry-After") for r in found if r.status == 429}
        assert (await post(server))[0] == 200
        return sorted(r.status for r in found), wait

    found = ask(Model(gap=0.2), work, limits=Limits(concurrency=2))
    assert found == ([200, 200, 429, 429, 429], "1")


# ---------------------------------------------------------------------- the upstream


@pytest.mark.parametrize(
    ("upstream", "told"),
    [(500, 502), (401, 502), (307, 502), (400, 400), (404, 404), (422, 422), (429, 429)],
)
def test_what_the_upstream_says_of_a_failure_is_told_to_nobody(upstream: int, told: int) -> None:
    status, found = ask(Model({"error": {"message": FLAGGED}}, status=upstream))
    assert (status, str(upstream) in found["error"]["message"]) == (told, True)
    assert "seekrit" not in str(found)


@pytest.mark.parametrize(
    "answer",
    [
        b"seekrit no JSON",
        [],
        {"error": {"message": FLAGGED}},
        {"choices": []},
        {"choices": [{"index": 0, "text": FLAGGED}]},
        completion({"seekrit": 1}),  # type: ignore[arg-type]
        completion(None, tool_calls=[{"type": "custom", "custom": {"input": FLAGGED}}]),
        completion(None, tool_calls={"seekrit": 1}),
        completion(None, tool_calls=[call({}, index=5)]),
        completion("x" * 2**22 + "x"),
    ],
    ids=[str(i) for i in range(10)],
)
def test_an_upstream_that_answers_garbage(answer: Any) -> None:
    status, found = ask(Model(answer))
    assert (status, found["error"]["code"]) == (502, "upstream_failed")
    assert "seekrit" not in str(found)


def test_an_upstream_that_is_down(unused_port: Any) -> None:
    status, found = ask(f"http://127.0.0.1:{unused_port()}")
    assert (status, found["error"]["code"]) == (502, "upstream_failed")


def test_an_upstream_that_is_slow() -> None:
    found = ask(Model(gap=5), upstream_seconds=0.1)
    assert (found[0], "took too long" in found[1]["error"]["message"]) == (502, True)
    found = ask(Model(gap=5), limits=Limits(seconds=0.1))
    assert (found[0], found[1]["error"]["code"]) == (504, "timeout")


def test_a_stream_that_is_slow_ends_with_an_error() -> None:
    guard = make_guard(streaming="progressive")
    model = Model(chunks=deltas("One is fine. ", *["Fine. "] * 99), gap=0.05)
    chunks = ask(model, events, guard, limits=Limits(seconds=0.4))
    assert chunks[-1]["error"]["code"] == "timeout"
    assert text_of(chunks[:-1]).startswith("One is fine.")


@pytest.mark.parametrize(
    "url", ["", "host", "ftp://host", "http://", "http://h:99999", "http://k@h"]
)
def test_a_wrong_upstream_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)--upstream .*hint: give an address"):
        base_url(url)


def test_a_base_url_has_a_path() -> None:
    assert base_url("http://h:1/") == base_url("http://h:1/v1/") == "http://h:1/v1"
    assert base_url("https://h/v1beta/openai") == "https://h/v1beta/openai"


# ---------------------------------------------------------------------- the guard


def breaks(what: str) -> Any:
    """A guard of which one part raises the canary."""
    if what == "gate":
        return {"gate": ScriptedModerator(name="gate", error=CANARY)}
    if what == "guide":
        return {"guide": ScriptedModerator(name="guide", error=CANARY)}
    if what == "backend":
        return {"answers": ScriptedBackend([], error=CANARY)}
    return {}


@pytest.mark.parametrize("mode", ["buffered", "progressive"])
@pytest.mark.parametrize("what", ["gate", "guide", "backend", "review", "calls"])
def test_a_guard_that_fails_gives_the_fallback(
    what: str, mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    guard = make_guard(**{"streaming": mode, **breaks(what)})
    if what in ("review", "calls"):

        async def fails(*_: Any, **__: Any) -> Any:
            raise CANARY

        monkeypatch.setattr(guard, "review" if what == "review" else "review_calls", fails)
    calls = [call({"q": "owls"})] if what == "calls" else []
    text = SAFE if what == "calls" else FLAGGED
    parts = [text, *([{"tool_calls": calls}] if calls else [])]
    model = Model(completion(text, tool_calls=calls), chunks=deltas(*parts))

    async def both(server: Any) -> Any:
        return await post(server), await events(server)

    with caplog.at_level(logging.DEBUG):
        (status, plain), chunks = ask(model, both, guard)
    choice = plain["choices"][0]
    assert (status, choice["message"]["content"]) == (200, FALLBACK)
    assert choice["finish_reason"] == "content_filter"
    assert text_of(chunks).strip() == FALLBACK
    assert "tool_calls" not in f"{plain} {chunks}"
    for place in (plain, chunks, caplog.text):
        assert "seekrit" not in str(place)


def test_a_fault_of_the_server_itself_quotes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(*_: Any, **__: Any) -> Any:
        raise CANARY

    monkeypatch.setattr("ttsa_guard.serve.app.reviewed", fails)
    status, found = ask(Model())
    assert (status, found["error"]["code"]) == (500, "internal_error")
    assert "seekrit" not in str(found) + caplog.text
    assert "RuntimeError" in caplog.text


def test_a_client_that_leaves_frees_its_work() -> None:
    gate = ScriptedModerator(name="gate", delay=30)
    guard = make_guard(gate=gate, gate_seconds=30)

    async def leave(server: Any) -> int:
        work = asyncio.ensure_future(post(server))
        while not gate.calls:
            await asyncio.sleep(0.01)
        work.cancel()
        for _ in range(50):
            await asyncio.sleep(0.02)
            if not server.endpoint._running:
                break
        return int(server.endpoint._running)

    assert ask(Model(), leave, guard) == 0
