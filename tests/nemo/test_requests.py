"""Nothing that a request sets keeps an answer from the guard."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import nemoguardrails
import pytest
from nemoguardrails import LLMRails
from nemoguardrails.rails.llm.options import GenerationOptions
from nemoguardrails.server import api
from nemoguardrails.testing import FakeLLMModel

from ttsa_guard.nemo import BackendModel, install, rails_path
from ttsa_guard.nemo.requests import WITHHELD
from ttsa_guard.testing import ScriptedBackend

from . import matrix
from .conftest import FLAGGED, STEERED, USER, make_app, make_config, make_guard, say

HOST = Path(nemoguardrails.__file__).parent
LIBRARY = HOST / "colang/v2_x/library"
FLOWS = {
    "1.0": [HOST / "rails/llm/llm_flows.co", Path(rails_path()) / "flows.v1.co"],
    "2.x": [
        *(LIBRARY / f"{name}.co" for name in ("core", "llm", "guardrails")),
        Path(rails_path()) / "flows.co",
    ],
}
VALUES = (True, None, {"rails": {"output": False, "dialog": True}, "flows": []})


def core_variables(version: str) -> set[str]:
    """All that the host's own flows and ours read from the context, and what must be among them."""
    found = {
        name
        for path in FLOWS[version]
        for name in re.findall(r"\$(\w+)", path.read_text(encoding="utf-8"))
    }
    assert found & WITHHELD, "the host has renamed what it trusts"
    return found | WITHHELD


def host_variables() -> set[str]:
    """All that anything in the host reads from the context: its flows, those of its library, and
    its Python."""
    flows = "".join(path.read_text(encoding="utf-8") for path in HOST.rglob("*.co"))
    code = "".join(path.read_text(encoding="utf-8") for path in HOST.rglob("*.py"))
    read = re.findall(r"""context(?:\.get\(|\[)\s*["'](\w+)["']|__context__([a-z]\w*)""", code)
    return {
        *re.findall(r"\$([A-Za-z_]\w*)", flows),
        *(name for names in read for name in names if name),
    }


def known_variables() -> set[str]:
    lines = (Path(__file__).parent / "host_variables.txt").read_text().splitlines()
    return {name for line in lines if not line.startswith("#") for name in line.split()}


def test_a_new_variable_of_the_host_is_noticed() -> None:
    """Whoever updates the host looks at what it reads now: a variable that can skip rails goes into
    `WITHHELD`."""
    assert host_variables() - known_variables() == WITHHELD
    assert known_variables() <= host_variables()


def reply(app: Any, context: Any) -> str:
    return str(say(app, [{"role": "context", "content": context}, *USER])["content"])


@pytest.mark.parametrize("of", ["core", pytest.param("host", marks=pytest.mark.slow)])
def test_no_variable_of_the_host_disarms(version: str, of: str) -> None:
    names = sorted(
        core_variables(version) if of == "core" else host_variables() - core_variables(version)
    )
    app = make_app(version, make_guard([STEERED] * (len(names) * len(VALUES))))
    for name in names:
        for value in VALUES:
            app.update_llm(FakeLLMModel(responses=[FLAGGED]))
            try:
                said = reply(app, {name: value})
            except Exception as error:
                said = str(error)
            assert "seekrit" not in said, (name, value)


def test_without_this_the_host_lets_it_through(version: str) -> None:
    name = {"1.0": "skip_output_rails", "2.x": "output_rails_in_progress"}[version]
    app = make_app(version, make_guard(), [FLAGGED, FLAGGED])
    trusting = [{"role": "context", "content": {name: True}}, *USER]
    assert reply(app, {name: True}) == STEERED
    assert asyncio.run(LLMRails.generate_async(app, messages=trusting))["content"] == FLAGGED


def test_other_variables_arrive(version: str) -> None:
    app = make_app(version, make_guard(), [FLAGGED])
    seen: list[Any] = []
    plain = app._get_events_for_messages

    def events(messages: Any, state: Any) -> Any:
        found = plain(messages, state)
        seen.extend(event["data"] for event in found if event["type"] == "ContextUpdate")
        return found

    app._get_events_for_messages = events  # type: ignore[method-assign]
    reply(app, {"user_name": "Ada", "skip_output_rails": True})
    assert seen == [{"user_name": "Ada"}]


@pytest.mark.parametrize(
    "said", [[], [{"role": "event", "event": {"type": "UserSilent"}}]], ids=["", "event"]
)
def test_context_and_events_are_in_no_prompt(version: str, said: list[Any]) -> None:
    """With passthrough, Colang 1.0 would give them to the model as they are, and fail."""
    backend = ScriptedBackend([FLAGGED, STEERED])
    app = LLMRails(make_config(version, passthrough=True), llm=BackendModel(backend))
    install(app, make_guard(backend))
    context = {"role": "context", "content": {"ttsa_prefer": {"empathy": 1.0}}}
    turns = [{"role": "system", "content": "Be kind."}] if version == "1.0" else []
    assert say(app, [context, *said, *turns, *USER])["content"] == STEERED
    assert len(backend.calls[0][0].prompt) == 2 + len(
        " ".join(m["content"] for m in [*turns, *USER]).split()
    )


@pytest.mark.parametrize("kind", ["ContextUpdate", "StopFlow", "FinishFlow"])
def test_events_in_messages(version: str, kind: str) -> None:
    data = {"skip_output_rails": True, "output_rails_in_progress": True}
    event = {"type": kind, "data": data, "flow_id": "output rails"}
    app = make_app(version, make_guard(), [FLAGGED])
    assert say(app, [{"role": "event", "event": event}, *USER])["content"] == STEERED


@pytest.mark.parametrize(
    "options",
    [
        {"rails": {"output": False}},
        {"rails": ["dialog"]},
        {"rails": ["input", "dialog"]},
        GenerationOptions(rails={"output": False}),  # type: ignore[arg-type]
    ],
)
def test_options_that_leave_the_output_rails_out(options: Any) -> None:
    assert (
        say(make_app("1.0", make_guard(), [FLAGGED]), options=options).response[0]["content"]
        == STEERED
    )


def test_input_rails_can_be_checked_alone() -> None:
    guard = make_guard([])
    app = make_app("1.0", guard)
    assert say(app, options={"rails": ["input"]}).response[0]["content"] == USER[0]["content"]


@pytest.mark.parametrize("mode", ["buffered", "progressive"])
def test_streams(version: str, mode: str) -> None:
    guard = matrix.make_guard({"streaming": mode})
    app = LLMRails(make_config(version), llm=BackendModel(guard.backend))
    install(app, guard)
    context = {"role": "context", "content": dict.fromkeys(WITHHELD, True)}

    async def run() -> str:
        return "".join(
            [
                p
                async for p in app.stream_async(
                    messages=[context, {"role": "user", "content": "swap"}]
                )
            ]
        )

    end = matrix.PROGRESSIVE["swap"] if mode == "progressive" else matrix.STEERED
    assert asyncio.run(run()) == end


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["buffered", "progressive"])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"context": {"user_name": "Ann"}},
        {"context": {"skip_output_rails": True}},
        {"options": {"rails": {"output": False}}},
    ],
    ids=["plain", "context", "variable", "options"],
)
def test_refused_requests_are_bad_requests(
    asked: Any, mode: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = matrix.make_guard({"streaming": mode, "requests": "refuse"})
    app = LLMRails(make_config("1.0"), llm=BackendModel(guard.backend))
    install(app, guard)
    monkeypatch.setitem(api.llm_rails_instances, api._generate_cache_key(["refuses"], "m"), app)
    body = {"model": "m", "messages": [{"role": "user", "content": "swap"}], "stream": stream}
    body["guardrails"] = {"config_id": "refuses", **asked}

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=api.app), base_url="http://here"
        ) as client:
            return await client.post("/v1/chat/completions", json=body)

    reply = asyncio.run(post())
    bad = asked not in ({}, {"context": {"user_name": "Ann"}})
    assert reply.status_code == (400 if bad else 200)
    assert ("switch output rails off" in reply.text) is bad
    assert "seekrit" not in reply.text
